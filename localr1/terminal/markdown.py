"""Lays out blocks of Markdown as lines for a terminal.

Owns how headings, lists, tables and code look, and the colours. Knows nothing of streams or of where the lines go.
Invariants: no line is wider than asked (but for a character wider than that), none ends in spaces, each is complete
in itself (no style is left on), and all that an author wrote has gone through `visible` last, so that not even an
escape spelled as an entity or a percent code drives the terminal.
"""

import re
from collections.abc import Iterator
from io import StringIO
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, TableElement
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from localr1.terminal.blocks import Block
from localr1.terminal.emphasis import between_wide_characters
from localr1.terminal.formulas import keep_formulas
from localr1.terminal.visible import visible

Colours = Literal["none", "standard", "256", "truecolor"]

_WIDEST_PROSE = 100
_FEWEST_CELLS = 4
"""A column of a table has room for as many, or for all that is in it."""
_BETWEEN = 3
_CODE_THEME = "ansi_dark"
_BREAK = re.compile(r"<br\s*/?>\s*", re.IGNORECASE)
_ASCII = str.maketrans("•─▌·", "*-|-")
_THEME = Theme(
    {
        "markdown.h1": "bold underline",
        "markdown.h2": "bold",
        "markdown.h3": "bold",
        "markdown.h4": "bold dim",
        "markdown.code": "cyan",
        "markdown.block_quote": "dim",
        "markdown.item.bullet": "dim",
        "markdown.item.number": "dim",
        "markdown.hr": "dim",
        "markdown.link": "underline",
        "markdown.link_url": "dim",
        "markdown.table.border": "dim",
        "markdown.table.header": "bold",
        "markdown.s": "strike",
    }
)
_SYSTEMS = {
    "none": None,
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}


class Layout:
    """Lines for blocks; `colours` "none" leaves every escape sequence out, `ascii_only` every other character."""

    def __init__(self, colours: Colours, ascii_only: bool = False) -> None:
        self._system = _SYSTEMS[colours]
        self._ascii_only = ascii_only
        self._console = Console(
            file=StringIO(),
            width=80,
            force_terminal=True,
            color_system="standard" if colours == "none" else colours,
            theme=_THEME,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
            _environ={},
        )

    def block(self, block: Block, width: int, live: bool = False) -> list[str]:
        """The lines of one block; a `live` one has markers that are still open closed for it."""
        if block.kind == "code":
            return self._code(block, width)
        text = visible(block.text).replace("\t", "    ")
        if live:
            text = _closed(text)
        if not text.strip():
            return []
        wide = width if block.is_table else min(width, _WIDEST_PROSE)
        return self._lines(_Prose(text, block), wide)

    def dim(self, text: str, width: int) -> list[str]:
        """Plain words, dim and wrapped."""
        wrapped = Text(visible(text).expandtabs(4), "dim").wrap(self._console, min(width, _WIDEST_PROSE))
        return [line for part in wrapped for line in self._lines(part, width)]

    def _code(self, block: Block, width: int) -> list[str]:
        code = visible(block.text).expandtabs(4)
        label = [] if block.continued else self._lines(Text(_label(block.language, block.number), "dim"), width)
        text = _highlighted(code, block.language) if block.text else Text()
        return label + [line for part in text.split("\n", allow_blank=True) for line in self._folded(part, width)]

    def _folded(self, text: Text, width: int) -> list[str]:
        """Code is broken where the window ends and nowhere else."""
        starts, used = [], 0
        if cell_len(text.plain) > width:
            for position, character in enumerate(text.plain):
                used += cell_len(character)
                if used > width:
                    starts.append(position)
                    used = cell_len(character)
        parts = text.divide(starts) if starts else [text]
        return [self._line(list(part.render(self._console)), width) for part in parts]

    def _lines(self, renderable: RenderableType, width: int) -> list[str]:
        rows = self._console.render_lines(renderable, self._console.options.update(width=width), pad=False)
        lines = [self._line(row, width) for row in rows]
        while lines and not lines[-1]:
            lines.pop()
        while len(lines) > 1 and not lines[0]:
            del lines[0]
        return lines or [""]

    def _line(self, row: list[Segment], width: int) -> str:
        parts = [(visible(part.text).replace("\n", ""), part.style) for part in row if not part.control]
        while parts and not parts[-1][0].rstrip(" "):
            parts.pop()
        if parts:
            parts[-1] = (parts[-1][0].rstrip(" "), parts[-1][1])
        if sum(cell_len(text) for text, _ in parts) > width:
            parts = list(_cropped(parts, width))
        return "".join(self._styled(text, style) for text, style in parts)

    def _styled(self, text: str, style: Style | None) -> str:
        if self._ascii_only:
            text = text.translate(_ASCII).encode("ascii", "replace").decode()
        if self._system is None or style is None:
            return text
        return style.render(text, color_system=self._system)


