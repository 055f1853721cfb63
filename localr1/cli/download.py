"""`localr1 download`: say what it will take, fetch a model, make its 8-bit store, and say what to type next."""

from contextlib import closing
from pathlib import Path

from localr1.cli.start import download
from localr1.errors import ExitStatus, typed
from localr1.events import DownloadPlan, Notice, Progress
from localr1.options import DownloadOptions
from localr1.quantities import bytes_text
from localr1.terminal.environment import Environment
from localr1.terminal.progress import Display, follow
from localr1.terminal.transfer import JsonDisplay, open_transfer_display, plan_lines

ASK_ABOVE_BYTES = 2_000_000_000


def run(environment: Environment, options: DownloadOptions) -> ExitStatus:
    """Fetch a model and convert it to 8 bits, once; it can then be used offline.

    Interrupt it whenever you like: the next download goes on where it stopped. For a model that is here, look for a
    newer version; the old one stays until the new one is whole.
    """
    from localr1.hub.catalog import resolve

    resolve(options.model)  # a wrong name is told before anything slow begins
    display = open_transfer_display(environment, quiet=options.quiet, as_json=options.json)
    store = follow(environment, _asked(environment, options, display), display=display)
    if store is None:
        environment.status("Nothing was fetched.")
        return ExitStatus.ERROR
    if options.dry_run:
        return ExitStatus.OK
    size_bytes = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    if isinstance(display, JsonDisplay):
        display.write({"event": "Ready", "folder": str(store), "bytes": size_bytes})
    elif not options.quiet:
        environment.status(f"Ready: {bytes_text(size_bytes)} in {store}")
        environment.status(f"Next:  localr1 chat {typed(options.model)}")
    return ExitStatus.OK


def _asked(environment: Environment, options: DownloadOptions, display: Display) -> Progress[Path | None]:
    """The download with its plan put to the person; None when that person would rather not."""
    with closing(download(options)) as operation:
        while True:
            try:
                event = next(operation)
            except StopIteration as end:
                store: Path = end.value
                return store
            yield event
            if isinstance(event, DownloadPlan):
                if not options.json:
                    yield from (Notice(line) for line in plan_lines(event))
                if not options.dry_run and _must_ask(environment, options, event):
                    display.close()
                    if not ask(environment, f"Fetch {bytes_text(event.fetch_bytes)}?"):
                        return None


def _must_ask(environment: Environment, options: DownloadOptions, plan: DownloadPlan) -> bool:
    wanted = options.yes or options.quiet or options.json
    return not wanted and plan.fetch_bytes > ASK_ABOVE_BYTES and is_asking_possible(environment)


def is_asking_possible(environment: Environment) -> bool:
    """Whether a person sees a question on stderr and can answer it."""
    return environment.stdin.isatty() and environment.stderr.isatty()


def ask(environment: Environment, question: str) -> bool:
    """A question whose answer is no unless it begins with a y."""
    environment.stderr.write(f"{question} [y/N] ")
    environment.stderr.flush()
    return environment.stdin.readline().strip().lower().startswith("y")
