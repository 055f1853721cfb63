"""What lists of models and settings look like in a narrow window."""

import sys
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.screen import Terminal


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Terminal]]:
    started = []

    def run(*arguments: str, columns: int) -> Terminal:
        command = [sys.executable, "-m", "localr1", *arguments]
        started.append(Terminal(command, {"LOCALR1_HOME": str(tmp_path)}, columns, 20))
        return started[-1]

    yield run
    for terminal in started:
        terminal.close()


def test_models_stand_above_what_is_said_of_them(start):
    terminal = start("models", columns=40)
    assert terminal.leave() == 0
    lines = terminal.text().split("\n")
    at = next(number for number, line in enumerate(lines) if line.startswith("v2-lite "))
    assert lines[at].endswith(" 20.0 GB") and lines[at + 1] == "  16 B, 2.4 B active: chat"
    assert "…" not in terminal.text()


def test_models_stand_beside_what_is_said_of_them_where_there_is_room(start):
    terminal = start("models", columns=80)
    assert terminal.leave() == 0
    (line,) = [line for line in terminal.text().split("\n") if line.startswith("v2-lite ")]
    assert line.endswith(" 20.0 GB  16 B, 2.4 B active: chat")


def test_an_error_is_broken_between_words_and_what_can_be_set_is_told(start):
    terminal = start("config", "set", "temperature", "very very warm and sunny", columns=40)
    assert terminal.leave() == 2
    assert terminal.text() == (
        "error: temperature cannot be 'very very\nwarm and sunny'\nhint: it is a number, at least 0 and at\nmost 5"
    )
    listed = start("config", columns=40)
    assert listed.leave() == 0
    assert "max_tokens" in listed.text().partition("Not set:")[2]
