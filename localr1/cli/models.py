"""`localr1 models`: what is on this computer, whole and in part, and what could be."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from localr1.errors import ExitStatus, NotFoundError, typed
from localr1.quantities import bytes_text
from localr1.terminal.environment import Environment
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

    from localr1.hub.cache import StoredModel

_SIZE_COLUMNS = 12
_NARROWEST_FACTS = 20


def run(environment: Environment) -> ExitStatus:
    """List the models that are here, and those that can be downloaded by a short name."""
    from localr1.hub.cache import stores, used
    from localr1.hub.catalog import CATALOG
    from localr1.hub.housekeeping import partials

    here, console = [*_built_in(), *stores()], environment.console(environment.stdout)
    rows = []
    for store in here:
        last = used(store)
        facts = [f"made {store.created[:10]}", f"used {last[:10]}" if last else "not used yet", "complete"]
        rows.append((store.name, bytes_text(store.size_bytes), ", ".join([store.revision[:12], *facts])))
    unfinished = partials()
    whole = {(store.name, store.revision) for store in here}
    for part in unfinished:
        again = " --force" if (part.name, part.revision) in whole else ""
        known = "/" in part.name or part.name in CATALOG  # else nobody knows any more what it was made of
        name = typed(part.name)
        goes_on = f"`localr1 download {name}{again}` goes on, " if known else ""
        told = f"partial: {goes_on}`localr1 rm {name} --partial` frees it"
        rows.append((part.name, bytes_text(part.size_bytes), f"{part.revision[:12]} {told}".strip()))
    names_here = {store.name for store in here} | {part.name for part in unfinished}
    others = [
        (name, bytes_text(entry.ram_bytes), entry.description)
        for name, entry in CATALOG.items()
        if name not in names_here and entry.repo_id is not None
    ]
    _show(console, [("Here", "", rows or [("(none yet)", "", "")]), ("To download", "RAM", others)])
    if environment.stdout.isatty():
        environment.status("Next: localr1 download NAME, or any org/repo of these architectures", "dim")
    return ExitStatus.OK


def _show(console: "Console", parts: Sequence[tuple[str, str, Sequence[tuple[str, str, str]]]]) -> None:
    """Parts with a heading each, of rows of name, size and facts; in a narrow window the facts stand below the name."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    names = [name for heading, _, rows in parts for name in (heading, *(row[0] for row in rows))]
    beside = console.width - max(map(len, names)) - _SIZE_COLUMNS >= _NARROWEST_FACTS
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=beside, overflow="ellipsis" if beside else "fold")
    table.add_column(justify="right", no_wrap=True)
    for number, (heading, size, rows) in enumerate(parts):
        if number:
            table.add_row()
        table.add_row(Text(heading, "bold"), size)
        for name, size, facts in rows:
            facts_shown = Text(visible(facts))
            table.add_row(visible(name), size, *([facts_shown] if beside else []))
            if not beside:
                table.add_row(Padding(facts_shown, (0, 0, 0, 2)))
    console.print(table)


def _built_in() -> "list[StoredModel]":
    """The models that come with the program, where the installation has them."""
    from localr1.hub.cache import find_store
    from localr1.hub.catalog import CATALOG, resolve

    found = []
    for entry in CATALOG.values():
        if entry.repo_id is None:
            try:
                found.append(find_store(resolve(entry.name)))
            except NotFoundError:
                continue
    return [store for store in found if store is not None]
