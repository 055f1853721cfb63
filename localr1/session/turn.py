"""One turn of a conversation as it goes: its tokens, thought and answer, and in the end its figures.

Owns what is known of a turn. It is run, and remembered, by `conversation`.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from localr1.chat.thinking import Piece, ThinkBudget, ThoughtSplitter
from localr1.decode.generate import Finished
from localr1.events import ThoughtEnd, TurnEnd

if TYPE_CHECKING:
    from localr1.chat.detokenize import TextStream
    from localr1.chat.structure import Structure


@dataclass
class Turn:
    """One turn as it goes: all its tokens, and its text on the way out; `answer` holds the pieces so far. `stream` has
    what came of a character when the answer was cut, for whoever goes on with it."""

    prompt_tokens: int
    tokens: list[int]
    splitter: ThoughtSplitter
    budget: ThinkBudget | None
    legs: list[Finished] = field(default_factory=list)
    reasoning_tokens: int = 0
    closing_thought: bool = False
    thinking_since_s: float | None = None
    told_tokens: int = 0
    """Of thoughts that have ended."""
    answer: list[str] = field(default_factory=list)
    form: "Structure | None" = None
    stream: "TextStream | None" = None

    def push(self, text: str) -> list[Piece]:
        """The text of one more token, or of some; where it ends a thought, the answer's form begins. In that tags are
        text."""
        if self.form is not None and self.form.begun:
            return [Piece("answer", text)] if text else []
        pieces = self.splitter.push(text)
        if self.form is not None:
            self.form.thinking = self.splitter.thinking
        return pieces

    def end_thought(self) -> ThoughtEnd:
        """The model has turned to its answer."""
        seconds = time.monotonic() - (self.thinking_since_s or time.monotonic())
        tokens, self.told_tokens = self.reasoning_tokens - self.told_tokens, self.reasoning_tokens
        self.thinking_since_s = None
        return ThoughtEnd(tokens, seconds)

    @property
    def generated_tokens(self) -> int:
        return sum(leg.generated_tokens for leg in self.legs)

    def end(self, context_limit_tokens: int) -> TurnEnd:
        """The figures of all its legs."""
        first, later = self.legs[0], self.legs[1:]
        return TurnEnd(
            reason=self.legs[-1].reason,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=first.cached_tokens,
            generated_tokens=self.generated_tokens,
            reasoning_tokens=self.reasoning_tokens,
            prefill_s=first.prefill_s,
            decode_s=first.decode_s + sum(leg.prefill_s + leg.decode_s for leg in later),
            context_tokens=len(self.tokens),
            context_limit_tokens=context_limit_tokens,
            steps=sum(leg.counts.steps for leg in self.legs),
            drafted_tokens=sum(leg.counts.drafted for leg in self.legs),
            accepted_tokens=sum(leg.counts.accepted for leg in self.legs),
        )
