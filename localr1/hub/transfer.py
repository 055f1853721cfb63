"""One file from the hub to the disk, from the byte where it stopped.

Owns the requests for one file's bytes, the unfinished file they are appended to, and the retries. Knows nothing of
repositories or of where finished files go. Invariant: an unfinished file holds a prefix of what was received, and
stopping anywhere (Ctrl-C, a closed generator, a kill) leaves it so.
"""

import os
import re
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from huggingface_hub import constants, get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError

from localr1.errors import CorruptError, NetworkError
from localr1.events import Notice
from localr1.hub.failures import is_timeout, may_pass
from localr1.hub.remote import Digest, RemoteFile

CHUNK_BYTES = 128 << 10
HASH_BYTES = 512 << 10
HASHES_BEHIND = 8
RECEIVE_BYTES = 1 << 20
SYNC_EVERY_S = 10.0
"""So much of a download may a power loss cost. A file that is removed sooner need never reach the disk."""
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
LONGEST_WAIT_S = 60.0
NAP_S = 0.2
CONTENT_RANGE = re.compile(r"bytes (\d+)-")


class Behind:
    """A running hash that is fed by a thread of its own, so that a file need not wait for it."""

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        self._thread = ThreadPoolExecutor(1, "hash")
        self._fed: deque[Future[None]] = deque()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def update(self, chunk: bytes) -> None:
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        if self._waiting_bytes >= HASH_BYTES:
            self._feed()

    def hexdigest(self) -> str:
        self._feed()
        while self._fed:
            self._fed.popleft().result()
        return self._digest.hexdigest()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _feed(self) -> None:
        """Hand over what waits, staying at most `HASHES_BEHIND` such pieces ahead."""
        chunks, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._fed.append(self._thread.submit(_update, self._digest, chunks))
        if len(self._fed) > HASHES_BEHIND:
            self._fed.popleft().result()


def _update(digest: Digest, chunks: list[bytes]) -> None:
    for chunk in chunks:
        digest.update(chunk)


class Unfinished:
    """The bytes of a file that have arrived, with their running hash.

    One thread adds to it; another may `read` what is there. `attempt` counts how often the file was begun, so that who
    read something can tell whether it was of what proved right.
    """

    def __init__(self, path: Path, file: RemoteFile) -> None:
        self._remote = file
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._reader = path.open("rb", buffering=0)
        self._reading = Lock()
        self.attempt = 1
        self._digest = Behind(file.new_digest())
        self._disk = ThreadPoolExecutor(1, "sync")
        self._syncing: Future[None] | None = None
        self._synced_s = time.monotonic()
        self.done_bytes = 0
        while chunk := self._file.read(CHUNK_BYTES):
            self._digest.update(chunk)
            self.done_bytes += len(chunk)
        if self.done_bytes > file.size_bytes:
            self.restart()

    def append(self, chunk: bytes) -> None:
        if self.done_bytes + len(chunk) > self._remote.size_bytes:
            raise CorruptError(
                f"the hub sends more than the {self._remote.size_bytes} bytes that {self._remote.path} has",
                "try again later; if it stays so, the repository is broken",
            )
        self._digest.update(chunk)
        left = memoryview(chunk)
        while left:
            left = left[self._file.write(left) :]
        self.done_bytes += len(chunk)
        if time.monotonic() - self._synced_s >= SYNC_EVERY_S:
            self._begin_sync()

    def read(self, start: int, into: memoryview) -> int | None:
        """Fill `into` with what follows byte `start`; returns the attempt that it is of, None if it is not here."""
        with self._reading:
            if self._reader.closed or start + len(into) > self.done_bytes:
                return None
            self._reader.seek(start)
            return self.attempt if self._reader.readinto(into) == len(into) else None

    def restart(self) -> None:
        with self._reading:
            self._file.seek(0)
            self._file.truncate()
            self.done_bytes = 0
            self.attempt += 1
        self._digest.close()
        self._digest = Behind(self._remote.new_digest())

    @property
    def size_bytes(self) -> int:
        return self._remote.size_bytes

    @property
    def is_whole(self) -> bool:
        return self.done_bytes == self._remote.size_bytes

    @property
    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    @property
    def is_right(self) -> bool:
        return self.is_whole and self.hexdigest == self._remote.oid

    def sync(self) -> None:
        """Return once the bytes would survive a power loss."""
        self._begin_sync()
        self._end_sync()

    def close(self) -> None:
        self._digest.close()
        self._disk.shutdown()
        self._file.close()
        with self._reading:
            self._reader.close()

    def _begin_sync(self) -> None:
        """Have what is here written to the disk while more arrives; waits for the last time that this was asked."""
        self._end_sync()
        self._syncing = self._disk.submit(os.fsync, self._file.fileno())
        self._synced_s = time.monotonic()

    def _end_sync(self) -> None:
        if self._syncing is not None:
            self._syncing.result()


@contextmanager
def unfinished(path: Path, file: RemoteFile) -> Iterator[Unfinished]:
    """What has come of a file; it stays for the next run, unless it proves wrong."""
    try:
        with closing(Unfinished(path, file)) as part:
            yield part
    except CorruptError:
        path.unlink(missing_ok=True)
        raise


