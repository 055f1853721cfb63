import re
from dataclasses import replace

import pytest

from localr1.errors import ContextError
from localr1.events import AnswerText, LoadProgress, Notice, PrefillProgress, ReasoningText, ThoughtEnd
from localr1.options import TerminalOptions
from localr1.terminal.render import show_turn, statistics_line
from tests.terminal.fakes import environment, err, out, turn_end

TURN = [
    ReasoningText("\nLet me "),
    ReasoningText("think.\n"),
    AnswerText("\n\nIt is "),
    AnswerText("Paris."),
    turn_end(),
]


def test_a_pipe_gets_the_answer_alone_and_the_rest_goes_to_stderr():
    shown = environment()
    show_turn(shown, TURN)
    assert out(shown) == "It is Paris.\n"
    assert err(shown) == "Let me think.\n\n11 tokens · 20.0 tokens/s · context 41/4,096\n"


def test_a_plain_terminal_gets_thoughts_dim_then_a_blank_line_then_the_answer():
    shown = environment(tty="ioe", plain=True)
    show_turn(shown, TURN)
    assert out(shown) == "\x1b[2mLet me \x1b[0m\x1b[2mthink.\n\x1b[0m\nIt is Paris.\n"
    assert err(shown) == "\x1b[2m11 tokens · 20.0 tokens/s · context 41/4,096\x1b[0m\n"


def test_no_color_leaves_no_escapes():
    shown = environment(tty="ioe", plain=True, NO_COLOR="1", TERM="xterm")
    show_turn(shown, TURN)
    assert "\x1b" not in out(shown) + err(shown)
    assert out(shown) == "Let me think.\n\nIt is Paris.\n"


def test_what_a_model_emits_reaches_a_terminal_visibly_and_a_pipe_as_it_is():
    pieces = [AnswerText("a\x1b"), AnswerText("]0;title\x07\t\u202eb\n"), turn_end()]
    terminal, pipe = environment(tty="o", plain=True), environment()
    show_turn(terminal, pieces)
    show_turn(pipe, pieces)
    assert out(terminal) == "a␛]0;title␇\t<U+202E>b\n"
    assert out(pipe) == "a\x1b]0;title\x07\t\u202eb\n"


def test_hidden_thoughts_leave_a_line_where_nothing_can_be_redrawn():
    shown = environment()
    thought = [ReasoningText("hm"), ThoughtEnd(431, 12.2), AnswerText("a"), turn_end()]
    show_turn(shown, thought, TerminalOptions(thoughts="hide"))
    assert err(shown).startswith("thought for 12 s, 431 tokens\n")
    assert "hm" not in err(shown)


def test_thoughts_are_visible_wherever_they_go():
    shown = environment()
    show_turn(shown, [ReasoningText("\x1b[2J"), AnswerText("a"), turn_end()])
    assert err(shown).startswith("␛[2J\n")


def test_the_answer_is_complete_before_an_error_passes_on():
    def broken():
        yield AnswerText("half")
        raise ContextError("full")

    shown = environment()
    with pytest.raises(ContextError):
        show_turn(shown, broken())
    assert out(shown) == "half\n"
    assert err(shown) == ""


def test_a_turn_of_thoughts_alone_ends_its_line():
    shown = environment(tty="oe", plain=True, NO_COLOR="1")
    show_turn(shown, [ReasoningText("hm"), turn_end(reason="max_tokens", reasoning_tokens=11)])
    assert out(shown) == "hm\n"
    assert err(shown).startswith("stopped by --max-tokens · 11 tokens (11 of thought)")


def test_each_piece_is_written_as_it_comes():
    shown = environment()

    def pieces():
        yield AnswerText("one ")
        assert out(shown) == "one "
        yield AnswerText("two")
        assert out(shown) == "one two"
        yield turn_end()

    assert show_turn(shown, pieces()) == turn_end()


def test_progress_is_gone_before_the_text():
    shown = environment(tty="oe", TERM="xterm")
    seen = []

    def events():
        yield LoadProgress("Compiling kernels")
        yield PrefillProgress(5, 10)
        yield AnswerText("hi")
        seen.append(err(shown))
        yield turn_end()

    show_turn(shown, events())
    assert "Reading the prompt" in seen[0]
    assert seen[0].endswith("\x1b[1A\x1b[2K")  # the bar's line erased


def test_a_notice_in_a_turn_is_shown():
    shown = environment()
    show_turn(shown, [Notice("the oldest turn was dropped"), AnswerText("a"), turn_end()])
    assert "the oldest turn was dropped\n" in err(shown)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "11 tokens · 20.0 tokens/s · context 41/4,096"),
        ({"generated_tokens": 1}, "1 token · context 41/4,096"),
        ({"reason": "interrupted"}, "interrupted · 11 tokens · 20.0 tokens/s · context 41/4,096"),
        (
            {"steps": 6, "drafted_tokens": 6, "accepted_tokens": 4},
            "11 tokens · 20.0 tokens/s · 1.7 a step · context 41/4,096",
        ),
        ({"reason": "context"}, "the context is full · 11 tokens · 20.0 tokens/s · context 41/4,096"),
        ({"generated_tokens": 1201, "decode_s": 6.0}, "1,201 tokens · 200 tokens/s · context 41/4,096"),
    ],
)
def test_statistics_say_what_happened(changes, line):
    assert statistics_line(environment(), turn_end(**changes)) == line


def test_statistics_need_no_more_than_ascii():
    assert statistics_line(environment(encoding="ascii"), turn_end()).isascii()


def test_a_notice_comes_below_the_answer_that_is_there_so_far():
    shown_on = environment(tty="oe", TERM="xterm")
    shown_on = replace(shown_on, stderr=shown_on.stdout)
    show_turn(shown_on, [AnswerText("One *two"), Notice("less memory"), turn_end()])
    assert re.search(r"One \*two.*\n.*less memory\n.*11 tokens", out(shown_on), re.DOTALL)


def test_a_second_thought_that_is_cut_tells_its_own_tokens():
    events = [ReasoningText("hm"), ThoughtEnd(431, 12.2), AnswerText("a"), ReasoningText("and"), ReasoningText(" so")]
    shown = environment(tty="ioe", TERM="xterm-256color")
    show_turn(shown, [*events, turn_end()], TerminalOptions())
    assert "thought for 12 s, 431 tokens" in out(shown) and "thought for 0.0 s, 2 tokens" in out(shown)
