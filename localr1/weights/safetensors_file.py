"""One safetensors file: its header checked, its bytes mapped. `file_writer` makes one.

Owns the file format (an 8-byte little-endian header length, a JSON header, the tensors' bytes). Knows no model. A
file that was opened has a header that agrees with its length, and its tensors are views of the map: opening copies
nothing. Every reader here refuses what the format forbids, since a checkpoint comes from a stranger.
"""

import json
import math
import mmap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from localr1.errors import CorruptError, LocalR1Error, NotFoundError, UnsupportedError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
POINTER = b"version https://git-lfs"
"""What stands in the place of a large file where Git fetched no large files."""
DOWNLOAD_AGAIN = "the file is damaged or not a safetensors file: download it again"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: byte offsets are from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file, in the order of their bytes.

    Raises NotFoundError when there is no such file, CorruptError when the header contradicts the file (its length, an
    offset out of range or overlapping, a shape that does not fill its bytes), UnsupportedError for an unknown dtype.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            head += file.read(min(max(file_bytes - 8, 0), header_length(head), MAX_HEADER_BYTES))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist", "check the path, or download the model again") from error
    except OSError as error:
        raise LocalR1Error(f"{path} cannot be read: {error.strerror}", "check the file's permissions") from error
    return parse_header(path.name, head, file_bytes)


def header_length(head: bytes) -> int:
    """Bytes of the JSON that follows a file's first 8 bytes."""
    return int.from_bytes(head[:8], "little")


def parse_header(file_name: str, head: bytes, file_bytes: int) -> dict[str, TensorInfo]:
    """The tensors of a file of `file_bytes` that begins with `head`; the rest of it may still be on its way.

    Raises as `read_header` does.
    """
    if head.startswith(POINTER):
        raise CorruptError(f"{file_name} is only a pointer of Git LFS", "fetch the files with `git lfs pull`")
    header_bytes = header_length(head)
    if file_bytes < 8 or header_bytes > min(file_bytes - 8, len(head) - 8, MAX_HEADER_BYTES):
        raise CorruptError(
            f"{file_name}: a header of {header_bytes:,} bytes in a file of {file_bytes:,}", DOWNLOAD_AGAIN
        )
    try:
        header = json.loads(head[8 : 8 + header_bytes])
        if not isinstance(header, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{file_name}: the header is not JSON ({error})", DOWNLOAD_AGAIN) from error
    header.pop("__metadata__", None)
    base = 8 + header_bytes
    tensors = {name: _entry(file_name, name, entry, base) for name, entry in header.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_cover(file_name, tensors, base, file_bytes)
    return tensors


def _entry(file_name: str, name: str, entry: Any, base: int) -> TensorInfo:
    try:
        dtype_name, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
            raise ValueError("a negative or fractional number")
    except (TypeError, KeyError, ValueError) as error:
        raise CorruptError(f"{file_name}: the entry of {name} is malformed ({error})", DOWNLOAD_AGAIN) from error
    dtype = DTYPES.get(str(dtype_name))
    if dtype is None:
        raise UnsupportedError(
            f"{file_name}: {name} has dtype {dtype_name}", f"supported dtypes are {', '.join(DTYPES)}"
        )
    if math.prod(shape) * dtype.itemsize != end - start:
        raise CorruptError(
            f"{file_name}: {name} of shape {shape} and dtype {dtype_name} needs {math.prod(shape) * dtype.itemsize:,} "
            f"bytes, its offsets {start}..{end} hold {end - start:,}",
            DOWNLOAD_AGAIN,
        )
    return TensorInfo(dtype, tuple(shape), base + start, base + end)


def _check_cover(file_name: str, tensors: dict[str, TensorInfo], base: int, file_bytes: int) -> None:
    """The tensors must tile the file: no gap, no overlap, nothing past the end."""
    position = base
    for name, info in tensors.items():
        if info.end > file_bytes:
            raise CorruptError(
                f"{file_name}: {name} ends at byte {info.end:,}, the file at {file_bytes:,} (truncated?)",
                DOWNLOAD_AGAIN,
            )
        if info.start != position:
            raise CorruptError(
                f"{file_name}: {name} starts at byte {info.start:,} where {position:,} was expected "
                "(tensors overlap or leave a gap)",
                DOWNLOAD_AGAIN,
            )
        position = info.end
    if position != file_bytes:
        raise CorruptError(f"{file_name}: the header accounts for {position:,} bytes of {file_bytes:,}", DOWNLOAD_AGAIN)


class MappedFile:
    """A safetensors file whose tensors are read-only views of its map; pages come in as they are touched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_header(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def view(self, start: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """The bytes from `start` as a tensor; never write to it."""
        count = math.prod(shape)
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).view(tuple(shape))

    def tensor(self, name: str) -> torch.Tensor:
        info = self.tensors[name]
        return self.view(info.start, info.dtype, info.shape)

    def forget(self, start: int, end: int) -> None:
        """Give the touched pages of a run of bytes back to the system; reading them again brings them back."""
        first = start - start % mmap.PAGESIZE
        if hasattr(self._map, "madvise") and end > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, end - first)
