"""Tables on a terminal or in a pipe.

Owns how a table of words looks: a title, aligned columns, notes below. Where the window is narrower than the table,
every row becomes a few lines of its own instead, a column a line. Does not know what the words mean. Invariant: every
word is shown, in a window of any width.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from localr1.terminal.environment import Environment
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from rich.console import Group, JustifyMethod, RenderableType
    from rich.table import Table
    from rich.text import Text

Rows = Sequence[Sequence[str]]
_ENDLESS = 10_000
_BETWEEN = 2
_LONGEST_WORD = 16
"""Longer ones are broken, as the names of folders are."""


def show_table(environment: Environment, title: str, columns: Sequence[str], rows: Rows, notes: Sequence[str]) -> None:
    """Write one table to stdout; the first column names the rows, the others stand to the right."""
    from rich.padding import Padding
    from rich.text import Text

    console = environment.console(environment.stdout)
    columns, rows = [visible(column) for column in columns], [[visible(cell) for cell in row] for row in rows]
    console.print(Text(visible(title), style="bold"))
    table = _side_by_side(columns, rows)
    fits = table.__rich_measure__(console, console.options.update(max_width=_ENDLESS)).maximum <= console.width
    if rows and fits:
        console.print(table)
    elif rows and any(columns):
        console.print(_one_below_another(columns, rows, console.width))
    elif rows:
        console.print(labelled([("",), *rows, ("",)], console.width, wraps=1, justify=("left", "right")))
    for note in notes:
        console.print(Padding(Text(visible(note), style="dim"), (0, 0, 0, 2)))
    console.print()


def _side_by_side(columns: Sequence[str], rows: Rows) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _one_below_another(columns: Sequence[str], rows: Rows, width: int) -> "Group":
    """A block of lines a row; what is empty is left out."""
    from rich.text import Text

    lines: list[Sequence[str | Text]] = []
    for label, *cells in rows:
        lines += [("",), (Text(f" {columns[0]} {label}" if columns[0] else f" {label}", style="bold"),)]
        lines += [(f"   {column}", cell) for column, cell in zip(columns[1:], cells, strict=True) if cell]
    return labelled([*lines, ("",)], width, wraps=1)


def labelled(
    rows: "Sequence[Sequence[str | Text]]", width: int, wraps: int, justify: "Sequence[JustifyMethod]" = ()
) -> "Group":
    """Labels with their values beside them, in the column `wraps` broken between words; where that had no room for its
    words, all values are below their labels. A label without values goes across."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    texts = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    widths, beside = _widths([row for row in texts if row[1:]], width, wraps)
    shown: list[RenderableType] = []
    for whole, *values in texts:
        indent = len(whole.plain) - len(whole.plain.lstrip(" "))
        label = Padding(whole[indent:], (0, 0, 0, indent), expand=False) if indent else whole
        if values and beside:
            shown.append(_beside([label, *values], widths, justify))
        else:
            shown.append(label)
            if values:
                shown.append(Padding(Text(" ").join(values), (0, 0, 0, indent + 2), expand=False))
    return Group(*shown)


def _widths(rows: "Sequence[Sequence[Text]]", width: int, wraps: int) -> tuple[list[int], bool]:
    """Of each column, and whether they leave room for the words of the one that is broken."""
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    if not widths:
        return [], False
    words = [len(word) for row in rows for word in re.findall(r"^ *\S+|\S+", row[wraps].plain)]
    room = width - sum(widths) - _BETWEEN * (len(widths) - 1) + widths[wraps]
    widths[wraps] = min(widths[wraps], room)
    return widths, room >= min(max(words, default=0), _LONGEST_WORD)


def _beside(cells: "Sequence[RenderableType]", widths: Sequence[int], justify: "Sequence[JustifyMethod]") -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, _BETWEEN))
    for number, width in enumerate(widths):
        table.add_column(width=width, overflow="fold", justify=justify[number] if justify else "left")
    table.add_row(*cells)
    return table