def receive(
    part: Unfinished, url: str, headers: dict[str, str], file: RemoteFile, *, durable: bool
) -> Generator[int | Notice, None, None]:
    """Complete an unfinished file; yields the bytes it has so far, and notices about retries.

    On return it is whole, verified and, if `durable`, safe from a power loss: without, do not call it whole for good.
    A file that proves wrong is fetched once more from its start.
    Raises CorruptError when what the hub sends does not match `file.oid`, the client's errors when it gives up.
    """
    yield part.done_bytes
    yield from _fill(part, url, headers, file, file.size_bytes)
    if not part.is_right:
        yield Notice(f"{file.path} does not match its hash; fetching it again")
        part.restart()
        yield from _fill(part, url, headers, file, file.size_bytes)
    if not part.is_right:
        raise CorruptError(
            f"{file.path} does not match its hash: {part.hexdigest}, the hub promised {file.oid}",
            "try again; if it stays so, something between you and the hub changes files, or the disk is bad",
        )
    if durable:
        part.sync()


def receive_start(
    url: str, headers: dict[str, str], file: RemoteFile, path: Path, length: int
) -> Generator[int | Notice, None, None]:
    """Have the first `length` bytes of a file, or more, in the unfinished `path`; its hash is checked at its end."""
    if path.exists() and path.stat().st_size >= min(length, file.size_bytes):
        return
    with closing(Unfinished(path, file)) as part:
        yield from _fill(part, url, headers, file, min(length, file.size_bytes))


def _fill(
    part: Unfinished, url: str, headers: dict[str, str], file: RemoteFile, until: int
) -> Generator[int | Notice, None, None]:
    """Append up to byte `until`; gives up after as many failures in a row without a new byte as there are WAITS_S."""
    failures = 0
    while part.done_bytes < until:
        before = part.done_bytes
        trouble: Exception
        try:
            with _answer(part, url, headers, until) as chunks:
                for chunk in chunks:
                    part.append(chunk)
                    yield part.done_bytes
                    if part.done_bytes >= until < file.size_bytes:
                        return
            if part.done_bytes >= until:
                return
            text = f"the hub ends {file.path} after {part.done_bytes} of {file.size_bytes} bytes"
            trouble = NetworkError(text, "try again later; if it stays so, the repository is broken")
        except Exception as error:
            if not may_pass(error):
                raise
            trouble = error
        failures = 1 if part.done_bytes > before else failures + 1
        if failures > len(WAITS_S):
            raise trouble
        wait_s = _wait(trouble, failures)
        yield Notice(f"{file.path}: {_reason(trouble)}; trying again in {wait_s:g} s")
        for nap_s in _naps(wait_s):
            time.sleep(nap_s)
            yield part.done_bytes


def _naps(wait_s: float) -> Iterator[float]:
    """A wait in pieces short enough that whoever wants to stop is not kept."""
    while wait_s > 0:
        yield min(wait_s, NAP_S)
        wait_s -= NAP_S


@contextmanager
def _answer(part: Unfinished, url: str, headers: dict[str, str], until: int) -> Iterator[Iterator[bytes]]:
    """The chunks that follow what `part` has; if the server starts over, so does `part`."""
    wanted = {**headers, "Accept-Encoding": "identity"}
    last = "" if until == part.size_bytes else str(until - 1)
    if part.done_bytes or last:
        wanted["Range"] = f"bytes={part.done_bytes}-{last}"
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=wanted, timeout=timeout_s, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if part.done_bytes and response.status_code != 206:
            part.restart()
        elif part.done_bytes:
            start = CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if start is None or int(start[1]) != part.done_bytes:
                raise NetworkError(
                    f"asked for bytes from {part.done_bytes}, the hub sends {response.headers.get('Content-Range')!r}",
                    "a proxy may be in the way; try another network",
                )
        yield _body(response, timeout_s) if part.attempt == 1 else response.iter_bytes()


def _body(response: Any, timeout_s: float) -> Iterator[bytes]:
    """The bytes of a long answer of known length, read off the connection, which is of no use afterwards.

    The client's parser copies every byte three times, holding Python's lock, which on a fast line takes longer than
    all else that is done with it. When it has given its first bytes it holds none back, and the rest of such a body
    comes over the connection as it is. Whoever does not trust that uses `iter_bytes`; a file has its hash.
    """
    chunks, stream = response.iter_bytes(), response.extensions.get("network_stream")
    left = _plain_length(response)
    if stream is None or left <= RECEIVE_BYTES:  # after a small file the connection is of use
        yield from chunks
        return
    for chunk in chunks:
        yield chunk
        left -= len(chunk)
        if chunk:
            break
    while left > 0 and (chunk := stream.read(min(RECEIVE_BYTES, left), timeout=timeout_s)):
        yield chunk
        left -= len(chunk)


def _plain_length(response: Any) -> int:
    """Of a body that is sent in one piece, as it is; else 0."""
    if response.http_version != "HTTP/1.1" or response.headers.keys() & {"transfer-encoding", "content-encoding"}:
        return 0
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else 0


def _wait(trouble: Exception, failures: int) -> float:
    """What the server asks for in Retry-After, else a little longer after every failure."""
    if isinstance(trouble, HfHubHTTPError):
        asked = trouble.response.headers.get("Retry-After", "")
        if asked.isdigit():
            return min(float(asked), LONGEST_WAIT_S)
    return WAITS_S[failures - 1]


def _reason(trouble: Exception) -> str:
    if isinstance(trouble, HfHubHTTPError):
        return f"the hub answered with status {trouble.response.status_code}"
    if is_timeout(trouble):
        return "nothing came for too long"
    return "the answer was cut short" if isinstance(trouble, NetworkError) else "the connection broke"
