"""Each slash command (/bench is tried in `test_tools`) in windows of either size, and vi keys, as a person types."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localr1.terminal.commands import COMMANDS
from tests.e2e.screen import CTRL_C, ENTER, Terminal

FAKE = str(Path(__file__).with_name("fake_localr1.py"))
ESCAPE = "\x1b"

TYPED = [
    ("/help", "Leave."),
    ("think", "I thought about it."),
    ("/thoughts", "Let me see."),
    ("/stats", "10 of 4,096 tokens"),
    ("/continue", "the answer is complete"),
    ("/retry", "thought for 12 s, 60 tokens"),
    ("/read notes.txt What is in it?", "You said"),
    ("/copy", "characters"),
    ("/save", "Later: localr1 chat --resume"),
    ("/history think", "/load ID goes on with one"),
    ("/load", "/history WORDS searches"),
    ("/export talk.md", "Written: talk.md"),
    ("/system Be brief.", "The system prompt is changed."),
    ("/set temperature 0.5", "temperature from now on: 0.5"),
    ("/think off", "Thinking is off"),
    ("/model", "This is echo."),
    ("/models", "More: localr1 models"),
    ("/undo", "Taken back:"),
    ("/plan nonsense-7b", "nonsense-7b"),
    ("/clear", "The conversation is forgotten."),
    ("/edit", "nothing was said yet"),
    ("/hlep", "did you mean /help?"),
    ("/xyzzy", "/help lists the commands"),
]


@pytest.fixture
def start(tmp_path, monkeypatch) -> Iterator[Callable[..., Terminal]]:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("Buy bread.\n")
    monkeypatch.chdir(tmp_path / "work")
    started = []

    def run(*arguments: str, columns: int = 80, lines: int = 24) -> Terminal:
        started.append(Terminal([sys.executable, FAKE, *arguments], {"LOCALR1_HOME": str(tmp_path)}, columns, lines))
        return started[-1]

    yield run
    for terminal in started:
        terminal.close()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 20)])
def test_every_command_answers(start, columns, lines):
    typed = {text.split()[0][1:] for text, _ in TYPED if text.startswith("/")}
    assert typed - {"hlep", "xyzzy"} | {"exit", "bench"} == set(COMMANDS)
    terminal = start("chat", columns=columns, lines=lines)
    terminal.wait_for("❯")
    for text, seen in TYPED:
        before = squeezed(terminal).count(squeeze(seen))
        terminal.type(text + ENTER)
        while squeezed(terminal).count(squeeze(seen)) <= before + (squeeze(seen) in squeeze(text)):
            assert terminal.read(), f"{text}: {seen!r} did not come\n{terminal.text()}"
        settle(terminal)
    terminal.type("/exit" + ENTER)
    assert terminal.leave() == 0
    assert "Traceback" not in terminal.text() and terminal.plain()
    assert "> think" in Path("talk.md").read_text()


def squeeze(text: str) -> str:
    """Without white space, since a narrow window breaks lines."""
    return re.sub(r"\s", "", text)


def squeezed(terminal: Terminal) -> str:
    return squeeze(terminal.text())


def settle(terminal: Terminal) -> None:
    """Until the prompt is back: below the last prompt stands nothing but the bar, of however many lines."""
    while not re.search(r"❯[^\n❯]*\n+ echo\b[^❯]*$|❯$", terminal.text()):
        assert terminal.read(), terminal.text()


def test_vi_keys(start):
    terminal = start("chat", "--keys", "vi")
    terminal.wait_for("❯")
    terminal.type("bad words" + ESCAPE)
    for _ in range(5):
        terminal.read(timeout_s=0.2)
    terminal.type("bcwwine" + ENTER)
    terminal.wait_for("You said 'bad wine', turn 1.")
    settle(terminal)
    terminal.type(CTRL_C)
    terminal.wait_for("Ctrl-C again leaves.")
    terminal.type(CTRL_C)
    assert terminal.leave() == 130
