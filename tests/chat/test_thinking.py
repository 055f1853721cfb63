"""Thoughts apart from answers, for every way in which a model handles its tags and every way of cutting the text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.chat.thinking import CLOSING, Piece, ThinkBudget, ThoughtSplitter


def split(chunks: list[str], opened: bool = False, **tags: str) -> tuple[str, str]:
    """All thoughts and all answers."""
    splitter = ThoughtSplitter(opened, **tags)
    pieces = [piece for chunk in chunks for piece in splitter.push(chunk)] + splitter.flush()
    assert all(piece.text for piece in pieces)
    thoughts = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
    return thoughts, "".join(piece.text for piece in pieces if piece.kind == "answer")


@pytest.mark.parametrize(
    ("opened", "text", "thoughts", "answer"),
    [
        pytest.param(True, "so\n</think>\n\nParis", "so", "Paris", id="the prompt opened it"),
        pytest.param(False, "<think>\nso\n</think>\n\nParis", "so", "Paris", id="the model opens it"),
        pytest.param(False, "\n<think>\nso</think>Paris", "so", "Paris", id="newlines before it opens"),
        pytest.param(True, "<think>\nso</think>Paris", "so", "Paris", id="both open it"),
        pytest.param(True, "so and so\n", "so and so\n", "", id="never closed"),
        pytest.param(False, "<think>so", "so", "", id="opened and never closed"),
        pytest.param(False, "Paris", "", "Paris", id="no thought"),
        pytest.param(True, "\n\n</think>\n\nParis", "", "Paris", id="an empty thought"),
        pytest.param(False, "<think>\n\n</think>\n\nParis", "", "Paris", id="an empty thought of the model"),
        pytest.param(False, "</think>\n\nParis", "", "Paris", id="closes at once without opening"),
        pytest.param(False, "so\n</think>\n\nParis", "", "so\n\n\nParis", id="closes later without opening"),
        pytest.param(False, "<think>a</think>b<think>c</think>d", "ac", "bd", id="a second thought"),
        pytest.param(True, "a</think>b\n<think>\nc\n</think>\nd", "ac", "b\nd", id="a second thought on its line"),
        pytest.param(True, "a</think></think>b", "a", "b", id="closed twice"),
        pytest.param(True, "a<think>b</think>c</think>d", "ab", "cd", id="nested"),
        pytest.param(True, "a\n\nb\n</think>c\n\nd\n", "a\n\nb", "c\n\nd\n", id="inner newlines stay"),
        pytest.param(True, " a </think> b ", " a ", " b ", id="spaces stay"),
        pytest.param(True, "a\r\n</think>\r\nb", "a", "b", id="windows newlines"),
        pytest.param(True, "a <b </thin <think", "a <b </thin <think", "", id="unfinished tags are text"),
        pytest.param(False, "if a < b and c <d>", "", "if a < b and c <d>", id="other angle brackets"),
        pytest.param(True, "</THINK></ think>", "</THINK></ think>", "", id="only the exact tags"),
        pytest.param(False, "", "", "", id="nothing"),
    ],
)
def test_a_stream(opened: bool, text: str, thoughts: str, answer: str) -> None:
    assert split([text], opened) == (thoughts, answer)
    assert split(list(text), opened) == (thoughts, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Use `<think>` and `</think>`.",
        "```python\nre.sub(r'<think>.*?</think>', '', text)\n```\nThat is all.",
        "    \"<think>\" opens, '</think>' closes",
        "- ``<think>`` opens",
        "```\n<think>\nan example\n</think>\n```",
        "one `tick\n```\n</think>\n``` two",
        "````markdown\n```xml\n<think>\n```\n</think>\n````",
        "- ```\n  <think>\n  ```\n1. ```xml\n   <think>\n   ```",
        "> ```\n> <think>\n> ```",
    ],
)
def test_tags_in_an_answers_code_are_text(answer: str) -> None:
    assert split(list("so</think>" + answer), opened=True) == ("so", answer)


def test_after_the_code_tags_are_tags_again() -> None:
    assert split(["```\n<think>\n```\n<think>a</think>b"]) == ("a", "```\n<think>\n```\nb")
    assert split(["- ```\n  <think>\n  ```\n<think>a</think>b"]) == ("a", "- ```\n  <think>\n  ```\nb")
    assert split(["````\n```\n````  \n<think>a</think>b"]) == ("a", "````\n```\n````  \nb")
    assert split(["``` x ```\n<think>a</think>b"]) == ("a", "``` x ```\nb")
    assert split(["a ` b\n<think>c</think>d"]) == ("c", "a ` b\nd")
    assert split(["`a` <think>c</think>d"]) == ("c", "`a` d")
    assert split(["`` `\n<think>c</think>d"]) == ("c", "`` `\nd")
    assert split(["a <think>c</think>```\n<think>"]) == ("c", "a ```\n<think>")


def test_a_backtick_in_a_thought_does_not_keep_it_open() -> None:
    assert split(["``` maybe '</think>Paris"], opened=True) == ("``` maybe '", "Paris")


def test_text_comes_as_soon_as_it_is_certain() -> None:
    splitter = ThoughtSplitter(opened=True)
    assert splitter.push("a") == [Piece("reasoning", "a")]
    assert splitter.push(" <") == [Piece("reasoning", " ")]
    assert splitter.push("b") == [Piece("reasoning", "<b")]
    assert splitter.push("\n") == []
    assert splitter.push("c</thi") == [Piece("reasoning", "\nc")]
    assert splitter.thinking
    assert splitter.push("nk>\n\nd<") == [Piece("answer", "d")]
    assert not splitter.thinking
    assert splitter.push("") == []
    assert splitter.flush() == [Piece("answer", "<")]
    assert splitter.flush() == []


def test_one_push_may_hold_several_pieces() -> None:
    pieces = ThoughtSplitter(opened=False).push("<think>a</think>b<think>c")
    assert pieces == [Piece("reasoning", "a"), Piece("answer", "b"), Piece("reasoning", "c")]


def test_other_tags() -> None:
    tags = {"open_tag": "[THINK]", "close_tag": "[/THINK]"}
    assert split(list("[THINK]<think>[/THINK]b"), **tags) == ("<think>", "b")
    assert split(list("aaab"), open_tag="aab", close_tag="c") == ("", "a")


@pytest.mark.parametrize("end", [".", " yes! ", "?\n", "\n\n", "对。"])
def test_a_budget_ends_with_a_sentence(end: str) -> None:
    budget = ThinkBudget(3, grace=10)
    assert [budget.spend(text) for text in ("a.", " b", ".", " c", end, " d", "")] == [
        False,
        False,
        True,
        False,
        True,
        False,
        False,
    ]


def test_a_budget_without_a_sentence_ends_after_its_grace() -> None:
    budget = ThinkBudget(2, grace=3)
    assert [budget.spend(" word") for _ in range(6)] == [False, False, False, False, True, True]
    assert ThinkBudget(0, grace=0).spend("")


@pytest.mark.parametrize("thought", ["so", "so\n", "half a sen", "in `code", "```\nx = 1"])
def test_the_closing_closes_any_thought(thought: str) -> None:
    thoughts, answer = split([thought, *CLOSING, "Paris"], opened=True)
    assert thoughts.startswith(thought)
    assert thoughts.endswith("now the answer.")
    assert answer == "Paris"


PARTS = ["<think>", "</think>", "<thi", "nk>", "</", "<", ">", "\n", "\r\n", " ", "a", "Bé", "`", "```", "'", '"', "\t"]
TEXT = st.lists(st.sampled_from(PARTS), max_size=25).map("".join)


@settings(max_examples=500, deadline=None)
@given(TEXT, st.booleans(), st.data())
def test_any_cutting_gives_the_same_pieces(text: str, opened: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(chunks, opened) == split([text], opened) == split(list(text), opened)


PROSE = st.lists(st.sampled_from([part for part in PARTS if part not in ("`", "```", "'", '"')]), max_size=25)


@settings(max_examples=500, deadline=None)
@given(PROSE.map("".join), st.booleans())
def test_every_character_but_tags_and_newlines_comes_out_once(text: str, opened: bool) -> None:
    splitter = ThoughtSplitter(opened)
    out = "".join(piece.text for piece in splitter.push(text) + splitter.flush())
    untagged = re.sub("</?think>", "", text)
    assert re.sub("[\r\n]", "", out) == re.sub("[\r\n]", "", untagged)


@settings(max_examples=200, deadline=None)
@given(TEXT.map(lambda text: text.replace("think", "")), st.booleans())
def test_without_tags_only_the_first_newlines_go(text: str, opened: bool) -> None:
    expected = text.lstrip("\r\n")
    assert split([text], opened) == ((expected, "") if opened else ("", expected))
