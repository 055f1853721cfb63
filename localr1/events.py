"""What downloading, loading and decoding emit, and the terminal shows.

Owns the typed records; knows nothing of who makes or shows them. A long operation is a generator that yields these and
returns its result, so there are no callbacks: `result = yield from operation()`.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, TypeVar


@dataclass(frozen=True)
class Notice:
    """One line that the user should see once."""

    text: str


@dataclass(frozen=True)
class DiskNeed:
    """What must fit on one disk, and what it has; `folder` is on it."""

    folder: str
    needed_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class DownloadPlan:
    """What a download is going to do, told before its first byte; `store_bytes` and the disks' needs are approximate.

    `fetch_bytes` of `total_bytes` are still to come. `gated` is empty, or how access is given. `outlook` is what can be
    said of how the model will run here, a line each.
    """

    model: str
    revision: str
    files: int
    fetch_bytes: int
    total_bytes: int
    store_bytes: int
    disks: tuple[DiskNeed, ...]
    licence: str
    gated: str
    keeps_source: bool
    outlook: tuple[str, ...] = ()


@dataclass(frozen=True)
class FetchProgress:
    """Bytes of the files of one download; `file` is the one that moved."""

    file: str
    file_done_bytes: int
    file_total_bytes: int
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class QuantizeProgress:
    """Tensors and source bytes taken into the 8-bit store."""

    tensor: str
    done_tensors: int
    total_tensors: int
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class LoadProgress:
    """A stage of loading; `total` 0 means that its length is unknown."""

    stage: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class PrefillProgress:
    """Prompt tokens read so far, of those not already in the cache."""

    done_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class ReasoningText:
    """A piece of the model's thoughts."""

    text: str


@dataclass(frozen=True)
class ThoughtEnd:
    """A thought is over; comes before the next piece of the answer. `tokens` and `duration_s` are its own."""

    tokens: int
    duration_s: float


@dataclass(frozen=True)
class Typed:
    """What a person has typed by now while the answer comes."""

    text: str


@dataclass(frozen=True)
class AnswerText:
    """A piece of the model's answer."""

    text: str


StopReason = Literal["end", "max_tokens", "context", "interrupted"]


@dataclass(frozen=True)
class TurnEnd:
    """The last event of a turn. `context_limit_tokens` 0: it was stopped before this could be said."""

    reason: StopReason
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    reasoning_tokens: int
    prefill_s: float
    decode_s: float
    context_tokens: int
    context_limit_tokens: int
    steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefill_tokens_per_s(self) -> float:
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """The first token belongs to prefill, so n tokens took the time of n - 1."""
        return max(self.generated_tokens - 1, 0) / self.decode_s if self.decode_s else 0.0

    @property
    def tokens_per_step(self) -> float:
        """1 without speculation; each right guess adds its share. 0 before the first step."""
        return (self.steps + self.accepted_tokens) / self.steps if self.steps else 0.0


Event = (
    Notice
    | Typed
    | DownloadPlan
    | FetchProgress
    | QuantizeProgress
    | LoadProgress
    | PrefillProgress
    | ReasoningText
    | ThoughtEnd
    | AnswerText
    | TurnEnd
)

T = TypeVar("T")

Progress = Generator[Event, None, T]
"""An operation that yields events and returns a T."""


def result_of(operation: Progress[T]) -> T:
    """Run an operation to its end, for whoever does not show its progress."""
    while True:
        try:
            next(operation)
        except StopIteration as end:
            result: T = end.value
            return result
