"""A new safetensors file, laid out and filled in any order, read back, and hashed from its start as it grows.

Owns the layout of what is written; the format is `safetensors_file`'s. One reading of what was written serves its check
and the file's digest, both XXH3-128: it finds damage, and guards against nobody. Invariant: a file's digest is of bytes
that were read back as they were written.
"""

import errno
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from xxhash import xxh3_128

from localr1.errors import DiskError, LocalR1Error, is_full, is_held
from localr1.quantities import bytes_text
from localr1.weights.safetensors_file import DTYPE_NAMES

ALIGNMENT_BYTES = 64
READ_BYTES = 256 << 10
"""Read back at once: what a core's own cache holds, since it is hashed twice."""


@dataclass(frozen=True)
class Slot:
    """A tensor that a new file will hold."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class FileWriter:
    """A new safetensors file whose layout is known before its first tensor, so tensors may arrive in any order.

    The room is reserved at once, so a disk that is too small fails before the work. The tensors' bytes start on a
    64-byte boundary. A file of just this layout that is there already is gone on with: `continued` says so, `written`
    names the tensors that the caller vouches for. Left without an error, it asserts that every slot was written.

    While one thread writes, another may `sync` and ask what is `written`; but not of a tensor that is being written.
    """

    def __init__(self, path: Path, slots: Sequence[Slot]) -> None:
        self.path = path
        self._header, self._starts, self._total_bytes = _layout(slots)
        self._slots = {slot.name: slot for slot in slots}
        self._missing = set(self._slots)
        self._digests: dict[str, str] = {}
        self._unhashed: deque[str] = deque()
        self._hash = xxh3_128()
        self._begin_hash()
        self.continued = _begins_with(path, self._header, self._total_bytes)
        self._file = path.open("r+b" if self.continued else "w+b", buffering=0)
        try:
            if not self.continued:
                _reserve(self._file.fileno(), self._total_bytes)
                self._put(memoryview(self._header))
        except OSError as error:
            self._file.close()
            path.unlink(missing_ok=True)
            raise disk_error(path, self._total_bytes, error) from error
        self._written = path.open("rb", buffering=0)
        self._buffer = memoryview(bytearray(READ_BYTES))

    @property
    def names(self) -> Iterable[str]:
        """The tensors, in the order of the file."""
        return self._slots

    def write(self, name: str, tensor: torch.Tensor) -> str:
        """Put one tensor in its place; returns the digest of its bytes. Raises DiskError when the disk refuses it."""
        slot = self._slots[name]
        if tensor.dtype != slot.dtype or tuple(tensor.shape) != slot.shape:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} for {slot.dtype} {slot.shape}")
        return self.write_chunks(name, [tensor])

    def write_chunks(self, name: str, chunks: Iterable[torch.Tensor]) -> str:
        """The same for a tensor that comes as pieces that follow one another."""
        slot, digest, written_bytes = self._slots[name], xxh3_128(), 0
        if self._digests.pop(name, None):
            self._begin_hash()
        try:
            self._file.seek(self._starts[name])
            for chunk in chunks:
                data = chunk.contiguous().reshape(-1).view(torch.uint8).numpy().data
                self._put(data)
                digest.update(data)
                written_bytes += len(data)
        except OSError as error:
            raise disk_error(self.path, slot.nbytes, error) from error
        if written_bytes != slot.nbytes:
            raise ValueError(f"{name}: {written_bytes} bytes for {slot.nbytes}")
        self._missing.discard(name)
        return digest.hexdigest()

    def _put(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def written(self, name: str, digest: str) -> bool:
        """Whether the bytes of a tensor, as they can be read now, have this digest; if so it counts as written.

        Those that were found written before their turn in the file's hash came are read, and compared, once more.
        """
        if not self._reads_as(name, digest):
            return False
        self._missing.discard(name)
        self._digests[name] = digest
        while self._unhashed and (following := self._unhashed[0]) in self._digests:
            if not self._reads_as(following, self._digests[following]):
                return False
        return True

    def digest(self) -> str:
        """Of the whole file, once all of it was found `written`. Raises DiskError."""
        if self._unhashed:
            raise ValueError(f"{self.path.name}: never read back: {list(self._unhashed)[:5]}")
        if not _begins_with(self.path, self._header, self._total_bytes):
            raise DiskError(f"{self.path} does not hold what was written to it (its header)", "check the disk")
        return self._hash.hexdigest()

    def _reads_as(self, name: str, digest: str) -> bool:
        """Read a tensor back; if it is right, and its turn, the file is hashed to its end."""
        found, whole, start = xxh3_128(), self._hash.copy(), self._starts[name]
        for chunk in self._read(start, start + self._slots[name].nbytes):
            found.update(chunk)
            whole.update(chunk)
        if found.hexdigest() != digest:
            return False
        if self._unhashed and self._unhashed[0] == name:
            self._unhashed.popleft()
            self._hash = whole
        return True

    def _begin_hash(self) -> None:
        self._unhashed = deque(self._slots)
        self._hash = xxh3_128(self._header)

    def _read(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from `start` to `end` as they can be read now, each piece where the one before it lay; fewer where
        the file is shorter."""
        self._written.seek(start)
        while start < end and (count := self._written.readinto(self._buffer[: end - start])):
            yield self._buffer[:count]
            start += count

    def sync(self) -> None:
        """Return once what was written would survive a power loss."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(self.path, 0, error) from error

    def close(self) -> None:
        if self._missing:
            raise ValueError(f"{self.path.name}: never written: {sorted(self._missing)[:5]}")
        try:
            self.sync()
        finally:
            self._close()

    def __enter__(self) -> "FileWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._close()

    def _close(self) -> None:
        self._file.close()
        self._written.close()


def _begins_with(path: Path, header: bytes, total_bytes: int) -> bool:
    """Whether an earlier run left a file of this very layout."""
    try:
        if path.stat().st_size != total_bytes:
            return False
        with path.open("rb") as file:
            return file.read(len(header)) == header
    except OSError:
        return False


def _layout(slots: Sequence[Slot]) -> tuple[bytes, dict[str, int], int]:
    """Header bytes, absolute start of each tensor, size of the whole file."""
    entries: dict[str, Any] = {}
    position = 0
    for slot in slots:
        entries[slot.name] = {
            "dtype": DTYPE_NAMES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [position, position + slot.nbytes],
        }
        position += slot.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    base = 8 + len(text)
    starts = {name: base + entry["data_offsets"][0] for name, entry in entries.items()}
    return len(text).to_bytes(8, "little") + text, starts, base + position


def _reserve(descriptor: int, total_bytes: int) -> None:
    """Make a new file, open at its start, so long."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, total_bytes)
    elif sys.platform == "win32" and total_bytes:  # whose way to lengthen a file writes zeros all along it
        os.lseek(descriptor, total_bytes - 1, os.SEEK_SET)
        os.write(descriptor, b"\0")
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        os.truncate(descriptor, total_bytes)


def disk_error(path: Path, needed_bytes: int, error: OSError) -> LocalR1Error:
    """What the operating system refused while writing `path`, as one of ours."""
    if is_full(error):
        return DiskError(
            f"no room on the disk for {path.name}" + (f" ({bytes_text(needed_bytes)})" if needed_bytes else ""),
            f"free some space under {path.parent}, or set LOCALR1_HOME to a larger disk",
        )
    if error.errno == errno.EFBIG:
        return DiskError(
            f"{path.name}{f' ({bytes_text(needed_bytes)})' if needed_bytes else ''} is larger than files may be there",
            "FAT32 takes 4 GB a file: set LOCALR1_HOME to a disk of another kind",
        )
    message = f"{path} cannot be written: {error.strerror or error}"
    if is_held(error):
        return DiskError(message, "another program may be using it, such as a localr1 chat: end that, then try again")
    return DiskError(message, "check the disk and its permissions")
