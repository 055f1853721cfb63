"""`localr1 models`: what is on this computer, whole and in part, and what could be."""

from typing import TYPE_CHECKING

from localr1.errors import ExitStatus, NotFoundError
from localr1.quantities import bytes_text
from localr1.terminal.environment import Environment
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from localr1.hub.cache import StoredModel


def run(environment: Environment) -> ExitStatus:
    """List the models that are here, and those that can be downloaded by a short name."""
    from rich.table import Table
    from rich.text import Text

    from localr1.hub.cache import stores, used
    from localr1.hub.catalog import CATALOG
    from localr1.hub.housekeeping import partials

    here, console = [*_built_in(), *stores()], environment.console(environment.stdout)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    table.add_row(Text("Here", "bold"))
    for store in here:
        last = used(store)
        facts = [f"made {store.created[:10]}", f"used {last[:10]}" if last else "not used yet", "complete"]
        table.add_row(
            visible(store.name), bytes_text(store.size_bytes), ", ".join([visible(store.revision[:12]), *facts])
        )
    unfinished = partials()
    for part in unfinished:
        told = f"partial: `localr1 download {part.name}` goes on, `localr1 rm {part.name}` frees it"
        table.add_row(visible(part.name), bytes_text(part.size_bytes), visible(f"{part.revision[:12]} {told}".strip()))
    if not here and not unfinished:
        table.add_row("(none yet)")
    table.add_row()
    table.add_row(Text("To download", "bold"), "RAM", "")
    names_here = {store.name for store in here} | {part.name for part in unfinished}
    for name, entry in CATALOG.items():
        if name not in names_here and entry.repo_id is not None:
            table.add_row(name, bytes_text(entry.ram_bytes), entry.description)
    console.print(table)
    environment.status("Next: localr1 download NAME, or any org/repo of these architectures", "dim")
    return ExitStatus.OK


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
