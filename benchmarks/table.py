"""README's performance tables, made from the recorded results.

    python -m benchmarks.table [--write]

Reads `results/bench-*.json` and `results/claims-*.json`, which `localr1 bench --json` wrote, and prints the tables, or
writes them between the two marks in README.md. A test keeps README equal to what this prints.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from localr1.bench.output import describe_machine
from localr1.bench.report import Cell, Figure, Report, parse_report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- performance: written by `python -m benchmarks.table --write`, do not edit -->"
END = "<!-- end of performance -->"


def reports(prefix: str, folder: Path = RESULTS) -> list[Report]:
    """The recorded reports of a kind, the real models before the synthetic ones, small before large."""
    found = [parse_report(path.read_text(encoding="utf-8"), path.name) for path in folder.glob(f"{prefix}-*.json")]
    return sorted(found, key=lambda report: (report.synthetic, report.section("model").figure("weights", "").median))


def lines(speeds: Sequence[Report], claims: Sequence[Report]) -> Iterator[str]:
    """The Markdown between the marks."""
    for machine in dict.fromkeys(describe_machine(report) for report in (*speeds, *claims)):
        yield f"Measured on: {machine}."
    yield ""
    yield from table(
        ("model", "8-bit weights", "read a token", "prefill", "decode", "of the floor", "decode, deep context"),
        [speed_row(report) for report in speeds],
    )
    yield ""
    yield "The four ideas, each against its baseline:"
    yield ""
    yield from table(
        ("model", "weights than float32", "cache than expanded", "decoding with guesses", "experts chosen than all"),
        [claims_row(report) for report in claims],
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|---" + "|---:" * (len(columns) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def speed_row(report: Report) -> tuple[str, ...]:
    model, speed, floor = report.section("model"), report.section("speed"), report.section("floor")
    prefill, decode, share = speed.columns[1], speed.columns[3], "decode / floor"
    first, last = speed.rows[0].label, speed.rows[-1].label
    return (
        report.model,
        str(model.figure("weights", "")),
        str(model.figure("read a token", "")),
        middle(speed.figure(first, prefill)),
        middle(speed.figure(first, decode)),
        percent(floor.figure(first, share)),
        f"{middle(speed.figure(last, decode))} at {last}" if last != first else "",
    )


def claims_row(report: Report) -> tuple[str, ...]:
    cache = {row.label: row.cells for row in report.section("claim cache").rows}
    bytes_row = cache.get("bytes a token, bf16") or cache["bytes a token"]
    experts = [section for section in report.sections if section.key == "claim experts cost"]
    guessing = {row.label: row.cells for row in report.section("claim guessing").rows}
    spared = experts[0].figure("time a token", "spared") if experts else None
    return (
        report.model,
        f"{_figure(report.section('claim bits').rows[0].cells[2])} smaller",
        f"{_figure(bytes_row[2])} smaller",
        "-" if report.synthetic else f"{middle(_figure(guessing['auto'][2]))} as fast",
        f"{middle(spared)} faster" if spared else "no experts",
    )


def _figure(cell: Cell) -> Figure:
    assert isinstance(cell, Figure), cell
    return cell


def middle(figure: Figure) -> str:
    """The median alone, marked where the repeats lay far apart."""
    return str(Figure((figure.median,), figure.unit)) + (" (noisy)" if figure.noisy else "")


def percent(share: Figure) -> str:
    """A share of the floor."""
    return f"{100 * share.median:.0f} %" + (" (noisy)" if share.noisy else "")


def written(text: str, body: str) -> str:
    """README with the tables between its marks replaced. ValueError when it has no marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them into README.md")
    body = "\n".join(lines(reports("bench"), reports("claims")))
    if not parser.parse_args().write:
        print(body)
        return
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8"), body), encoding="utf-8")


if __name__ == "__main__":
    main()
