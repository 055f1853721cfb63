"""A/B of one option: what may be compared, the same tokens, and a verdict only where all rounds agree."""

from dataclasses import replace

import pytest

from localr1.bench import measure, subject
from localr1.bench.compare import judge, paired_ratio, parse_comparison
from localr1.bench.plot import curves
from localr1.bench.report import Figure
from localr1.errors import UsageError
from localr1.events import result_of
from localr1.options import BenchOptions, EngineOptions

BASE = EngineOptions(threads=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speculate=off,auto", ("off", "auto")),
        ("draft-tokens=1,3", (1, 3)),
        ("--threads=1,2", (1, 2)),
        ("vram=0,8GiB", ("0", "8GiB")),
        ("draft_tokens=none,2", (None, 2)),
        ("vram=0,4GiB,8GiB", ("0", "4GiB", "8GiB")),
    ],
)
def test_any_engine_option_can_be_compared(text, expected):
    comparison = parse_comparison(text, BASE)
    assert tuple(getattr(options, comparison.key) for options in comparison.options) == expected


@pytest.mark.parametrize(
    "text", ["speculate", "speculate=off", "speculate=off,off", "x=1,2", "threads=a,2", "threads=1,2,1", ""]
)
def test_bad_comparisons_are_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_comparison(text, BASE)
    assert caught.value.hint


def test_guessing_ahead_changes_no_token(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    nano = result_of(subject.open_model("nano", replace(BASE, draft_tokens=1)))
    options = BenchOptions(
        prompt_tokens=16, decode_tokens=4, repeats=1, depths="0", compare=("speculate=off,mtp", "threads=1,2")
    )
    report = result_of(measure.bench(nano, options))
    section = report.section("compare speculate")
    assert section.notes[0] == "mtp and off: the answers are the same tokens"
    assert section.figure("off", "tokens a step").median == 1
    assert section.figure("mtp", "tokens a step").median > 1.2
    assert section.figure("off", "decode / off").values == (1,)
    assert section.rows[1].cells[-1].startswith("prefill: too few rounds to tell; decode: too few")
    assert [row.label for row in report.section("compare threads").rows] == ["1", "2"]
    assert [len(curve.points) for curve in curves(report)] == [2] * 6
    assert len(report.sections) == 3


def test_a_side_wins_only_where_every_round_agrees():
    faster = paired_ratio((10, 20, 30), (11, 24, 33))
    assert faster.values == pytest.approx((1.1, 1.2, 1.1)) and judge(faster) == "faster"
    assert judge(paired_ratio((11, 24, 33), (10, 20, 30))) == "slower"
    assert judge(Figure((0.97, 1.0, 1.02), "x")) == "no difference"
    assert judge(Figure((0.7, 1.0, 1.3), "x")) == "too noisy to tell"
    assert judge(Figure((1.1, 1.2), "x")) == "too few rounds to tell"
