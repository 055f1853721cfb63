"""Formulas in Markdown: rules by which the parser leaves them as they were written.

Models write LaTeX and plain sums between words, whose stars, underlines and signs at the beginning of a line would be
taken for emphasis and lists. Owns what is a formula, between words or on lines of its own. Knows nothing of how it
looks: it is shown as text.
"""

import re

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from localr1.terminal.blocks import FORMULA_ENDS

_FORMULA = re.compile(r"\\\(.+?\\\)|\\\[.+?\\\]|\$\$.+?\$\$|\$(?!\s)[^$\n]+?(?<!\s)\$(?!\d)", re.DOTALL)
_STARS = re.compile(r"\*+")


def keep_formulas(parser: MarkdownIt) -> None:
    """Have a parser leave formulas alone, on lines of their own and in words."""
    parser.block.ruler.before("fence", "formula", _on_own_lines, {"alt": ["paragraph", "blockquote", "list"]})
    parser.inline.ruler.before("emphasis", "product", _product)
    parser.inline.ruler.before("product", "formula", _in_words)


def _on_own_lines(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """A paragraph that goes on to the formula's end, or to a blank line, whatever its lines begin with."""
    lines = [_line(state, first)]
    closing = FORMULA_ENDS.get(lines[0][:2])
    if closing is None:
        return False
    if silent:
        return True
    rest = lines[0][2:]
    while closing not in rest and first + len(lines) < end:
        rest = _line(state, first + len(lines))
        if not rest.strip():
            break
        lines.append(rest)
    state.line = first + len(lines)
    state.push("paragraph_open", "p", 1).map = [first, state.line]
    inline = state.push("inline", "", 0)
    inline.content, inline.map, inline.children = "\n".join(lines).strip(), [first, state.line], []
    state.push("paragraph_close", "p", -1)
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _in_words(state: StateInline, silent: bool) -> bool:
    found = _FORMULA.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        for number, line in enumerate(found[0].split("\n")):
            if number:
                state.push("softbreak", "br", 0)
            state.push("text", "", 0).content = line
    state.pos = found.end()
    return True


def _product(state: StateInline, silent: bool) -> bool:
    """2*3, x**2, f^* and x_{1} where nothing says that they are formulas."""
    text, start = state.src, state.pos
    before, found = text[start - 1 : start] if start else "", _STARS.match(text, start)
    if found is None:
        if text[start : start + 2] != "_{":
            return False
        marks, end = "_", start + 1
    else:
        marks, end = found[0], found.end()
        if not _multiplies(before, marks, text[end : end + 1]):
            return False
    if not silent:
        state.pending += marks
    state.pos = end
    return True


def _multiplies(before: str, stars: str, after: str) -> bool:
    """Whether stars between these two characters are a sign."""
    if before == "^":
        return True
    left = before == ")" or (before.isascii() and before.isalnum())
    right = after == "(" or (after.isascii() and after.isalnum())
    return left and right and (len(stars) == 1 or (len(stars) == 2 and (before in ")0123456789" or after.isdigit())))
