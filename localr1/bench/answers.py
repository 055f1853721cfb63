"""Greedy answers to a few questions, timed: what a conversation's decoding costs, guessing ahead included.

Owns the prompts and one run over them. Greedy, so two settings that decode the same tokens do the same work and their
tokens can be compared. A synthetic model, whose words mean nothing, goes on from plain text instead.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from localr1.bench.subject import Subject
from localr1.bench.text import QUESTIONS
from localr1.chat.template import encode_prompt
from localr1.chat.transcript import Message
from localr1.decode.cache import RowCache
from localr1.decode.generate import Finished, Token, generate
from localr1.decode.sampling import Sampler, Sampling
from localr1.decode.speculate import Speculation
from localr1.errors import UsageError
from localr1.session import Engine

SYNTHETIC_PROMPT_TOKENS = 64


@dataclass
class Answers:
    """One run over all prompts. `drafted_at[i]` steps guessed at position i with all before it right, `right_at[i]` of
    those guesses were right."""

    tokens: list[int] = field(default_factory=list)
    decode_s: float = 0.0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_at: Counter[int] = field(default_factory=Counter)
    right_at: Counter[int] = field(default_factory=Counter)

    @property
    def tokens_per_s(self) -> float:
        return len(self.tokens) / self.decode_s

    @property
    def tokens_per_step(self) -> float:
        return 1 + self.accepted / max(self.steps, 1)


class _Watched(Speculation):
    """Another speculation, with what came of each step noted."""

    def __init__(self, inner: Speculation, answers: Answers) -> None:
        super().__init__()
        self._inner = inner
        self._answers = answers
        self.counts = inner.counts

    @property
    def needs_hidden(self) -> bool:
        return self._inner.needs_hidden

    def keep(self, length: int) -> None:
        self._inner.keep(length)

    def observe(self, tokens: Sequence[int], hidden_TD: Tensor) -> None:
        self._inner.observe(tokens, hidden_TD)

    def guess(self, token: int, most: int) -> list[int]:
        return self._inner.guess(token, most)

    def learn(self, drafted: int, accepted: int, draft_s: float, step_s: float) -> None:
        for position in range(min(accepted + 1, drafted)):
            self._answers.drafted_at[position] += 1
            self._answers.right_at[position] += position < accepted
        self._inner.learn(drafted, accepted, draft_s, step_s)
        self.counts = self._inner.counts


def prompts(subject: Subject, most_tokens: int) -> list[list[int]]:
    """The questions as prompts, or plain text for a synthetic model. UsageError when one exceeds the context."""
    engine = subject.engine
    if subject.shape is not None:
        found = [subject.tokens(SYNTHETIC_PROMPT_TOKENS)]
    else:
        found = [
            list(encode_prompt(engine.tokenizer, engine.template, [Message("user", question)]).tokens)
            for question in QUESTIONS
        ]
    longest = max(map(len, found))
    if longest + most_tokens > engine.context_limit:
        raise UsageError(
            f"a question of {longest} tokens and an answer of {most_tokens} exceed the context of "
            f"{engine.context_limit:,}",
            "ask for fewer --decode-tokens, or raise --context",
        )
    return found


class Asking:
    """An engine that is asked the same questions again and again.

    One cache and one drafter serve all answers, as they do a conversation's: on a GPU steps are recorded for them.
    """

    def __init__(
        self,
        engine: Engine,
        asked: Sequence[Sequence[int]],
        most_tokens: int,
        stop: bool = True,
        cache: RowCache | None = None,
    ) -> None:
        """`stop` False goes on past an answer's end; a `cache` that is given holds in the end what it held before."""
        self._engine = engine
        self._asked = asked
        self._most_tokens = most_tokens
        self._stop_ids = engine.config.eos_token_ids if stop else ()
        self._cache = engine.new_cache() if cache is None else cache
        self._speculation = engine.new_speculation()

    def __call__(self) -> Answers:
        """Answer every prompt greedily, each in a conversation of its own."""
        answers, cache, held = Answers(), self._cache, list(self._cache.tokens)
        overwritten = min(len(held), max(map(len, self._asked)) + self._most_tokens)
        rows_LSW = cache.snapshot(overwritten).clone()
        try:
            for prompt in self._asked:
                cache.truncate(0)
                self._answer(prompt, answers)
        finally:
            cache.restore(held[:overwritten], rows_LSW)
            cache.commit(held[overwritten:])
        return answers

    def _answer(self, prompt: Sequence[int], answers: Answers) -> None:
        for item in generate(
            self._engine.model,
            self._cache,
            prompt,
            Sampler(Sampling(temperature=0.0)),
            stop_ids=self._stop_ids,
            max_tokens=self._most_tokens,
            speculation=_Watched(self._speculation, answers),
        ):
            if isinstance(item, Token):
                answers.tokens.append(item.id)
            elif isinstance(item, Finished):
                answers.decode_s += item.decode_s
                answers.steps += item.counts.steps
                answers.drafted += item.counts.drafted
                answers.accepted += item.counts.accepted
