"""How soon a key has its effect, on a real pseudo-terminal: at the prompt, and while an answer streams.

    python -m benchmarks.input_latency [--json FILE]

Four things are timed: a key at the prompt until its echo; a key in mid-answer until it stands below the answer; Ctrl-C
in mid-answer until "interrupted" is shown; and text typed in mid-answer, from the answer's last line until the text
stands at the prompt. The model is the slow one of
`interrupts`, whose kernels are at work meanwhile; beside it the rule of `tests/e2e/fake_localr1.py`, which shows what
the terminal alone takes.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.interrupts import CHAT, slow_model
from tests.e2e.screen import CTRL_C, CTRL_D, ENTER, Terminal

FAKE = [sys.executable, str(Path(__file__).parent.parent / "tests" / "e2e" / "fake_localr1.py"), "chat", "--no-save"]
KEYS = "the quick brown fox jumps over the lazy dog"


def until(terminal: Terminal, done: Callable[[], bool], limit_s: float = 60) -> float:
    """Milliseconds until then."""
    started_s = time.monotonic()
    while not done():
        assert terminal.read(timeout_s=0.001) and time.monotonic() - started_s < limit_s, terminal.text()
    return (time.monotonic() - started_s) * 1e3


def echoed(terminal: Terminal, pause_s: float = 0.0) -> list[float]:
    """A key after another, each until it is seen."""
    took_ms = []
    for number, key in enumerate(KEYS, start=1):
        wait(terminal, pause_s)
        terminal.type(key)
        typed = KEYS[:number].rstrip()
        if key != " ":
            took_ms.append(until(terminal, lambda typed=typed: f"❯ {typed}" in terminal.text()))
    return took_ms


def wait(terminal: Terminal, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        terminal.read(timeout_s=0.005)


def at_the_prompt(terminal: Terminal) -> list[float]:
    took_ms = echoed(terminal)
    terminal.type(CTRL_C)
    until(terminal, lambda: KEYS not in terminal.text())
    return took_ms


def in_an_answer(terminal: Terminal, question: str) -> list[float]:
    streaming(terminal, question)
    took_ms = echoed(terminal, pause_s=0.03)
    mark = len(terminal.raw)
    terminal.type(CTRL_C)
    until(terminal, lambda: "❯" in terminal.raw[mark:].partition("interrupted")[2])
    return took_ms


def streaming(terminal: Terminal, question: str) -> None:
    """Ask, and return when the answer is on its way."""
    mark = len(terminal.raw)
    terminal.type(question + ENTER)
    until(terminal, lambda: terminal.raw.count("\x1b[?7l", mark) > 2)


def interrupted(terminal: Terminal, question: str, repeats: int) -> list[float]:
    took_ms = []
    for number in range(repeats):
        streaming(terminal, question)
        wait(terminal, 0.2 + 0.03 * number)
        mark = len(terminal.raw)
        terminal.type(CTRL_C)
        took_ms.append(until(terminal, lambda mark=mark: "interrupted" in terminal.raw[mark:]))
        until(terminal, lambda mark=mark: "❯" in terminal.raw[mark:])
    return took_ms


def typed_ahead(terminal: Terminal, question: str, repeats: int) -> list[float]:
    took_ms = []
    for number in range(repeats):
        shown = f"❯ next{number}"
        streaming(terminal, question)
        mark = len(terminal.raw)  # the bar of the prompt before tells tokens/s too
        terminal.type(f"next{number}")
        until(terminal, lambda mark=mark: "tokens/s" in terminal.raw[mark:])
        took_ms.append(until(terminal, lambda shown=shown: shown in terminal.text()))
        terminal.type(CTRL_C)
        until(terminal, lambda shown=shown: shown not in terminal.text())
    return took_ms


def summary(took_ms: list[float]) -> dict[str, float | int]:
    return {
        "presses": len(took_ms),
        "median_ms": round(statistics.median(took_ms), 1),
        "longest_ms": round(max(took_ms), 1),
    }


def measure(
    command: list[str], variables: dict[str, str], endless: str, ending: str, repeats: int
) -> dict[str, object]:
    terminal = Terminal(command, variables)
    terminal.wait_for("❯", timeout_s=200)
    figures = {
        "echo at the prompt": at_the_prompt(terminal),
        "echo in an answer": in_an_answer(terminal, endless),
        "Ctrl-C in an answer": interrupted(terminal, endless, repeats),
    }
    terminal.type("/set max_tokens 20" + ENTER)
    terminal.wait_for("max_tokens is 20")
    figures["typed ahead"] = typed_ahead(terminal, ending, repeats)
    terminal.type(CTRL_D)
    terminal.leave()
    return {name: summary(took_ms) for name, took_ms in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = {"LOCALR1_HOME": scratch + "/home", "OMP_NUM_THREADS": "1"}
        model = str(slow_model(Path(scratch) / "slow"))
        download = Terminal([sys.executable, "-m", "localr1", "download", model], home)
        assert download.leave(timeout_s=200) == 0, download.text()
        chat = [*CHAT, model, "--no-save", "--context", "4096"]
        results = {
            "without a model": measure(FAKE, home, "count", "think", arguments.repeats),
            "with a slow model": measure(chat, home, "hi", "hi", arguments.repeats),
        }
    record = {
        "benchmark": "input_latency",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "results": results,
    }
    print(json.dumps(record, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
