"""Tables on a terminal or in a pipe.

Owns how a table of words looks: a title, aligned columns, notes below. Where the window is narrower than the table,
every row becomes a few lines of its own instead, a column a line; without headings the cells are broken where they
stand. Does not know what the words mean.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from localr1.terminal.environment import Environment
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from rich.table import Table

Rows = Sequence[Sequence[str]]
_ENDLESS = 10_000


def show_table(environment: Environment, title: str, columns: Sequence[str], rows: Rows, notes: Sequence[str]) -> None:
    """Write one table to stdout; the first column names the rows, the others stand to the right."""
    from rich.padding import Padding
    from rich.text import Text

    console = environment.console(environment.stdout)
    columns, rows = [visible(column) for column in columns], [[visible(cell) for cell in row] for row in rows]
    console.print(Text(visible(title), style="bold"))
    table = _side_by_side(columns, rows)
    fits = table.__rich_measure__(console, console.options.update(max_width=_ENDLESS)).maximum <= console.width
    if rows:
        console.print(table if fits or not any(columns) else _one_below_another(columns, rows))
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


def _one_below_another(columns: Sequence[str], rows: Rows) -> "Table":
    """A block of lines a row; what is empty is left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for label, *cells in rows:
        table.add_row("", "")
        table.add_row(Text(f" {columns[0]} {label}" if columns[0] else f" {label}", style="bold"), "")
        for column, cell in zip(columns[1:], cells, strict=True):
            if cell:
                table.add_row(Text(f"   {column}"), Text(cell))
    table.add_row("", "")
    return table
