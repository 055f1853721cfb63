"""The 8-bit store: a folder that is a checkpoint's weights as int8 rows, ready to be mapped and used where they lie.

Owns the folder's layout and opening it; `conversion` makes it. Tensors keep their Hugging Face names; an int8
`X.weight` has its row scales beside it as `X.SCB`. Everything but routed experts is in `dense.safetensors`; the
experts of layer L are in `experts-L.safetensors`, one after another, each as gate, up, down: so a layer's experts are
one array, and one expert is one run of bytes. The same holds for every gated feed-forward. `manifest.json` gives the
source, and size and XXH3-128 of every file (`xxhsum -H2`; sha256 in stores of before), which finds damage; that the
weights are the publisher's, the sha256 of the source's files said. It is written last and the folder renamed into
place, so a folder with its name is whole.

Any safetensors reader can open the files; bitsandbytes' `Linear8bitLt` understands `weight` and `SCB` as they are.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from xxhash import xxh3_128

from localr1.errors import CorruptError, NotFoundError
from localr1.model.linear import TensorSpec
from localr1.weights.checkpoint import read_json
from localr1.weights.file_writer import Slot
from localr1.weights.quantize import Int8Rows
from localr1.weights.safetensors_file import MappedFile, TensorInfo

MANIFEST = "manifest.json"
CHECKSUM = "xxh3_128"
FORMAT = 1
DENSE = "dense.safetensors"
EXPERT = re.compile(r"\.layers\.(\d+)\.mlp\.experts\.\d+\.")
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
CONVERT_AGAIN = "convert it again with `localr1 download MODEL --force`"


def scb_name(weight_name: str) -> str:
    return weight_name.removesuffix("weight") + "SCB"


def layout(expected: Mapping[str, TensorSpec], source_dtype: Callable[[str], torch.dtype]) -> dict[str, list[Slot]]:
    """Which tensor lies in which file, in order: a function of the names, shapes and dtypes alone.

    The int8 rows come first, in the order in which most checkpoints have them, so that a file can be hashed from its
    start while it is made; then the wider dtypes, the widest first, so that all are aligned. Where the rows would leave
    those askew, they come last. Within a dtype, numbers sort as numbers and gate, up, down stay together. Floats keep
    their dtype, but float16 and float64 become float32, which the CPU kernels read, and what was 8 bits with a scale
    becomes bfloat16.
    """
    files: dict[str, list[Slot]] = {}
    for name, spec in expected.items():
        match = EXPERT.search(name)
        slots = files.setdefault(f"experts-{int(match[1]):03d}.safetensors" if match else DENSE, [])
        if spec.storage == "int8":
            slots.append(Slot(name, torch.int8, spec.shape))
            slots.append(Slot(scb_name(name), torch.float32, spec.shape[:1]))
        else:
            narrow = source_dtype(name) in (torch.bfloat16, torch.float8_e4m3fn)
            dtype = torch.bfloat16 if narrow else torch.float32
            slots.append(Slot(name, dtype, spec.shape))
    for slots in files.values():
        askew = sum(slot.nbytes for slot in slots if slot.dtype == torch.int8) % torch.float32.itemsize
        slots.sort(key=lambda slot: (_place(slot.dtype, bool(askew)), _natural(slot.name)))
    return dict(sorted(files.items()))


def _place(dtype: torch.dtype, rows_last: bool) -> tuple[bool, int]:
    return (dtype == torch.int8) == rows_last, -dtype.itemsize


def _natural(name: str) -> list[tuple[int, int, str]]:
    key = [(int(not name.startswith("model.")), 0, "")]  # the head comes after the layers
    for part in name.split("."):
        if part in PROJECTIONS:
            key.append((1, PROJECTIONS.index(part), ""))
        else:
            key.append((0, int(part), "") if part.isdigit() else (2, 0, part))
    return key


@dataclass(frozen=True)
class Origin:
    """Where a store's weights came from: `source` is a repo id or folder, `revision` a commit or fingerprint, and
    `source_files` tells the hub's hash of each file that it is made of."""

    source: str
    revision: str
    source_folder: str = ""
    source_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What a journal says of itself; `weights` is of the hashes of the files that decide what a store's tensors
        are, "" where they are not known."""
        names = [name for name in self.source_files if name.endswith(".safetensors") or name == "config.json"]
        files = {name: self.source_files[name] for name in names}
        weights = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest() if files else ""
        return {"format": FORMAT, "source": self.source, "revision": self.revision, "weights": weights}


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()


class TensorFile(Protocol):
    """The bytes of one of a store's files."""

    tensors: dict[str, TensorInfo]

    def view(self, start: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """The bytes from `start` as a tensor."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name."""
        ...


class Store:
    """An opened store. Tensors are views of the maps: read-only, and in RAM only where touched."""

    def __init__(self, folder: Path) -> None:
        manifest = _read_manifest(folder)
        names = [name for name in manifest["files"] if name.endswith(".safetensors")]
        self._hold(folder, manifest, [MappedFile(folder / name) for name in names])

    def _hold(self, folder: Path, manifest: dict[str, Any], files: Sequence[TensorFile]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._files = files
        self._file_of = {name: file for file in files for name in file.tensors}

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, scales included."""
        return sum(info.nbytes for file in self._files for info in file.tensors.values())

    @property
    def parameters(self) -> int:
        """Numbers that the source checkpoint holds, so float32 would need 4 bytes for each."""
        return sum(
            info.nbytes // info.dtype.itemsize
            for file in self._files
            for name, info in file.tensors.items()
            if not name.endswith(".SCB")
        )

    def byte_runs(self) -> list[Tensor]:
        """The bytes of all tensors as int8, one run a file: to measure how fast they can be read."""
        runs = []
        for file in self._files:
            start = min(info.start for info in file.tensors.values())
            end = max(info.end for info in file.tensors.values())
            runs.append(file.view(start, torch.int8, (end - start,)))
        return runs

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name. Raises CorruptError when the store lacks it."""
        return self._file_with(name).tensor(name)

    def _file_with(self, name: str) -> TensorFile:
        file = self._file_of.get(name)
        if file is None:
            raise CorruptError(f"the store {self.folder} has no {name}", CONVERT_AGAIN)
        return file

    def int8_rows(self, prefix: str) -> Int8Rows:
        """The int8 matrix of `prefix.weight`."""
        return Int8Rows(self.tensor(prefix + ".weight"), self.tensor(prefix + ".SCB"))

    def feed_forwards(self, prefixes: Sequence[str]) -> Int8Rows:
        """Gated feed-forwards that lie one after another, as one view: int8 [E, 3 F D] and scales [E, 2 F + D].

        Of each expert, gate [F, D], up [F, D] and down [D, F] follow one another, row-major; so do their scales.
        """
        names = [f"{prefix}.{projection}" for prefix in prefixes for projection in PROJECTIONS]
        ff, hidden = self.tensor(names[0] + ".weight").shape
        return Int8Rows(
            self._run([name + ".weight" for name in names], torch.int8, (len(prefixes), 3 * ff * hidden)),
            self._run([name + ".SCB" for name in names], torch.float32, (len(prefixes), 2 * ff + hidden)),
        )

    def _run(self, names: Sequence[str], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Tensors that tile a run of bytes, as one view of it."""
        file = self._file_with(names[0])
        start = position = file.tensors[names[0]].start
        for name in names:
            info = file.tensors.get(name)
            if info is None or info.start != position or info.dtype != dtype:
                raise CorruptError(f"{name} does not follow its neighbour in the store {self.folder}", CONVERT_AGAIN)
            position = info.end
        return file.view(start, dtype, shape)


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise NotFoundError(f"{folder} is not an 8-bit store", "make one with `localr1 download MODEL`")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CorruptError(f"{folder} has store format {manifest.get('format')!r}, this is {FORMAT}", CONVERT_AGAIN)
    files = manifest.get("files")
    if not isinstance(files, dict) or DENSE not in files:
        raise CorruptError(f"{folder / MANIFEST} lists no files", CONVERT_AGAIN)
    for name, facts in files.items():
        path, written_bytes = folder / name, facts.get("bytes") if isinstance(facts, dict) else None
        if Path(name).name != name or not isinstance(written_bytes, int):
            raise CorruptError(f"{folder / MANIFEST} is damaged at {name!r}", CONVERT_AGAIN)
        actual_bytes = path.stat().st_size if path.is_file() else None
        if actual_bytes != written_bytes:
            raise CorruptError(
                f"{path} has {'gone' if actual_bytes is None else f'{actual_bytes:,} bytes'}, "
                f"{written_bytes:,} were written",
                CONVERT_AGAIN,
            )
    return manifest
