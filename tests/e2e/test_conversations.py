"""Saved conversations, type-ahead and whole screens, through a real pty."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.screen import CTRL_C, CTRL_D, ENTER, Terminal

FAKE = [sys.executable, str(Path(__file__).with_name("fake_localr1.py"))]
SCREENS = Path(__file__).with_name("screens")


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Terminal]]:
    started = []

    def run(*arguments: str, columns: int = 80, lines: int = 24, **variables: str) -> Terminal:
        variables = {"LOCALR1_HOME": str(tmp_path), **variables}
        started.append(Terminal([*FAKE, *arguments], variables, columns, lines))
        return started[-1]

    yield run
    for terminal in started:
        terminal.close()


def test_a_killed_conversation_resumes_with_what_was_answered(start, tmp_path):
    terminal = start("chat")
    terminal.wait_for("❯")
    terminal.type("hello" + ENTER)
    terminal.wait_for("You said 'hello', turn 1.")
    terminal.wait_for("context 10/4,096")
    terminal.type("count" + ENTER)
    terminal.wait_for("60 61")
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.leave()
    resumed = start("chat", "--resume")
    resumed.wait_for("Resumed after 2 turns")
    resumed.wait_for("0 1 2 3")
    resumed.wait_for("40")
    resumed.type("hello" + ENTER)
    resumed.wait_for("You said 'hello', turn 3.")
    resumed.type(CTRL_D)
    assert resumed.leave() == 0
    assert "read again" not in resumed.text()  # a process that is killed keeps no cache
    assert len(list((tmp_path / "conversations").glob("*.jsonl"))) == 1
    listed = start("chat", "--list", "hello")
    assert listed.leave() == 0
    assert re.search(r"[a-z2-9]{4}  \d{4}-\d\d-\d\d    3  echo  hello", listed.text())


def test_a_conversation_that_was_left_resumes_with_its_cache(start, tmp_path):
    terminal = start("chat")
    terminal.wait_for("❯")
    terminal.type("hello" + ENTER)
    terminal.wait_for("context 10/4,096")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    (kept,) = (tmp_path / "conversations").glob("*.safetensors")
    resumed = start("chat", "--resume")
    resumed.wait_for("Resumed after 1 turn. 10 of its 30 tokens need not be read again.")
    resumed.type(CTRL_D)
    assert resumed.leave() == 0
    kept.write_text("something else")
    resumed = start("chat", "--resume")
    resumed.wait_for("It will be read again: what was kept of its cache is")
    resumed.type(CTRL_D)
    assert resumed.leave() == 0
    assert kept.read_text() == "1"
    resumed = start("chat", "--resume", "and then?")
    assert resumed.leave() == 0
    resumed.wait_for("turn 2.")
    assert kept.read_text() == "2"


def test_no_save_leaves_nothing_behind(start, tmp_path):
    terminal = start("chat", "--no-save")
    terminal.wait_for("❯")
    terminal.type("hello" + ENTER)
    terminal.wait_for("context 10/4,096")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(("question", "seen"), [("ponder", "thought9"), ("slowly", "3 4 5")])
def test_what_is_typed_while_an_answer_streams_is_seen_and_waits_for_the_prompt(start, question, seen):
    terminal = start("chat")
    terminal.wait_for("❯")
    terminal.type(question + ENTER)
    terminal.wait_for(seen)
    terminal.type("typef\x7fd \x1b[D\x1b[C")
    terminal.wait_for("❯ typed")
    terminal.type("ahead")
    terminal.wait_for("❯ typed ahead")
    assert "10/4,096" not in terminal.text()  # before the answer's end
    terminal.wait_for("context 10/4,096")
    terminal.wait_for("❯ typed ahead")
    assert terminal.text().count("typed") == 1
    terminal.type(ENTER)
    terminal.wait_for("You said 'typed ahead', turn 2.")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


@pytest.mark.parametrize("end", ["\x1b[201~", ""], ids=["whole", "cut"])
def test_what_is_pasted_while_the_answer_comes_is_one_message(start, end):
    terminal = start("chat")
    terminal.wait_for("❯")
    terminal.type("slowly" + ENTER)
    terminal.wait_for("3 4 5")
    terminal.type("\x1b[200~one\rtwo\rthree" + end)
    terminal.wait_for("❯ one⏎two⏎three")
    assert terminal.raw.rfind("\x1b[?2004h") > terminal.raw.rfind("\x1b[?2004l")
    terminal.wait_for("context 10/4,096")
    terminal.wait_for("three")
    terminal.type(ENTER)
    terminal.wait_for(r"You said 'one\ntwo\nthree', turn 2.")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


def test_ctrl_c_forgets_what_was_typed_while_the_answer_came(start):
    terminal = start("chat")
    terminal.wait_for("❯")
    terminal.type("count" + ENTER)
    terminal.wait_for("3 4 5")
    terminal.type("second" + ENTER)
    terminal.wait_for("❯ second⏎")
    terminal.type(CTRL_C)
    terminal.wait_for("interrupted")
    terminal.type("hello" + ENTER)
    terminal.wait_for("You said 'hello', turn 2.")
    assert "second" not in terminal.text()
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


def test_ctrl_d_leaves_whenever_it_is_typed_and_the_terminal_is_as_it_was(start):
    for question, seen in [("think", "thinking for"), ("hello", "You said 'hello', turn 1.")]:
        terminal = start("chat", "--no-save")
        terminal.wait_for("❯")
        terminal.type(question + ENTER)
        terminal.wait_for(seen)
        terminal.type(CTRL_D)  # in mid-answer, or between its end and the prompt
        assert terminal.leave() == 0
        assert terminal.left_as_found


def test_two_hundred_pasted_lines_are_one_message(start):
    terminal = start("chat")
    terminal.wait_for("❯")
    pasted = "\n".join(f"line {number}" for number in range(200))
    terminal.type(f"\x1b[200~{pasted}\x1b[201~")
    terminal.wait_for("line 199")
    terminal.type(ENTER)
    terminal.wait_for("turn 1.")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


def test_a_question_as_json(tmp_path):
    result = subprocess.run(
        [*FAKE, "chat", "--json", "think"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"LOCALR1_HOME": str(tmp_path)},
    )
    record = json.loads(result.stdout)
    assert result.returncode == 0 and "thought" not in result.stderr
    assert record["answer"] == "I **thought** about it." and record["thoughts"].startswith("Let me see.")
    assert (record["model"], record["question"], record["reason"]) == ("echo", "think", "end")
    assert record["statistics"]["context_limit_tokens"] == 4096


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 20)])
def test_the_main_screens_look_as_they_should(start, columns, lines):
    """Set LOCALR1_WRITE_SCREENS=1 to write them anew, then look at what changed."""
    terminal = start("chat", columns=columns, lines=lines, NO_COLOR="1")
    terminal.wait_for("❯")
    for question in ("think", "markdown", "/help"):
        before = terminal.text().count("❯")
        terminal.type(question + ENTER)
        while terminal.text().count("❯") < before + 1 or (question == "/help" and "Leave." not in terminal.text()):
            assert terminal.read(), terminal.text()
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    shown = re.sub(r"[\d.,]+ tokens/s", "N tokens/s", terminal.text())
    shown = re.sub(r"RAM [\d.]+ .B", "RAM N MB", shown) + "\n"
    file = SCREENS / f"chat-{columns}x{lines}.txt"
    if os.environ.get("LOCALR1_WRITE_SCREENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(shown)
    assert shown == file.read_text()
