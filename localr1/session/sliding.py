"""What a sliding context forgets: the oldest turns, where there is no room for an answer.

Owns how many go. That is more than must: whatever goes, all that stays is read again, since a cache's rows know what
came before them; so there shall be room for the next turns, too. Invariant: the last question stays, whatever it takes.
"""

from collections.abc import Callable, Sequence

from localr1.chat.template import Prompt
from localr1.chat.transcript import Message, Transcript

ANSWER_SHARE = 4
"""A quarter of the context is kept free for the answer and the thought before it, which is often longer."""


def forget_oldest(
    transcript: Transcript,
    capacity: int,
    encode: Callable[[Sequence[Message]], Prompt],
    length: Callable[[str], int],
) -> tuple[Prompt, int]:
    """The transcript's prompt, and how many turns went. Where it left no room for an answer, those that stay fill half
    of what the last question leaves, or nothing more can go.

    `encode` makes a prompt of messages, `length` tells the tokens of one. To encode all again for every turn that goes
    would take minutes where there are hundreds.
    """
    room, forgotten, prompt = capacity - capacity // ANSWER_SHARE, 0, encode(transcript.messages)
    if len(prompt.tokens) <= room:
        return prompt, 0
    system, turns = transcript.messages[: -len(transcript.turns)], transcript.turns
    question = len(encode((*system, turns[-1])).tokens)
    room -= max(room - question, 0) // 2
    while len(prompt.tokens) > room:
        most = 1 if forgotten else _surely_too_many(transcript.turns, len(prompt.tokens), room, length)
        went = sum(transcript.drop_oldest_turn() for _ in range(most))
        if not went:
            break
        forgotten += went
        prompt = encode(transcript.messages)
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
