"""What is hard in a family, so that training sees more of it: the evaluation draws every family as it comes.

Knows the traces' wording, not how items are made.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.nano.tasks import Item

SHARE = 0.4  # of the training items are redrawn until they are hard ones
TRIES = 20


def _few_letters(item: "Item") -> bool:
    """Many repeats: where one is in the word has to be counted."""
    word = item.key.removeprefix("word ")
    return len(word) > 4 and 2 * len(set(word)) <= len(word)


def _crosses_a_ten(item: "Item") -> bool:
    return any(int(a) + int(b) >= 10 for a, b in re.findall(r"=\d(\d)\+(\d)=", item.thought))


_HARD: dict[str, Callable[["Item"], bool]] = {
    "multiply": _crosses_a_ten,
    "divide": lambda item: item.operands[1] > 12,
    "compare": lambda item: item.thought.startswith("find"),
    "sort": lambda item: len(item.operands) >= 5,
    "count": lambda item: item.thought.startswith("vowels") or _few_letters(item),
    "reverse": _few_letters,
    "spell": _few_letters,
    "decline": lambda item: bool(re.search(r"\d|how many|how do i|can you", item.question.lower())),
}


def is_hard(item: "Item") -> bool:
    """True as well for every item of a family in which nothing stands out."""
    return _HARD.get(item.family, lambda _: True)(item)
