"""Thoughts apart from answers, in a stream of text.

Owns the reading of `<think>` and `</think>`. Knows nothing of tokens. Invariant: however the text is cut into pushes,
the pieces joined by kind are the same, and every character but the tags and the newlines around a thought comes out
once.

The rules, since models do not always balance their tags:
- In a thought, `</think>` ends it, and a further `<think>` is dropped: it is open already.
- In an answer, `<think>` opens a thought, the first or a later one.
- In an answer, a `</think>` with nothing to close is dropped. What came before it was shown as the answer and stays
  it.
- In an answer's code (a fenced block, between backticks, right after a quotation mark) both tags are text, so that a
  program that parses them is printed whole. A thought is not read for code: a stray backtick there must not keep it
  open.
- A thought that is never closed is a thought to the end.
- Newlines at the start of a thought or an answer and those before `</think>` are dropped; spaces are kept.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["reasoning", "answer"]

NEWLINES = "\r\n"
_BEFORE_FENCE = "-*+>.)0123456789"
"""What lists and quotations put before what they hold."""


@dataclass(frozen=True)
class Piece:
    """Some text, never empty, and where it belongs."""

    kind: Kind
    text: str


class ThoughtSplitter:
    """Cuts the text of one turn into thoughts and answer. `opened`: the prompt already ended with the opening tag."""

    def __init__(self, opened: bool, open_tag: str = "<think>", close_tag: str = "</think>") -> None:
        self._open_tag = open_tag
        self._tags = re.compile(f"{re.escape(open_tag)}|{re.escape(close_tag)}")
        self._prefixes = {tag[:length] for tag in (open_tag, close_tag) for length in range(1, len(tag))}
        self._first = {open_tag[0], close_tag[0]}
        self._longest = max(len(open_tag), len(close_tag)) - 1
        self._held = ""
        self._newlines = ""
        self._at_start = True
        self._kind: Kind = "reasoning" if opened else "answer"
        self._code = _CodeReader()
        self._pieces: list[Piece] = []

    @property
    def thinking(self) -> bool:
        """Whether the text so far ended inside a thought."""
        return self._kind == "reasoning"

    def push(self, text: str) -> list[Piece]:
        """The pieces that are certain once `text` has come; the start of what may become a tag is held back."""
        text = self._held + text
        if self._first.isdisjoint(text):  # neither a tag nor the start of one
            self._held = ""
            self._emit(text)
            return self._taken()
        position = 0
        for tag in self._tags.finditer(text):
            self._emit(text[position : tag.start()])
            self._take_tag(tag.group())
            position = tag.end()
        rest = text[position:]
        self._held = self._partial_tag(rest)
        self._emit(rest[: len(rest) - len(self._held)])
        return self._taken()

    def flush(self) -> list[Piece]:
        """What was held back, now that nothing follows."""
        self._emit(self._held)
        self._held = ""
        if self._newlines:
            self._put(self._newlines)
            self._newlines = ""
        return self._taken()

    def _take_tag(self, tag: str) -> None:
        if self._kind == "reasoning":
            if tag != self._open_tag:
                self._turn_to("answer")
        elif self._code.inside:
            self._emit(tag)
        elif tag == self._open_tag:
            self._turn_to("reasoning")

    def _turn_to(self, kind: Kind) -> None:
        self._kind = kind
        self._newlines = ""
        self._at_start = True
        self._code = _CodeReader()

    def _emit(self, text: str) -> None:
        if self._at_start:
            text = text.lstrip(NEWLINES)
        if not text:
            return
        self._at_start = False
        if self._kind == "answer":
            self._code.read(text)
            self._put(text)
            return
        body = text.rstrip(NEWLINES)
        if body:
            self._put(self._newlines + body)
            self._newlines = ""
        self._newlines += text[len(body) :]

    def _put(self, text: str) -> None:
        if self._pieces and self._pieces[-1].kind == self._kind:
            text = self._pieces.pop().text + text
        self._pieces.append(Piece(self._kind, text))

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _partial_tag(self, text: str) -> str:
        """The longest end of `text` that begins a tag without being one."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._prefixes:
                return text[-length:]
        return ""


CLOSING = "\n\nThat is enough thought; now the answer.\n</think>\n\n"
"""What closes a thought that has spent its budget: encoded with `encode_rendered` and given to the model as if it had
said so itself. The sentence comes first because a thought that breaks off is taken up again in the answer."""


class ThinkBudget:
    """When a thought has had its tokens: at the end of a sentence or line from `tokens` on, `grace` later at any point.

    Thoughts of one turn share the budget.
    """

    def __init__(self, tokens: int, grace: int = 64) -> None:
        self._left = tokens
        self._grace = grace

    def spend(self, text: str) -> bool:
        """Count one token of a thought, with the text that it brought; True if the thought is to be closed now."""
        self._left -= 1
        ended = text.rstrip(" ").endswith((".", "!", "?", "\n", "。", "！", "？"))
        return self._left <= 0 and (ended or self._left <= -self._grace)


class _CodeReader:
    """Whether an answer's next character stands in code, read from the Markdown before it.

    A block ends with as many backticks as it began with, alone in their line, so that blocks may be shown in one.
    """

    def __init__(self) -> None:
        self._fence = 0  # backticks that began the block, 0 outside of one
        self._opening = False  # the line is the one that began it
        self._line_backticks = 0
        self._fence_run = 0  # backticks that begin the line; -1 once anything else has come
        self._last = ""

    @property
    def inside(self) -> bool:
        return self._fence > 0 or self._line_backticks % 2 == 1 or self._last in ("`", "'", '"')

    def read(self, text: str) -> None:
        for character in text:
            if character == "\n":
                if self._fence_run >= max(self._fence, 3):
                    self._fence = 0 if self._fence else self._fence_run
                self._line_backticks = self._fence_run = 0
                self._opening = False
            elif character == "`":
                self._line_backticks += 1
                if self._fence_run >= 0:
                    self._fence_run += 1
                elif self._opening:  # code in one line
                    self._fence, self._opening = 0, False
            elif self._fence_run >= 3 and not self._fence:
                self._fence, self._fence_run, self._opening = self._fence_run, -1, True
            elif self._fence_run == 0:
                self._fence_run = 0 if character.isspace() or character in _BEFORE_FENCE else -1
            elif self._fence_run < max(self._fence, 3) or not character.isspace():
                self._fence_run = -1
        self._last = text[-1:] or self._last
