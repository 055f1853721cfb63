"""One structure, many outputs: they hold the same figures and are well-formed."""

import csv
import io
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from localr1.bench import plot
from localr1.bench.difference import difference, verdict
from localr1.bench.output import to_csv, to_markdown
from localr1.bench.plot import check_plot, curves, draw
from localr1.bench.report import Figure, Report, Row, Section, parse_report
from localr1.errors import CorruptError, UnsupportedError, UsageError


def speed(*values: float) -> Figure:
    return Figure(values, "tokens/s", "more")


def report_of(figures: dict[str, Figure], key: str = "speed", **changes) -> Report:
    rows = tuple(Row(label, (figure, "a|word")) for label, figure in figures.items())
    section = Section(key, "Speed", ("context", "decode <32> & more", "word"), rows, ("a note",))
    values = {"model": "some|model <&>", "synthetic": False, "machine": {"processor": "P", "memory_bytes": 1e9}}
    return Report(**{**values, "sections": (section,), "settings": {"threads": 2}, **changes})


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure((134_515_008.0,), "B"), "135 MB"),
        (Figure((0.000_25, 0.000_2, 0.000_3), "s"), "250 us (200 to 300) noisy"),
        (Figure((12.0, 11.9, 12.6), "tokens/s"), "12 tokens/s (11.9 to 12.6)"),
        (Figure((3.975,), "x"), "3.98x"),
        (Figure((0.0048,), ""), "0.0048"),
        (Figure((0.0,), "s"), "0 s"),
        (Figure((2e-9,), "s"), "0.002 us"),
        (Figure((5e15,), "B"), "5,000 TB"),
        (Figure((-1.5,), ""), "-1.50"),
    ],
)
def test_figures_read_well(figure, text):
    assert str(figure) == text


def test_a_range_leaves_out_the_outermost_tenths_of_many_repeats():
    few, many = speed(*range(1, 10)), speed(*range(20, 0, -1))
    assert (few.low, few.high) == (1, 9) and (many.low, many.high) == (3, 18)


def test_markdown_escapes_what_would_break_its_tables():
    lines = to_markdown(report_of({"0": speed(1.0)})).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "| 0 | 1 tokens/s | a\\|word |" in table and "- a note" in lines


def test_csv_has_a_line_a_figure_with_all_repeats():
    rows = list(
        csv.DictReader(io.StringIO(to_csv(report_of({"0": speed(3, 1, 2), "1,024": speed(5)}, synthetic=True))))
    )
    assert [(row["row"], row["median"], row["weights"]) for row in rows] == [
        ("0", "2", "synthetic"),
        ("1,024", "5", "synthetic"),
    ]
    assert rows[0]["values"] == "3 1 2" or rows[0]["values"] == "3.0 1.0 2.0"


def test_a_curve_has_a_point_a_figure():
    (curve,) = curves(report_of({"0": speed(1, 2), "1,024": speed(3), "4,096": speed(2)}))
    assert [label for label, _ in curve.points] == ["0", "1,024", "4,096"] and curve.axis == "context"
    budgets = report_of({"0": speed(1, 2), "8GiB": speed(3)}, key="compare vram")
    assert [figure.median for _, figure in curves(budgets)[0].points] == [1.5, 3]


def test_a_picture_of_any_names_is_well_formed(tmp_path):
    odd = report_of({"0": speed(1, 2), "$x^2": speed(3)}, model="a <&> $b$ \x1b")
    for name in ("speed.svg", "speed.PNG"):
        draw(odd, tmp_path / name)
    assert ET.fromstring((tmp_path / "speed.svg").read_text(encoding="utf-8")).tag.endswith("svg")
    assert (tmp_path / "speed.PNG").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="no speeds to draw"):
        curves(report_of({"a": Figure((1.0,), "B")}))
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        check_plot(Path("speed.jpg"))
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError) as caught:
        check_plot(Path("speed.png"))
    assert caught.value.hint == "pip install matplotlib"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (speed(10, 11), speed(12, 13), "better"),
        (speed(12, 13), speed(10, 11), "worse"),
        (speed(10, 12), speed(11, 13), "within the noise"),
        (speed(10, 20), speed(11, 13), "too noisy to tell"),
        (Figure((1.0, 1.1), "s", "less"), Figure((0.5, 0.6), "s", "less"), "better"),
        (Figure((4.0,), "B", "less"), Figure((4.0,), "B", "less"), "same"),
        (Figure((4.0,), "s", "less"), Figure((5.0,), "s", "less"), "different (measured once)"),
    ],
)
def test_a_difference_counts_only_beyond_the_noise(a, b, expected):
    assert verdict(a, b) == expected


def test_a_difference_tells_what_else_differs():
    a = report_of({"0": speed(1.0), "9": speed(1.0)})
    b = report_of({"0": speed(2.0)}, machine={"processor": "Q"}, settings={"threads": 1}, synthetic=True)
    section = difference(a, b)
    assert len(section.rows) == 1 and section.figure(section.rows[0].label, "B / A").median == 2
    told = "\n".join(section.notes)
    for words in (
        "processor differs: P in A, Q in B",
        "--threads differs: 2 in A, 1 in B",
        "random weights",
        "1 figures",
    ):
        assert words in told


def test_reports_without_a_common_figure_are_refused():
    with pytest.raises(UsageError, match="no figure in common"):
        difference(report_of({"0": speed(1.0)}), report_of({"1": speed(1.0)}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        "\x00\xff",
        '{"format": 1, "model": "a", "synthetic": false, "machine": {}, "settings": {}, "sections": [1]}',
        '{"format": 1, "model": "a", "synthetic": false, "machine": [1], "settings": {}, "sections": []}',
        '{"format": 1, "model": "a", "synthetic": false, "machine": {}, "settings": {}, "sections": [{"key": "k", '
        '"title": "t", "columns": ["a"], "rows": [{"label": "x", "cells": ["a", "b"]}], "notes": []}]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_report_is_refused(text):
    with pytest.raises(CorruptError, match=r"a\.json is not a report"):
        parse_report(text, "a.json")
