"""A Hugging Face checkpoint folder as a stream of named float tensors.

Owns finding the files (one, or many behind an index), checking them against what a config implies, and FP8's scales.
Knows no model: what is expected is handed in. Holds one tensor at a time. Never unpickles, never leaves the folder.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from localr1.errors import AccessError, CorruptError, NotFoundError, UnsupportedError
from localr1.model.linear import TensorSpec
from localr1.weights.arriving_file import ArrivingFile
from localr1.weights.fp8 import dequantize_blocks, scale_shape
from localr1.weights.safetensors_file import MappedFile, TensorInfo

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALE = "_scale_inv"
FUSED = re.compile(r"(?P<prefix>.*\.mlp\.experts)\.(?P<kind>gate_up_proj|down_proj)(?P<scale>_scale_inv)?")
SHOWN_NAMES = 5


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises NotFoundError, AccessError or CorruptError."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{path.parent} has no {path.name}", "is this the folder of a Hugging Face checkpoint? download it again"
        ) from error
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {error.strerror}", "check the file's permissions") from error
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path} cannot be read as JSON: {error}", "download the file again") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{path} holds a {type(value).__name__}, not an object", "download the file again")
    return value


class HeaderError(CorruptError):
    """A file that is whole, but not the one that its header announced."""


class Checkpoint:
    """The tensors of one folder. Opening reads the headers only.

    A checkpoint of headers alone (`of_headers`) answers all but `tensor`, and that too for files that are attached.
    """

    def __init__(self, folder: Path) -> None:
        mapped = {name: MappedFile(folder / name) for name in _file_names(folder)}
        self._set(folder.name, {name: file.tensors for name, file in mapped.items()})
        self.files.update(mapped)

    @classmethod
    def of_headers(cls, label: str, headers: Mapping[str, Mapping[str, TensorInfo]]) -> "Checkpoint":
        """One whose files are still on their way: `headers` are their tensors by file name, `label` is for messages."""
        checkpoint = cls.__new__(cls)
        checkpoint._set(label, headers)
        return checkpoint

    def _set(self, label: str, headers: Mapping[str, Mapping[str, TensorInfo]]) -> None:
        self.label = label
        self.files: dict[str, MappedFile] = {}
        self._arriving: dict[str, ArrivingFile] = {}
        self.file_names = tuple(headers)
        self._entries: dict[str, tuple[str, TensorInfo]] = {}
        self._halves: set[str] = set()  # of fused matrices
        for file, tensors in headers.items():
            for name, info in _unfused(tensors):
                if name not in tensors and ".down_proj." not in name:
                    self._halves.add(name)
                if name in self._entries:
                    raise CorruptError(
                        f"{name} is in both {self._entries[name][0]} and {file}",
                        "the folder mixes two checkpoints: download into an empty one",
                    )
                self._entries[name] = file, info

    def attach(self, file: str, path: Path) -> None:
        """Let the tensors of a file be read. Raises HeaderError when it is not what was announced."""
        mapped = MappedFile(path)
        for name, info in _unfused(mapped.tensors):
            if self._entries.get(name) != (file, info):
                raise HeaderError(f"{file} is not what its header announced ({name})", "download it again")
        self.files[file] = mapped

    def detach(self, file: str) -> None:
        """Let go of a file, so that it can be removed."""
        self.files.pop(file, None)

    @contextmanager
    def reading(self, file: str, arriving: ArrivingFile) -> Iterator[None]:
        """Let those tensors of a file be read that are here, while the rest is still on its way."""
        self._arriving[file] = arriving
        try:
            yield
        finally:
            del self._arriving[file]

    def end_of(self, name: str) -> int:
        """The byte of its file after which a tensor is whole, its scales too where they are in the same file."""
        file, info = self._entries[name]
        scale_file, scale = self._entries.get(name + SCALE, (file, info))
        return max(info.end, scale.end) if scale_file == file else info.end

    def files_of(self, name: str) -> set[str]:
        """The files that a tensor needs: its own, and its scales' where it is FP8."""
        return {self._entries[part][0] for part in (name, name + SCALE) if part in self._entries}

    def forget(self, name: str) -> None:
        """Give the pages of a tensor that was read back to the system."""
        file, info = self._entries[name]
        if file in self.files:
            self.files[file].forget(info.start, info.end)

    def names(self) -> Iterator[str]:
        """All tensors, in the order of the disk."""
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def info(self, name: str) -> TensorInfo:
        return self._entries[name][1]

    def check(
        self, expected: Mapping[str, TensorSpec], ignorable: Callable[[str], bool], block: tuple[int, int] | None
    ) -> None:
        """Raise CorruptError unless the folder holds just what is expected, in those shapes, and known extras."""
        missing = [name for name in expected if name not in self]
        if missing:
            raise CorruptError(
                f"{len(missing)} tensors are missing from {self.label}: {_some(missing)}",
                "the download is incomplete or config.json belongs to another model",
            )
        for name, spec in expected.items():
            self._check_tensor(name, spec, block)
        known = set(expected) | {name + SCALE for name in expected}
        extra = [name for name in self._entries if name not in known and not ignorable(name)]
        if extra:
            raise CorruptError(
                f"{len(extra)} tensors of {self.label} belong to nothing in config.json: {_some(extra)}",
                "config.json belongs to another model, or the model has parts that this version does not know",
            )

    def _check_tensor(self, name: str, spec: TensorSpec, block: tuple[int, int] | None) -> None:
        info = self.info(name)
        if info.shape != spec.shape:
            raise CorruptError(
                f"{name} has shape {list(info.shape)}, config.json implies {list(spec.shape)}",
                "config.json belongs to another model, or the file is damaged: download both again",
            )
        if info.dtype in FLOATS:
            return
        if info.dtype != torch.float8_e4m3fn:
            raise UnsupportedError(
                f"{name} is stored as {str(info.dtype).removeprefix('torch.')}",
                "supported are float32, bfloat16, float16 and DeepSeek's FP8; look for the unquantized model",
            )
        if block is None or name + SCALE not in self:
            raise CorruptError(
                f"{name} is FP8 but {'config.json gives no block size' if block is None else 'has no ' + SCALE[1:]}",
                "download the checkpoint again",
            )
        self._check_scale(name, info.shape, block)

    def _check_scale(self, name: str, shape: tuple[int, ...], block: tuple[int, int]) -> None:
        scale = self.info(name + SCALE)
        if scale.dtype not in FLOATS or len(shape) != len(block):
            raise UnsupportedError(
                f"{name} is FP8 of shape {list(shape)} with scales in {str(scale.dtype).removeprefix('torch.')}",
                "supported are matrices with scales in floating point; look for the unquantized model",
            )
        if name in self._halves and shape[0] % block[0]:
            raise UnsupportedError(
                f"{name} shares FP8 blocks of {list(block)} with the other half of its fused experts",
                "look for the unquantized model, or for one with a matrix an expert",
            )
        wanted = scale_shape(shape, block)
        if scale.shape != wanted:
            raise CorruptError(
                f"{name + SCALE} has shape {list(scale.shape)}, blocks of {list(block)} need {list(wanted)}",
                "download the checkpoint again",
            )

    def tensor(self, name: str, block: tuple[int, int] | None = None) -> Tensor:
        """One tensor: a view of the map, or float32 where it was FP8."""
        shape = self.info(name).shape
        return self.rows(name, 0, shape[0], block) if shape else self._view(name)

    def rows(self, name: str, start: int, end: int, block: tuple[int, int] | None) -> Tensor:
        """The same for some rows of it; of a file that is on its way, only until the next are asked for."""
        raw = self._view(name, start, end)
        if raw.dtype != torch.float8_e4m3fn:
            return raw
        assert block is not None, "check() comes first"
        return dequantize_blocks(raw, self._view(name + SCALE), block, start)

    def _view(self, name: str, first: int = 0, end: int | None = None) -> Tensor:
        file, info = self._entries[name]
        start, shape = info.start, info.shape
        if end is not None:
            start, shape = start + first * (info.nbytes // max(shape[0], 1)), (end - first, *shape[1:])
        return (self._arriving.get(file) or self.files[file]).view(start, info.dtype, shape)

    def stream(self, names: Mapping[str, object], block: tuple[int, int] | None) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in the order of the disk. Peak memory: one tensor (in float32 where it was FP8)."""
        for name in self._entries:
            if name in names:
                yield name, self.tensor(name, block)


def _unfused(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, TensorInfo]]:
    """The tensors, transformers 5's fused experts [E, 2 F, D] and [E, D, F] as one matrix an expert and projection.

    Each is a run of the fused tensor's bytes, so nothing is copied.
    """
    for name, info in tensors.items():
        match = FUSED.fullmatch(name)
        if match is None or len(info.shape) != 3:
            yield name, info
            continue
        projections = ("gate_proj", "up_proj") if match["kind"] == "gate_up_proj" else ("down_proj",)
        experts, rows, columns = info.shape
        shape = (rows // len(projections), columns)
        part_bytes = info.nbytes // (experts * len(projections)) if experts else 0
        for index in range(experts * len(projections)):
            expert, projection = divmod(index, len(projections))
            start = info.start + index * part_bytes
            part = f"{match['prefix']}.{expert}.{projections[projection]}.weight{match['scale'] or ''}"
            yield part, TensorInfo(info.dtype, shape, start, start + part_bytes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


def _file_names(folder: Path) -> list[str]:
    """The checkpoint's files, in order."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is not a folder", "give a short name, org/repo, or a checkpoint's folder")
    if (folder / INDEX).exists():
        return _indexed(folder)
    if (folder / SINGLE).exists():
        return [SINGLE]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UnsupportedError(
            f"{folder.name} holds only pickled weights ({_some(pickles)}), which can run code when opened",
            "look for a revision of the model with safetensors",
        )
    raise NotFoundError(
        f"{folder} has neither {SINGLE} nor {INDEX}", "is this the folder of a Hugging Face checkpoint?"
    )


def _indexed(folder: Path) -> list[str]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CorruptError(f"{INDEX} has no weight_map of tensor names to files", "download the file again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CorruptError(
                f"{INDEX} names the file {name!r}, outside the folder or not safetensors",
                "do not trust this checkpoint; download it from its publisher",
            )
    absent = [name for name in names if not (folder / name).exists()]
    if absent:
        raise NotFoundError(
            f"{len(absent)} of {len(names)} files of the checkpoint are missing: {_some(absent)}", "download it again"
        )
    return names
