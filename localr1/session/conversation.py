"""A conversation: turns with one engine, and the cache that the next prompt shares with the last.

Owns the transcript and what a turn is: encode, generate, tell thoughts from the answer, remember the answer. What was
answered stays in the history, also when a turn is stopped or its consumer leaves.
"""

import hashlib
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localr1.chat.template import Prompt, encode_prompt
from localr1.chat.thinking import CLOSING, Piece, ThinkBudget, ThoughtSplitter
from localr1.chat.tokenizer import SHOWN_TAGS
from localr1.chat.transcript import Message, Transcript
from localr1.decode.generate import Finished, Token, generate
from localr1.decode.sampling import Sampler
from localr1.errors import ContextError, UsageError
from localr1.events import AnswerText, Event, Notice, PrefillProgress, ReasoningText
from localr1.hub.cache import weights_id
from localr1.options import ConversationOptions, SamplingOptions
from localr1.session import snapshot
from localr1.session.engine import Engine
from localr1.session.sliding import forget_oldest
from localr1.session.turn import Turn

if TYPE_CHECKING:
    from localr1.chat.structure import Structure, Structures


class Conversation:
    """Turns with one engine."""

    def __init__(self, engine: Engine, sampling: SamplingOptions, options: ConversationOptions) -> None:
        self.engine = engine
        self.transcript = Transcript()
        self._cache = engine.new_cache()
        self._speculation = engine.new_speculation()
        self._stopping = False
        self._noticed = ""
        self._last: Turn | None = None
        self._resumed: str | None = None
        """The last answer that was resumed, with the white space at its ends."""
        self._structures: Structures | None = None
        self._read_tokens, self._read_s = 0, 0.0
        self.configure(sampling, options)

    def configure(self, sampling: SamplingOptions, options: ConversationOptions) -> None:
        """Other settings for the turns to come; what was said stays.

        Raises UsageError for a form that is none, and where the model leaves no choice about thinking, NotFoundError
        for a form that cannot be read; then the settings are as they were.
        """
        if options.think is not None and not self.engine.template.switches_thinking:
            raise UsageError(
                f"{self.engine.name} leaves no choice about thinking",
                "leave out --think and --no-think; in a conversation, /think auto; localr1 config set think default",
            )
        form: str | None = None
        if options.json_schema is not None or options.grammar is not None:
            from localr1.chat.structure import read_structure

            form = read_structure(options.json_schema, options.grammar)
        self._form, self.options = form, options
        self.transcript.set_system(options.system)
        self._wanted = sampling
        self._sampler = Sampler(self.engine.sampling(sampling))

    def sampling(self) -> SamplingOptions:
        """The settings in force, with the model's recommendation where nothing else was wanted."""
        return replace(self._wanted, **asdict(self._sampler.sampling))

    def stop(self) -> None:
        """End the running answer soon; safe in a signal handler."""
        self._stopping = True

    def settle(self) -> Iterator[Event]:
        """Nothing is left behind here."""
        return iter(())

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.transcript.clear()
        self._last, self._resumed = None, None

    def undo(self) -> bool:
        """Forget the last turn; whether there is one before it that is known here."""
        self._last, self._resumed = None, None
        self.transcript.drop_last_turn()
        return bool(self.transcript.turns)

    def resume(self, turns: Iterable[tuple[str, str]]) -> None:
        """These questions and answers, instead of what was said here."""
        self.clear()
        for question, answer in turns:
            self.transcript.add_user(question)
            self.transcript.add_assistant(answer.strip())
            self._resumed = answer

    def keep(self, path: Path) -> int:
        """Keep the cache at `path` where that is cheaper than reading all anew; how many tokens were kept.

        Raises DiskError.
        """
        return snapshot.save(path, self._held(), self._read_s / max(self._read_tokens, 1))

    def recall(self, path: Path) -> tuple[int, int]:
        """Have the cache that was kept at `path`; how many tokens of what was said it holds, and of how many.

        Raises LocalR1Error where it is missing or not this conversation's; then all is read again when it is needed.
        """
        for _ in self.engine.come_back():
            pass
        self.engine.with_room(lambda: snapshot.load(path, self._held()))
        said = self._said()
        return self._cache.shared(said), len(said)

    def context(self) -> tuple[int, int]:
        """Tokens that the next prompt holds besides its question, and how many there is room for. Cost: encodes all
        that was said. Raises LocalR1Error where the template refuses it."""
        return len(self._said()), self._cache.capacity

    def _said(self) -> list[int]:
        """What was said as the next prompt has it."""
        return self._encoded((*self.transcript.messages, Message("user", ""))).tokens

    def _held(self) -> snapshot.Held:
        engine = self.engine
        settings = hashlib.sha256(repr(engine.config).encode()).hexdigest()[:16]
        made_with: dict[str, object] = {"config": settings, "dtype": engine.options.dtype}
        return snapshot.Held(self._cache, self._speculation, made_with | {"weights": weights_id(engine.folder)})

    def ask(self, text: str) -> Iterator[Event]:
        """One turn; TurnEnd comes last.

        Raises ContextError when the conversation no longer fits. However it fails, the history is as it was, unless
        something was thought or answered.
        """
        self._stopping = False
        before, said = self.transcript.turns, False
        self.transcript.add_user(text)
        try:
            turn = self._begun((yield from self._prompt()))
        except BaseException:
            self.transcript.restore(before)
            raise
        self.transcript.add_assistant("")
        try:
            for event in self._answer(turn):
                said = said or isinstance(event, ReasoningText | AnswerText)
                yield event
        except Exception:
            if not said:
                self.transcript.restore(before)
                self._last = None
            raise

    def _begun(self, prompt: Prompt) -> Turn:
        return Turn(
            prompt_tokens=len(prompt.tokens),
            tokens=list(prompt.tokens),
            splitter=ThoughtSplitter(prompt.opened_thought),
            budget=self._new_budget(),
            form=self._new_form(prompt.opened_thought),
        )

    def _new_budget(self) -> ThinkBudget | None:
        budget = self.options.think_budget
        return None if budget is None else ThinkBudget(budget)

    def go_on(self) -> Iterator[Event]:
        """The last answer, from where it stopped; TurnEnd comes last and counts what is new.

        Whether it is complete is for the caller to know. Raises UsageError when there is none, ContextError when the
        context is full.
        """
        self._stopping = False
        last = self._last or self._reopened()
        if len(last.tokens) >= self._cache.capacity:
            raise ContextError(f"the context of {self._cache.capacity:,} tokens is full", "start anew with /clear")
        turn = Turn(len(last.tokens), list(last.tokens), last.splitter, budget=last.budget, answer=last.answer)
        turn.form, turn.stream = last.form, last.stream
        yield from self._answer(turn)

    def _reopened(self) -> Turn:
        """The last turn of a conversation that was resumed: its tokens are encoded anew."""
        turns = self.transcript.turns
        if not turns:
            raise UsageError("there is no answer to go on with", "ask something first")
        answer = turns[-1].content if self._resumed is None else self._resumed
        engine, said = self.engine, self.transcript.messages[:-1]
        prompt = self._encoded(said)
        tokens = list(prompt.tokens)
        if prompt.opened_thought and answer:
            tokens += engine.tokenizer.encode_rendered(CLOSING)
        answered = engine.tokenizer.encode_text(answer)
        tokens += answered
        splitter = ThoughtSplitter(prompt.opened_thought and not answer)
        splitter.push(answer)  # what follows is not its start, and may stand in code
        splitter.flush()
        form = self._new_form(splitter.thinking)
        if form is not None:
            for token in answered:
                form.take(token)
        stream = engine.tokenizer.stream()
        for token in answered:
            stream.push(token)  # what follows is not the beginning of a text, of which some tokenizers drop a space
        budget = self._new_budget() if splitter.thinking else None
        return Turn(len(tokens), tokens, splitter, budget=budget, answer=[answer], form=form, stream=stream)

    def _new_form(self, thinking: bool) -> "Structure | None":
        """What the next answer is held to; a thought may come before, where the model is free to think."""
        if self._form is None:
            return None
        from localr1.chat.structure import Structures

        engine = self.engine
        self._structures = self._structures or Structures(engine.tokenizer, engine.config.eos_token_ids)
        form = self._structures.start(self._form)
        form.thinking = thinking
        if self.options.think is not False and not thinking:
            form.opening = engine.tokenizer.token_id(SHOWN_TAGS[0])
        return form

    def _answer(self, turn: Turn) -> Iterator[Event]:
        """Run the turn and keep what it answers, however it ends."""
        self._last = turn
        try:
            yield from self.engine.come_back()
            for event in self._turn(turn):
                if isinstance(event, AnswerText):
                    turn.answer.append(event.text)
                yield event
        finally:
            self.transcript.replace_answer("".join(turn.answer).strip())
            if self.engine.routing is not None:
                self.engine.routing.save()

    def _prompt(self) -> Generator[Event, None, Prompt]:
        """The conversation as tokens, with the oldest turns dropped where the policy says so."""
        capacity = self._cache.capacity
        if self.options.context_policy == "slide":
            text_tokens = self.engine.tokenizer.encode_text
            prompt, forgotten = forget_oldest(
                self.transcript, capacity, self._encoded, lambda text: len(text_tokens(text))
            )
        else:
            prompt, forgotten = self._encoded(self.transcript.messages), 0
        if len(prompt.tokens) >= capacity:
            raise ContextError(
                f"the conversation needs {len(prompt.tokens):,} tokens, the context holds {capacity:,}",
                self._ways_to_fit(),
            )
        if forgotten:
            yield Notice(f"the oldest {forgotten} turn{'s' if forgotten > 1 else ''} no longer fit and were forgotten")
        return prompt

    def _encoded(self, messages: Sequence[Message]) -> Prompt:
        return encode_prompt(self.engine.tokenizer, self.engine.template, messages, self.options.think)

    def _ways_to_fit(self) -> str:
        """What a person can do about a conversation that the context cannot hold."""
        said, transcript = self.transcript.messages, self.transcript.turns
        ways = ["start anew with /clear"] if len(transcript) > 1 else []
        ways += ["shorten the system prompt"] if len(said) > len(transcript) else []
        ways += ["shorten the question"]
        ways += ["raise --context"] if self._cache.capacity < self.engine.config.max_position else []
        return ", or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))

    def _turn(self, turn: Turn) -> Iterator[Event]:
        """Generate, in a further leg where a thought has spent its budget and was closed for the model, as a later one
        is that the model opens."""
        yield from self._leg(turn)
        most = self._wanted.max_tokens
        while turn.closing_thought and not self._stopping:
            closing = self.engine.tokenizer.encode_rendered(CLOSING)
            if most is not None and turn.generated_tokens >= most:
                turn.legs[-1] = replace(turn.legs[-1], reason="max_tokens")
                break
            if len(turn.tokens) + len(closing) >= self._cache.capacity:
                turn.legs[-1] = replace(turn.legs[-1], reason="context")
                break
            turn.tokens += closing
            yield from _texts(turn.push(CLOSING))
            turn.closing_thought = False
            yield from self._leg(turn)
        yield from _texts(turn.splitter.flush())
        if self.engine.notice != self._noticed:
            self._noticed = self.engine.notice
            if self._noticed:
                yield Notice(self._noticed)
        yield turn.end(self._cache.capacity)

    def _leg(self, turn: Turn) -> Iterator[Event]:
        stream, turn.stream = turn.stream or self.engine.tokenizer.stream(), None
        first, most = not turn.legs, self._wanted.max_tokens
        self._sampler.constraint = turn.form
        for item in generate(
            self.engine.model,
            self._cache,
            tuple(turn.tokens),
            self._sampler,
            stop_ids=self.engine.config.eos_token_ids,
            max_tokens=None if most is None else most - turn.generated_tokens,
            speculation=self._speculation,
            should_stop=lambda: self._stopping or turn.closing_thought,
        ):
            if isinstance(item, Token):
                turn.tokens.append(item.id)
                text = stream.push(item.id)
                pieces = turn.push(text)
                if turn.splitter.thinking:
                    turn.reasoning_tokens += 1
                    turn.thinking_since_s = turn.thinking_since_s or time.monotonic()
                    turn.closing_thought = turn.budget is not None and turn.budget.spend(text)
                elif turn.thinking_since_s is not None:
                    yield turn.end_thought()
                yield from _texts(pieces)
            elif isinstance(item, Finished):
                if turn.form is not None and turn.form.complete and item.reason != "interrupted":
                    item = replace(item, reason="end")
                if item.reason == "end" or turn.closing_thought:
                    yield from _texts(turn.push(stream.flush()))
                else:
                    turn.stream = stream
                turn.legs.append(item)
                self._read_tokens += len(turn.tokens) - item.generated_tokens - item.cached_tokens
                self._read_s += item.prefill_s
            elif first or not isinstance(item, PrefillProgress):
                yield item


def _texts(pieces: list[Piece]) -> Iterator[Event]:
    for piece in pieces:
        yield ReasoningText(piece.text) if piece.kind == "reasoning" else AnswerText(piece.text)
