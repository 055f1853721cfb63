"""A report's speeds by context, or by the settings compared, as an SVG picture.

Owns a small line chart: one panel a kind of speed, a line with the repeats' range as a band. Plain SVG text, no
library. Invariant: whatever the names in a report, the picture is well-formed XML.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from localr1.bench.report import Figure, Report, Section

WIDTH, PANEL_HEIGHT, TOP = 640, 240, 56
LEFT, RIGHT, ABOVE, BELOW = 70, 24, 30, 44
INK, LINE, BAND, GRID = "#333333", "#2b6cb0", "#bcd4ec", "#dddddd"


@dataclass(frozen=True)
class Curve:
    """Figures over positions."""

    title: str
    axis: str
    points: tuple[tuple[str, Figure], ...]


def to_svg(report: Report) -> str:
    """The picture. ValueError when the report has no speeds to draw."""
    curves = list(_curves(report))
    if not curves:
        raise ValueError("nothing to draw")
    height = TOP + PANEL_HEIGHT * len(curves)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 24, report.model, size=16),
        _text(LEFT, 42, f"{report.machine.get('processor')}, {report.settings.get('threads')} threads", size=11),
    ]
    for number, curve in enumerate(curves):
        lines += _panel(curve, TOP + number * PANEL_HEIGHT)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _curves(report: Report) -> Iterator[Curve]:
    for section in report.sections:
        if section.key == "speed" or section.key.startswith("compare "):
            yield from _section_curves(section)


def _section_curves(section: Section) -> Iterator[Curve]:
    for column in section.columns[1:]:
        points = [(label, figure) for label, name, figure in section.figures() if name == column]
        if points and points[0][1].unit == "tokens/s" and points[0][1].better:
            yield Curve(f"{column}, tokens/s", section.columns[0], tuple(points))


def _panel(curve: Curve, top: int) -> list[str]:
    bottom, right = top + PANEL_HEIGHT - BELOW, WIDTH - RIGHT
    ticks = nice_ticks(max(figure.high for _, figure in curve.points))

    def x(index: int) -> float:
        return LEFT + (right - LEFT) * (index + 0.5) / len(curve.points)

    def y(value: float) -> float:
        return bottom - (bottom - top - ABOVE) * value / ticks[-1]

    lines = [_text(LEFT, top + 18, curve.title, size=13)]
    for tick in ticks:
        lines.append(f'<path d="M{LEFT} {y(tick):.1f}H{right}" stroke="{GRID}"/>')
        lines.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", anchor="end"))
    upper = [f"{x(at):.1f},{y(figure.high):.1f}" for at, (_, figure) in enumerate(curve.points)]
    lower = [f"{x(at):.1f},{y(figure.low):.1f}" for at, (_, figure) in enumerate(curve.points)]
    middle = [f"{x(at):.1f},{y(figure.median):.1f}" for at, (_, figure) in enumerate(curve.points)]
    lines.append(f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{BAND}" opacity="0.6"/>')
    lines.append(f'<polyline points="{" ".join(middle)}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    for at, (label, figure) in enumerate(curve.points):
        lines.append(f'<circle cx="{x(at):.1f}" cy="{y(figure.median):.1f}" r="3" fill="{LINE}"/>')
        lines.append(
            f'<path d="M{x(at):.1f} {y(figure.low):.1f}V{y(figure.high):.1f}" stroke="{LINE}" stroke-width="1"/>'
        )
        lines.append(_text(x(at), bottom + 16, label, anchor="middle"))
    lines.append(_text((LEFT + right) / 2, bottom + 34, curve.axis, anchor="middle"))
    return lines


def nice_ticks(largest: float) -> Sequence[float]:
    """0 and up to five round steps that reach beyond `largest`."""
    step = 1e-9
    while step * 5 < largest:
        for factor in (2, 2.5, 2):
            step *= factor
            if step * 5 >= largest:
                break
    count = 1
    while count * step < largest:
        count += 1
    return [round(step * number, 12) for number in range(count + 1)]


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    printable = "".join(character for character in text if character.isprintable())
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{INK}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(printable)}</text>"
