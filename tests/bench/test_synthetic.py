"""Random models in a real one's shape: the layout of a store, distinct weights, the skew that was asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from localr1.bench import synthetic
from localr1.bench.subject import open_synthetic
from localr1.bench.synthetic import DrawnRoutes, Shape, SyntheticStore, check_memory, draw_routes, find_shape
from localr1.errors import NotFoundError, OutOfMemoryError, UsageError
from localr1.model.registry import expected_tensors, parse_config
from localr1.options import EngineOptions
from localr1.placement.linear import expert_prefixes
from tests import tiny
from tests.bench.results import result_of

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
    store = SyntheticStore(parse_config(SMALL))
    for block in store.blocks():
        synthetic.fill(block)
    rows = torch.cat([store.feed_forwards(expert_prefixes(layer, 8)).weight for layer in (1, 2)])
    assert int(rows.min()) == -127 and int(rows.max()) == 127
    assert abs(float(rows.float().mean())) < 3
    pieces = rows.reshape(-1, 64).numpy()
    assert len(np.unique(pieces, axis=0)) == len(pieces)
    again = SyntheticStore(parse_config(SMALL))
    for block in reversed(again.blocks()):
        synthetic.fill(block)
    assert torch.equal(again.int8_rows("lm_head").weight, store.int8_rows("lm_head").weight)


def test_routes_are_different_experts_with_the_skew_asked_for():
    routes_NK = draw_routes(64, 6, 1.0, seed=1, tokens=4000)
    assert all(len(set(row)) == 6 for row in routes_NK.tolist())
    counts = torch.bincount(routes_NK.flatten(), minlength=64).sort(descending=True).values
    assert counts[0] > 8 * counts[32]
    flat = torch.bincount(draw_routes(64, 6, 0.0, seed=1, tokens=4000).flatten(), minlength=64)
    assert flat.max() < 1.3 * flat.min()


def test_the_bank_gets_the_drawn_routes_in_turn():
    seen = []

    class Bank:
        def run(self, layer, hidden_TD, expert_TK, weight_TK, beside):
            seen.append(expert_TK.tolist())
            return hidden_TD

    routes = DrawnRoutes(Bank(), torch.tensor([[0], [1], [2]]))
    for tokens in (2, 1, 1, 5):
        routes.run(0, torch.zeros(tokens, 4), torch.zeros(tokens, 1, dtype=torch.int64), torch.zeros(tokens, 1))
    assert seen == [[[0], [1]], [[2]], [[0]], [[0], [1], [2], [0], [1]]]


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


def test_layers_are_left_out_from_the_end():
    shape = find_shape("r1", 4, 0.0)
    assert shape.config.moe is not None and shape.config.moe.layers == (3,)
    assert shape.notes[1].startswith("4 of 61 layers")
    assert replace(shape, skew=0.7).notes[2].endswith("r^-0.7")
