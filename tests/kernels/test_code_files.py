"""Compiled code on the disk: whole or not at all, and never another's."""

import subprocess
import sys
from pathlib import Path

import pytest

from localr1.kernels.code_files import CodeFiles

COMPILE = """
import sys
from numba import types
from localr1.kernels.jit import compiled, on_disk

@compiled()
def double(x):
    return x + x

signature = (types.{kind},)
print(on_disk(double, signature))
double.compile(signature)
print(double({value!r}), len(double.stats.cache_hits))
"""


def files(folder: Path, stamp: bytes = b"one") -> CodeFiles:
    return CodeFiles(folder, "room.function", stamp)


def run(folder: Path, kind: str, value: float) -> list[str]:
    """Compile a function in a process of its own, or load it; what it says."""
    source = folder / "code.py"
    source.write_text(COMPILE.format(kind=kind, value=value))
    command = [sys.executable, str(source)]
    environment = {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()


def test_what_was_compiled_is_loaded_and_signatures_are_apart(tmp_path):
    assert run(tmp_path, "int64", 3) == ["False", "6", "0"]
    assert run(tmp_path, "float64", 0.5) == ["False", "1.0", "0"]
    assert run(tmp_path, "int64", 4) == ["True", "8", "1"]
    assert run(tmp_path, "float64", 1.5) == ["True", "3.0", "1"]


@pytest.mark.parametrize("damage", [b"", b"cut", b"\0" * 5000])
def test_damaged_code_is_compiled_again(tmp_path, damage):
    assert run(tmp_path, "int64", 3) == ["False", "6", "0"]
    (file,) = (tmp_path / "cache").rglob("*.nbc")
    whole = file.read_bytes()
    file.write_bytes(damage or whole[:-1])
    assert run(tmp_path, "int64", 3) == ["True", "6", "0"]
    assert run(tmp_path, "int64", 3) == ["True", "6", "1"]


def test_who_saves_at_once_leaves_both(tmp_path):
    """Each has looked before the other wrote, which in an index would lose one or give it the other's code."""
    one, two = files(tmp_path), files(tmp_path)
    assert one.load("int64") is None and two.load("float32") is None
    one.save("int64", "a sum of integers")
    two.save("float32", "a sum of floats")
    assert (two.load("int64"), one.load("float32")) == ("a sum of integers", "a sum of floats")


def test_code_of_older_sources_is_not_taken_and_goes(tmp_path):
    files(tmp_path).save("int64", "old")
    newer = files(tmp_path, b"two")
    assert not newer.holds("int64") and newer.load("int64") is None
    newer.save("float32", "new")
    assert files(tmp_path).load("int64") is None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_takes_nothing_costs_no_answer(tmp_path):
    nowhere = files(tmp_path / "nowhere")
    nowhere.save("int64", "code")
    assert nowhere.load("int64") is None


def test_a_stop_while_it_is_written_leaves_nothing(tmp_path, monkeypatch):
    def stop(self: Path, content: bytes) -> None:
        self.touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", stop)
        with pytest.raises(KeyboardInterrupt):
            files(tmp_path).save("int64", "code")
    assert list(tmp_path.iterdir()) == []


def test_forgetting_removes_all(tmp_path):
    files(tmp_path).save("int64", "code")
    files(tmp_path).flush()
    assert list(tmp_path.iterdir()) == []
