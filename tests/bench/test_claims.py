"""The four claims on nano: numbers that must hold on any machine, whatever its speed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from localr1.bench import measure, subject
from localr1.bench.claim_experts import hit_rates, record_routes
from localr1.bench.expanded import ExpandedAttention, cache_width, expanded_twin, head_size
from localr1.bench.fidelity import Speaker, divergence, in_windows
from localr1.bench.report import Report
from localr1.bench.subject import Subject
from localr1.bench.synthetic import Shape
from localr1.decode.cache import RowCache
from localr1.errors import UsageError
from localr1.events import result_of
from localr1.model.registry import parse_config
from localr1.options import BenchOptions, EngineOptions
from tests import tiny

OPTIONS = BenchOptions(prompt_tokens=32, decode_tokens=6, repeats=3, depths="0,64,9999", claims=True, fidelity=True)


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALR1_HOME", str(tmp_path_factory.mktemp("home")))
        yield result_of(subject.open_model("nano", EngineOptions(threads=1)))


@pytest.fixture(scope="module")
def report(nano) -> Report:
    return result_of(measure.bench(nano, OPTIONS))


def row(report: Report, section: str, label: str):
    return next(row.cells for row in report.section(section).rows if row.label == label)


def test_eight_bits_are_smaller_and_say_nearly_the_same(nano, report):
    ours, theirs, better, _ = row(report, "claim bits", "weights")
    assert theirs.median == 4 * nano.engine.parameters and 3.3 < better.median < 4
    assert better.median == pytest.approx(theirs.median / ours.median)
    kl, *_ = row(report, "claim bits", "mean KL")
    assert 0 < kl.median < 1e-3
    agreement, *_ = row(report, "claim bits", "same likeliest token")
    assert agreement.median > 90
    speeds = row(report, "claim bits", "decode")
    assert len(speeds[0].values) == len(speeds[1].values) == len(speeds[2].values) == 3
    assert any("source not at hand" in note for note in report.section("claim bits").notes)


def test_the_latent_cache_is_as_much_smaller_as_its_config_says(nano, report):
    mla = nano.engine.config.attention
    expected = (
        mla.num_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim) / nano.engine.config.cache_width
    )
    ours, theirs, better, _ = row(report, "claim cache", "bytes a token, bf16")
    assert better.median == pytest.approx(expected) == theirs.median / ours.median
    assert row(report, "claim cache", "bytes a token, float32")[2].median == pytest.approx(2 * expected)
    assert row(report, "claim cache", "decode at 64")[1].low > 0
    assert 0 <= row(report, "claim cache", "mean KL")[0].median < 1e-3
    assert any(
        "decode at 9,999: not measured here, the context holds 2,048" in n for n in report.section("claim cache").notes
    )


def test_int8_rows_are_smaller_and_say_nearly_the_same(nano, report):
    ours, theirs, better, _ = row(report, "claim cache", "bytes a token, int8 rows")
    mla = nano.engine.config.attention
    assert theirs.median == 2 * nano.engine.config.cache_width * nano.engine.config.num_layers
    assert ours.median == nano.engine.config.num_layers * (mla.kv_lora_rank + 2 * mla.qk_rope_head_dim + 4)
    assert better.median == theirs.median / ours.median
    assert row(report, "claim cache", "decode at 64, int8 rows")[2].low > 0
    assert 1e-7 < row(report, "claim cache", "mean KL, int8 rows")[0].median < 5e-3
    assert row(report, "claim cache", "same likeliest token, int8 rows")[0].median > 90


def test_guessing_gives_the_same_tokens_in_fewer_steps(report):
    rows = {row.label: row.cells for row in report.section("claim guessing").rows}
    assert {"off", "auto", "always 1", "always 3"} <= rows.keys()
    assert all(rows[name][-1] == rows["off"][-1] for name in ("auto", "always 1", "always 3"))
    assert rows["off"][1].median == 1 < rows["always 1"][1].median <= 2
    assert rows["off"][2].values == (1, 1, 1)
    right, tried = map(int, rows["guess 1 right"][-1].split(" of "))
    assert 0 < right <= tried and rows["guess 1 right"][1].median == round(100 * right / tried, 1)


def test_experts_spare_what_they_leave_out(nano, report):
    moe = nano.engine.config.moe
    active, every, spared = row(report, "claim experts cost", "bytes read a token")
    assert spared.median == moe.num_experts / moe.top_k == every.median / active.median
    assert row(report, "claim experts cost", "time a token")[0].low > 0
    hits = report.section("claim experts")
    shares = [hits.figure(row.label, "hottest experts").median for row in hits.rows]
    assert shares == sorted(shares) and shares[-1] <= 100
    for line in hits.rows:
        assert hits.figure(line.label, "hottest experts").median >= hits.figure(line.label, "whole layers").median - 5


def test_speed_with_a_gpu_is_not_made_up(report):
    assert "tokens/s at each budget: not measured here, there is no GPU" in report.section("claim experts").notes


def test_fidelity_says_what_was_compared_and_what_could_not_be(report):
    rows = {row.label: row.cells for row in report.section("fidelity").rows}
    assert rows["int8 against the float32 source"][-1] == "not measured here"
    assert rows["int8 kernels, same weights"][-1].startswith("within")
    assert rows["guessing ahead"][-1].startswith("the same ")


def test_a_dense_model_has_no_experts_and_no_latent():
    raw = tiny.DEFAULTS["llama"] | {"model_type": "llama", "rope_theta": 1e4, "vocab_size": 1000}
    small = result_of(subject.open_synthetic(Shape("dense", parse_config(raw), 3, 0), EngineOptions(threads=1), 400))
    options = BenchOptions(prompt_tokens=16, decode_tokens=4, repeats=1, depths="0", claims=True)
    report = result_of(measure.bench(small, options))
    assert report.section("claim experts").notes == ("this model has no experts",)
    assert row(report, "claim cache", "bytes a token")[2].median == 2
    assert report.synthetic and any(
        "says nothing of the real model" in n for n in report.section("claim guessing").notes
    )


@pytest.mark.parametrize("wanted", [{"claims": True}, {"fidelity": True}])
def test_a_context_too_short_for_the_questions_is_refused_at_once(nano, monkeypatch, wanted):
    short = replace(nano, engine=replace(nano.engine, context_limit=40))
    monkeypatch.setattr(Subject, "variant", None)  # nothing is loaded
    with pytest.raises(UsageError, match=r"a question of .* exceed the context of 40"):
        result_of(measure.bench(short, BenchOptions(decode_tokens=20, **wanted)))


@pytest.mark.parametrize(("context", "decoded"), [(32, 17), (2048, 3000)])
def test_claims_that_the_context_has_no_room_for_are_refused_at_once(nano, monkeypatch, context, decoded):
    short = replace(nano, engine=replace(nano.engine, context_limit=context))
    monkeypatch.setattr(Subject, "variant", None)
    with pytest.raises(UsageError, match=f"{decoded:,} decode tokens exceed the context of {context:,}") as caught:
        result_of(measure.bench(short, BenchOptions(decode_tokens=decoded, claims=True)))
    assert caught.value.hint == "ask for fewer --decode-tokens, or raise --context"


def test_claims_are_of_the_8_bit_model():
    with pytest.raises(UsageError, match="8-bit model"):
        measure.check(BenchOptions(claims=True), EngineOptions(dtype="float32"))


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite"])
@pytest.mark.parametrize("value", [8, 20])
def test_expanded_attention_gives_the_latent_models_logits(model_type, value):
    model = tiny.make(model_type, v_head_dim=value)
    ours = tiny.build_float(model)
    config = ours.config
    twin = expanded_twin(ours, config, config.attention, tiny.FloatWeights(model.state))
    assert head_size(config.attention) == max(12, value)
    token_T, wide = tiny.tokens(21), cache_width(config.attention)
    caches = [RowCache(config.num_layers, width, 21, torch.float32) for width in (config.cache_width, wide)]
    logits = []
    with torch.inference_mode():
        for built, cache in zip((ours, twin), caches, strict=True):
            parts = []
            for start, end in ((0, 17), (17, 18), (18, 21)):
                parts.append(built.logits(built.forward(token_T[start:end], cache)))
                cache.commit(token_T[start:end].tolist())
            logits.append(torch.cat(parts))
    assert tiny.difference(logits[1], logits[0]) < 1e-4
    assert all(isinstance(layer.attention, ExpandedAttention) for layer in twin.layers)
    assert not any(isinstance(layer.attention, ExpandedAttention) for layer in ours.layers)


def test_hits_are_learned_on_the_first_half_and_counted_on_the_second():
    first, second = [[0, 1]] * 6, [[0, 2]] * 6
    routes = {1: np.array(first + second), 2: np.array([[3, 4]] * 12)}
    hottest, layers, count = hit_rates(routes, 8, 0.25)
    assert count == 4 and hottest == pytest.approx((6 + 12) / 24) and layers == 0
    assert hit_rates(routes, 8, 0.5)[1] == 0.5
    assert hit_rates(routes, 8, 1.0)[0] == 1


def test_recorded_routes_are_the_routers(nano):
    routes = result_of(record_routes(nano, 40))
    moe = nano.engine.config.moe
    assert sorted(routes) == list(moe.layers)
    for chosen in routes.values():
        assert chosen.shape == (40, moe.top_k) and all(len(set(row)) == moe.top_k for row in chosen.tolist())


def test_divergence_of_a_known_change(nano):
    engine = nano.engine

    class Shifted:
        def forward(self, token_T, cache):
            return engine.model.forward(token_T, cache)

        def logits(self, hidden_TD):
            return engine.model.logits(hidden_TD).roll(1, dims=-1)

    plain, windows = Speaker(engine.model, engine.new_cache), in_windows(nano.tokens(50), 20)
    same = divergence(plain, plain, windows)
    assert same.mean_kl == 0 and same.top1_agreement == 1 and same.perplexity == same.reference_perplexity
    other = divergence(plain, Speaker(Shifted(), engine.new_cache), windows)
    assert other.mean_kl > 1 and other.top1_agreement == 0 and other.tokens == 50
