"""From a repository of the hub to its files on this disk: resumed, verified, shared with the Hugging Face cache.

Owns the order of things: tell, reuse, fetch, verify, give names. What a file's bytes go through is `transfer`; where
they lie is `hub_cache`. Invariant: every file that is handed out has the hash that the hub states for it.
"""

import shutil
from collections import deque
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers

from localr1 import __version__
from localr1.errors import DiskError, is_full
from localr1.events import DownloadPlan, Event, FetchProgress, Notice
from localr1.hub.failures import AGAIN
from localr1.hub.hub_cache import HashedFiles, HubCache, hash_into, remember
from localr1.hub.parallel import Job, Parallel, Report
from localr1.hub.remote import Listing, RemoteFile
from localr1.hub.room import SPARE_BYTES, by_disk
from localr1.hub.source import HubRepo, Snapshot
from localr1.hub.transfer import Unfinished, receive, receive_start, unfinished
from localr1.hub.turns import SHARDS_AT_ONCE, Turns
from localr1.quantities import bytes_text

CONNECTIONS = 4
STORE_SHARE = 0.52
"""Of a 16-bit checkpoint, what its 8-bit store takes, where nothing better is known."""
LENGTH_BYTES = 8
LONGEST_HEADER_BYTES = 100_000_000
TURN_S = 0.1


@dataclass(frozen=True)
class Arrived:
    """A shard that is whole and verified; of what was read of it before, only what was of this attempt is."""

    name: str
    path: Path
    attempt: int


