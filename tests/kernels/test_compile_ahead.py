"""Kernels compiled by other processes: they are on the disk afterwards, and no failure of a process costs more than
time."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from localr1.kernels import compilation, compile_ahead

NAMES = ("rms_norm", "embed", "read")
LOADED = f"""
from localr1.kernels import compilation
print([compilation.is_cold(name) for name in {NAMES}])
compilation.compile_kernel("rms_norm")
function, signature = compilation.KERNELS["rms_norm"].function, compilation.KERNELS["rms_norm"].signature
print(function.stats.cache_hits[signature])
"""


def test_every_kernel_has_its_group():
    grouped = [name for group in compilation.TOGETHER for name in group]
    assert len(set(grouped)) == len(grouped) and compilation.KERNELS.keys() | {compilation.SYMBOLS} <= set(grouped)


def test_what_other_processes_compiled_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    groups = (("rms_norm", "embed"), ("read",))
    first, *_ = compile_ahead.compile_ahead(groups, 2)
    assert first == ("rms_norm", 0)
    done = subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[False, False, False]", "1"]


def test_a_process_that_compiles_ends_with_whoever_began_it():
    with compile_ahead._process() as process:
        process.stdin.write(b"routed_ffn\n")
        process.stdin.close()
        assert process.wait(timeout=60) == 0


ECHO = "import sys\nfor line in sys.stdin:\n    {}\n    print(line, end='', flush=True)"


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list["subprocess.Popen[bytes]"]]:
    """Others in the place of those that compile: one for each line of Python that is done for a name."""

    def begin(*lines: str) -> list["subprocess.Popen[bytes]"]:
        begun, each = [], iter(lines)

        def process() -> "subprocess.Popen[bytes]":
            command, pipe = [sys.executable, "-c", ECHO.format(next(each))], subprocess.PIPE
            begun.append(subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe))
            return begun[-1]

        monkeypatch.setattr(compile_ahead, "_process", process)
        return begun

    return begin


def told(groups: tuple[tuple[str, ...], ...], processors: int) -> list[tuple[str, int]]:
    """Each of the news once."""
    return list(dict.fromkeys(compile_ahead.compile_ahead(groups, processors)))


def test_while_one_is_compiled_there_is_news(processes, monkeypatch):
    processes("import time; time.sleep(1)")
    monkeypatch.setattr(compile_ahead, "NEWS_S", 0.05)
    news = list(compile_ahead.compile_ahead((("one",),), 1))
    assert set(news) == {("one", 0)} and len(news) > 2


def test_a_name_that_is_not_compiled_yet_comes_whenever_one_is(processes):
    begun = processes("pass")
    assert told((("one", "two"), ("three",)), 1) == [("one", 0), ("two", 1), ("three", 2)]
    assert all(process.returncode is not None for process in begun)


def test_a_process_that_ends_leaves_its_work_undone_and_the_rest_to_others(processes):
    begun = processes("sys.exit() if line == 'two\\n' else None", "import time; time.sleep(1)")
    news = told((("one", "two", "three"), ("four",), ("five",)), 2)
    assert news[0] == ("one", 0) and news[-1] == ("two", 3)
    assert all(process.returncode is not None for process in begun)


def test_with_no_process_left_it_ends(processes, monkeypatch):
    processes("sys.exit()", "raise KeyboardInterrupt")
    assert told((("one",), ("two",), ("three",)), 2) == [("one", 0)]

    def none() -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(compile_ahead, "_process", none)
    assert told((("one",), ("two",)), 2) == []


def test_stopped_it_ends_its_processes_at_once(processes):
    begun = processes("import time; time.sleep(1000)", "import time; time.sleep(1000)")
    compiling = compile_ahead.compile_ahead((("one",), ("two",)), 2)
    assert next(compiling) == ("one", 0)
    compiling.close()
    assert len(begun) == 2 and all(process.returncode for process in begun)
