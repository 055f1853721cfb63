"""Guessing the next tokens cheaply, so that one forward of the model can check several.

Owns the two drafters: the model's own MTP layer, and n-grams of the context. A drafter is told every token that the
main cache commits, and answers with guesses; a wrong guess costs time and never changes a token (see
`decode.speculate`).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from localr1.decode.cache import RowCache
from localr1.model.mtp import MtpLayer

LONGEST_NGRAM, SHORTEST_NGRAM = 4, 2
CATCH_UP_ROWS = 512
"""Hidden states that the MTP layer has not run over yet; more are run at once, so that a long prompt's are not kept."""


class Drafter(Protocol):
    """What the loop asks for guesses."""

    @property
    def needs_hidden(self) -> bool:
        """Whether `keep` must leave one token of the kept prefix to be run again, for its hidden state."""
        ...

    def keep(self, length: int) -> None:
        """The main cache was cut to `length` tokens, which are followed by the same token as before."""
        ...

    def observe(self, tokens: Sequence[int], hidden_TD: Tensor) -> None:
        """The main cache committed these tokens, with these hidden states after the final norm."""
        ...

    def draft(self, token: int, count: int) -> list[int]:
        """Up to `count` guesses of what follows `token`, which is emitted but not yet committed."""
        ...

    def snapshot(self) -> Tensor | None:
        """The rows of its own cache, caught up, for `restore`; None where it has none."""
        ...

    def restore(self, tokens: Sequence[int], rows_LSW: Tensor | None) -> int:
        """Know these tokens, which the main cache was given back, and no others; how many of them it can stand by."""
        ...


class MtpDrafter:
    """Guesses with the model's MTP layer, whose cache row i pairs the hidden state of token i with token i + 1.

    Hidden states that came while nobody asked for a guess are kept until somebody does, or until they are many, so the
    layer's cache has no holes.
    """

    needs_hidden = True

    def __init__(self, mtp: MtpLayer, cache: RowCache) -> None:
        self._mtp = mtp
        self._cache = cache
        self._hidden: list[Tensor] = []  # of tokens cache.length, cache.length + 1, ...
        self._next: list[int] = []  # the token after each of those; the last one's may be still unknown

    def keep(self, length: int) -> None:
        rows = self._cache.length
        self._cache.truncate(length)
        del self._hidden[max(length - rows, 0) :]
        del self._next[max(length - rows - 1, 0) :]

    def observe(self, tokens: Sequence[int], hidden_TD: Tensor) -> None:
        # With no hidden state waiting, the first token is the sequence's first or was already paired by `draft`.
        self._next.extend(tokens if self._hidden else tokens[1:])
        self._hidden.extend(hidden_TD.unbind())
        if len(self._next) >= CATCH_UP_ROWS:
            self._run_pairs()

    @torch.inference_mode()
    def draft(self, token: int, count: int) -> list[int]:
        if not self._hidden:
            return []
        self._next.append(token)
        guess, carried_1D = self._run_pairs()
        length = self._cache.length
        guesses = [guess]
        while len(guesses) < count and self._cache.length < self._cache.capacity:
            last = guesses[-1:]
            guess, carried_1D = self._mtp.likeliest(torch.tensor(last), carried_1D, self._cache)
            self._cache.commit(last)
            guesses.append(guess)
        self._cache.truncate(length)
        return guesses[:count]

    def snapshot(self) -> Tensor:
        if self._next:
            self._run_pairs()
        return self._cache.snapshot(self._cache.length)

    def restore(self, tokens: Sequence[int], rows_LSW: Tensor | None) -> int:
        self.keep(0)
        held = 0 if rows_LSW is None else max(min(rows_LSW.shape[1], len(tokens) - 1), 0)
        if rows_LSW is not None:
            self._cache.restore(tokens[1 : held + 1], rows_LSW[:, :held])
        return held

    @torch.inference_mode()
    def _run_pairs(self) -> tuple[int, Tensor]:
        """Run the layer over the pairs whose both halves are known."""
        pairs = len(self._next)
        token_T, hidden_TD = torch.tensor(self._next), torch.stack(self._hidden[:pairs])
        result = self._mtp.likeliest(token_T, hidden_TD, self._cache)
        self._cache.commit(self._next)
        self._next.clear()
        del self._hidden[:pairs]
        return result


class LookupDrafter:
    """Guesses that what followed the last few tokens before will follow them again (prompt lookup decoding)."""

    needs_hidden = False

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index of what followed its latest occurrence

    def keep(self, length: int) -> None:
        if length < len(self._tokens):
            tokens, self._tokens, self._after = self._tokens[:length], [], {}
            self._extend(tokens)

    def observe(self, tokens: Sequence[int], hidden_TD: Tensor) -> None:
        self._extend(tokens)

    def draft(self, token: int, count: int) -> list[int]:
        recent = (*self._tokens[1 - LONGEST_NGRAM :], token)
        for size in range(len(recent), SHORTEST_NGRAM - 1, -1):
            start = self._after.get(recent[-size:])
            if start is not None:
                return [*self._tokens[start:], token][:count]
        return []

    def snapshot(self) -> None:
        return None

    def restore(self, tokens: Sequence[int], rows_LSW: Tensor | None) -> int:
        self._tokens, self._after = [], {}
        self._extend(tokens)
        return len(tokens)

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for size in range(SHORTEST_NGRAM, LONGEST_NGRAM + 1):
                if len(self._tokens) >= size:
                    self._after[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)
