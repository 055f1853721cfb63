"""Two reports side by side: `localr1 bench diff A.json B.json`.

Owns what counts as a difference: the ranges of the repeats do not meet. Figures that only one report has are counted,
not hidden. Knows nothing of files.
"""

from localr1.bench.report import Figure, Report, Row, Section
from localr1.errors import UsageError


def difference(a: Report, b: Report) -> Section:
    """A table of the figures that both have, with B over A. UsageError when they share none."""
    ours, theirs = _figures(a), _figures(b)
    shared = [key for key in ours if key in theirs and ours[key].unit == theirs[key].unit]
    if not shared:
        raise UsageError(
            f"the reports of {a.model} and {b.model} have no figure in common", "measure both with the same options"
        )
    rows = [_row(key, ours[key], theirs[key]) for key in shared if ours[key].better]
    notes = [f"A: {a.model}, {a.machine.get('date')}", f"B: {b.model}, {b.machine.get('date')}"]
    if a.model != b.model:
        notes.append("these are different models: no difference is the program's or the machine's alone")
    notes += [
        f"{what} differs: {a.machine.get(what)} in A, {b.machine.get(what)} in B"
        for what in ("processor", "gpu", "torch", "localr1", "waiting_threads")
        if a.machine.get(what) != b.machine.get(what)
    ]
    notes += [
        f"--{what.replace('_', '-')} differs: {a.settings.get(what)} in A, {b.settings.get(what)} in B"
        for what in sorted({*a.settings, *b.settings})
        if a.settings.get(what) != b.settings.get(what)
    ]
    if a.synthetic != b.synthetic:
        notes.append("one of them is of random weights, the other of a real model")
    alone = len(ours) + len(theirs) - 2 * len(shared)
    if alone:
        notes.append(f"{alone} figures are in one report only")
    notes.append("better or worse: the ranges of the repeats, in brackets, do not meet")
    return Section("diff", "B against A", ("figure", "A", "B", "B / A", "verdict"), tuple(rows), tuple(notes))


def _figures(report: Report) -> dict[tuple[str, str, str], Figure]:
    return {
        (section.key, label, column): figure
        for section in report.sections
        for label, column, figure in section.figures()
    }


def _row(key: tuple[str, str, str], a: Figure, b: Figure) -> Row:
    section, label, column = key
    ratio = Figure((b.median / a.median,), "x") if a.median else "-"
    return Row(f"{section}, {label}: {column}", (a, b, ratio, verdict(a, b)))


def verdict(a: Figure, b: Figure) -> str:
    """Whether B differs from A by more than their repeats do among themselves, and to which side."""
    if a.median == b.median:
        return "same"
    if a.low <= b.high and b.low <= a.high:
        return "too noisy to tell" if a.noisy or b.noisy else "within the noise"
    if len(a.values) == 1 and len(b.values) == 1:
        return "different (measured once)" if a.unit in ("s", "tokens/s") else "different"
    return "better" if (b.median > a.median) == (a.better == "more") else "worse"
