import asyncio
import signal
import sys

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from localr1.chat.history import Said
from localr1.errors import ContextError, UsageError
from localr1.events import AnswerText
from localr1.options import TerminalOptions
from localr1.terminal.commands import COMMANDS, find_command
from localr1.terminal.editor import _history
from localr1.terminal.repl import Host, Repl, Settings, answer
from localr1.terminal.talk import Talk
from tests.terminal.fakes import FakeConversation, environment, err, out, press_ctrl_c, turn_end

ENTER, ALT_ENTER, CTRL_C, CTRL_D, CTRL_R, UP = "\r", "\x1b\r", "\x03", "\x04", "\x12", "\x1b[A"


def converse(keys: str, conversation: FakeConversation, mode: str = "emacs"):
    shown = environment(tty="ioe", NO_COLOR="1")
    with create_pipe_input() as typed:
        typed.send_text(keys)
        Repl(
            shown,
            Talk(conversation),
            Settings(terminal=TerminalOptions(keys=mode)),
            Host("nano"),
            keys=typed,
            screen=DummyOutput(),
        ).run()
    return shown


def test_questions_are_asked_until_ctrl_d():
    conversation = FakeConversation()
    shown = converse(f"hello{ENTER}  and {ENTER}{ENTER}{CTRL_D}", conversation)
    assert conversation.asked == ["hello", "and"]
    assert out(shown) == "You said 'hello'.\nYou said 'and'.\n"
    assert err(shown).startswith("nano ")


def test_alt_enter_starts_another_line():
    conversation = FakeConversation()
    converse(f"one{ALT_ENTER}two{ENTER}{CTRL_D}", conversation)
    assert conversation.asked == ["one\ntwo"]


def test_pasted_lines_are_one_message():
    conversation = FakeConversation()
    converse(f"\x1b[200~one\ntwo\n\x1b[201~{ENTER}{CTRL_D}", conversation)
    assert conversation.asked == ["one\ntwo"]


def test_ctrl_c_at_the_prompt_clears_the_line():
    conversation = FakeConversation()
    converse(f"never{CTRL_C}asked{ENTER}{CTRL_D}", conversation)
    assert conversation.asked == ["asked"]


def test_ctrl_c_in_a_search_of_the_history_ends_the_search():
    conversation = FakeConversation()
    converse(f"never{CTRL_R}nev{CTRL_C}{CTRL_C}asked{ENTER}{CTRL_D}", conversation)
    assert conversation.asked == ["asked"]


