"""Cuts Markdown that arrives in pieces into blocks, so that each is laid out once, when it is whole.

Owns where a paragraph, list item, heading, table or piece of code ends. Knows nothing of looks. Invariant: every
line that is not blank is in exactly one block, in order, and a block handed out is never taken back.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["prose", "item", "heading", "code"]

_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^`\n]*)$")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_ITEM = re.compile(r" {0,3}([-*+]|\d{1,9}[.)])(\s+\S|\s*$)")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(\1[ \t]*){2,}$")
_INNER = re.compile(r"(?P<quote>(?: {0,3}> ?)*)[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?")
"""What stands before the text of a line in a quotation or a list item."""
_UNDECIDED = re.compile(r"\s*(`+|~+|#{1,6}|[-*+|]|\d{1,9}[.)]?)\s*$")
_TABLE = re.compile(r"\|.*\n[ |:-]*-[ |:-]*(\n|$)")
FORMULA_ENDS = {"\\[": "\\]", "$$": "$$"}
"""What opens a formula on lines of its own, and what ends it."""
_LONGEST_PROSE = 4000
_LONGEST_CODE_LINES = 100


@dataclass(frozen=True)
class Block:
    """`gap`: a blank line sets it apart from the block before. Code has its language and, counted from 1, its number
    in the answer; `continued` code goes on from the block before it. `codes` are the pieces of code within a list item
    or a quotation, of which the first has the block's number."""

    kind: Kind
    text: str
    gap: bool = False
    language: str = ""
    number: int = 0
    continued: bool = False
    codes: tuple[str, ...] = ()

    @property
    def is_table(self) -> bool:
        return self.kind == "prose" and bool(_TABLE.search(self.text))


