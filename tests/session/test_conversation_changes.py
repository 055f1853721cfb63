"""A conversation that is gone on with, taken back, resumed and given other settings."""

import pytest

from localr1.chat.tokenizer import Tokenizer
from localr1.errors import UsageError
from localr1.events import AnswerText, Notice, ReasoningText, ThoughtEnd, TurnEnd
from localr1.options import ConversationOptions, SamplingOptions
from localr1.session import Engine
from tests.chat.test_detokenize import sentencepiece
from tests.session.test_conversation import Scripted, converse, model, say, texts, tokenizer

__all__ = ["model", "tokenizer"]


def contents(conversation) -> list[str]:
    return [message.content for message in conversation.transcript.messages]


def test_the_end_of_a_thought_comes_before_the_answer_with_its_tokens(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer)
    say(model, tokenizer, "One two three.\n</think>\n\nSix.")
    events = list(conversation.ask("Sum?"))
    kinds = [type(event) for event in events]
    assert kinds.count(ThoughtEnd) == 1
    assert kinds.index(ThoughtEnd) < kinds.index(AnswerText)
    thought = next(event for event in events if isinstance(event, ThoughtEnd))
    assert isinstance(events[-1], TurnEnd) and thought.tokens == events[-1].reasoning_tokens
    assert thought.duration_s >= 0


def test_an_answer_that_was_cut_goes_on_where_it_stopped(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, max_tokens=4)
    said = tokenizer.encode_rendered("</think>One two three four five six seven.")
    model.script = list(said)
    list(conversation.ask("Count."))
    first = conversation.transcript.messages[-1].content
    heard = list(model.heard)
    conversation.configure(SamplingOptions(), ConversationOptions())
    model.script = [*said[4:], model.eos]
    rest = texts(list(conversation.go_on()), AnswerText)
    assert first + rest == conversation.transcript.messages[-1].content == "One two three four five six seven."
    assert model.heard[: len(heard)] == heard, "what was said is not said again"


def test_a_thought_that_was_cut_goes_on_as_a_thought(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, max_tokens=2)
    said = tokenizer.encode_rendered("Let me think about it.</think>Done.")
    model.script = list(said)
    list(conversation.ask("Think."))
    conversation.configure(SamplingOptions(), ConversationOptions())
    model.script = [*said[2:], model.eos]
    events = list(conversation.go_on())
    assert texts(events, ReasoningText) and texts(events, AnswerText) == "Done."
    assert contents(conversation) == ["Think.", "Done."]


def test_a_resumed_conversation_says_its_turns_and_goes_on(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, system="Be brief.")
    conversation.resume([("2 + 2?", "Four."), ("Count.", "One two")])
    say(model, tokenizer, " three.")
    assert texts(list(conversation.go_on()), AnswerText) == " three."
    assert contents(conversation) == ["Be brief.", "2 + 2?", "Four.", "Count.", "One two three."]
    assert tokenizer.decode(model.heard).endswith("</think>\n\nOne two three.")


@pytest.mark.parametrize(
    ("answer", "more"),
    [
        ("1. apples", "\n2. pears"),
        ("def f(x):\n   ", " return x"),
        ("A list:\n\n", "- one"),
        ("```xml\n<a>", "<think>no thought</think></a>"),
    ],
)
def test_a_resumed_answer_goes_on_as_it_would_have(
    model: Scripted, tokenizer: Tokenizer, answer: str, more: str
) -> None:
    conversation = converse(model, tokenizer)
    conversation.resume([("Write.", answer)])
    say(model, tokenizer, more)
    assert texts(list(conversation.go_on()), AnswerText) == more
    assert contents(conversation) == ["Write.", answer + more]
    conversation.undo()
    conversation.resume([("a", " b "), ("c", "d")])
    assert conversation.undo() and contents(conversation) == ["a", "b"]


def test_what_follows_a_resumed_answer_keeps_its_space(model: Scripted) -> None:
    """With SentencePiece, of whose text the first space is dropped."""
    pieces = Tokenizer(sentencepiece())
    conversation = converse(model, pieces)
    conversation.resume([("Greet.", "Hello")])
    word = pieces.token_id("▁world")
    model.script = [word, word, model.eos]
    assert texts(list(conversation.go_on()), AnswerText) == " world world"
    assert contents(conversation) == ["Greet.", "Hello world world"]


def test_undo_takes_back_the_last_turn(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer)
    conversation.resume([("a", "b"), ("c", "d")])
    assert conversation.undo() and contents(conversation) == ["a", "b"]
    assert not conversation.undo() and contents(conversation) == []
    assert not conversation.undo()
    with pytest.raises(UsageError, match="no answer"):
        list(conversation.go_on())


def test_the_context_is_what_the_next_prompt_holds_besides_its_question(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer)
    say(model, tokenizer, "Let me see.</think>Four.")
    list(conversation.ask("2 + 2?"))
    tokens, limit = conversation.context()
    say(model, tokenizer, "Five.")
    end = list(conversation.ask("3"))[-1]
    assert isinstance(end, TurnEnd) and (tokens, limit) == (end.prompt_tokens - 1, end.context_limit_tokens)
    conversation.undo()
    assert conversation.context() == (tokens, limit) and contents(conversation) == ["2 + 2?", "Four."]


def test_a_system_prompt_can_change_between_turns(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, system="Be brief.")
    conversation.resume([("a", "b")])
    conversation.configure(SamplingOptions(), ConversationOptions(system="Be long."))
    assert contents(conversation) == ["Be long.", "a", "b"]
    conversation.configure(SamplingOptions(), ConversationOptions())
    assert contents(conversation) == ["a", "b"]


def test_what_an_engine_has_to_say_is_said_once_after_the_answer(
    model: Scripted, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = converse(model, tokenizer)
    monkeypatch.setattr(Engine, "notice", "a step could not be recorded")
    for said in (["a step could not be recorded"], []):
        say(model, tokenizer, "</think>Yes.")
        events = list(conversation.ask("Well?"))
        assert [event.text for event in events if isinstance(event, Notice)] == said
        assert isinstance(events[-1], TurnEnd)
