"""How long Ctrl-C takes, at any moment, on a real pseudo-terminal.

    python -m benchmarks.interrupts [--json FILE] [--stages starting,compiling] [--busy 2]

A person presses Ctrl-C while `localr1 chat` starts (again and again, a little later each time), compiles its kernels,
reads a long prompt with a model that is slow here (three wide layers of random weights, so that one layer of 512 tokens
takes about a second), thinks with it and answers with it. Counted is the time until the process has ended or the prompt
is back. With `--busy` so many other processes compute all the while.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.download_faults import TEMPLATE, make_checkpoint
from tests.e2e.screen import CTRL_C, CTRL_D, ENTER, Terminal

CHAT = [sys.executable, "-m", "localr1", "chat"]
HIDDEN, LAYERS = 2048, 3
PROMPT_TOKENS = 3000
WANTED_MS = 200
STAGES = {"starting": "", "compiling": "", "prefilling": "slow", "thinking": "thinker", "answering": "slow"}
"""What is measured, and the model that it takes."""


def pressed(terminal: Terminal, done: Callable[[], bool]) -> float:
    """Milliseconds from Ctrl-C until `done`, or until the process ends."""
    started_s = time.monotonic()
    terminal.type(CTRL_C)
    while not done() and terminal.read(timeout_s=0.002):
        pass
    return (time.monotonic() - started_s) * 1e3


def starting(variables: dict[str, str], delays_s: list[float]) -> list[float]:
    """Ctrl-C so long after the start of the process; a run that is at its prompt by then is not counted."""
    took_ms = []
    for delay_s in delays_s:
        terminal = Terminal(CHAT, variables)
        until_s = time.monotonic() + delay_s
        while time.monotonic() < until_s:
            terminal.read(timeout_s=0.01)
        at_prompt = "❯" in terminal.text()
        if not at_prompt:
            seen = terminal.text().rpartition("\n")[2]
            took_ms.append(pressed(terminal, lambda: False))
            if took_ms[-1] > WANTED_MS:
                print(f"  {took_ms[-1]:.0f} ms, pressed after {delay_s:.1f} s at {seen!r}", flush=True)
            assert "Traceback" not in terminal.text(), terminal.text()
        terminal.close()
        if at_prompt:
            break
    return took_ms


def in_turns(
    variables: dict[str, str], model: Path, question: str, under_way: Callable[[str], bool], repeats: int
) -> list[float]:
    """Ctrl-C a moment after what was written of a turn says that it is under way, until the next prompt."""
    terminal = Terminal([*CHAT, str(model), "--no-save", "--context", "4096"], variables)
    terminal.wait_for("❯", timeout_s=300)
    took_ms: list[float] = []
    tries = 0
    while len(took_ms) < repeats:
        tries += 1
        before = len(terminal.raw)
        terminal.type(question + ENTER)
        while not under_way(terminal.raw[before:]):
            assert terminal.read(timeout_s=0.02), terminal.text()
        until_s = time.monotonic() + 0.07 * (tries % 10)
        while time.monotonic() < until_s:
            terminal.read(timeout_s=0.01)
        mark = len(terminal.raw)
        if "tokens/s" not in terminal.raw[before:]:  # else it ended by itself
            took_ms.append(pressed(terminal, lambda mark=mark: "❯" in terminal.raw[mark:]))
            assert "interrupted" in terminal.raw[mark:], terminal.text()
        assert tries < 3 * repeats, "too many answers ended by themselves"
        terminal.type("/clear" + ENTER)
        while "forgotten" not in terminal.raw[mark:]:
            assert terminal.read(timeout_s=0.02), terminal.text()
    terminal.type(CTRL_D)
    terminal.leave()
    return took_ms


def reads(written: str) -> bool:
    return "Reading" in written


def thinks(written: str) -> bool:
    return "thinking for" in written


def answers(written: str) -> bool:
    """Live lines, which are written without wrapping, were drawn more than twice."""
    return written.count("\x1b[?7l") > 2


def slow_model(folder: Path, opening: str = "") -> Path:
    """Three layers as wide as a 7B model's, with room for a long prompt, which ends with `opening`."""
    make_checkpoint(folder, HIDDEN, LAYERS, shards=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    (folder / "chat_template.jinja").write_text(TEMPLATE + opening)
    return folder


@contextlib.contextmanager
def others_at_work(processes: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def summary(took_ms: list[float]) -> dict[str, float | int]:
    return {
        "presses": len(took_ms),
        "median_ms": round(statistics.median(took_ms), 1),
        "longest_ms": round(max(took_ms), 1),
        f"over_{WANTED_MS}_ms": sum(took > WANTED_MS for took in took_ms),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--busy", type=int, default=0, help="so many other processes compute meanwhile")
    parser.add_argument("--stages", help="only these, separated by commas; FILE keeps what it has of the others")
    arguments = parser.parse_args()
    record: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        record = json.loads(arguments.json.read_text())
    kept = f"stages beside {arguments.busy} busy processes" if arguments.busy else "stages"
    results: dict[str, dict[str, float | int]] = record.get(kept, {})
    with tempfile.TemporaryDirectory() as scratch, others_at_work(arguments.busy):
        home = {"LOCALR1_HOME": scratch + "/home", "OMP_NUM_THREADS": "1"}
        slow, slow_thinker = Path(scratch) / "slow", Path(scratch) / "thinker"
        wanted = arguments.stages.split(",") if arguments.stages else list(STAGES)
        for folder, opening in ((slow, ""), (slow_thinker, "<think>\n")):
            if any(STAGES[name] == folder.name for name in wanted):
                slow_model(folder, opening)
                download = Terminal([sys.executable, "-m", "localr1", "download", str(folder)], home)
                assert download.leave(timeout_s=200) == 0, download.text()
        cold = home | {"NUMBA_CACHE_DIR": scratch + "/numba"}
        long_question = "word " * (PROMPT_TOKENS // 5)
        repeats = arguments.repeats
        measures: dict[str, Callable[[], list[float]]] = {
            "starting": lambda: starting(home, [0.3 + 0.1 * number for number in range(40)]),
            "compiling": lambda: starting(cold, [3.0 + 1.5 * number for number in range(repeats)]),
            "prefilling": lambda: in_turns(home, slow, long_question, reads, repeats),
            "thinking": lambda: in_turns(home, slow_thinker, "hi", thinks, repeats),
            "answering": lambda: in_turns(home, slow, "hi", answers, repeats),
        }
        for name in wanted:
            results[name] = summary(measures[name]())
            print(f"{name:11} {results[name]}", flush=True)
    record |= {
        "benchmark": "interrupts",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        kept: results,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
