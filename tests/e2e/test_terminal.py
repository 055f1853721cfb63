"""The terminal through a real pty, with a conversation that needs no model."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.screen import ALT_ENTER, CTRL_C, CTRL_D, CTRL_E, CTRL_R, CTRL_X, CTRL_Z, ENTER, UP, Terminal

FAKE = str(Path(__file__).with_name("fake_localr1.py"))


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Terminal]]:
    started = []

    def run(*arguments: str, columns: int = 80, lines: int = 24, **variables: str) -> Terminal:
        variables = {"LOCALR1_HOME": str(tmp_path), **variables}
        started.append(Terminal([sys.executable, FAKE, *arguments], variables, columns, lines))
        return started[-1]

    yield run
    for terminal in started:
        terminal.close()


def test_a_conversation(start):
    terminal = start("chat")
    terminal.wait_for("❯")
    terminal.type("hello" + ENTER)
    terminal.wait_for("You said 'hello', turn 1.")
    terminal.wait_for("context 10/4,096")
    terminal.type("two" + ALT_ENTER + "lines" + ENTER)
    terminal.wait_for(r"You said 'two\nlines', turn 2.")
    terminal.type("/clear" + ENTER)
    terminal.wait_for("forgotten")
    terminal.type(UP + UP + " again" + ENTER)
    terminal.wait_for(r"You said 'two\nlines again', turn 1.")
    terminal.type("fail" + ENTER)
    terminal.wait_for("hint: start anew with /clear")
    terminal.type("/exxit" + ENTER)
    terminal.wait_for("did you mean /exit?")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    assert terminal.plain()
    assert "Opening a model" in terminal.raw and "Opening a model" not in terminal.text()


def test_a_thought_folds_in_a_window_of_few_lines(start):
    terminal = start("chat", lines=8)
    terminal.wait_for("❯")
    terminal.type("ponder" + ENTER)
    terminal.wait_for("Pondered.")
    assert "thought for 3.2 s, 300 tokens" in terminal.text() and "thinking for" not in terminal.text()


@pytest.mark.parametrize("columns", [20, 80])
def test_a_window_of_five_lines_has_a_prompt(start, columns):
    terminal = start("chat", lines=5, columns=columns)
    terminal.wait_for("❯")
    terminal.type("hello" + ENTER)
    terminal.wait_for("turn 1.")


def test_a_window_that_becomes_small_at_the_prompt_keeps_it(start):
    terminal = start("chat")
    terminal.wait_for("echo · RAM")
    terminal.resize(80, 5)
    for word in ("hello", " you"):
        terminal.type(word)
        terminal.wait_for(word)
    assert "too small" not in terminal.raw
    terminal.type(ENTER)
    terminal.wait_for("turn 1.")


def test_read_by_line_what_was_typed_ahead_is_shown_and_no_byte_ends_it(start):
    terminal = start("chat", "--plain")
    terminal.wait_for("❯")
    terminal.type("slowly" + ENTER)
    terminal.wait_for("1 2 3")
    terminal.type("ahead" + ENTER)
    terminal.wait_for("❯ ahead\nYou said 'ahead', turn 2.")
    terminal.write_bytes(b"a\xe9b\r")
    terminal.wait_for("turn 3.")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


@pytest.mark.parametrize("question", [["read"], ["--json", "read"]], ids=["text", "json"])
def test_with_plain_nothing_is_drawn_again(start, question):
    terminal = start("chat", "--plain", *question, NO_COLOR="1")
    assert terminal.leave() == 0
    assert "\x1b" not in terminal.raw and "\r" not in terminal.raw.replace("\r\n", "")


def test_ctrl_c_stops_the_answer_then_clears_the_line(start):
    terminal = start("chat")
    terminal.wait_for("❯")
    terminal.type("count" + ENTER)
    terminal.wait_for("3 4 5")
    terminal.type(CTRL_C)
    terminal.wait_for("interrupted")
    terminal.type("never")
    terminal.wait_for("❯ never")
    terminal.type(CTRL_C + "hello" + ENTER)
    terminal.wait_for("You said 'hello', turn 2.")
    terminal.type("/exit" + ENTER)
    assert terminal.leave() == 0


@pytest.mark.parametrize(("question", "seen"), [("read", "Reading the prompt"), ("think", "thinking for")])
def test_ctrl_c_while_it_reads_or_thinks_brings_the_prompt_back_and_a_second_one_leaves(start, question, seen):
    terminal = start("chat")
    terminal.wait_for("❯")
    terminal.type(question + ENTER)
    while seen not in terminal.raw:
        assert terminal.read(), terminal.text()
    terminal.type(CTRL_C)
    terminal.wait_for("interrupted")
    terminal.wait_for("❯ " + question)
    terminal.type("hello" + ENTER)
    terminal.wait_for("You said 'hello', turn 2.")  # what was left behind ended first
    terminal.wait_for("echo · context 20/4,096")  # in the bar: the prompt is back
    terminal.type(CTRL_C)
    terminal.wait_for("Ctrl-C again leaves.")
    terminal.type(CTRL_C)
    assert terminal.leave() == 130
    assert "Traceback" not in terminal.text() and terminal.plain()


def test_a_second_ctrl_c_leaves_although_the_reading_goes_on(start):
    terminal = start("chat")
    terminal.wait_for("❯")
    terminal.type("read" + ENTER)
    while "Reading the prompt" not in terminal.raw:
        assert terminal.read(), terminal.text()
    terminal.type(CTRL_C)
    terminal.wait_for("interrupted")
    terminal.type(CTRL_C)
    assert terminal.leave() == 130
    assert terminal.plain()


def test_ctrl_c_while_loading_leaves_without_a_word(start):
    terminal = start("chat", LOCALR1_FAKE_SLOW="60")
    while "Opening a model" not in terminal.raw:
        assert terminal.read(), terminal.text()
    terminal.type(CTRL_C)
    assert terminal.leave() == 130
    assert terminal.text() == "" and terminal.plain() and terminal.left_as_found


def test_what_a_model_emits_leaves_the_terminal_as_it_was(start):
    terminal = start("chat", "--thoughts", "show")
    terminal.wait_for("❯")
    terminal.type("hostile" + ENTER)
    terminal.wait_for("␛]0;owned␇")
    terminal.wait_for("␛[?25l␛[31m␛[2J␛]52;c;aGk=␇<U+202E>abc")
    terminal.wait_for("context 10/4,096")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    assert "\x1b]52" not in terminal.raw and "\x1b]0;owned" not in terminal.raw
    assert terminal.plain()


@pytest.mark.parametrize("thoughts", ["show", "fold"])
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 20)])
def test_everything_hostile_at_once_leaves_the_terminal_as_it_was(start, columns, lines, thoughts):
    terminal = start("chat", "--no-save", "--thoughts", thoughts, columns=columns, lines=lines)
    terminal.wait_for("❯")
    terminal.type("everything hostile" + ENTER)
    while "context" not in terminal.raw:
        assert terminal.read(), terminal.text()
    terminal.type("hello" + ENTER)
    terminal.wait_for("You said 'hello', turn 2.")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    assert terminal.plain() and terminal.left_as_found and "Traceback" not in terminal.text()
    assert not re.search(r"\x1b[]P^_Xc\\]|\x1b\[\?(?!2026|2004|7|25|12|1[hl])|[\x05\x80-\x9f]", terminal.raw)


def test_a_narrow_window_and_a_resize(start):
    terminal = start("chat", columns=40, lines=20)
    terminal.wait_for("❯")
    terminal.type("a message that is longer than forty columns are" + ENTER)
    terminal.wait_for("columns are', turn 1.")
    terminal.wait_for("the\ncommands, Ctrl-D leaves.")
    terminal.type("count" + ENTER)
    terminal.wait_for("3 4 5")
    terminal.resize(30, 15)
    terminal.wait_for("40")
    terminal.type(CTRL_C)
    terminal.wait_for("interrupted")
    terminal.type("hello" + ENTER)
    terminal.wait_for("'hello', turn 3.")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


@pytest.mark.parametrize("variables", [{}, {"XTERM_VERSION": "XTerm(390)"}], ids=["reflows", "cuts"])
def test_a_thought_in_a_window_that_changes_leaves_no_copy_of_itself(start, variables):
    terminal = start("chat", **variables)
    terminal.wait_for("❯")
    terminal.type("ponder" + ENTER)
    for columns, lines, seen in [(40, 20, "thought60"), (70, 30, "thought120"), (33, 24, "thought180")]:
        terminal.wait_for(seen)
        terminal.resize(columns, lines)
    terminal.wait_for("Pondered.")
    terminal.wait_for("context 10/4,096")
    text = terminal.text()
    assert "thought1" not in text and "thinking for" not in text, text
    assert "Type a message" in text and "❯ ponder" in text, text
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    assert terminal.plain()


def test_ctrl_r_finds_an_earlier_message_also_when_it_was_typed_ahead(start):
    terminal = start("chat")
    terminal.wait_for("❯")
    for number, question in enumerate(["zebra", "apple"], start=1):
        terminal.type(question + ENTER)
        terminal.wait_for(f"turn {number}.")
        terminal.wait_for(f"context {number}0/4,096")
    terminal.type(CTRL_R + "zeb")
    terminal.wait_for("I-search backward: zeb")
    terminal.type(ENTER)
    terminal.wait_for("❯ zebra\n" + "\n" * 3)  # accepted, not sent
    terminal.type(ENTER)
    terminal.wait_for("You said 'zebra', turn 3.")
    terminal.type("think" + ENTER)
    terminal.wait_for("thinking for")
    terminal.type(CTRL_R + "app" + ENTER + ENTER)
    terminal.wait_for("You said 'apple', turn 5.")
    terminal.wait_for("context 50/4,096")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


def test_a_message_is_written_in_the_persons_own_editor(start, tmp_path):
    own = tmp_path / "editor"
    own.write_text('#!/bin/sh\necho "$(cat "$1") and more" > "$1"\n')
    own.chmod(0o700)
    terminal = start("chat", EDITOR=str(own))
    terminal.wait_for("❯")
    terminal.type("a draft" + CTRL_X + CTRL_E)
    terminal.wait_for("You said 'a draft and more', turn 1.")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_ctrl_z_hands_the_terminal_back_and_the_conversation_goes_on(tmp_path):
    shell = ["bash", "-c", 'set -m; "$@"; echo "it sleeps"; fg', "shell", sys.executable, FAKE, "chat"]
    terminal = Terminal(shell, {"LOCALR1_HOME": str(tmp_path)})
    try:
        terminal.wait_for("❯")
        terminal.type("half")
        terminal.wait_for("❯ half")
        terminal.type(CTRL_Z)
        terminal.wait_for("it sleeps")
        terminal.wait_for("❯ half")
        terminal.type(" done" + ENTER)
        terminal.wait_for("You said 'half done', turn 1.")
        terminal.type(CTRL_D)
        assert terminal.leave() == 0 and terminal.left_as_found
    finally:
        terminal.close()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_ctrl_z_in_an_answer_puts_it_aside_and_fg_takes_it_up_below(tmp_path):
    asleep = 'stty -a | grep -o " -*echo "; stty echo icanon -noflsh; printf "asleep\\n"'
    shell = ["bash", "-c", f'set -m; "$@"; {asleep}; fg', "shell", sys.executable, FAKE, "chat"]
    terminal = Terminal(shell, {"LOCALR1_HOME": str(tmp_path)})
    try:
        terminal.wait_for("❯")
        terminal.type("count" + ENTER)
        terminal.wait_for("3 4 5")
        terminal.type("ahead" + CTRL_Z)
        terminal.wait_for("❯ ahead")
        above, _, below = terminal.text().partition("\n echo\nasleep\n")
        assert "0 1 2" not in above and "0 1 2 3 4 5" in below
        above, _, below = terminal.raw.partition("asleep")
        assert re.findall(r"\x1b\[\?2004.", above)[-1] == "\x1b[?2004l" and "\x1b[?2004h" in below
        assert not terminal.echoes
        terminal.type(CTRL_C)
        terminal.wait_for("interrupted")
        terminal.type(CTRL_D)
        assert terminal.leave() == 0 and terminal.left_as_found
    finally:
        terminal.close()


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_one_question_without_styles(start, variables):
    terminal = start("chat", "hello you", **variables)
    assert terminal.leave() == 0
    assert "You said 'hello you', turn 1.\n1 token" in terminal.text()
    assert "\x1b[2m" not in terminal.raw and "\x1b[3" not in terminal.raw


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell with pipes")
def test_the_figures_come_after_an_answer_that_comes_by_a_pipe(tmp_path):
    reader = "import os, time\nwhile read := os.read(0, 999): time.sleep(0.01); os.write(1, read)"
    shell = ["sh", "-c", '"$1" "$2" chat "hello you" | "$1" -c "$3"', "shell", sys.executable, FAKE, reader]
    terminal = Terminal(shell, {"LOCALR1_HOME": str(tmp_path)})
    try:
        assert terminal.leave() == 0
        assert "You said 'hello you', turn 1.\n1 token" in terminal.text()
    finally:
        terminal.close()


def test_a_dumb_terminal_holds_a_conversation(start):
    terminal = start("chat", TERM="dumb")
    terminal.wait_for("❯")
    terminal.type("hello" + ENTER)
    terminal.wait_for("You said 'hello', turn 1.")
    terminal.wait_for("context 10/4,096")
    terminal.type("/edit" + ENTER)
    terminal.wait_for("hello\n❯")
    terminal.type("half a line" + CTRL_C)
    terminal.wait_for("\nCtrl-C again leaves.\n❯")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    assert "\x1b" not in terminal.raw


def test_ctrl_c_in_the_only_answer_keeps_it_and_is_status_130(start):
    terminal = start("chat", "count")
    terminal.wait_for("3 4 5")
    terminal.type(CTRL_C)
    assert terminal.leave() == 130
    assert "3 4 5" in terminal.text() and "interrupted" in terminal.text()
