"""Can `localr1 bench` be trusted: do two runs back to back agree within the spread that they print?

    python -m benchmarks.repeatability [--tries 10] [--threads N] [--json FILE] [-- MODEL or --shape NAME ...]

Runs the same bench `tries` + 1 times, each in a process of its own, and compares every run with the one before: two
runs agree on a figure when their medians lie no further apart than the wider of the two printed ranges is wide. Where
they do not, a run may have said itself that the machine was too busy for absolute speeds; that is counted apart. How
wide the ranges were is told too, since a wide enough one agrees with anything.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from localr1.bench.machine import machine
from localr1.bench.report import Figure, Report, parse_report

FIGURES = (("speed", 1), ("speed", 3), ("floor", 3), ("floor", 6))
"""Sections and columns: prefill and decode speed, and how near either is to the machine's own."""


def measure(arguments: list[str], file: Path) -> Report:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "localr1", "bench", *arguments, "--json", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return parse_report(file.read_text(encoding="utf-8"), file.name)


def agree(a: Figure, b: Figure) -> bool:
    """Whether two runs' medians differ by less than the printed spread."""
    return abs(a.median - b.median) <= max(a.high - a.low, b.high - b.low)


def spread(figure: Figure) -> float:
    """How wide the printed range is, over the median."""
    return (figure.high - figure.low) / figure.median


def figures(report: Report) -> dict[str, Figure]:
    """The speeds of a run and their shares of the floor, of which a GPU has none, by a name a person can read."""
    found, made = {}, {section.key for section in report.sections}
    for key, at in FIGURES:
        if key not in made:
            continue
        section = report.section(key)
        for row in section.rows:
            cell = row.cells[at - 1]
            assert isinstance(cell, Figure)
            found[f"{section.columns[at]} at {row.label}"] = cell
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("bench", nargs="*", default=["nano"], help="what to measure, after --")
    options = parser.parse_args()
    arguments = [*options.bench, "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as folder:
        reports = []
        for run in range(options.tries + 1):
            reports.append(measure(arguments, Path(folder) / "run.json"))
            medians = "   ".join(f"{name} {figure}" for name, figure in figures(reports[-1]).items())
            print(f"run {run}: {medians}", flush=True)
    runs = [figures(report) for report in reports]
    pairs = list(itertools.pairwise(runs))
    agreed = {name: sum(agree(a[name], b[name]) for a, b in pairs) for name in runs[0]}
    others = [report.section("model").figure("other programs took", "").median for report in reports]
    noisy = [any("too noisy" in note for note in report.section("model").notes) for report in reports]
    warned = {
        name: sum(
            not agree(a[name], b[name]) and (before or after)
            for (a, b), (before, after) in zip(pairs, itertools.pairwise(noisy), strict=True)
        )
        for name in runs[0]
    }
    width = {name: median(spread(run[name]) for run in runs) for name in runs[0]}
    for name, count in agreed.items():
        more = f", too noisy to tell by their own word in {warned[name]}" if warned[name] else ""
        print(f"{name:28} agree in {count} of {len(pairs)}{more}; a range is {width[name]:.0%} of its median wide")
    print(f"{sum(noisy)} of {len(noisy)} runs said that the machine was too noisy for absolute speeds")
    if options.json:
        record = {
            "bench": arguments,
            "tries": len(pairs),
            "agreed": agreed,
            "disagreed_but_said_too_noisy": warned,
            "range_over_median": width,
            "runs": [{name: (one.low, one.median, one.high) for name, one in run.items()} for run in runs],
            "other_programs_percent": others,
            "said_too_noisy": noisy,
            "machine": machine(),
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