class BlockSplitter:
    """One answer; push pieces, take blocks, and look at `live`, the one that is not whole yet."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._partial = ""
        self._open = Block("prose", "")
        self._fence = ""
        self._indent = 0
        self._quotes = 0
        self._inner_fence = self._formula_end = ""
        self._inner_codes: list[list[str]] = []
        self._blank = False
        self._after_code = False
        self._first = True
        self._codes = 0
        self._done: list[Block] = []

    def push(self, text: str) -> list[Block]:
        """The blocks that are whole now."""
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._take(line)
        if len(self._partial) > _LONGEST_PROSE:
            self._split_long_line()
        return self._handed_out()

    def flush(self) -> list[Block]:
        """What is left, now that nothing follows."""
        if self._partial:
            self._take(self._partial)
            self._partial = ""
        self._finish()
        return self._handed_out()

    @property
    def live(self) -> Block | None:
        """The block that is still coming, without a last line that could become anything."""
        partial = self._partial
        if _UNDECIDED.match(partial) and not (self._fence and not partial.lstrip().startswith(self._fence[0])):
            partial = ""
        if self._fence:
            return self._code([*self._lines, _outdented(partial, self._indent)] if partial else self._lines)
        lines = [*self._lines, partial] if partial else self._lines
        if not lines:
            return None
        if not self._lines:
            if opening := _FENCE.match(partial):
                return Block("code", "", not self._first, opening[3].strip(), self._codes + 1)
            return Block(_kind(partial), partial, self._gap(_kind(partial)))
        return self._prose(lines)

    def _take(self, line: str) -> None:
        if self._fence:
            self._take_code(line)
        elif not line.strip():
            self._take_blank()
        elif self._lines and self._goes_on(line):
            self._lines.append(line)
            self._blank = False
            self._follow(line)
        else:
            self._finish()
            self._begin(line)

    def _take_code(self, line: str) -> None:
        closing = line.strip()
        if len(closing) >= len(self._fence) and not closing.strip(self._fence[0]):
            self._finish()
            self._fence = ""
            return
        self._lines.append(_outdented(line, self._indent))
        if len(self._lines) >= _LONGEST_CODE_LINES:
            self._done.append(self._code(self._lines))
            self._open = replace(self._open, continued=True, gap=False)
            self._lines = []

    def _take_blank(self) -> None:
        if self._lines and self._open.kind == "item":
            self._lines.append("")
            if self._inner_fence:
                self._inner_codes[-1].append("")
        else:
            self._finish()
        self._formula_end = ""
        self._blank = True

    def _goes_on(self, line: str) -> bool:
        """Whether a line that is not blank belongs to the block that is open."""
        if self._inner_fence or self._formula_end:
            return True
        indented = line.startswith(("  ", "\t"))
        if self._open.kind == "item":
            if indented:
                return True
            return not (self._lines[-1] == "" or _starts_block(line))
        if _FENCE.match(line):
            return False
        return indented or not _starts_block(line) or _is_underline(line)

    def _begin(self, line: str) -> None:
        if opening := _FENCE.match(line):
            self._codes += 1
            self._fence, self._indent = opening[2], len(opening[1])
            self._open = Block("code", "", not self._first, opening[3].strip(), self._codes)
            self._first = self._blank = False
            return
        kind = _kind(line)
        self._open = Block(kind, "", self._gap(kind))
        self._lines = [line]
        self._first = self._blank = self._after_code = False
        self._follow(line)
        if kind == "heading":
            self._finish()
            self._blank = True

    def _gap(self, kind: Kind) -> bool:
        return not self._first and (self._blank or self._after_code or kind == "heading")

    def _follow(self, line: str) -> None:
        """Code within a list item or a quotation, and formulas on lines of their own: nothing in them starts a
        block."""
        inner = _INNER.match(line)
        assert inner is not None
        text = line[inner.end() :]
        if self._inner_fence:
            if text.startswith(self._inner_fence) and not text.strip().strip(self._inner_fence[0]):
                self._inner_fence = ""
            else:
                quote = re.match(rf"(?: {{0,3}}> ?){{0,{self._quotes}}}", line)
                self._inner_codes[-1].append(_outdented(line[quote.end() if quote else 0 :], self._indent))
        elif self._formula_end:
            if self._formula_end in text:
                self._formula_end = ""
        elif (fence := _FENCE.match(text)) and inner.end():
            self._inner_fence, self._quotes = fence[2], inner["quote"].count(">")
            self._indent = inner.end() - inner.end("quote")
            if not self._inner_codes:
                self._open = replace(self._open, number=self._codes + 1)
            self._codes += 1
            self._inner_codes.append([])
        else:
            end = FORMULA_ENDS.get(text[:2], "")
            self._formula_end = "" if end in text[2:] else end

    def _finish(self) -> None:
        if self._fence:
            self._done.append(self._code(self._lines))
            self._after_code = True
        elif self._lines:
            while self._lines[-1] == "":
                self._lines.pop()
                self._blank = True
            self._done.append(self._prose(self._lines))
        self._inner_fence = self._formula_end = ""
        self._lines, self._inner_codes = [], []

    def _prose(self, lines: list[str]) -> Block:
        codes = tuple("\n".join(code).rstrip("\n") for code in self._inner_codes)
        return replace(self._open, text="\n".join(lines), codes=codes)

    def _code(self, lines: list[str]) -> Block:
        return replace(self._open, text="\n".join(lines))

    def _split_long_line(self) -> None:
        """A line without an end is shown in parts, cut between words, so that each costs the same."""
        cut = self._partial.rfind(" ", 0, _LONGEST_PROSE)
        cut = cut + 1 if cut > 0 else _LONGEST_PROSE
        while len(self._partial) > _LONGEST_PROSE:
            self._take(self._partial[:cut])
            self._partial = self._partial[cut:]
            if not self._fence:
                self._finish()

    def _handed_out(self) -> list[Block]:
        done, self._done = self._done, []
        return done


def code_blocks(text: str) -> list[str]:
    """The pieces of code in an answer, as they are, in order: what `/copy N` copies."""
    splitter = BlockSplitter()
    codes: dict[int, list[str]] = {}
    for block in [*splitter.push(text), *splitter.flush()]:
        if block.kind == "code":
            codes.setdefault(block.number, []).append(block.text)
        codes.update({block.number + place: [code] for place, code in enumerate(block.codes)})
    return ["\n".join(parts) for parts in codes.values()]


def _outdented(line: str, columns: int) -> str:
    """A line of code without the indentation of the fence that opened it."""
    return line[min(columns, len(line) - len(line.lstrip(" \t"))) :]


def _kind(line: str) -> Kind:
    if _HEADING.match(line):
        return "heading"
    return "item" if _ITEM.match(line) and not _RULE.match(line) else "prose"


def _starts_block(line: str) -> bool:
    return bool(_FENCE.match(line) or _HEADING.match(line) or _ITEM.match(line) or _RULE.match(line))


def _is_underline(line: str) -> bool:
    """A line of dashes under a paragraph makes it a heading."""
    return bool(re.fullmatch(r" {0,3}-{2,}\s*", line))
