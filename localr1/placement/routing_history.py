"""What the router chose on this computer: counts a (layer, expert) that fade, and the last routes themselves.

Owns the counts, their file and the wrapper that collects them around any bank. Knows neither policies nor where the
file belongs. The file is a line that names it, the sha256 of the rest, and an npz without pickles; it is replaced as
a whole, and only its owner may read it, since routes and hints tell much of what was said. What several processes saw
is added up, since each reads the file again before it writes. Invariant: a history is used for the very weights it was
made with and for no others; a file that cannot be read as such is as good as none, and one without hints of this size
is read without them.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localr1.errors import CorruptError
from localr1.placement.hints import Foretold, Hints
from localr1.placement.routes import Routes, joined

MAGIC = b"localr1 routing history 1\n"
HALF_LIFE_TOKENS = 20_000
"""A choice made this many tokens ago counts half."""
KEPT_VALUES = 1 << 20
"""Expert numbers of the newest routes that are kept: some 6,500 tokens of V2-Lite."""
KEPT_HINT_BYTES = 1 << 22
"""And of their hints."""
PENDING_CALLS = 1024


@dataclass(frozen=True)
class Identity:
    """Which weights, and which of their layers choose among how many experts."""

    weights: str
    layers: tuple[int, ...]
    experts: int
    top_k: int
    hint: int = 0
    """Numbers of a forward's hint; 0 where none are kept."""


