"""A conversation's cache on the disk, so that going on with it need not read all of it again.

Owns the file, a safetensors file for its owner alone: the token ids, each layer's rows as they were in memory, the
drafter's rows if it has some, what they were made with, and checksums. Knows no text. Invariants: rows are given back
only as they were written and only to a cache of the same weights, settings and kind of row; a file that cannot be read
as such is as good as none; the folder's files together stay below `MOST_BYTES_IN_ALL`.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from xxhash import xxh3_128

from localr1.decode.cache import RowCache
from localr1.decode.speculate import Speculation
from localr1.errors import CorruptError, DiskError, UnsupportedError
from localr1.weights.file_writer import FileWriter, Slot
from localr1.weights.safetensors_file import MappedFile

FORMAT = 2
SUFFIX, UNFINISHED = ".safetensors", ".unfinished"
MOST_BYTES, MOST_BYTES_IN_ALL = 512 << 20, 2 << 30
"""Of one conversation, of which a longer one's beginning is kept, and of all conversations together."""
LEFT_FREE_BYTES = 1 << 30
WRITTEN_BYTES_PER_S = 200e6
"""What a slow disk takes."""
STALE_S = 3600
MADE_WITH, TOKENS, CHECKS = "made_with", "tokens", "checks"
CHECK_BYTES = 16


@dataclass(frozen=True)
class Held:
    """A cache and its drafter's, with what their rows depend on; `made_with` is compared as a whole."""

    cache: RowCache
    speculation: Speculation
    made_with: dict[str, object]


def save(path: Path, held: Held, prefill_s_a_token: float) -> int:
    """Keep the cache at `path`; the number of tokens kept, 0 where reading them again is cheaper.

    Replaced as a whole, so a crash leaves the file before. Raises DiskError.
    """
    try:
        return _save(path, held, prefill_s_a_token)
    except OSError as error:
        raise DiskError(f"the cache cannot be kept at {path}: {error.strerror}", "it will be read again") from error


def _save(path: Path, held: Held, prefill_s_a_token: float) -> int:
    cache = held.cache
    length = min(cache.length, MOST_BYTES // max(cache.token_nbytes, 1))
    size = length * cache.token_nbytes
    if not length or size / WRITTEN_BYTES_PER_S > length * prefill_s_a_token:
        return 0
    _make_room(path.parent, size, path)
    if shutil.disk_usage(path.parent).free < size + LEFT_FREE_BYTES:
        return 0
    tensors = dict(_tensors(held, length))
    unfinished = path.with_suffix(f".{os.getpid()}{UNFINISHED}")
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    try:
        _write(unfinished, tensors)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return length


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """The tensors, and the XXH3-128 of each, in order."""
    slots = [Slot(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with FileWriter(path, [*slots, Slot(CHECKS, torch.uint8, (len(slots), CHECK_BYTES))]) as file:
        checks = [list(bytes.fromhex(file.write(name, tensor))) for name, tensor in tensors.items()]
        file.write(CHECKS, torch.tensor(checks, dtype=torch.uint8))


def _tensors(held: Held, length: int) -> Iterator[tuple[str, Tensor]]:
    yield MADE_WITH, torch.tensor(list(_record(held)), dtype=torch.uint8)
    yield TOKENS, torch.tensor(held.cache.tokens[:length], dtype=torch.int32)
    for layer, rows_SW in enumerate(held.cache.snapshot(length)):
        yield f"rows.{layer}", rows_SW
    drafted_LSW = held.speculation.snapshot()
    if drafted_LSW is not None:
        for layer, rows_SW in enumerate(drafted_LSW[:, :length]):
            yield f"draft.{layer}", rows_SW


def _record(held: Held) -> bytes:
    empty_LSW = held.cache.snapshot(0)
    rows = [str(empty_LSW.dtype), empty_LSW.shape[0], empty_LSW.shape[2]]
    return json.dumps({"format": FORMAT, "rows": rows} | held.made_with, sort_keys=True).encode()


def load(path: Path, held: Held) -> None:
    """Give the cache and its drafter the rows kept at `path`, as many as there is room for.

    Raises NotFoundError where nothing was kept, UnsupportedError where it was made with other weights or settings, and
    CorruptError where it is not what was written; then the cache is as it was.
    """
    file = MappedFile(path)
    try:
        if bytes(file.tensor(MADE_WITH).tolist()) != _record(held):
            raise UnsupportedError("what was kept of its cache was made with another model, version or other settings")
        _check(file)
        tokens = file.tensor(TOKENS).tolist()[: held.cache.capacity]
        rows_LSW = _stacked(file, "rows", len(tokens))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptError("what was kept of its cache is damaged") from error
    assert rows_LSW is not None
    drafted_LSW = _stacked(file, "draft", len(tokens))
    held.cache.restore(tokens, rows_LSW)
    held.cache.truncate(held.speculation.restore(tokens, drafted_LSW))


def _check(file: MappedFile) -> None:
    names = [name for name in file.tensors if name != CHECKS]
    found = [xxh3_128(file.tensor(name).reshape(-1).view(torch.uint8).numpy().data).digest() for name in names]
    if file.tensor(CHECKS).tolist() != [list(digest) for digest in found]:
        raise ValueError("another checksum")


def _stacked(file: MappedFile, prefix: str, length: int) -> Tensor | None:
    names: Sequence[str] = [name for name in file.tensors if name.partition(".")[0] == prefix]
    return torch.stack([file.tensor(name)[:length] for name in names]) if names else None


def _make_room(folder: Path, needed_bytes: int, path: Path) -> None:
    """Delete what no conversation owns any more, and then what was kept longest ago, until the rest fits."""
    kept: list[tuple[float, int, Path]] = []
    for each in folder.iterdir():
        with contextlib.suppress(OSError):
            facts = each.stat()
            orphan = each.suffix == SUFFIX and not each.with_suffix(".jsonl").exists()
            if orphan or (each.suffix == UNFINISHED and time.time() - facts.st_mtime > STALE_S):
                each.unlink()
            elif each.suffix == SUFFIX and each != path:
                kept.append((facts.st_mtime, facts.st_size, each))
    total_bytes = needed_bytes + sum(size for _, size, _ in kept)
    for _, size, each in sorted(kept):
        if total_bytes <= MOST_BYTES_IN_ALL:
            return
        with contextlib.suppress(OSError):
            each.unlink()
        total_bytes -= size
