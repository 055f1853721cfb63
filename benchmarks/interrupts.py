"""How long Ctrl-C takes, at any moment, on a real pseudo-terminal.

    python -m benchmarks.interrupts [--json FILE] [--stages starting,compiling]

A person presses Ctrl-C while `localr1 chat` starts (again and again, a little later each time), compiles its kernels,
reads a long prompt with a model that is slow here (three wide layers of random weights, so that one layer of 512 tokens
takes about a second), answers with it, and while the built-in model thinks. Counted is the time until the process has
ended or the prompt is back. For comparison the time that one prefill chunk and one layer of it take is measured too.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.download_faults import make_checkpoint
from tests.e2e.screen import CTRL_C, CTRL_D, ENTER, Terminal

CHAT = [sys.executable, "-m", "localr1", "chat"]
HIDDEN, LAYERS = 2048, 3
PROMPT_TOKENS = 3000
WANTED_MS = 200


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


def prompts(terminal: Terminal) -> int:
    return terminal.text().count("❯")


def in_turns(variables: dict[str, str], model: str, question: str, seen: str, repeats: int) -> list[float]:
    """Ctrl-C a moment after `seen` appears in each of some turns, until the next prompt."""
    terminal = Terminal([*CHAT, model, "--no-save", "--context", "4096"] if model else [*CHAT, "--no-save"], variables)
    terminal.wait_for("❯", timeout_s=300)
    took_ms = []
    for number in range(repeats):
        before = len(terminal.raw)
        terminal.type(question + ENTER)
        while not re.search(seen, terminal.raw[before:]):
            assert terminal.read(timeout_s=0.02), terminal.text()
        until_s = time.monotonic() + 0.1 * number
        while time.monotonic() < until_s:
            terminal.read(timeout_s=0.01)
        mark = len(terminal.raw)
        took_ms.append(pressed(terminal, lambda mark=mark: "❯" in terminal.raw[mark:]))
        terminal.type("/clear" + ENTER)
        terminal.wait_for("forgotten", timeout_s=60)
    terminal.type(CTRL_D)
    terminal.leave()
    return took_ms


def slow_model(folder: Path) -> Path:
    """Three layers as wide as a 7B model's, with room for a long prompt."""
    make_checkpoint(folder, HIDDEN, LAYERS, shards=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


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
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stages", help="only these, separated by commas; FILE keeps what it has of the others")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float | int]] = {}
    if arguments.json and arguments.json.exists():
        results = json.loads(arguments.json.read_text())["stages"]
    with tempfile.TemporaryDirectory() as scratch:
        home = {"LOCALR1_HOME": scratch + "/home", "OMP_NUM_THREADS": "1"}
        model = str(slow_model(Path(scratch) / "slow"))
        download = Terminal([sys.executable, "-m", "localr1", "download", model], home)
        assert download.leave(timeout_s=200) == 0, download.text()
        cold = home | {"NUMBA_CACHE_DIR": scratch + "/numba"}
        long_question = "word " * (PROMPT_TOKENS // 5)
        stages: dict[str, Callable[[], list[float]]] = {
            "starting": lambda: starting(home, [0.3 + 0.1 * number for number in range(40)]),
            "compiling": lambda: starting(cold, [3.0 + 1.5 * number for number in range(arguments.repeats)]),
            "prefilling": lambda: in_turns(home, model, long_question, "Reading", arguments.repeats),
            "answering": lambda: in_turns(home, model, "hi", r"\[\?7l.\x1b\[\?7h", arguments.repeats),
            "thinking": lambda: in_turns(home, "", "What is 347 + 85?", "thinking for", arguments.repeats),
        }
        for name in arguments.stages.split(",") if arguments.stages else stages:
            measure = stages[name]
            results[name] = summary(measure())
            print(f"{name:11} {results[name]}", flush=True)
    record = {
        "benchmark": "interrupts",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "stages": results,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
