"""What a sliding context forgets: the oldest turns, until there is room for an answer.

Owns how many go, which is no more than must. Invariant: the last question stays, whatever it takes.
"""

from collections.abc import Callable, Sequence

from localr1.chat.template import Prompt
from localr1.chat.transcript import Message, Transcript

ANSWER_SHARE = 8
"""An eighth of the context is kept free for the answer."""


def forget_oldest(
    transcript: Transcript, capacity: int, encode: Callable[[], Prompt], length: Callable[[str], int]
) -> tuple[Prompt, int]:
    """The transcript's prompt once it leaves room for an answer or nothing more can go, and how many turns went.

    `encode` makes the prompt of what is left, `length` tells the tokens of one message. To encode all again for every
    turn that goes would take minutes where there are hundreds.
    """
    room, forgotten, prompt = capacity - capacity // ANSWER_SHARE, 0, encode()
    while len(prompt.tokens) > room:
        most = 1 if forgotten else _surely_too_many(transcript.turns, len(prompt.tokens), room, length)
        went = sum(transcript.drop_oldest_turn() for _ in range(most))
        if not went:
            break
        forgotten += went
        prompt = encode()
    return prompt, forgotten


def _surely_too_many(turns: Sequence[Message], tokens: int, room: int, length: Callable[[str], int]) -> int:
    """How many of the oldest turns of a prompt of so many tokens cannot stay, one at least: one less than by their
    lengths, each message with an equal share of what the template adds."""
    lengths = [length(message.content) for message in turns]
    added = (tokens - sum(lengths)) / len(turns)
    left, forgotten = float(tokens), -1
    for at in range(0, len(turns), 2):
        if left <= room:
            break
        left -= sum(lengths[at : at + 2]) + 2 * added
        forgotten += 1
    return max(forgotten, 1)
