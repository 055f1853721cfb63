"""The benchmark's figures are of the work it says, and agree with each other."""

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
import torch

from localr1.bench import measure, speed, subject
from localr1.bench.energy import Meters
from localr1.bench.floor import operations
from localr1.bench.parts import REST, Stopwatch, timed_twin
from localr1.bench.report import Report, parse_report
from localr1.bench.speed import IMPOSSIBLE, Samples, SpeedBench, parse_depths, visit
from localr1.bench.subject import Subject
from localr1.bench.synthetic import Shape
from localr1.bench.text import real_text, text_tokens
from localr1.errors import UsageError
from localr1.events import result_of
from localr1.model.registry import expected_tensors, parse_config
from localr1.options import BenchOptions, EngineOptions
from localr1.placement.gpu import GpuWeights
from localr1.placement.load import OtherPrograms
from localr1.session.gpu import Placed
from localr1.session.gpu_model import GpuModel, Parts
from tests import tiny

OPTIONS = BenchOptions(prompt_tokens=24, decode_tokens=4, repeats=2, depths="0,40,9999")


@pytest.fixture(scope="module", autouse=True)
def brief() -> Iterator[None]:
    """Measurements that do not wait for time to pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "LEAST_S", 0.0)
        yield


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALR1_HOME", str(tmp_path_factory.mktemp("home")))
        return result_of(subject.open_model("nano", EngineOptions(threads=1)))


@pytest.fixture(scope="module")
def report(nano: Subject) -> Report:
    return result_of(measure.bench(nano, OPTIONS))


@pytest.fixture(scope="module")
def synthetic() -> Subject:
    raw = tiny.DEFAULTS["deepseek_v2"] | {"model_type": "deepseek_v2", "rope_theta": 1e4, "vocab_size": 1000}
    shape = Shape("small", parse_config(raw), 3, skew=1.0)
    return result_of(subject.open_synthetic(shape, EngineOptions(threads=1), context=400))


def test_bytes_are_the_stores_and_the_caches(nano, report):
    model = report.section("model")
    assert [model.rows[at].label for at in (1, 4)] == ["weights", "cache a token"]
    assert model.figure("weights", "").median == nano.engine.weight_bytes < 12_000_000
    mla, layers = nano.engine.config.attention, nano.engine.config.num_layers
    assert model.figure("cache a token", "").median == layers * (mla.kv_lora_rank + 2 * mla.qk_rope_head_dim + 4)
    assert model.figure("peak memory", "").median > nano.engine.weight_bytes


def test_a_cold_load_is_told_from_a_warm_one(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    forgotten = []
    monkeypatch.setattr(subject, "forget_files", lambda folder: forgotten.append(folder) or True)
    opened = result_of(subject.open_model("nano", EngineOptions(threads=1), cold=True))
    assert [start.state for start in opened.starts] == ["cold", "warm"] and forgotten == [opened.engine.folder]
    assert all(start.load_s > 0 and start.first_token_s > 0 for start in opened.starts)


def test_forgetting_files_harms_none(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    subject.forget_files(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"x" * 10_000


def test_there_is_a_figure_for_every_repeat_and_depth_that_fits(report):
    table = report.section("speed")
    assert [row.label for row in table.rows] == ["0", "40"]
    assert all(len(figure.values) == 2 and figure.low > 0 for _, _, figure in table.figures())
    assert any("9,999 do not fit" in note for note in table.notes)
    prefill, first = table.figure("40", "prefill 24"), table.figure("40", "first token after")
    assert prefill.values == pytest.approx([24 / seconds for seconds in first.values])


def test_measuring_goes_on_for_a_while_and_ends_in_time(nano, monkeypatch):
    now_s = iter(range(1000))
    monkeypatch.setattr(speed, "LEAST_S", 40.0)
    monkeypatch.setattr(speed.time, "monotonic", lambda: next(now_s))
    long = SpeedBench(nano, replace(OPTIONS, depths="0"))
    result_of(long.run())
    rounds = len(long.samples[0].token_s)
    assert 2 < rounds < 40
    short = SpeedBench(nano, replace(OPTIONS, depths="0,40,80", max_seconds=4))
    result_of(short.run())
    assert short.depths == (0, 40) and short.late == (80,)
    assert len(short.samples[0].token_s) == 1, "the warm-up counts where there was time for nothing else"
    over = "since 4 s were over (--max-seconds)"
    notes = short.sections()[0].notes
    assert notes[0] == f"this is the warm-up alone, {over}" and f"contexts of 80 were left out, {over}" in notes
    some = SpeedBench(nano, replace(OPTIONS, depths="0,40", max_seconds=6))
    result_of(some.run())
    assert [len(some.samples[depth].token_s) for depth in (0, 40)] == [1, 1]
    assert some.sections()[0].notes[:2] == (
        "each was measured once",
        "contexts of 40 show the warm-up alone, since 6 s were over (--max-seconds)",
    )
    with pytest.raises(UsageError, match="nothing could be measured within 1 s"):
        result_of(SpeedBench(nano, replace(OPTIONS, max_seconds=1)).run())


def test_energy_is_of_the_meters_that_there_are(tmp_path, monkeypatch):
    assert Meters(tmp_path / "none").names == () and Meters(tmp_path / "none").since(()) is None
    for name, energy_uj in (("intel-rapl:0", 9_000_000), ("intel-rapl:0:0", 1), ("intel-rapl:1", 2_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(energy_uj))
        (tmp_path / name / "max_energy_range_uj").write_text("10000000")
    gpu_mj = iter((5_000, 10_000, 14_500))
    driver = types.ModuleType("pynvml")
    driver.NVMLError = type("NVMLError", (Exception,), {})
    driver.nvmlInit = lambda: None
    driver.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    driver.nvmlDeviceGetTotalEnergyConsumption = lambda gpu: next(gpu_mj)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: types.SimpleNamespace(uuid="u"))
    meters = Meters(tmp_path)
    assert meters.names == ("processors", "GPU")
    before = meters.read()
    assert before == (9.0, 2.0, 10.0)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000")  # the counter began again
    assert meters.since(before) == pytest.approx(2.0 + 0.0 + 4.5)


def test_a_gpu_that_does_not_tell_its_energy_is_left_out(tmp_path, monkeypatch):
    def refuse():
        raise driver.NVMLError

    driver = types.ModuleType("pynvml")
    driver.NVMLError, driver.nvmlInit = type("NVMLError", (Exception,), {}), refuse
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert Meters(tmp_path).names == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meters(tmp_path).names == ()


def test_work_of_other_programs_is_told_from_our_own():
    others = OtherPrograms()
    sum(range(300_000))
    assert 0 <= others.share() <= 1
    busy = [(0.0, 0.0, 0.0), (9.0, 20.0, 4.0)]
    others._now = lambda: busy.pop(0)
    others._begin = others._now()
    assert others.share() == 0.25


def test_the_floor_counts_the_active_weights_and_the_cache(nano, report):
    floor = report.section("floor")
    read = {depth: floor.figure(depth, "read a token").median for depth in ("0", "40")}
    assert read["40"] - read["0"] == 40 * nano.engine.new_cache().token_nbytes
    experts = nano.engine.config.moe
    inactive = (experts.num_experts - experts.top_k) * len(experts.layers) * nano.sizes.expert_bytes
    assert read["0"] < nano.engine.weight_bytes - inactive
    share = floor.figure("0", "decode / floor").median
    speed, gb_per_s = report.section("speed").figure("0", "decode 4").median, floor.figure("0", "memory reads").median
    assert share == pytest.approx(read["0"] * speed / (gb_per_s * 1e9), rel=0.5)


def test_a_share_above_the_floor_is_told_to_be_the_fault_of_the_ceiling(nano):
    bench = SpeedBench(nano, replace(OPTIONS, depths="0"))
    honest = Samples([1e-3], [1e-2], read_bytes_per_s=[1e12], operations_per_s=[1e9])
    starved = replace(honest, read_bytes_per_s=[1e6])
    noted = []
    for samples in (honest, starved):
        bench.samples[0] = samples
        noted.append(IMPOSSIBLE in bench._floor().notes)
    assert noted == [False, True]


def test_the_floor_of_a_processor_is_not_told_of_a_model_on_a_gpu(nano):
    placed = Placed(cast(GpuWeights, None), None, torch.device("cpu"))
    on_gpu = replace(nano.engine, model=GpuModel(Parts(placed, nano.engine.model)))
    bench = SpeedBench(replace(nano, engine=on_gpu), replace(OPTIONS, depths="0"))
    bench.samples[0] = Samples([1e-3], [1e-2], read_bytes_per_s=[1e9], operations_per_s=[1e9])
    bench.parts[0] = {REST: 1e-3}
    assert [section.key for section in bench.sections()] == ["speed", "parts"]
    assert "how near it is to what the GPU could do is not told" in bench.sections()[0].notes


def test_operations_are_two_a_weight_and_row():
    raw = tiny.DEFAULTS["llama"] | {"model_type": "llama", "rope_theta": 1e4}
    config = parse_config(raw)
    specs = expected_tensors(config)
    sizes = Subject(type("E", (), {"config": config, "options": EngineOptions()}), None, None, ()).sizes
    layer = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 48 * 32
    attention = 3 * 4 * 16 * (5 * 10 + 15)
    assert operations(config, specs, sizes, tokens=5, depth=10) == 2 * (3 * layer * 5 + attention + 96 * 32)


def test_the_parts_add_up_to_the_step(report):
    parts = report.section("parts")
    labels = [row.label for row in parts.rows]
    assert labels == ["attention", "experts", "dense layers", "head", REST]
    shares = [parts.figure(label, "share at 0").median for label in labels]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert all(share > 0 for share in shares)
    assert parts.notes[0].endswith("the median of 12 tokens")


def test_the_parts_say_of_how_many_tokens_they_are(nano):
    def note(prompt, decoded, depths):
        options = replace(OPTIONS, prompt_tokens=prompt, decode_tokens=decoded, depths=depths, repeats=1)
        return result_of(measure.bench(nano, options)).section("parts").notes[0]

    assert note(4, 2, "0").endswith("the median of 5 tokens")
    assert note(1, 1, "0").endswith("the median of 1 token")
    assert note(4, 2, "0,40").endswith("the median of 5 or 12 tokens")


def test_a_timed_twin_says_the_same_and_leaves_the_model_alone(nano):
    model, watch = nano.engine.model, Stopwatch()
    before = list(model.layers)
    twin = timed_twin(model, watch)
    with torch.inference_mode():
        ours = model.forward(torch.arange(9), nano.engine.new_cache())
        theirs = twin.forward(torch.arange(9), nano.engine.new_cache())
    assert torch.equal(ours, theirs)
    assert model.layers == before and set(watch.seconds) >= {"attention", "router", "experts", "shared experts"}


def test_a_model_on_a_gpu_is_timed_by_its_decoder(nano):
    device = torch.device("cpu")
    settled: list[None] = []
    watch = Stopwatch(lambda: settled.append(None))
    twin = timed_twin(GpuModel(Parts(Placed(cast(GpuWeights, None), None, device), nano.engine.model)), watch)
    with torch.inference_mode():
        theirs = twin.forward(torch.arange(9), nano.engine.new_cache())
        ours = nano.engine.model.forward(torch.arange(9), nano.engine.new_cache())
    assert torch.equal(ours, theirs)
    assert len(settled) >= len(nano.engine.model.layers)


def test_a_stopwatch_counts_nested_parts_once():
    watch = Stopwatch()
    inner = watch.around("inner", lambda: sum(range(20_000)))
    watch.around("outer", lambda: inner() + inner())()
    assert watch.seconds["outer"] < watch.seconds["inner"]


def test_a_depth_is_visited_again_with_the_same_rows(nano):
    engine, tokens = nano.engine, nano.tokens(50)
    cache = engine.new_cache()
    result_of(subject.fill_cache(engine, cache, tokens[:40], False))
    with torch.inference_mode():
        visit(cache, tokens, 20)
        first = engine.model.forward(torch.tensor(tokens[20:21]), cache)
        visit(cache, tokens, 0)
        visit(cache, tokens, 40)
        visit(cache, tokens, 20)
        again = engine.model.forward(torch.tensor(tokens[20:21]), cache)
    assert torch.equal(first, again) and list(cache.tokens) == tokens[:20]


def test_the_record_survives_json_and_says_what_it_depends_on(report):
    again = parse_report(report.to_json(), "a.json")
    assert again == parse_report(again.to_json(), "b.json") and again.sections == report.sections
    assert json.loads(report.to_json())["machine"]["torch"]
    assert again.settings["threads"] == 1 and again.settings["dtype"] == "int8" and not again.synthetic


def test_a_synthetic_report_says_so_everywhere(synthetic):
    report = result_of(measure.bench(synthetic, OPTIONS))
    assert report.synthetic and "synthetic" in report.model
    assert "synthetic" in report.section("model").notes[0]
    assert any("random rows" in note for note in report.section("speed").notes)


def test_a_context_too_short_for_it_is_refused(nano):
    with pytest.raises(UsageError, match="exceed the context of 2,048"):
        result_of(measure.bench(nano, BenchOptions(prompt_tokens=2000, decode_tokens=100)))


@pytest.mark.parametrize("text", ["", "1,,2", "-1", "1kk", "0x10", "9" * 12, "k"])
def test_depths_that_are_no_numbers_are_refused(text):
    with pytest.raises(UsageError, match="is no number of tokens"):
        parse_depths(text)


def test_depths_are_sorted_and_once():
    assert parse_depths("4k, 0,1K,0") == (0, 1024, 4096)


def test_the_text_is_long_and_real(nano):
    assert len(real_text()) > 300_000 and "expression" in real_text()
    assert len(text_tokens(nano.engine.tokenizer, 5000)) == 5000
