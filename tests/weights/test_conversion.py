"""A store made of files that come in any order is the same as one made of the folder."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from localr1.errors import DiskError
from localr1.events import QuantizeProgress
from localr1.model.linear import TensorSpec
from localr1.weights import quantize
from localr1.weights.checkpoint import SCALE, Checkpoint, HeaderError
from localr1.weights.conversion import Conversion, begun_elsewhere, partial_folder, take_over, write_store
from localr1.weights.file_writer import FileWriter
from localr1.weights.safetensors_file import read_header
from localr1.weights.store import Origin, Store

BLOCK = (3, 4)
EXPECTED = {
    "a.weight": TensorSpec((4, 6), "int8"),
    "b.weight": TensorSpec((5, 6), "int8"),
    "norm.weight": TensorSpec((6,), "float"),
}
FILES = {
    "m-1.safetensors": ("a.weight", "norm.weight"),
    "m-2.safetensors": ("b.weight",),
    "m-3.safetensors": ("a.weight" + SCALE,),
}
ORIGIN = Origin("org/name", "abc")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An FP8 tensor whose scales are in another file."""
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = {
        "a.weight": torch.randn(4, 6).to(torch.float8_e4m3fn),
        "a.weight" + SCALE: torch.rand(2, 2) + 0.5,
        "b.weight": torch.randn(5, 6).to(torch.bfloat16),
        "norm.weight": torch.randn(6),
    }
    for file, names in FILES.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in FILES.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def announced(source: Path) -> Checkpoint:
    return Checkpoint.of_headers("org/name", {file: read_header(source / file) for file in FILES})


def conversion(source: Path, target: Path) -> Conversion:
    checkpoint = announced(source)
    checkpoint.check(EXPECTED, lambda _name: False, BLOCK)
    return Conversion(target, checkpoint, EXPECTED, block=BLOCK, origin=ORIGIN)


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("*.safetensors")}


@pytest.mark.parametrize("order", itertools.permutations(FILES), ids="".join)
def test_any_order_gives_the_same_store(source: Path, tmp_path: Path, order: tuple[str, ...]) -> None:
    list(write_store(tmp_path / "whole", Checkpoint(source), EXPECTED, block=BLOCK, origin=ORIGIN, extras={}))
    with conversion(source, tmp_path / "pieces") as work:
        list(work.resume())
        for file in order:
            list(work.take(file, source / file))
        work.settle()
        assert not any(work.needs(file) for file in FILES)
        work.finish({})
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    assert set(Store(tmp_path / "pieces").manifest["files"]) == {"dense.safetensors"}


def test_a_file_is_needed_until_all_that_is_read_from_it_is_safe(source: Path, tmp_path: Path) -> None:
    with conversion(source, tmp_path / "store") as work:
        list(work.resume())
        list(work.take("m-1.safetensors", source / "m-1.safetensors"))
        work.settle()
        assert [work.needs(file) for file in FILES] == [True, True, True]  # the scales are not here yet
        list(work.take("m-3.safetensors", source / "m-3.safetensors"))
        work.settle()
        assert [work.needs(file) for file in FILES] == [False, True, False]
    assert not (tmp_path / "store").exists()


def test_files_that_are_gone_are_not_missed_by_the_next_run(source: Path, tmp_path: Path) -> None:
    with conversion(source, tmp_path / "store") as work:
        list(work.resume())
        for file in ("m-1.safetensors", "m-3.safetensors"):
            list(work.take(file, source / file))
    work = conversion(source, tmp_path / "store")  # its headers are remembered elsewhere
    for file in ("m-1.safetensors", "m-3.safetensors"):
        (source / file).unlink()
    with work:
        events = [event for event in work.resume() if isinstance(event, QuantizeProgress)]
        assert events[-1].done_tensors == 2
        assert [file for file in FILES if work.needs(file)] == ["m-2.safetensors"]
        list(work.take("m-2.safetensors", source / "m-2.safetensors"))
        work.finish({})
    assert Store(tmp_path / "store").parameters == 24 + 30 + 6
    assert not partial_folder(tmp_path / "store").exists()


HASHES = {"m-1.safetensors": "1", "config.json": "2", "tokenizer_config.json": "3"}
OTHERS = {
    "same weights": (Origin("org/name", "def", source_files=HASHES | {"tokenizer_config.json": "4"}), True),
    "other weights": (Origin("org/name", "def", source_files=HASHES | {"m-1.safetensors": "4"}), False),
    "other config": (Origin("org/name", "def", source_files=HASHES | {"config.json": "4"}), False),
    "other repository": (Origin("org/other", "def", source_files=HASHES), False),
    "hashes not known": (Origin("org/name", "def"), False),
}


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.replace(" ", "-"))
def test_what_was_begun_of_another_revision_is_taken_over_if_its_weights_are_the_same(
    source: Path, tmp_path: Path, case: str
) -> None:
    other, taken = OTHERS[case]
    begun = {"block": BLOCK, "origin": Origin("org/name", "abc", source_files=HASHES), "extras": {}}
    events = write_store(tmp_path / "abc", Checkpoint(source), EXPECTED, **begun)
    assert [next(events) for _ in range(2)]
    events.close()
    begun_for = begun_elsewhere(tmp_path / "def", other)
    assert begun_for == (tmp_path / "abc" if taken else None)
    if begun_for is not None:
        take_over(begun_for, tmp_path / "def")
    assert partial_folder(tmp_path / "def").exists() is taken is not partial_folder(tmp_path / "abc").exists()
    again = list(write_store(tmp_path / "def", Checkpoint(source), EXPECTED, **begun | {"origin": other}))
    assert (converted(again)[0] == "") is taken  # it begins with what was done before