class Download:
    """The files of one commit on their way; close it when done.

    With a `scratch` folder the shards are this program's alone: `release` removes one, at most as many bytes as two
    shards have wait to be released, and what `scratch` remembers of them spares asking again. Without, they stay in the
    Hugging Face cache for everyone.
    """

    def __init__(
        self, repo: HubRepo, listing: Listing, *, scratch: Path | None = None, connections: int = CONNECTIONS
    ) -> None:
        self._repo, self._listing, self._connections = repo, listing, connections
        self._cache = HubCache(repo)
        self._scratch = scratch
        self._hashed = HashedFiles()
        self._headers = build_hf_headers(library_name="localr1", library_version=__version__)
        self._done_bytes = {file.path: self._bytes_here(file) for file in listing.files}
        self._total_bytes = sum(file.size_bytes for file in listing.files)
        self._files: tuple[RemoteFile, ...] = ()
        self._parallel = Parallel([], 1, lambda _index, _idle: True)
        self._turns = Turns()
        self._released: set[str] = set()
        self._locks = {file.oid: Lock() for file in listing.files}
        self.arrived: deque[Arrived] = deque()
        self.growing: dict[str, Unfinished] = {}

    @property
    def snapshot(self) -> Snapshot:
        """Where the files lie that are shared with other tools."""
        return Snapshot(self._cache.snapshot(self._listing.commit), self._repo.repo_id, self._listing.commit)

    @property
    def keeps_source(self) -> bool:
        """Whether the shards stay when all is done."""
        return self._scratch is None

    @property
    def shard_bytes(self) -> dict[str, int]:
        """Sizes of the shards."""
        return {file.path: file.size_bytes for file in self._listing.shards}

    @property
    def finished(self) -> bool:
        return self._parallel.finished

    def close(self) -> None:
        self._parallel.close()

    def plan(self, store_folder: Path, reserved_bytes: int) -> DownloadPlan:
        """What is going to happen, before it does; `reserved_bytes` of the store are on its disk already."""
        entry, total_bytes = self._repo.entry, sum(file.size_bytes for file in self._listing.shards)
        store_bytes = self._listing.parameters or (entry.store_bytes if entry else int(STORE_SHARE * total_bytes))
        needs = [(self._cache.root, self._source_need_bytes()), (store_folder, max(0, store_bytes - reserved_bytes))]
        return DownloadPlan(
            model=self._repo.repo_id,
            revision=self._listing.commit,
            files=len(self._listing.files),
            fetch_bytes=self._total_bytes - sum(self._done_bytes.values()),
            total_bytes=self._total_bytes,
            store_bytes=store_bytes,
            disks=by_disk(needs),
            licence=self._listing.licence,
            gated=self._listing.gated,
            keeps_source=self.keeps_source,
        )

    def small_files(self) -> Generator[Event, None, Path]:
        """Configuration and tokenizer, in the Hugging Face cache; returns their folder."""
        self._cache.make_folders(self._listing.commit)
        self._begin(self._listing.small, [self._obtain_job(file, shared=True) for file in self._listing.small])
        while not self.finished:
            yield from self.news(wait=True)
        self.arrived.clear()
        return self.snapshot.folder

    def heads(self) -> Generator[Event, None, dict[str, bytes]]:
        """The first bytes of every shard, its whole header among them."""
        heads = {file.path: self._head_here(file) for file in self._listing.shards}
        missing = tuple(file for file in self._listing.shards if heads[file.path] is None)
        self._begin(missing, [self._head_job(file) for file in missing])
        while not self.finished:
            yield from self.news(wait=True)
        self.arrived.clear()
        for file in missing:
            heads[file.path] = self._head_here(file)
        for file in self._listing.shards:
            if self._scratch is not None and (head := heads[file.path]) is not None:
                self._remember(self._memory(file, "header"), head)
        return {name: head for name, head in heads.items() if head is not None}

    def forget_heads(self) -> None:
        """The headers made no sense, or not the same as the whole files': have them sent again."""
        for file in self._listing.shards:
            if self._scratch is not None:
                self._memory(file, "header").unlink(missing_ok=True)
            self._cache.unfinished(file.oid).unlink(missing_ok=True)

    def start(self, names: Collection[str]) -> None:
        """Begin to fetch these shards; `news` tells how it goes and fills `arrived`. The others are not needed: what is
        this program's of them goes."""
        shards = tuple(file for file in self._listing.shards if file.path in names)
        for file in self._listing.shards:
            if file.path not in names:
                self._done_bytes[file.path] = file.size_bytes
                if self._scratch is not None and all(file.oid != wanted.oid for wanted in shards):
                    self._cache.release(file)
        shared = self._scratch is None
        turns = Turns() if shared else Turns(max(self.shard_bytes.values()))
        self._begin(shards, [self._obtain_job(file, shared) for file in shards], turns)

    def news(self, wait: bool) -> Iterator[Event]:
        """What happened since; with `wait`, not before something did. Raises what went wrong."""
        for report in self._parallel.next_reports(wait):
            yield from self._tell(report)

    def release(self, name: str) -> None:
        """A shard is no longer needed: if it is this program's, it goes, and the next may come."""
        file = self._turns.end(name)
        if file is not None and self._scratch is not None:
            self._remember(self._memory(file, "done"), b"")
            self._released.add(name)
            if all(other.path in self._released for other in self._files if other.oid == file.oid):
                self._cache.release(file)

    def publish(self) -> None:
        """All files are in the shared cache: say which commit the revision is, so that it is found without the hub."""
        self._cache.set_ref(self._repo.revision or "main", self._listing.commit)

    def release_all(self) -> None:
        """The store is whole: what is this program's of any shard goes."""
        if self._scratch is not None:
            for file in self._listing.shards:
                self._cache.release(file)

    def _tell(self, report: Report) -> Iterator[Event]:
        file, news = self._files[report.index], report.news
        if isinstance(news, BaseException):
            self.close()
            raise self._full_disk() if is_full(news) else news
        if isinstance(news, Notice):
            yield news
            return
        if isinstance(news, Path):
            part = self.growing.pop(file.path, None)
            self.arrived.append(Arrived(file.path, news, part.attempt if part else 0))
            news = self._bytes_here(file)
        self._done_bytes[file.path] = news
        done_bytes = sum(self._done_bytes.values())
        yield FetchProgress(file.path, news, file.size_bytes, done_bytes, self._total_bytes)

    def _remember(self, path: Path, content: bytes) -> None:
        try:
            remember(path, content)
        except OSError as error:
            if not is_full(error):
                raise
            hint = f"free {bytes_text(SPARE_BYTES)} more, or set LOCALR1_HOME to a larger disk; then {AGAIN}"
            raise DiskError(f"the disk of {path.parent} is full", hint) from error

    def _full_disk(self) -> DiskError:
        """How much room must be made."""
        missing_bytes = self._source_need_bytes() + SPARE_BYTES - shutil.disk_usage(self._cache.root).free
        return DiskError(
            f"the disk of {self._cache.root} is full",
            f"free {bytes_text(max(missing_bytes, SPARE_BYTES))} more, or set HF_HOME to a larger disk; then {AGAIN}",
        )

    def _begin(self, files: tuple[RemoteFile, ...], jobs: list[Job], turns: Turns | None = None) -> None:
        self._files, self._turns = files, turns or Turns()
        self._released.clear()
        self._parallel = Parallel(jobs, self._connections, self._may_start)

    def _may_start(self, index: int, idle: bool) -> bool:
        return self._turns.take(self._files[index], self._done_bytes, idle)

    def _obtain_job(self, file: RemoteFile, shared: bool) -> Job:
        return lambda: self._obtain(file, shared)

    def _obtain(self, file: RemoteFile, shared: bool) -> Generator[int | Notice, None, Path]:
        """One file from the cache or the hub, verified, under its name; files of the same content one by one."""
        lock = self._locks[file.oid]
        while not lock.acquire(timeout=TURN_S):
            yield self._bytes_here(file)
        try:
            return (yield from self._obtain_alone(file, shared))
        finally:
            lock.release()

    def _obtain_alone(self, file: RemoteFile, shared: bool) -> Generator[int | Notice, None, Path]:
        commit = self._listing.commit
        content = self._cache.find(file, commit)
        if content is not None and not (yield from self._is_right(file, content)):
            yield Notice(f"{file.path} in the Hugging Face cache is damaged; fetching it again")
            self._cache.discard(file, commit)
            content = None
        if content is None:
            content = self._cache.unfinished(file.oid)
            with unfinished(content, file) as part:
                self.growing[file.path] = part
                yield from receive(part, self._url(file), self._headers, file, durable=shared)
            if not shared:
                content = self._cache.keep_private(file, content)
        if shared:
            self._cache.add(file, commit, content)
            content = self._cache.snapshot(commit) / file.path
        if content != self._cache.private(file.oid):  # which need not be on the disk yet: another run hashes it
            self._hashed.add(content, file.oid)
        return content

    def _is_right(self, file: RemoteFile, content: Path) -> Generator[int, None, bool]:
        """Hash a file that was here before, unless that was done since it last changed."""
        if self._hashed.knows(content, file.oid):
            return True
        digest = file.new_digest()
        yield from hash_into(digest, content)
        return digest.hexdigest() == file.oid

    def _head_job(self, file: RemoteFile) -> Job:
        def job() -> Generator[int | Notice, None, Path]:
            path = self._cache.unfinished(file.oid)
            while not self._locks[file.oid].acquire(timeout=TURN_S):
                yield self._bytes_here(file)
            try:
                yield from receive_start(self._url(file), self._headers, file, path, LENGTH_BYTES)
                yield from receive_start(self._url(file), self._headers, file, path, _head_length(path))
            finally:
                self._locks[file.oid].release()
            return path

        return job

    def _head_here(self, file: RemoteFile) -> bytes | None:
        """The start of a shard, from what is remembered, the whole file, or what has come of it; None if not enough."""
        remembered = [self._memory(file, "header")] if self._scratch is not None else []
        whole = self._cache.find(file, self._listing.commit)
        for path in (*remembered, whole, self._cache.unfinished(file.oid)):
            if path is not None and path.is_file():
                length = min(_head_length(path), file.size_bytes)
                with path.open("rb") as content:
                    head = content.read(length)
                if LENGTH_BYTES <= len(head) == length:
                    return head
        return None

    def _bytes_here(self, file: RemoteFile) -> int:
        if self._cache.find(file, self._listing.commit) or self._was_released(file):
            return file.size_bytes
        return self._cache.unfinished_bytes(file)

    def _was_released(self, file: RemoteFile) -> bool:
        return self._scratch is not None and self._memory(file, "done").exists()

    def _memory(self, file: RemoteFile, what: str) -> Path:
        assert self._scratch is not None
        return self._scratch / f"{file.oid}.{what}"

    def _source_need_bytes(self) -> int:
        """Room that the source files still take at their most."""
        missing = {file: file.size_bytes - self._done_bytes[file.path] for file in self._listing.files}
        shards_bytes = sum(missing[file] for file in self._listing.shards)
        small_bytes = sum(missing.values()) - shards_bytes
        if self._scratch is not None:
            largest_bytes = max(file.size_bytes for file in self._listing.shards)
            shards_bytes = min(shards_bytes, SHARDS_AT_ONCE * largest_bytes)
        return shards_bytes + small_bytes

    def _url(self, file: RemoteFile) -> str:
        return hf_hub_url(self._repo.repo_id, file.path, revision=self._listing.commit)


def _head_length(path: Path) -> int:
    """Bytes that a safetensors file's header takes with its length, as far as is known."""
    with path.open("rb") as file:
        return LENGTH_BYTES + min(int.from_bytes(file.read(LENGTH_BYTES), "little"), LONGEST_HEADER_BYTES)
