"""The file format: what the library writes we read, what we write the library reads, and what is broken is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from xxhash import xxh3_128

from localr1.errors import CorruptError, DiskError, NotFoundError, UnsupportedError
from localr1.weights import file_writer
from localr1.weights.file_writer import FileWriter, Slot
from localr1.weights.safetensors_file import MappedFile, read_header

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, dtype=dtype)
    return torch.randn(shape).to(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_the_library_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a.weight": random_tensor((3, 5), dtype), "b": random_tensor((7,), dtype), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = MappedFile(tmp_path / "x.safetensors")
    assert set(file.tensors) == set(tensors)
    assert all(same(file.tensor(name), tensors[name]) for name in tensors)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_the_library_reads_what_we_write_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], seed: int
) -> None:
    path = tmp_path_factory.mktemp("w") / "x.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"t{i}": random_tensor(shape, DTYPES[i % 3]) for i, shape in enumerate(shapes)}
    slots = [Slot(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    slots.sort(key=lambda slot: -slot.dtype.itemsize)
    with FileWriter(path, slots) as writer:
        for i in torch.randperm(len(shapes), generator=generator).tolist():
            writer.write(f"t{i}", tensors[f"t{i}"])
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(same(loaded[name].reshape(-1), tensors[name].reshape(-1)) for name in tensors)


def test_a_writer_refuses_to_end_with_a_hole(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="never written"),
        FileWriter(tmp_path / "x", [Slot("a", torch.int8, (2,)), Slot("b", torch.int8, (2,))]) as writer,
    ):
        writer.write("a", torch.zeros(2, dtype=torch.int8))


def test_views_copy_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000, 1000)}, tmp_path / "x.safetensors")
    file = MappedFile(tmp_path / "x.safetensors")
    assert file.tensor("a").data_ptr() == file.tensor("a").data_ptr()


def write_raw(path: Path, header: object, data: bytes, header_bytes: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((header_bytes if header_bytes is not None else len(text)).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: object, shape: object, offsets: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = {"a": entry("F32", [2], [0, 8])}
BROKEN = {
    "header beyond the file": (GOOD, b"\0" * 8, 10**9, CorruptError, "1,000,000,000"),
    "absurd header": (GOOD, b"\0" * 8, 2**63, CorruptError, "9,223,372,036,854,775,808"),
    "not json": (b"{nope", b"", None, CorruptError, "not JSON"),
    "nested without end": (b"[" * 100_000, b"", None, CorruptError, "not JSON"),
    "not an object": ([1], b"", None, CorruptError, "not an object"),
    "truncated data": (GOOD, b"\0" * 7, None, CorruptError, "truncated"),
    "bytes left over": (GOOD, b"\0" * 9, None, CorruptError, "accounts for"),
    "offset out of range": (
        {"a": entry("F32", [2], [0, 8]), "b": entry("F32", [2], [8, 16])},
        b"\0" * 8,
        None,
        CorruptError,
        "truncated",
    ),
    "overlap": (
        {"a": entry("F32", [2], [0, 8]), "b": entry("F32", [2], [4, 12])},
        b"\0" * 12,
        None,
        CorruptError,
        "overlap",
    ),
    "gap": ({"a": entry("F32", [1], [4, 8])}, b"\0" * 8, None, CorruptError, "gap"),
    "shape against offsets": ({"a": entry("F32", [3], [0, 8])}, b"\0" * 8, None, CorruptError, "needs 12"),
    "negative shape": ({"a": entry("F32", [-2], [0, 8])}, b"\0" * 8, None, CorruptError, "malformed"),
    "missing offsets": ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, None, CorruptError, "malformed"),
    "entry is a number": ({"a": 3}, b"\0" * 8, None, CorruptError, "malformed"),
    "unknown dtype": ({"a": entry("F4", [2], [0, 8])}, b"\0" * 8, None, UnsupportedError, "F4"),
    "dtype is a list": ({"a": entry(["F32"], [2], [0, 8])}, b"\0" * 8, None, UnsupportedError, "F32"),
}


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.replace(" ", "-"))
def test_what_is_broken_is_refused_with_its_values(tmp_path: Path, case: str) -> None:
    header, data, header_bytes, kind, words = BROKEN[case]
    path = write_raw(tmp_path / "x.safetensors", header, data, header_bytes)
    with pytest.raises(kind, match=words) as caught:
        read_header(path)
    assert caught.value.hint and "\n" not in caught.value.message


def test_a_good_header_of_that_writer_is_taken(tmp_path: Path) -> None:
    assert read_header(write_raw(tmp_path / "x.safetensors", GOOD, b"\0" * 8))["a"].nbytes == 8


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_stub_of_a_file_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\1" * size)
    with pytest.raises(CorruptError):
        read_header(tmp_path / "x.safetensors")


def test_a_clone_without_its_large_files_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4976698672\n")
    with pytest.raises(CorruptError, match="pointer of Git LFS") as caught:
        read_header(path)
    assert "git lfs pull" in caught.value.hint


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_header(tmp_path / "x.safetensors")


def test_a_full_disk_is_said_before_the_first_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _total_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_writer, "_reserve", full)
    with pytest.raises(DiskError, match="no room") as caught:
        FileWriter(tmp_path / "x", [Slot("a", torch.int8, (2,))])
    assert "LOCALR1_HOME" in caught.value.hint


def test_a_file_is_hashed_as_it_is_read_back(tmp_path: Path) -> None:
    slots = [Slot(name, torch.int8, (1000,)) for name in "abcd"]
    tensors = {name: torch.randint(-128, 128, (1000,), dtype=torch.int8) for name in "abcd"}
    with FileWriter(tmp_path / "file", slots) as file:
        digests = {name: file.write(name, tensors[name]) for name in "bad"}
        assert all(file.written(name, digest) for name, digest in digests.items())
        again = file.write("a", tensors["c"])  # what was hashed already is written anew
        digests["c"] = file.write("c", tensors["c"])
        assert not file.written("a", digests["a"]) and file.written("c", digests["c"])
        with pytest.raises(ValueError, match="never read back"):
            file.digest()
        assert file.written("a", again)
        found = file.digest()
    assert found == xxh3_128((tmp_path / "file").read_bytes()).hexdigest()


@pytest.mark.parametrize("place", ["header", "turn", "later"])
def test_a_byte_that_changes_behind_the_writer_is_found(tmp_path: Path, place: str) -> None:
    slots = [Slot(name, torch.int8, (1000,)) for name in "ab"]
    with FileWriter(tmp_path / "file", slots) as file:
        digests = {name: file.write(name, torch.ones(1000, dtype=torch.int8)) for name in "ab"}
        if place == "later":  # right when it was read, and changed before the file was hashed up to it
            assert file.written("b", digests["b"])
        with (tmp_path / "file").open("r+b") as disk:
            disk.seek({"header": 20, "turn": -1500, "later": -1}[place], 0 if place == "header" else 2)
            disk.write(b"\2")
        right = file.written("a", digests["a"])
        if place == "header":
            assert right and file.written("b", digests["b"])
            with pytest.raises(DiskError, match="does not hold what was written"):
                file.digest()
        else:
            assert not right


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of POSIX")
def test_a_file_larger_than_the_disk_allows_is_told_with_the_way_out(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # as a disk of FAT32 does at 4 GB
    try:
        with pytest.raises(DiskError, match=r"x \(2.1 MB\) is larger than files may be there") as refused:
            FileWriter(tmp_path / "x", [Slot("a", torch.int8, (2 << 20,))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "FAT32" in refused.value.hint