def _cropped(parts: list[tuple[str, Style | None]], width: int) -> Iterator[tuple[str, Style | None]]:
    for text, style in parts:
        size = cell_len(text)
        yield (text if size <= width else set_cell_size(text, width)), style
        width -= min(size, width)


def _label(language: str, number: int) -> str:
    """`python · /copy 2`, over the code."""
    return f"{visible(language.split(' ')[0])[:30] or 'code'} · /copy {number}"


def _highlighted(code: str, language: str) -> Text:
    name = language.split(" ")[0].strip("{}.").lower()
    syntax = Syntax(code, name or "text", theme=_CODE_THEME, background_color="default")
    text = syntax.highlight(code)
    text.rstrip()
    return text


def _closed(text: str) -> str:
    """Emphasis and code that are still open, closed, so that what comes does not change its look when they are."""
    text = re.sub(r"(?<!\S)[*_`~]+$", "", text)
    if text.rpartition("\n")[2].count("`") % 2:
        return text + "`"
    if text.count("**") % 2:
        return text.rstrip(" *") + "**"
    return text


class _Heading(Heading):
    """On the left; the first two levels with their weight alone."""

    LEVEL_ALIGN = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _Code(CodeBlock):
    """Code within a list or a quotation: coloured, without a box, so that it can be copied."""

    label = ""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_Code":
        code = cls(token.info.partition(" ")[0] or "text", markdown.code_theme)
        assert isinstance(markdown, _Prose)
        number = next(markdown.code_numbers, None)
        code.label = _label(token.info, number) if number is not None else ""
        return code

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.label:
            yield Text(self.label, "dim")
        text = _highlighted(str(self.text).rstrip(), self.lexer_name)
        text.overflow = "fold"
        yield text


class _Item(ListItem):
    """Numbers are followed by their dot."""

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        numeral = f" {number}. "
        lines = console.render_lines(
            self.elements, options.update(width=max(options.max_width - len(numeral), 1)), style=self.style
        )
        style = console.get_style("markdown.item.number", default="none")
        for index, line in enumerate(lines):
            yield Segment(numeral if index == 0 else " " * len(numeral), style)
            yield from line
            yield Segment("\n")


class _Table(TableElement):
    """One rule under the head; cells are folded, never cut. Where the window has too little room for that, a row is a
    few lines, a cell each."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, border_style="dim")
        body = [[cell.content for cell in row.cells] for row in (self.body.rows if self.body is not None else [])]
        cells = self.header.row.cells if self.header is not None and self.header.row is not None else []
        head = [cell.content.copy() for cell in cells]
        for heading, cell in zip(head, cells, strict=True):
            heading.stylize("markdown.table.header")
            table.add_column(heading, overflow="fold", justify=cell.justify)
        for row in body:
            table.add_row(*row)
        columns = zip(head, *body, strict=False)
        needed = sum(min(max(_widest(cell) for cell in column), _FEWEST_CELLS) + _BETWEEN for column in columns)
        if needed - _BETWEEN <= options.max_width:
            yield table
        else:
            yield from self._one_below_another(head, body or [[Text()] * len(head)])

    def _one_below_another(self, head: list[Text], body: list[list[Text]]) -> Iterator[Text]:
        for number, row in enumerate(body):
            if number:
                yield Text()
            for heading, cell in zip(head, row, strict=False):
                yield Text.assemble(heading, ": " if heading.plain else "", cell, overflow="fold")


def _widest(cell: Text) -> int:
    return max(map(cell_len, cell.plain.split("\n")))


class _Prose(Markdown):
    """Markdown without HTML but `<br>`, links that hide where they go, entities (which could spell control characters)
    and backslash escapes (which would eat the backslashes of formulas)."""

    elements = Markdown.elements | {
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "list_item_open": _Item,
        "table_open": _Table,
    }

    def __init__(self, text: str, block: Block) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = text
        self.code_numbers = iter(range(block.number, block.number + len(block.codes)))
        self.parsed = _parser().parse(text)
        for token in self.parsed:
            for part in token.children or ():
                # Models do not wrap their lines; where one ends, they mean it.
                if part.type == "softbreak":
                    part.type = "hardbreak"


def _line_break(state: StateInline, silent: bool) -> bool:
    """`<br>`, the only HTML that is obeyed: models write it where a cell of a table has several lines."""
    found = _BREAK.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos = found.end()
    return True


_PARSER: MarkdownIt | None = None


def _parser() -> MarkdownIt:
    global _PARSER
    if _PARSER is None:
        _PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        _PARSER.disable(["entity", "escape", "html_block", "html_inline", "image", "reference", "code", "autolink"])
        keep_formulas(_PARSER)
        between_wide_characters(_PARSER)
        _PARSER.inline.ruler.push("line_break", _line_break)
    return _PARSER
