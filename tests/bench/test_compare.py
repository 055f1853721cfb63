"""A/B of one option: what may be compared, the same tokens, and a verdict only where all rounds agree."""

from dataclasses import replace

import pytest
import torch

from localr1.bench import measure, subject
from localr1.bench.answers import Asking, prompts
from localr1.bench.compare import judge, paired_ratio, parse_comparison
from localr1.bench.plot import curves
from localr1.bench.report import Figure
from localr1.errors import UsageError
from localr1.events import result_of
from localr1.options import BenchOptions, EngineOptions
from localr1.session import gpu
from localr1.session.outlook import given_vram_bytes
from localr1.session.shares import shared_out

BASE = EngineOptions(threads=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speculate=off,auto", ("off", "auto")),
        ("draft-tokens=1,3", (1, 3)),
        ("--threads=1,2", (1, 2)),
        ("vram=0,8GiB", ("0", "8GiB")),
        ("draft_tokens=none,2", (None, 2)),
        ("draft_tokens=1,auto", (1, None)),
        ("vram=0,auto", ("0", None)),
        ("vram=0,4GiB,8GiB", ("0", "4GiB", "8GiB")),
    ],
)
def test_any_engine_option_can_be_compared(text, expected):
    comparison = parse_comparison(text, BASE)
    assert tuple(getattr(options, comparison.key) for options in comparison.options) == expected


@pytest.mark.parametrize(
    "text",
    ["speculate", "speculate=off", "speculate=off,off", "x=1,2", "threads=a,2", "threads=1,2,1", "threads=1,01", ""],
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


def test_what_one_side_has_no_room_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    nano = result_of(subject.open_model("nano", BASE))
    options = BenchOptions(prompt_tokens=60, decode_tokens=16, repeats=1, depths="0", compare=("context=64,1024",))
    with pytest.raises(UsageError, match="exceed the context of 64"):
        result_of(measure.bench(nano, options))


def test_answers_in_one_cache_are_what_they_are_alone_and_leave_it_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    nano = result_of(subject.open_model("nano", replace(BASE, draft_tokens=1)))
    engine, asked = nano.engine, prompts(nano, 12)
    alone = [token for prompt in asked for token in Asking(engine, [prompt], 12)().tokens]
    cache, tokens = engine.new_cache(), nano.tokens(150)
    result_of(subject.fill_cache(engine, cache, tokens, False))
    before = cache.snapshot(150).clone()
    asking = Asking(engine, asked, 12, cache=cache)
    counts = []
    for _ in range(2):
        answers = asking()
        assert answers.tokens == alone
        assert list(cache.tokens) == tokens and torch.equal(cache.snapshot(150), before)
        counts.append((answers.steps, answers.drafted, answers.accepted))
    assert min(counts[0]) > 0 and counts[0] == counts[1], "of these answers, not of all there were"


def test_a_side_wins_only_where_every_round_agrees():
    faster = paired_ratio((10, 20, 30), (11, 24, 33))
    assert faster.values == pytest.approx((1.1, 1.2, 1.1)) and judge(faster) == "faster"
    assert judge(paired_ratio((11, 24, 33), (10, 20, 30))) == "slower"
    assert judge(Figure((0.97, 1.0, 1.02), "x")) == "no difference"
    assert judge(Figure((0.7, 1.0, 1.3), "x")) == "too noisy to tell"
    assert judge(Figure((1.1, 1.2), "x")) == "too few rounds to tell"


@pytest.fixture
def a_gpu(tmp_path, monkeypatch):
    """A computer whose "GPU" is the CPU, with 4 GiB free, whatever is loaded."""
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    usable = {None: torch.device("cpu"), "0": None}
    monkeypatch.setattr(gpu, "usable_device", lambda options: usable.get(options.vram, torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 << 30, 8 << 30))


def test_sides_share_the_gpu_and_the_loaded_engine_makes_way(a_gpu, monkeypatch):
    given, plan_for = [], gpu.plan_for

    def planned(*arguments):
        foretold = plan_for(*arguments)
        given.append(foretold.plan.budget.vram_bytes)
        return foretold

    monkeypatch.setattr(gpu, "plan_for", planned)
    nano = result_of(subject.open_model("nano", replace(BASE, ram="8GiB", context=256, speculate="off")))
    options = BenchOptions(prompt_tokens=16, decode_tokens=4, repeats=1, depths="0", compare=("threads=1,2",))
    notes = result_of(measure.bench(nano, options)).section("compare threads").notes
    free_bytes = given_vram_bytes(4 << 30)
    assert given == [free_bytes, free_bytes // 2, free_bytes // 2]
    assert not nano.engine.on_gpu.here
    assert notes[-1] == "each may use 2.0 GB of GPU memory, an equal part, since all are loaded at once"


def test_what_a_setting_names_of_gpu_memory_is_its_own(a_gpu):
    def parts(*named):
        settings, part_bytes = shared_out([EngineOptions(vram=one) for one in named])
        return [one.vram for one in settings], part_bytes

    free_bytes = given_vram_bytes(4 << 30)
    assert parts("0", None) == (["0", None], 0), "there is nobody to share with"
    assert parts("1GiB", "2GiB") == (["1GiB", "2GiB"], 0)
    left = (free_bytes - (1 << 30)) // 2
    assert parts("1GiB", None, "0", None) == (["1GiB", f"{left}B", "0", f"{left}B"], left)
    with pytest.raises(UsageError, match=r"name 4\.3 GB of GPU memory, 4\.1 GB may be used"):
        parts("2GiB", "2GiB")
