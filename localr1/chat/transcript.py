"""What has been said in a conversation.

Owns the messages, in order, as plain text. Knows no tokens and no template. Invariant: an assistant's message is an
answer without its thoughts, because the models were trained on histories whose thoughts were cut, and they would fill
the context.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One thing said; plain data, so that a saved conversation is a list of these."""

    role: Role
    content: str


class Transcript:
    """A conversation: an optional system prompt, then turns, each a user's message and the answer to it."""

    def __init__(self, system: str | None = None) -> None:
        self._system = () if system is None else (Message("system", system),)
        self._turns: list[Message] = []

    @property
    def messages(self) -> tuple[Message, ...]:
        """The system prompt, if there is one, and every turn: what a template renders."""
        return (*self._system, *self._turns)

    @property
    def turns(self) -> tuple[Message, ...]:
        """Every turn, without the system prompt."""
        return tuple(self._turns)

    def set_system(self, system: str | None) -> None:
        """Another system prompt, or none, for all turns to come."""
        self._system = () if system is None else (Message("system", system),)

    def add_user(self, text: str) -> None:
        self._turns.append(Message("user", text))

    def add_assistant(self, answer: str) -> None:
        """`answer` is what came after the thought, whole or as far as it got."""
        self._turns.append(Message("assistant", answer))

    def replace_answer(self, answer: str) -> None:
        """The last answer has been gone on with: this is all of it."""
        self._turns[-1] = Message("assistant", answer)

    def restore(self, turns: Iterable[Message]) -> None:
        """These turns again, and no others, so that a question that failed leaves no trace."""
        self._turns = list(turns)

    def drop_oldest_turn(self) -> bool:
        """Forget the first user's message and its answer; False if only the last user's message is left."""
        starts = [index for index, message in enumerate(self._turns) if message.role == "user"]
        if len(starts) < 2:
            return False
        del self._turns[: starts[1]]
        return True

    def drop_last_turn(self) -> bool:
        """Forget the last user's message and its answer; False if nothing was said yet."""
        starts = [index for index, message in enumerate(self._turns) if message.role == "user"]
        if starts:
            del self._turns[starts[-1] :]
        return bool(starts)

    def clear(self) -> None:
        """Forget every turn; the system prompt stays."""
        self._turns.clear()
