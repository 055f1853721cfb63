"""A new safetensors file, laid out and filled in any order, and hashed from its start as it grows.

Owns the layout of what is written; the format is `safetensors_file`'s. Invariant: what is hashed is what was read back
and has not been written since.
"""

import errno
import hashlib
import json
import math
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from localr1.errors import DiskError, LocalR1Error
from localr1.quantities import bytes_text
from localr1.weights.safetensors_file import DTYPE_NAMES

ALIGNMENT_BYTES = 64
READ_BYTES = 4 << 20


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

    While one thread writes, another may `sync`, ask what is `written`, and `hash_written`; but not of a tensor that is
    being written.
    """

    def __init__(self, path: Path, slots: Sequence[Slot]) -> None:
        self.path = path
        header, self._starts, self._total_bytes = _layout(slots)
        self._slots = {slot.name: slot for slot in slots}
        self._missing = set(self._slots)
        self._begin_hash()
        self.continued = _begins_with(path, header, self._total_bytes)
        self._file = path.open("r+b" if self.continued else "w+b")
        try:
            if not self.continued:
                _reserve(self._file.fileno(), self._total_bytes)
                self._file.write(header)
                self._file.flush()
        except OSError as error:
            self._file.close()
            path.unlink(missing_ok=True)
            raise disk_error(path, self._total_bytes, error) from error
        self._written = path.open("rb", buffering=0)
        self._checked: set[str] = set()

    def write(self, name: str, tensor: torch.Tensor) -> int:
        """Put one tensor in its place; returns the CRC-32 of its bytes. Raises DiskError when the disk refuses it."""
        slot = self._slots[name]
        if tensor.dtype != slot.dtype or tuple(tensor.shape) != slot.shape:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} for {slot.dtype} {slot.shape}")
        return self.write_chunks(name, [tensor])

    def write_chunks(self, name: str, chunks: Iterable[torch.Tensor]) -> int:
        """The same for a tensor that comes as pieces that follow one another."""
        slot, crc, written_bytes = self._slots[name], 0, 0
        self._checked.discard(name)
        if self._starts[name] < self._hashed_bytes:
            self._begin_hash()
        try:
            self._file.seek(self._starts[name])
            for chunk in chunks:
                data = chunk.contiguous().reshape(-1).view(torch.uint8).numpy().data
                self._file.write(data)
                crc = zlib.crc32(data, crc)
                written_bytes += len(data)
        except OSError as error:
            raise disk_error(self.path, slot.nbytes, error) from error
        if written_bytes != slot.nbytes:
            raise ValueError(f"{name}: {written_bytes} bytes for {slot.nbytes}")
        self._file.flush()
        self._missing.discard(name)
        return crc

    def written(self, name: str, crc: int) -> bool:
        """Whether the bytes of a tensor, as they can be read now, have this CRC-32; if so it counts as written."""
        found, start = 0, self._starts[name]
        for chunk in self._read(start, start + self._slots[name].nbytes):
            found = zlib.crc32(chunk, found)
        if found != crc:
            return False
        self._missing.discard(name)
        self._checked.add(name)
        return True

    def hash_written(self) -> None:
        """Hash the file as far as it is known to be `written`, so that `sha256` has less to do."""
        end = self._hashed_bytes
        while self._unhashed and self._unhashed[0].name in self._checked:
            slot = self._unhashed.popleft()
            end = self._starts[slot.name] + slot.nbytes
        self._hash_to(end)

    def sha256(self) -> str:
        """Of the whole file, once it is."""
        self._hash_to(self._total_bytes)
        return self._hash.hexdigest()

    def _begin_hash(self) -> None:
        self._unhashed = deque(self._slots.values())
        self._hashed_bytes, self._hash = 0, hashlib.sha256()

    def _hash_to(self, end: int) -> None:
        for chunk in self._read(self._hashed_bytes, end):
            self._hash.update(chunk)
            self._hashed_bytes += len(chunk)

    def _read(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from `start` to `end` as they can be read now; fewer where the file is shorter."""
        self._written.seek(start)
        buffer = memoryview(bytearray(min(READ_BYTES, end - start)))
        while start < end and (count := self._written.readinto(buffer[: end - start])):
            yield buffer[:count]
            start += count

    def sync(self) -> None:
        """Return once what was written would survive a power loss."""
        try:
            self._file.flush()
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
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, total_bytes)
    else:
        os.truncate(descriptor, total_bytes)


def disk_error(path: Path, needed_bytes: int, error: OSError) -> LocalR1Error:
    """What the operating system refused while writing `path`, as one of ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"no room on the disk for {path.name} ({bytes_text(needed_bytes)})",
            f"free some space under {path.parent}, or set LOCALR1_HOME to a larger disk",
        )
    return DiskError(f"{path} cannot be written: {error.strerror or error}", "check the disk and its permissions")
