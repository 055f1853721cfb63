"""Emphasis in Chinese and Japanese, where no spaces stand around it.

CommonMark lets `**` open and close by the spaces and punctuation beside it, so that in **注意：**请看 nothing closes.
Owns the one exception: full-width punctuation counts as a letter.
"""

import unicodedata

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter


def between_wide_characters(parser: MarkdownIt) -> None:
    """Have a parser know emphasis that ends or begins with full-width punctuation."""
    parser.inline.ruler.before("emphasis", "wide_emphasis", _beside_wide_punctuation)


def _beside_wide_punctuation(state: StateInline, silent: bool) -> bool:
    text, start = state.src, state.pos
    if silent or text[start] != "*":
        return False
    length = state.scanDelims(start, True).length
    before, after = text[start - 1 : start] if start else "", text[start + length : start + length + 1]
    if not (_is_wide(before) or _is_wide(after)):
        return False
    opens = not _is_space(after) and (not _is_mark(after) or _is_space(before) or _is_mark(before))
    closes = not _is_space(before) and (not _is_mark(before) or _is_space(after) or _is_mark(after))
    for _ in range(length):
        state.push("text", "", 0).content = "*"
        state.delimiters.append(Delimiter(ord("*"), length, len(state.tokens) - 1, -1, opens, closes))
    state.pos += length
    return True


def _is_space(character: str) -> bool:
    return not character or character.isspace()


def _is_wide(character: str) -> bool:
    """Whether it is punctuation of full width, or a quotation mark as these scripts use it."""
    return bool(character) and character > "\u2010" and unicodedata.category(character).startswith("P")


def _is_mark(character: str) -> bool:
    """Whether it is other punctuation, or a sign."""
    return bool(character) and not _is_wide(character) and unicodedata.category(character)[0] in "PS"
