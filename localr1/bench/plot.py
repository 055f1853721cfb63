"""A report's speeds as a picture: by context, or by the settings compared (GPU budgets among them), as SVG or PNG.

Owns which figures are drawn: a panel a kind of speed, its medians as points, the repeats' range as bars. matplotlib
draws, and is imported only for that; it comes with `pip install "localr1[plot]"`. Writes the file and nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from localr1.bench.output import describe_machine, explain_ranges
from localr1.bench.report import Figure, Report, Section
from localr1.errors import UnsupportedError, UsageError

CONTINUOUS = ("context", "vram", "ram", "threads")
"""Axes along which a line between two points means something."""
FORMATS = (".svg", ".png")
PANEL_INCHES = (7.0, 2.6)
DOTS_PER_INCH = 150
HEADROOM = 1.1


@dataclass(frozen=True)
class Curve:
    """Figures over positions that have names; `title` says what they are of, `axis` what the names are."""

    title: str
    axis: str
    points: tuple[tuple[str, Figure], ...]


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be drawn. UsageError for its format, UnsupportedError without matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"--plot {path}: pictures are {' or '.join(FORMATS)}", f"for example --plot {path.with_suffix('.svg').name}"
        )
    if find_spec("matplotlib") is None:
        raise UnsupportedError("--plot needs matplotlib, which is not installed", "pip install matplotlib")


def curves(report: Report) -> list[Curve]:
    """What there is to draw. UsageError when the report has no speeds."""
    found = [curve for section in report.sections for curve in _curves(section)]
    if not found:
        raise UsageError("there are no speeds to draw", "leave out --claims and --fidelity, or --plot")
    return found


def _curves(section: Section) -> Iterator[Curve]:
    if section.key != "speed" and not section.key.startswith("compare "):
        return
    for column in section.columns[1:]:
        points = [(label, figure) for label, name, figure in section.figures() if name == column]
        if points and points[0][1].unit == "tokens/s":
            yield Curve(column, section.columns[0], tuple(points))


def draw(report: Report, path: Path) -> None:
    """Write the picture. Raises UsageError when there is nothing to draw, OSError when it cannot be written."""
    from matplotlib.figure import Figure as Canvas

    panels = curves(report)
    width, height = PANEL_INCHES
    canvas = Canvas(figsize=(width, 0.8 + height * len(panels)), layout="constrained")
    titles = [report.model, describe_machine(report), *_ranges(report)]
    canvas.suptitle("\n".join(map(_plain, titles)), fontsize=8, wrap=True)
    for axes, curve in zip(canvas.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        middles = [figure.median for _, figure in curve.points]
        below = [figure.median - figure.low for _, figure in curve.points]
        above = [figure.high - figure.median for _, figure in curve.points]
        places = range(len(middles))
        line = "-" if curve.axis in CONTINUOUS else "none"
        axes.errorbar(places, middles, yerr=(below, above), marker="o", capsize=4, linestyle=line)
        axes.set_xticks(places, [_plain(label) for label, _ in curve.points])
        axes.set_title(_plain(curve.title), fontsize=10)
        axes.set_xlabel(_plain(curve.axis))
        axes.set_ylabel("tokens/s")
        axes.set_xlim(-0.5, len(middles) - 0.5)
        axes.set_ylim(0, HEADROOM * max(figure.high for _, figure in curve.points))
        axes.grid(axis="y", alpha=0.3)
    canvas.savefig(path, format=path.suffix.lower()[1:], dpi=DOTS_PER_INCH)


def _ranges(report: Report) -> list[str]:
    return ["points: medians; bars: the range of the repeats"] if explain_ranges(report) else []


def _plain(text: str) -> str:
    """As it stands, whatever a name holds: no control characters, and no mathematics between dollar signs."""
    return "".join(character for character in text if character.isprintable()).replace("$", r"\$")
