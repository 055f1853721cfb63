"""The text that benchmarks run on: Python's own reference documentation, which every Python carries.

Random tokens would route to experts as no text does. Questions for conversations are here too.
"""

from localr1.chat.tokenizer import Tokenizer

QUESTIONS = (
    "What is 4817 + 2956?",
    "Sort 512, 48, 907, 233, 16",
    "Multiply 476 by 38",
    "Who are you?",
)


def real_text() -> str:
    """Some 700 kB of technical English."""
    from pydoc_data.topics import topics

    return "\n\n".join(text for _, text in sorted(topics.items()))


def text_tokens(tokenizer: Tokenizer, count: int) -> list[int]:
    """The first `count` tokens of the text, which begins again where it ends."""
    text, size = real_text(), 8 * count
    tokens: list[int] = []
    while len(tokens) < count:
        tokens = tokenizer.encode_text((text * (size // len(text) + 1))[:size])
        size *= 2
    return tokens[:count]