def test_a_search_of_the_history_finds_its_line_in_every_mode_of_keys():
    for keys in ("emacs", "vi"):
        conversation = FakeConversation()
        converse(f"apple pie{ENTER}pear{ENTER}{CTRL_R}APPLE{ENTER}{ENTER}{CTRL_D}", conversation, keys)
        assert conversation.asked == ["apple pie", "pear", "apple pie"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not held there")
@pytest.mark.parametrize(("moment", "keys"), [("__init__", ""), ("close", ENTER)])
def test_ctrl_c_while_the_editor_is_made_or_closed_breaks_nothing_and_is_heard(monkeypatch, moment, keys):
    method = getattr(asyncio.SelectorEventLoop, moment)

    def press_and_go_on(loop, *arguments) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        method(loop, *arguments)

    monkeypatch.setattr(asyncio.SelectorEventLoop, moment, press_and_go_on)
    conversation = FakeConversation()
    shown = converse(f"{keys}asked{ENTER}{CTRL_D}", conversation)
    assert err(shown).count("Ctrl-C again leaves.") == 1
    assert conversation.asked == ["asked"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not held there")
def test_ctrl_c_as_the_editor_closes_upon_another_leaves(monkeypatch):
    close = asyncio.SelectorEventLoop.close

    def press_and_close(loop) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        close(loop)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "close", press_and_close)
    with pytest.raises(KeyboardInterrupt):
        converse(f"{CTRL_C}never asked{ENTER}", FakeConversation())


def test_what_follows_ctrl_c_at_once_has_the_history():
    conversation = FakeConversation()
    converse(f"first{ENTER}never{CTRL_C}{UP}{ENTER}{CTRL_D}", conversation)
    assert conversation.asked == ["first", "first"]


def test_a_history_that_the_disk_refuses_is_none(tmp_path):
    kept = _history(tmp_path / "history")
    kept.store_string("first")
    assert list(kept.load_history_strings()) == ["first"]
    (tmp_path / "history").unlink()
    (tmp_path / "history").mkdir()
    kept.store_string("second")
    assert list(kept.load_history_strings()) == []


def test_commands_are_not_asked():
    conversation = FakeConversation()
    shown = converse(f"/help{ENTER}/clear{ENTER}/exit{ENTER}never{ENTER}", conversation)
    assert conversation.asked == []
    assert conversation.cleared == 1
    for name in COMMANDS:
        assert f"/{name} " in err(shown)


def test_an_unknown_command_names_the_nearest_and_goes_on():
    conversation = FakeConversation()
    shown = converse(f"/claer{ENTER}/th{ENTER}/s{ENTER}hi{ENTER}{CTRL_D}", conversation)
    assert "error: unknown command /claer\nhint: did you mean /clear?\n" in err(shown)
    assert "error: unknown command /th\nhint: did you mean /think or /thoughts?\n" in err(shown)
    assert "error: unknown command /s\nhint: /help lists the commands that there are\n" in err(shown)
    assert conversation.asked == ["hi"]


def test_a_command_with_text_after_it_is_refused_with_the_text():
    conversation = FakeConversation()
    shown = converse(f"/exit now{ENTER}{CTRL_D}", conversation)
    assert "error: /exit takes nothing after it, got 'now'\n" in err(shown)


def test_a_path_is_a_message():
    conversation = FakeConversation()
    converse(f"/usr/bin is what?{ENTER}{CTRL_D}", conversation)
    assert conversation.asked == ["/usr/bin is what?"]


def test_an_error_of_one_turn_is_shown_and_the_conversation_goes_on():
    conversation = FakeConversation({"long": ContextError("5000 tokens of 4096", "/clear starts anew")})
    shown = converse(f"long{ENTER}short{ENTER}{CTRL_D}", conversation)
    assert "error: 5000 tokens of 4096\nhint: /clear starts anew\n" in err(shown)
    assert out(shown) == "You said 'short'.\n"


def test_ctrl_c_stops_the_answer_and_the_next_question_is_answered():
    conversation = FakeConversation({"count": [AnswerText("1 "), AnswerText("2 "), AnswerText("3 ")]})
    conversation.before_piece = lambda piece: press_ctrl_c() if piece == 1 and conversation.asked == ["count"] else None
    shown = converse(f"count{ENTER}again{ENTER}{CTRL_D}", conversation)
    assert out(shown) == "1\nYou said 'again'.\n"
    assert "interrupted · 1 token" in err(shown)
    assert conversation.stops == 1


def test_a_second_ctrl_c_leaves_and_the_handler_is_put_back():
    conversation = FakeConversation({"count": [AnswerText("1"), AnswerText("2")]})

    def twice(piece):
        press_ctrl_c()
        press_ctrl_c()

    conversation.before_piece = twice
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        answer(environment(), conversation.stop, conversation.ask("count"), TerminalOptions())
    assert conversation.stops == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_an_answer_hands_back_how_it_ended():
    conversation = FakeConversation()
    assert answer(environment(), conversation.stop, conversation.ask("hi"), TerminalOptions()) == turn_end()


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        ("def f():\n    return 1\n\nwhy?", "❯ def f():\n    return 1\n\nwhy?\n"),
        ("\n".join("abcdef"), "❯ a\nb\nc\nd\ne\nf\n"),
        ("\n".join("abcdefgh"), "❯ a\nb\nc\nd\ne\n… and 3 more lines\n"),
        ("x" * 1000, "❯ " + "x" * 78 + "\n" + ("x" * 80 + "\n") * 4 + "… and 8 more lines\n"),
    ],
)
def test_a_resumed_conversation_begins_with_the_beginning_of_its_last_question(question, shown):
    terminal = environment("", tty="ioe", plain=True, NO_COLOR="1")
    Repl(terminal, Talk(FakeConversation(), turns=[Said(question, answer="because")]), host=Host("nano")).run()
    assert "Resumed after 1 turn.\n" + shown in err(terminal)
    assert out(terminal).startswith("because\n")


def test_a_command_far_from_all_points_to_help():
    with pytest.raises(UsageError, match="unknown command /xyz") as caught:
        find_command("xyz")
    assert "/help" in caught.value.hint


def test_a_dumb_terminal_reads_lines_without_escapes():
    conversation = FakeConversation()
    shown = environment("hello\n/help\nbye\n\x04never\n", tty="ioe", TERM="dumb")
    Repl(shown, Talk(conversation), host=Host("nano")).run()
    assert conversation.asked == ["hello", "bye"]
    assert "\x1b" not in out(shown) + err(shown)
