"""A report as Markdown and as CSV.

Owns the two texts; both say of a synthetic model that it is one. Knows nothing of files or terminals.
"""

import csv
import io
from collections.abc import Iterator

from localr1.bench.report import NOISY, OUTERMOST, Report, Section
from localr1.quantities import percent_text

SYNTHETIC = "synthetic"


def to_markdown(report: Report) -> str:
    """A heading, the machine, and a table a section."""
    return "\n".join(_markdown_lines(report)) + "\n"


def _markdown_lines(report: Report) -> Iterator[str]:
    yield f"## {report.model}"
    yield ""
    yield describe_machine(report)
    if ranges := explain_ranges(report):
        yield ""
        yield ranges
    for section in report.sections:
        yield ""
        yield f"### {section.title}"
        yield ""
        yield from markdown_table(section)
        if section.notes:
            yield ""
            yield from (f"- {_escaped(note)}" for note in section.notes)


def markdown_table(section: Section) -> Iterator[str]:
    """The lines of one section's table."""
    yield _markdown_row(section.columns)
    yield "|---" + "|---:" * (len(section.columns) - 1) + "|"
    for row in section.rows:
        yield _markdown_row((row.label, *map(str, row.cells)))


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def describe_machine(report: Report) -> str:
    """One line: where and with what this was measured."""
    machine, settings = report.machine, report.settings
    gpu = machine.get("gpu") or "no GPU"
    threads = settings.get("threads")
    return (
        f"{machine.get('processor')}, {threads} thread{'s' if threads != 1 else ''}, "
        f"{float(machine.get('memory_bytes') or 0) / 1e9:.0f} GB of RAM, {gpu}; "
        f"torch {machine.get('torch')}, localr1 {machine.get('localr1')}, {machine.get('date')}"
    )


def explain_ranges(report: Report) -> str:
    """One line: what stands in brackets after a figure; empty where nothing does."""
    repeats = {len(figure.values) for section in report.sections for _, _, figure in section.figures()} - {1}
    if not repeats:
        return ""
    left_out = ", the outermost tenths left out" if max(repeats) >= OUTERMOST else ""
    return (
        f"In brackets: the range of the repeats{left_out}, before it their median; "
        f"noisy: the range is wider than {percent_text(NOISY)} of the median"
    )


def to_csv(report: Report) -> str:
    """One figure a line, with its middle, its ends and every repeat."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("model", "weights", "section", "row", "column", "unit", "median", "low", "high", "values"))
    kind = SYNTHETIC if report.synthetic else "real"
    for section in report.sections:
        for label, column, figure in section.figures():
            values = " ".join(repr(value) for value in figure.values)
            ends = (figure.median, figure.low, figure.high)
            writer.writerow((report.model, kind, section.key, label, column, figure.unit, *ends, values))
    return out.getvalue()
