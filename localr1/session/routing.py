"""When routing history is read and written: opened with a model, saved after every turn.

Owns the moments and the words. Where the file lies is `hub.cache`'s, what is in it `placement.routing_history`'s.
Invariant: whatever happens to the file, the conversation goes on; the user hears of it once.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from localr1.errors import CorruptError, LocalR1Error
from localr1.events import Event, Notice
from localr1.hub import cache as hub_cache
from localr1.hub.lock import only_one
from localr1.model.config import ModelConfig
from localr1.model.linear import Embedding, ExpertBank
from localr1.model.registry import expert_layers
from localr1.placement.hints import Hints, hint_width
from localr1.placement.learned import MOST_EXPERTS
from localr1.placement.routing_history import CountingBank, Identity, RoutingHistory
from localr1.placement.routing_history import load as load_history


class Routing:
    """The routing history of a loaded model, on the disk and in memory."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self.kept = True
        """Whether it may be written: not where a person wants nothing of a conversation kept."""
        self._unheard: list[str] = []
        try:
            found = load_history(path, identity)
        except CorruptError as error:
            found = None
            self._unheard.append(f"{error.message}; {error.hint}")
        else:
            if found is None and path.exists():
                what = "the routing history beside this model is of other weights and is not used; a new one begins"
                self._unheard.append(what)
        self.history = found or RoutingHistory.empty(identity)

    def hinted(self, embedding: Embedding, hidden: int) -> None:
        """Keep hints of what forwards take in, too; `embedding` in RAM, of so many numbers."""
        if self.history.identity.hint:
            self.history.hints = Hints(embedding, hidden)

    def counted(self, bank: ExpertBank) -> ExpertBank:
        """The bank, with what it is asked for noted."""
        return CountingBank(bank, self.history)

    def notices(self) -> Iterator[Event]:
        """What the user has not heard yet."""
        unheard, self._unheard = self._unheard, []
        yield from map(Notice, unheard)

    def save(self) -> None:
        """Add what is new to the file; another process that writes just now leaves it for the next turn."""
        if not self.kept or not self.history.unsaved_tokens:
            return
        with contextlib.suppress(LocalR1Error, OSError), only_one(self.path.with_suffix(".lock"), "busy"):
            self.history.save(self.path)


def open_routing(folder: Path, config: ModelConfig) -> Routing | None:
    """The history of the store at `folder`, an MTP layer's in it; None for a model without experts."""
    if config.moe is None:
        return None
    layers = expert_layers(config, mtp=True)
    experts, top_k = config.moe.num_experts, config.moe.top_k
    hint = hint_width(config.hidden) if experts <= MOST_EXPERTS else 0  # of use to what learns from it only
    identity = Identity(hub_cache.weights_id(folder), layers, experts, top_k, hint)
    return Routing(hub_cache.routing_file(folder), identity)
