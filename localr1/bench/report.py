"""What a benchmark found, as one structure that every kind of output is made of.

Owns the records: a report holds sections, a section is a table, a cell is a figure with all its repeats or a word.
Knows nothing of measuring, of terminals or of files. Invariant: a report survives JSON and back unchanged, and no
figure is anywhere but in its cell, so no output can disagree with another.
"""

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from localr1.errors import CorruptError

FORMAT = 1
Better = Literal["more", "less", ""]
NOISY = 0.3
"""A figure whose repeats lie further apart than this share of their median says little."""

OUTERMOST = 10
"""One in so many repeats is left out at either end of a range; none of fewer than ten."""

_SCALES = {
    "B": (1000.0, ("B", "kB", "MB", "GB", "TB")),
    "s": (0.001, ("s", "ms", "us")),
}


@dataclass(frozen=True)
class Figure:
    """Repeats of one measurement; one value where it was counted or computed."""

    values: tuple[float, ...]
    unit: str
    better: Better = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """Where the repeats begin, the lowest tenth left out."""
        return sorted(self.values)[len(self.values) // OUTERMOST]

    @property
    def high(self) -> float:
        """Where the repeats end, the highest tenth left out."""
        return sorted(self.values)[-1 - len(self.values) // OUTERMOST]

    @property
    def noisy(self) -> bool:
        """Whether the repeats disagree so much that the median means little."""
        return len(self.values) > 1 and self.high - self.low > NOISY * abs(self.median)

    def __str__(self) -> str:
        unit, scale = self._unit()
        middle = f"{_digits(self.median / scale)}{unit}"
        if len(self.values) == 1:
            return middle
        spread = f" ({_digits(self.low / scale)} to {_digits(self.high / scale)})"
        return middle + spread + (" noisy" if self.noisy else "")

    def _unit(self) -> tuple[str, float]:
        """The unit as written, and what to divide by."""
        if self.unit == "x":
            return "x", 1.0
        if self.unit not in _SCALES:
            return f" {self.unit}" if self.unit else "", 1.0
        step, units = _SCALES[self.unit]
        scale = 1.0
        for unit in units:
            value = abs(self.median) / scale
            if unit == units[-1] or (value < 999.5 if step > 1 else value >= 0.9995 or self.median == 0):
                return f" {unit}", scale
            scale *= step
        raise AssertionError("the last unit takes everything")


def _digits(value: float) -> str:
    """Three figures, as people read them: 0.0048, 1.23, 45.6, 789, 12,345."""
    size = abs(value)
    if value == int(value) and size < 1e15:
        return f"{int(value):,}"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.095 else f"{value:.2g}"


Cell = Figure | str


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """A table: `columns` names the cells, its first name is that of the labels."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def figures(self) -> Iterator[tuple[str, str, Figure]]:
        """(row's label, column, figure) of every figure."""
        for row in self.rows:
            for column, cell in zip(self.columns[1:], row.cells, strict=True):
                if isinstance(cell, Figure):
                    yield row.label, column, cell

    def figure(self, label: str, column: str) -> Figure:
        """One figure. KeyError when there is none."""
        for row_label, name, found in self.figures():
            if (row_label, name) == (label, column):
                return found
        raise KeyError(f"{self.key} has no figure {label!r}, {column!r}")


@dataclass(frozen=True)
class Report:
    """A run of `localr1 bench`: what was measured, on what, and the tables."""

    model: str
    synthetic: bool
    machine: Mapping[str, Any]
    sections: tuple[Section, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def section(self, key: str) -> Section:
        """A table by its key. KeyError when the run did not make it."""
        for section in self.sections:
            if section.key == key:
                return section
        raise KeyError(f"the report has no section {key!r}")

    def to_json(self) -> str:
        """Everything, every repeat included."""
        return json.dumps(
            {
                "format": FORMAT,
                "model": self.model,
                "synthetic": self.synthetic,
                "machine": dict(self.machine),
                "settings": dict(self.settings),
                "sections": [_section_record(section) for section in self.sections],
            },
            indent=1,
            ensure_ascii=False,
        )


def _section_record(section: Section) -> dict[str, Any]:
    return {
        "key": section.key,
        "title": section.title,
        "columns": list(section.columns),
        "rows": [{"label": row.label, "cells": [_cell_record(cell) for cell in row.cells]} for row in section.rows],
        "notes": list(section.notes),
    }


def _cell_record(cell: Cell) -> Any:
    if isinstance(cell, str):
        return cell
    return {"values": list(cell.values), "unit": cell.unit, "better": cell.better}


def parse_report(text: str, name: str) -> Report:
    """A report from the JSON that `to_json` wrote; `name` is for messages. Raises CorruptError for anything else."""
    try:
        record = json.loads(text)
        if (found := record.get("format")) != FORMAT:
            raise ValueError(f"format {found!r}, this is {FORMAT}")
        return Report(
            str(record["model"]),
            bool(record["synthetic"]),
            dict(record["machine"]),
            tuple(_parse_section(section) for section in record["sections"]),
            dict(record["settings"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(
            f"{name} is not a report of `localr1 bench` ({type(error).__name__}: {error})",
            "write one with: localr1 bench MODEL --json FILE",
        ) from error


def _parse_section(record: Mapping[str, Any]) -> Section:
    columns = tuple(str(column) for column in record["columns"])
    rows = tuple(Row(str(row["label"]), tuple(_parse_cell(cell) for cell in row["cells"])) for row in record["rows"])
    if any(len(row.cells) != len(columns) - 1 for row in rows):
        raise ValueError(f"section {record['key']!r} has rows of different lengths")
    return Section(str(record["key"]), str(record["title"]), columns, rows, tuple(map(str, record["notes"])))


def _parse_cell(cell: Any) -> Cell:
    if isinstance(cell, str):
        return cell
    values = tuple(float(value) for value in cell["values"])
    if not values or cell["better"] not in ("more", "less", ""):
        raise ValueError(f"{cell!r} is no figure")
    return Figure(values, str(cell["unit"]), cell["better"])