def test_a_file_that_is_not_the_one_announced_is_refused(source: Path, tmp_path: Path) -> None:
    with conversion(source, tmp_path / "store") as work:
        list(work.resume())
        save_file({"b.weight": torch.randn(5, 6)}, source / "m-2.safetensors")
        with pytest.raises(HeaderError, match=r"m-2\.safetensors is not what its header announced"):
            list(work.take("m-2.safetensors", source / "m-2.safetensors"))


def test_a_disk_that_does_not_keep_what_is_written_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FileWriter.write
    monkeypatch.setattr(FileWriter, "write", lambda writer, name, tensor: write(writer, name, tensor)[::-1])
    with conversion(source, tmp_path / "store") as work:
        list(work.resume())
        with pytest.raises(DiskError, match="does not hold what was written"):
            list(work.take("m-2.safetensors", source / "m-2.safetensors"))
            work.settle()


class Arriving:
    """The first bytes of a file as they are told to come."""

    def __init__(self, content: bytes) -> None:
        self.content, self.done_bytes, self.attempt = content, 0, 1

    def read(self, start: int, into: memoryview) -> int | None:
        if start + len(into) > self.done_bytes:
            return None
        into[:] = self.content[start : start + len(into)]
        return self.attempt


def converted(events: Iterable[object]) -> list[str]:
    return [event.tensor for event in events if isinstance(event, QuantizeProgress)]


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """An FP8 tensor, its scales, and two others in one file."""
    folder = tmp_path / "one"
    folder.mkdir()
    tensors = {
        "a.weight": torch.randn(4, 6).to(torch.float8_e4m3fn),
        "a.weight" + SCALE: torch.rand(2, 2) + 0.5,
        "b.weight": torch.randn(5, 6).to(torch.bfloat16),
        "norm.weight": torch.randn(6),
    }
    save_file(tensors, folder / "model.safetensors")
    list(write_store(tmp_path / "whole", Checkpoint(folder), EXPECTED, block=BLOCK, origin=ORIGIN, extras={}))
    return folder / "model.safetensors"


def conversion_of(file: Path, target: Path) -> Conversion:
    checkpoint = Checkpoint.of_headers("org/name", {file.name: read_header(file)})
    return Conversion(target, checkpoint, EXPECTED, block=BLOCK, origin=ORIGIN)


@pytest.mark.parametrize("chunk_rows", [2, 100])
def test_what_has_come_of_a_file_is_converted_before_it_is_whole(
    one_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int
) -> None:
    monkeypatch.setattr(quantize, "CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 4 * 6 * chunk_rows))
    part, infos = Arriving(one_file.read_bytes()), read_header(one_file)
    with conversion_of(one_file, tmp_path / "store") as work:
        list(work.resume())
        early: list[str] = []
        for end in sorted(info.end for info in infos.values())[:-1]:
            part.done_bytes = end
            early += converted(work.take_early(one_file.name, part))
        assert len(early) == 2 and work.needs(one_file.name)
        late = converted(work.take(one_file.name, one_file, part.attempt))
        work.settle()
        assert sorted(early + late) == sorted(EXPECTED) and not work.needs(one_file.name)
        work.finish({})
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("wrong", [b"\x01", b"\xff"], ids=["other numbers", "not a number"])
def test_what_was_converted_of_a_file_that_proves_wrong_is_done_again(
    one_file: Path, tmp_path: Path, wrong: bytes
) -> None:
    infos = read_header(one_file)
    start, end = min(info.start for info in infos.values()), max(info.end for info in infos.values())
    part = Arriving(one_file.read_bytes()[:start] + wrong * (end - start))
    part.done_bytes = end
    with conversion_of(one_file, tmp_path / "store") as work:
        list(work.resume())
        list(work.take_early(one_file.name, part))
        part.attempt = 2
        list(work.take(one_file.name, one_file, part.attempt))
        work.finish({})
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_file_that_is_begun_again_while_it_is_read_gives_no_tensor(one_file: Path, tmp_path: Path) -> None:
    part = Arriving(one_file.read_bytes())
    part.done_bytes = len(part.content)
    with conversion_of(one_file, tmp_path / "store") as work:
        list(work.resume())
        events = work.take_early(one_file.name, part)
        next(events)
        part.attempt = 2  # what follows is of another attempt than what came before
        list(events)
        list(work.take(one_file.name, one_file, 1))
        work.finish({})
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_what_was_converted_early_is_not_believed_by_the_next_run(one_file: Path, tmp_path: Path) -> None:
    part = Arriving(one_file.read_bytes())
    part.done_bytes = len(part.content)
    with pytest.raises(KeyboardInterrupt), conversion_of(one_file, tmp_path / "store") as work:
        list(work.resume())
        assert len(converted(work.take_early(one_file.name, part))) == 3
        raise KeyboardInterrupt
    with conversion_of(one_file, tmp_path / "store") as work:
        assert converted(work.resume()) == []
        assert len(converted(work.take(one_file.name, one_file))) == 3
        work.finish({})
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
