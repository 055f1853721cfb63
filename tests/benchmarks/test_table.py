"""README's performance tables are those that the recorded results give."""

import pytest

from benchmarks import table
from benchmarks.repeatability import agree
from localr1.bench.report import Figure


def test_readme_is_not_stale():
    body = "\n".join(table.lines(table.reports("bench"), table.reports("claims")))
    readme = (table.ROOT / "README.md").read_text(encoding="utf-8")
    assert table.written(readme, body) == readme, "run: python -m benchmarks.table --write"


def test_the_tables_name_the_device_and_say_what_is_synthetic():
    speeds, claims = table.reports("bench"), table.reports("claims")
    body = "\n".join(table.lines(speeds, claims))
    assert str(speeds[0].machine["processor"]) in body
    assert any(report.synthetic for report in speeds)
    assert all("synthetic" in report.model for report in speeds if report.synthetic)


def test_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="lacks the marks"):
        table.written("# a readme", "tables")


def test_two_runs_agree_within_the_wider_of_their_ranges():
    assert agree(Figure((9.0, 10.0, 11.0), "x"), Figure((11.9, 12.0, 12.1), "x"))
    assert not agree(Figure((9.0, 10.0, 11.0), "x"), Figure((12.0, 12.1, 12.2), "x"))
