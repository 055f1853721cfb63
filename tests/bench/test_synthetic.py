"""Random models in a real one's shape: the layout of a store, distinct weights, the skew that was asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from localr1.bench import measure, synthetic
from localr1.bench.claim_experts import record_routes
from localr1.bench.subject import open_synthetic
from localr1.bench.synthetic import Shape, SyntheticStore, busiest, check_memory, find_shape
from localr1.errors import NotFoundError, OutOfMemoryError, UnsupportedError, UsageError
from localr1.events import result_of
from localr1.model.registry import expected_tensors, parse_config
from localr1.options import BenchOptions, EngineOptions
from localr1.placement.linear import expert_prefixes
from tests import tiny

SMALL = tiny.DEFAULTS["deepseek_v3"] | {"model_type": "deepseek_v3", "rope_theta": 1e4, "vocab_size": 1000}


@pytest.fixture(scope="module")
def engine():
    shape = Shape("small", parse_config(SMALL), 5, skew=1.0)
    return result_of(open_synthetic(shape, EngineOptions(threads=1), context=64)).engine


def test_it_runs_and_says_that_it_is_synthetic(engine):
    cache = engine.new_cache()
    with torch.inference_mode():
        hidden_TD = engine.model.forward(torch.arange(20), cache)
        assert torch.isfinite(engine.model.logits(hidden_TD)).all()
    assert engine.name == "small (synthetic, 3 layers)"
    assert engine.context_limit == 64 and engine.mtp is None


def test_its_bytes_and_parameters_are_the_shapes(engine):
    specs = expected_tensors(engine.config)
    assert engine.parameters == sum(np.prod(spec.shape) for spec in specs.values())
    assert engine.weight_bytes > engine.parameters


def test_every_weight_is_drawn_anew(monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCK_BYTES", 512)
    store = SyntheticStore(parse_config(SMALL), 0.2)
    for block in store.blocks():
        synthetic.fill(block)
    rows = torch.cat([store.feed_forwards(expert_prefixes(layer, 8)).weight for layer in (1, 2)])
    assert int(rows.min()) == -127 and int(rows.max()) == 127
    assert abs(float(rows.float().mean())) < 3
    pieces = rows.reshape(-1, 64).numpy()
    assert len(np.unique(pieces, axis=0)) == len(pieces)
    again = SyntheticStore(parse_config(SMALL), 0.2)
    for block in reversed(again.blocks()):
        synthetic.fill(block)
    assert torch.equal(again.int8_rows("lm_head").weight, store.int8_rows("lm_head").weight)


def test_routes_are_as_uneven_as_was_said():
    config = parse_config(SMALL | {"n_routed_experts": 32, "n_group": 1, "topk_group": 1})
    opened = result_of(open_synthetic(Shape("small", config, 3, 0.4), EngineOptions(threads=1), context=1200))
    routes = result_of(record_routes(opened, 1000))
    for chosen in routes.values():
        counts = np.bincount(chosen.reshape(-1), minlength=32)
        assert counts.max() / counts.mean() == pytest.approx(busiest(32, 3, 0.4), rel=0.4)
    assert busiest(32, 3, 0.0) == pytest.approx(1, abs=0.15) and busiest(32, 3, 1.0) > busiest(32, 3, 0.4) > 2


def test_too_little_memory_is_refused_with_the_layers_that_fit():
    shape = find_shape("v2-lite", None, 0.5)
    with pytest.raises(OutOfMemoryError, match=r"needs 16\.\d GB of RAM, 6\.0 GB are free") as caught:
        check_memory(shape, 4096, 6_000_000_000)
    layers = int(caught.value.hint.rpartition(" ")[2])
    assert 5 <= layers <= 9
    check_memory(find_shape("v2-lite", layers, 0.5), 4096, 6_000_000_000)
    with pytest.raises(OutOfMemoryError):
        check_memory(find_shape("v2-lite", layers + 1, 0.5), 4096, 6_000_000_000)
    with pytest.raises(OutOfMemoryError, match="GB are free") as caught:
        check_memory(find_shape("r1", None, 0.5), 4096, 1_000_000_000)
    assert caught.value.hint == "not even one layer fits"


def test_unknown_shapes_and_too_many_layers_are_refused():
    with pytest.raises(NotFoundError, match="no shape called 'v4'"):
        find_shape("v4", None, 0.5)
    with pytest.raises(UsageError, match="v2-lite has 27"):
        find_shape("v2-lite", 28, 0.5)
    with pytest.raises(UsageError, match="8-bit"):
        result_of(open_synthetic(find_shape("r1", 1, 0), EngineOptions(dtype="float32"), 64))
    dense = find_shape("r1-distill-llama-70b", None, 0)  # whose weights nobody here has room for
    for options in (EngineOptions(kv="int8"), EngineOptions(speculate="mtp"), EngineOptions(context=1 << 20)):
        with pytest.raises(UnsupportedError):
            result_of(open_synthetic(dense, options, 64))


def test_contexts_of_a_shape_are_compared():
    made = result_of(open_synthetic(find_shape("smollm2-135m", 1, 0), EngineOptions(context=64), 64))
    longer = result_of(made.variant(replace(made.engine.options, context=128)))
    assert (made.engine.context_limit, longer.context_limit) == (64, 128)


def test_a_shape_is_made_for_what_it_can_hold_and_no_context_beyond():
    shape = find_shape("moonlight", 1, 0.0)
    asked = BenchOptions()
    assert measure.synthetic_context(shape, asked, EngineOptions()) == 8192
    assert measure.synthetic_context(shape, replace(asked, depths="0,1k"), EngineOptions()) == 1024 + 512 + 4 * 32
    assert measure.synthetic_context(shape, asked, EngineOptions(context=4096)) == 4096
    with pytest.raises(UnsupportedError, match="10,000 is beyond what moonlight") as caught:
        measure.synthetic_context(shape, asked, EngineOptions(context=10_000))
    assert caught.value.hint == "its longest context is 8,192"
    deep = replace(asked, depths="16k")
    with pytest.raises(UsageError, match="exceed the context of 8,192"):
        measure.synthetic_context(shape, deep, EngineOptions())
    assert measure.synthetic_context(shape, replace(deep, claims=True), EngineOptions()) == 8192


def test_one_layer_is_not_several():
    assert find_shape("r1", 1, 0.0).label == "r1 (synthetic, 1 layer)"


def test_layers_are_left_out_from_the_end():
    shape = find_shape("r1", 4, 0.0)
    assert shape.config.moe is not None and shape.config.moe.layers == (3,)
    assert shape.notes[1].startswith("4 of 61 layers")
    assert "r^-0.7 long" in replace(shape, skew=0.7).notes[2]