@dataclass
class RoutingHistory:
    """Fading counts [layers, experts] and the newest routes of one model, and what came since they were saved."""

    identity: Identity
    counts: NDArray[np.float64]
    tokens: int
    """Tokens ever counted."""
    routes: Routes
    hints: Hints | None = None
    """Makes hints of what is foretold; None leaves them empty."""
    _pending: list[tuple[int, Any, Foretold | None]] = field(default_factory=list)
    _new_counts: NDArray[np.float64] = field(init=False)
    _new: list[Routes] = field(default_factory=list)
    _new_tokens: int = 0

    def __post_init__(self) -> None:
        self._new_counts = np.zeros_like(self.counts)
        self._row_of = {layer: row for row, layer in enumerate(self.identity.layers)}
        self._foretold: Foretold | None = None

    @classmethod
    def empty(cls, identity: Identity) -> "RoutingHistory":
        counts = np.zeros((len(identity.layers), identity.experts))
        none = np.zeros((0, identity.hint), np.int8)
        return cls(identity, counts, 0, Routes.of(identity.layers, identity.experts, (), none))

    def foretell(self, coming: Foretold) -> None:
        """Note what the next forward will take in, of which only a hint is kept."""
        if self.hints is not None and self.identity.hint:
            self._foretold = coming

    def observe(self, layer: int, expert_TK: Any) -> None:
        """Note a call's choices: a tensor or array [T, K] that will not change any more.

        Calls of another K than the model's are no router's choices, and are left out.
        """
        foretold = None
        if self._foretold is not None and layer == self.identity.layers[0]:
            foretold, self._foretold = self._foretold, None
        self._pending.append((layer, expert_TK, foretold))
        if len(self._pending) >= PENDING_CALLS:
            self._count()

    def hotness(self, layers: Sequence[int] | None = None) -> NDArray[np.float64]:
        """The counts of now, [layers, experts], what is not saved yet included; of these layers only, if given."""
        self._count()
        counts: NDArray[np.float64] = self.counts * _fading(self._new_tokens) + self._new_counts
        return counts if layers is None else counts[[self._row_of[layer] for layer in layers]]

    def recent(self) -> Routes:
        """The newest routes, what is not saved yet included."""
        self._count()
        return _kept([self.routes, *self._new])

    @property
    def unsaved_tokens(self) -> int:
        self._count()
        return self._new_tokens

    def save(self, path: Path) -> None:
        """Add what is new to what the file holds by now. Raises OSError; corrupt or foreign content is replaced."""
        self._count()
        before = None
        with contextlib.suppress(CorruptError):
            before = load(path, self.identity)
        if before is not None:
            self.counts, self.tokens, self.routes = before.counts, before.tokens, before.routes
        merged = RoutingHistory(self.identity, self.hotness(), self.tokens + self._new_tokens, self.recent())
        _write(path, merged)
        self.counts, self.tokens, self.routes = merged.counts, merged.tokens, merged.routes
        self._new_counts[:] = 0
        self._new, self._new_tokens = [], 0

    def _count(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        identity = self.identity
        asked = ((self._row_of[layer], _array(expert_TK), foretold) for layer, expert_TK, foretold in pending)
        calls = [call for call in asked if call[1].shape[1] == identity.top_k and call[1].min(initial=0) >= 0]
        hints = self._hinted([foretold for row, _, foretold in calls if row == 0])
        routes = Routes.of(identity.layers, identity.experts, [call[:2] for call in calls], hints)
        chosen = np.bincount(routes.numbers().reshape(-1), minlength=self._new_counts.size)
        self._new_counts += chosen.reshape(self._new_counts.shape)
        self._new_tokens += int(routes.tokens[routes.rows == 0].sum(dtype=np.int64))
        self._new.append(routes)
        if sum(part.chosen.size for part in self._new) > 2 * KEPT_VALUES:
            self._new = [_kept(self._new)]

    def _hinted(self, foretold: Sequence[Foretold | None]) -> NDArray[np.int8]:
        """The hint of each forward; zeros where nothing was told."""
        hints = np.zeros((len(foretold), self.identity.hint), np.int8)
        told = [at for at, one in enumerate(foretold) if one is not None]
        if told and self.hints is not None:
            hints[told] = self.hints([one for one in foretold if one is not None])
        return hints


class CountingBank:
    """An `ExpertBank` that notes what it is asked for and hands it on."""

    def __init__(self, bank: Any, history: RoutingHistory) -> None:
        self.bank, self.observe = bank, history.observe

    def run(self, layer: int, hidden_TD: Any, expert_TK: Any, weight_TK: Any, *rest: Any) -> Any:
        self.observe(layer, expert_TK)
        return self.bank.run(layer, hidden_TD, expert_TK, weight_TK, *rest)


def load(path: Path, identity: Identity) -> RoutingHistory | None:
    """The history in a file; None where there is none or where it is of other weights. Raises CorruptError."""
    try:
        content = path.read_bytes()
        begin = len(MAGIC) + hashlib.sha256().digest_size
        if content[:begin] != MAGIC + hashlib.sha256(content[begin:]).digest():
            raise ValueError("its content does not match its checksum")
        with np.load(io.BytesIO(content[begin:]), allow_pickle=False) as stored:
            if str(stored["weights"]) != identity.weights:
                return None
            layers = tuple(int(layer) for layer in stored["layers"])
            counts, tokens = stored["counts"].astype(np.float64), int(stored["tokens"])
            names = ("rows", "route_tokens", "chosen")
            rows, route_tokens, chosen = (stored[name].astype(np.uint16) for name in names)
            hints = np.zeros((int((rows == 0).sum()), identity.hint), np.int8)
            if "hints" in stored and stored["hints"].shape == hints.shape:
                hints = stored["hints"].astype(np.int8)
            routes = Routes(layers, counts.shape[1], rows, route_tokens, chosen, hints)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CorruptError(f"the routing history {path} cannot be read: {error}", "it will be made anew") from error
    _check(path, identity, layers, counts, routes)
    return RoutingHistory(identity, counts, tokens, routes)


def _check(path: Path, identity: Identity, layers: Sequence[int], counts: NDArray[np.float64], routes: Routes) -> None:
    shape = (len(identity.layers), identity.experts)
    whole = (
        tuple(layers) == identity.layers
        and counts.shape == shape
        and bool(np.isfinite(counts).all() and (counts >= 0).all())
        and routes.rows.shape == routes.tokens.shape
        and routes.chosen.ndim == 2
        and int(routes.tokens.sum(dtype=np.int64)) == len(routes.chosen)
        and (not len(routes) or int(routes.rows.max()) < shape[0])
        and (not len(routes.chosen) or int(routes.chosen.max()) < identity.experts)
    )
    if not whole:
        raise CorruptError(f"the routing history {path} contradicts itself", "it will be made anew")


def _write(path: Path, history: RoutingHistory) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        payload = io.BytesIO()
        np.savez(
            payload,
            weights=history.identity.weights,
            layers=np.array(history.identity.layers, np.int64),
            counts=history.counts.astype(np.float32),
            tokens=history.tokens,
            rows=_narrow(history.routes.rows),
            route_tokens=history.routes.tokens,
            chosen=_narrow(history.routes.chosen),
            hints=history.routes.hints,
        )
        content = payload.getvalue()
        scratch.touch(mode=0o600)
        scratch.write_bytes(MAGIC + hashlib.sha256(content).digest() + content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _kept(parts: Sequence[Routes]) -> Routes:
    return joined(parts).newest(KEPT_VALUES, KEPT_HINT_BYTES)


def _narrow(numbers: NDArray[np.uint16]) -> NDArray[np.unsignedinteger]:
    return numbers.astype(np.uint8) if not len(numbers) or numbers.max() < 256 else numbers


def _fading(tokens: int) -> float:
    return float(0.5 ** (tokens / HALF_LIFE_TOKENS))


def _array(expert_TK: Any) -> NDArray[np.integer]:
    return np.asarray(expert_TK.cpu() if hasattr(expert_TK, "cpu") else expert_TK)
