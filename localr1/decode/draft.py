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
from localr1.model.linear import Cache

LONGEST_NGRAM, SHORTEST_NGRAM = 4, 2
MTP_KIND = 0
AGREEING = (4, 8)
"""Agreeing tokens from which on a copied guess is of the next kind."""
FEW_ROWS = 8
"""Pairs that the MTP layer runs over as one step."""
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

    def kind(self, token: int) -> int | None:
        """Which kind of guess there is for what follows `token` (emitted, not yet committed): guesses of a kind are
        about as often right. None where there is none."""
        ...

    @property
    def behind(self) -> bool:
        """Whether there is work that was put off while nobody asked for a guess."""
        ...

    def catch_up(self) -> None:
        """Do what was put off."""
        ...

    def draft(self, token: int, count: int) -> list[int]:
        """Up to `count` guesses of what follows `token`, for which `kind` was asked just before."""
        ...

    def snapshot(self) -> Tensor | None:
        """The rows of its own cache, caught up, for `restore`; None where it has none."""
        ...

    def restore(self, tokens: Sequence[int], rows_LSW: Tensor | None) -> int:
        """Know these tokens, which the main cache was given back, and no others; how many of them it can stand by."""
        ...


class MtpGuesses(Protocol):
    """What runs an MTP layer: the layer itself (`model.mtp.MtpLayer`), or whoever knows how on its device."""

    def guesses(self, tokens: Sequence[int], hidden_TD: Tensor, cache: Cache, count: int) -> tuple[list[int], Tensor]:
        """As `MtpLayer.guesses`."""
        ...


class MtpDrafter:
    """Guesses with the model's MTP layer, whose cache row i pairs the hidden state of token i with token i + 1.

    Hidden states that came while nobody asked for a guess are kept until somebody does, or until they are many, so the
    layer's cache has no holes.
    """

    needs_hidden = True

    def __init__(self, mtp: MtpGuesses, cache: RowCache) -> None:
        self._mtp = mtp
        self._cache = cache
        self._hidden: list[Tensor] = []  # [n, D] each, together of tokens cache.length, cache.length + 1, ...
        self._waiting = 0  # rows in them
        self._next: list[int] = []  # the token after each of those; the last one's may be still unknown

    def keep(self, length: int) -> None:
        waiting = max(length - self._cache.length, 0)
        self._cache.truncate(length)
        if waiting < self._waiting:
            self._hidden = [torch.cat(self._hidden)[:waiting]] if waiting else []
            self._waiting = waiting
        del self._next[max(waiting - 1, 0) :]

    def observe(self, tokens: Sequence[int], hidden_TD: Tensor) -> None:
        # With no hidden state waiting, the first token is the sequence's first or was already paired by `draft`.
        self._next.extend(tokens if self._waiting else tokens[1:])
        self._hidden.append(hidden_TD)
        self._waiting += len(tokens)
        if len(self._next) >= CATCH_UP_ROWS:
            self.catch_up()

    def kind(self, token: int) -> int | None:
        return MTP_KIND if self._waiting else None

    @property
    def behind(self) -> bool:
        return len(self._next) > FEW_ROWS

    @torch.inference_mode()
    def catch_up(self) -> None:
        self._run_pairs(1)

    @torch.inference_mode()
    def draft(self, token: int, count: int) -> list[int]:
        self._next.append(token)
        count = min(count, 1 + self._cache.capacity - self._cache.length - len(self._next))
        guesses, carried_1D = self._run_pairs(count)
        length = self._cache.length
        while len(guesses) < count:
            self._cache.commit(guesses[self._cache.length - length : -1])
            more, carried_1D = self._mtp.guesses(guesses[-1:], carried_1D, self._cache, count - len(guesses))
            guesses += more
        self._cache.truncate(length)
        return guesses

    def snapshot(self) -> Tensor:
        if self._next:
            self.catch_up()
        return self._cache.snapshot(self._cache.length)

    def restore(self, tokens: Sequence[int], rows_LSW: Tensor | None) -> int:
        self.keep(0)
        held = 0 if rows_LSW is None else max(min(rows_LSW.shape[1], len(tokens) - 1), 0)
        if rows_LSW is not None:
            self._cache.restore(tokens[1 : held + 1], rows_LSW[:, :held])
        return held

    def _run_pairs(self, count: int) -> tuple[list[int], Tensor]:
        """Run the layer over the pairs whose both halves are known, and on for `count` guesses (see `MtpLayer`)."""
        pairs = len(self._next)
        hidden_TD = self._hidden[0] if len(self._hidden) == 1 else torch.cat(self._hidden)
        known_TD = hidden_TD if pairs == self._waiting else hidden_TD[:pairs]
        result = self._mtp.guesses(self._next, known_TD, self._cache, count)
        self._cache.commit(self._next)
        self._next.clear()
        self._waiting -= pairs
        self._hidden = [hidden_TD[pairs:]] if self._waiting else []
        return result


class LookupDrafter:
    """Guesses that what followed the last few tokens before will follow them again (prompt lookup decoding).

    Guesses are of a kind by how many tokens before them agree.
    """

    needs_hidden = False
    behind = False

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index of what followed its latest occurrence
        self._found = 0

    def keep(self, length: int) -> None:
        if length < len(self._tokens):
            tokens, self._tokens, self._after = self._tokens[:length], [], {}
            self._extend(tokens)

    def observe(self, tokens: Sequence[int], hidden_TD: Tensor) -> None:
        self._extend(tokens)

    def kind(self, token: int) -> int | None:
        recent = (*self._tokens[1 - LONGEST_NGRAM :], token)
        for size in range(len(recent), SHORTEST_NGRAM - 1, -1):
            found = self._after.get(recent[-size:])
            if found is not None:
                self._found = found
                agreeing = self._agreeing(found)
                return 1 + sum(agreeing >= least for least in AGREEING)
        return None

    def catch_up(self) -> None:
        """Nothing is put off."""

    def draft(self, token: int, count: int) -> list[int]:
        return [*self._tokens[self._found :], token][:count]

    def _agreeing(self, found: int) -> int:
        """How many tokens before `found` are the latest ones, `token` among them; counted to the last of AGREEING."""
        here, there = self._tokens, found - 2
        count = 1
        while count < AGREEING[-1] and there >= 0 and here[-count] == here[there]:
            count, there = count + 1, there - 1
        return count

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
