"""`localr1 bench`: measure a model on this computer and print the figures."""

from pathlib import Path
from typing import TYPE_CHECKING

from localr1.cli.start import STARTING, load
from localr1.errors import DiskError, ExitStatus, NotFoundError, UsageError
from localr1.events import Progress
from localr1.options import BenchOptions, EngineOptions
from localr1.terminal.environment import Environment
from localr1.terminal.progress import follow

if TYPE_CHECKING:
    from localr1.session import Engine


def run(environment: Environment, options: BenchOptions, engine: EngineOptions) -> ExitStatus:
    """Measure how fast a model runs here, and what it needs."""
    from rich.table import Table

    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise NotFoundError(f"there is no folder {options.json.absolute().parent}", "make it, or choose another file")

    if options.shape is None and options.layers is not None:
        raise UsageError("--layers belongs to --shape", "say which shape: --shape NAME")
    if options.shape is not None and options.model is not None:
        raise UsageError(f"either a model ({options.model}) or a shape ({options.shape})", "leave one of them out")
    loaded = follow(environment, _load(options, engine))

    from localr1.bench.measure import bench

    report = follow(environment, bench(loaded, options))
    table = Table.grid(padding=(0, 2))
    for row in report.rows():
        table.add_row(*row)
    environment.console(environment.stdout).print(table)
    if options.json is not None:
        _write(options.json, report.to_json() + "\n")
        environment.status(f"Written: {options.json}", "dim")
    return ExitStatus.OK


def _load(options: BenchOptions, engine: EngineOptions) -> "Progress[Engine]":
    if options.shape is None:
        return (yield from load(options.model, engine))
    yield STARTING
    from localr1.bench.synthetic import find_shape, load_shape

    context = engine.context or options.prompt_tokens + options.decode_tokens
    return (yield from load_shape(find_shape(options.shape, options.layers, options.skew), engine, context))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}", "choose another file") from error
