"""What Tab and typing offer, as a person sees it in a window of either size."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.screen import CTRL_C, CTRL_D, ENTER, Terminal

FAKE = str(Path(__file__).with_name("fake_localr1.py"))
TAB = "\t"


@pytest.fixture
def start(tmp_path, monkeypatch) -> Iterator[Callable[..., Terminal]]:
    work = tmp_path / "work"
    (work / "papers").mkdir(parents=True)
    (work / "notes.txt").write_text("Buy bread.\n")
    (work / "papers" / "a b.txt").write_text("Buy milk.\n")
    monkeypatch.chdir(work)
    started = []

    def run(*arguments: str, columns: int, lines: int) -> Terminal:
        variables = {"LOCALR1_HOME": str(tmp_path / "home")}
        started.append(Terminal([sys.executable, FAKE, *arguments], variables, columns, lines))
        return started[-1]

    yield run
    for terminal in started:
        terminal.close()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 20)])
def test_commands_come_with_descriptions_and_files_after_read(start, columns, lines):
    terminal = start("chat", columns=columns, lines=lines)
    terminal.wait_for("❯")
    terminal.type("/re")
    terminal.wait_for("/retry")
    terminal.wait_for("/read")
    terminal.wait_for("Answer the last")
    terminal.wait_for("Put a text file")
    terminal.type(TAB + TAB)
    terminal.wait_for("❯ /read")
    terminal.type(" no")
    terminal.wait_for("notes.txt")
    terminal.type(TAB)
    terminal.wait_for("❯ /read notes.txt")
    terminal.type(" Why?" + ENTER)
    terminal.wait_for("turn 1.")
    terminal.wait_for("bread.")  # the window may break the line before it
    terminal.wait_for("context 10/4,096")
    terminal.type("/read pap")
    terminal.wait_for("papers")
    terminal.type(TAB)
    terminal.wait_for("❯ /read papers")
    terminal.type("/")
    terminal.wait_for("a b.txt")  # what the folder holds
    terminal.type(TAB)
    terminal.wait_for("❯ /read papers/a b.txt")
    terminal.type(ENTER)  # takes what Tab chose
    terminal.type(ENTER)
    terminal.wait_for("goes with")
    terminal.type("/think o")
    terminal.wait_for("off")
    terminal.type(CTRL_C + CTRL_D)
    assert terminal.leave() == 0
    assert "Traceback" not in terminal.text() and terminal.plain()
