"""`localr1 bench`: measure a model on this computer and print the figures; `bench diff` compares two records."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from localr1.bench.plot import check_plot
from localr1.cli.start import STARTING
from localr1.errors import AccessError, DiskError, ExitStatus, LocalR1Error, NotFoundError, UsageError
from localr1.events import Progress
from localr1.options import BenchOptions, EngineOptions
from localr1.terminal.background import Background
from localr1.terminal.environment import Environment
from localr1.terminal.progress import follow
from localr1.terminal.tables import show_table

if TYPE_CHECKING:
    from localr1.bench.replay import Comparison
    from localr1.bench.report import Report, Section

LEAVE_OUT = "leave one of them out"


def run(environment: Environment, options: BenchOptions, engine: EngineOptions) -> ExitStatus:
    """Measure how fast a model runs here and how near that is to what this machine could do."""
    _check(options)
    if options.words[:1] == ("diff",):
        return _diff(environment, options.words[1:])
    if options.replay:
        return _replay(environment, options)
    report = follow(environment, Background().run(_measure(options, engine)))  # Ctrl-C waits for no compilation
    outputs = [partial(_print, environment, options, report)]
    if options.json is not None:
        outputs.append(partial(_write, environment, options.json, report.to_json() + "\n"))
    if options.plot is not None:
        outputs.append(partial(_plot, environment, options.plot, report))
    _give_all(outputs)
    return ExitStatus.OK


def _replay(environment: Environment, options: BenchOptions) -> ExitStatus:
    comparison = follow(environment, _replayed(next(iter(options.words), None)))
    outputs = [partial(_show, environment, [comparison.section()])]
    if options.json is not None:
        outputs.append(partial(_write, environment, options.json, json.dumps(comparison.record(), indent=1) + "\n"))
    _give_all(outputs)
    return ExitStatus.OK


def _replayed(model: str | None) -> "Progress[Comparison]":
    yield STARTING
    from localr1.bench.replay import replay_own

    return (yield from replay_own(model))


def _check(options: BenchOptions) -> None:
    """Everything that can be refused before torch is imported."""
    if options.words[:1] == ("diff",):
        if len(options.words) != 3:
            raise UsageError("diff compares two records", "localr1 bench diff A.json B.json")
        if others := _given(options, but=("words",)):
            raise UsageError(f"diff compares two records and takes no options, so not {others[0]}", "leave it out")
        return
    if len(options.words) > 1:
        raise UsageError(f"one model at a time, not {len(options.words)}", "see localr1 bench --help")
    for option in _given(options, but=()) if options.shape is None else ():
        if option in ("--layers", "--skew"):
            raise UsageError(f"{option} belongs to --shape", "say which shape: --shape NAME")
    if options.shape is not None and options.words:
        raise UsageError(f"either a model ({options.words[0]}) or a shape ({options.shape})", LEAVE_OUT)
    if options.shape is not None and options.cold:
        raise UsageError("--cold is of models on the disk; a shape is made in memory", "leave --cold out")
    if options.replay and (others := _given(options, but=("words", "replay", "json"))):
        raise UsageError(f"--replay is of your conversations and goes with --json only, not {others[0]}", LEAVE_OUT)
    if options.markdown and options.csv:
        raise UsageError("--markdown and --csv both write to stdout", "choose one")
    if options.plot is not None:
        if (options.claims or options.fidelity) and not options.compare:
            raise UsageError("--plot draws speeds, which --claims and --fidelity do not measure", "leave it out")
        check_plot(options.plot)
    for flag, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None:
            _check_output(flag, path)


def _given(options: BenchOptions, but: Collection[str]) -> list[str]:
    """The options that are not at their defaults, but for some, as they are typed."""
    names = [field.name for field in fields(options) if getattr(options, field.name) != field.default]
    return [f"--{name.replace('_', '-')}" for name in names if name not in but]


def _check_output(flag: str, path: Path) -> None:
    """Refuse before the measuring what could not be written after it."""
    from localr1.hub.catalog import CATALOG

    if str(path) == "-":
        raise UsageError(f"{flag} takes a file, not -", f"for example {flag} figures.json")
    if str(path).lower() in CATALOG:
        raise UsageError(
            f"{flag} takes a file, and {path} is a model", f"for example: localr1 bench {path} {flag} {path}.json"
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}", "make it, or choose another file")
    if path.is_dir():
        raise UsageError(f"{flag} takes a file, and {path} is a folder", f"name a file in it: {path / 'figures.json'}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise AccessError(f"{path} may not be written", "choose another file")


def _measure(options: BenchOptions, engine: EngineOptions) -> "Progress[Report]":
    yield STARTING
    from localr1.bench import measure, subject, synthetic

    measure.check(options, engine)
    if options.shape is None:
        opened = yield from subject.open_model(next(iter(options.words), None), engine, options.cold)
    else:
        shape = synthetic.find_shape(options.shape, options.layers, options.skew)
        opened = yield from subject.open_synthetic(shape, engine, measure.synthetic_context(shape, options, engine))
    return (yield from measure.bench(opened, options))


def _print(environment: Environment, options: BenchOptions, report: "Report") -> None:
    from localr1.bench.output import describe_machine, explain_ranges, to_csv, to_markdown

    if options.markdown or options.csv:
        environment.stdout.write(to_markdown(report) if options.markdown else to_csv(report))
        return
    _show(environment, report.sections)
    if ranges := explain_ranges(report):
        environment.status(ranges, "dim")
    environment.status(describe_machine(report), "dim")


def _show(environment: Environment, sections: "Iterable[Section]") -> None:
    for section in sections:
        rows = [(row.label, *map(str, row.cells)) for row in section.rows]
        show_table(environment, section.title, section.columns, rows, section.notes)


def _diff(environment: Environment, names: tuple[str, ...]) -> ExitStatus:
    from localr1.bench.difference import difference
    from localr1.bench.report import parse_report

    a, b = (parse_report(_read(Path(name)), name) for name in names)
    _show(environment, [difference(a, b)])
    return ExitStatus.OK


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}", "write one with: localr1 bench MODEL --json FILE") from error
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}", "choose another file") from error


def _give_all(outputs: Iterable[Callable[[], None]]) -> None:
    """Give every output, so that one that fails takes none of the others with it; then raise the first error."""
    failures: list[LocalR1Error | OSError] = []
    for output in outputs:
        try:
            output()
        except (LocalR1Error, OSError) as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _plot(environment: Environment, path: Path, report: "Report") -> None:
    from localr1.bench.plot import draw

    with _writing(path):
        draw(report, path)
    environment.status(f"Written: {path}", "dim")


def _write(environment: Environment, path: Path, text: str) -> None:
    with _writing(path):
        path.write_text(text, encoding="utf-8")
    environment.status(f"Written: {path}", "dim")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = AccessError if isinstance(error, PermissionError) else DiskError
        raise kind(f"cannot write {path}: {error.strerror}", "choose another file") from error
