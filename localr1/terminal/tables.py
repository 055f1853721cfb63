"""Tables on a terminal or in a pipe.

Owns how a table of words looks: a title, aligned columns that fold in a narrow window, notes below. Does not know what
the words mean.
"""

from collections.abc import Sequence

from localr1.terminal.environment import Environment
from localr1.terminal.visible import visible


def show_table(
    environment: Environment, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> None:
    """Write one table to stdout; the first column names the rows, the others stand to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    console = environment.console(environment.stdout)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(visible(column), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(visible(cell) for cell in row))
    console.print(Text(visible(title), style="bold"))
    if rows:
        console.print(table)
    for note in notes:
        console.print(Text(f"  {visible(note)}", style="dim"))
    console.print()
