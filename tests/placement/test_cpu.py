"""What runs on int8 rows gives the dequantized weights' results, and every bank the same sums."""

from pathlib import Path

import pytest
import torch

from localr1.decode.cache import RowCache
from localr1.events import QuantizeProgress
from localr1.model import registry
from localr1.model.config import MlaConfig
from localr1.model.mla import LatentAttention
from localr1.placement.bank import CpuBank, FloatBank
from localr1.placement.linear import FloatWeights, StoreWeights
from localr1.weights.checkpoint import Checkpoint
from localr1.weights.conversion import write_store
from localr1.weights.quantize import dequantize_rows, quantize_rows
from localr1.weights.store import Origin, Store
from tests import tiny


def stored(model_type: str, folder: Path, **overrides: object) -> tuple[tiny.Tiny, Store]:
    """A tiny model, and its 8-bit store."""
    return store_of(tiny.make(model_type, **overrides), folder)


def store_of(
    model: tiny.Tiny, folder: Path, mtp: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[tiny.Tiny, Store]:
    checkpoint = Checkpoint(tiny.save(model, folder / "source", dtype))
    expected = registry.expected_tensors(model.config, mtp)
    events = write_store(folder / "store", checkpoint, expected, block=None, origin=Origin("t", "0"), extras={})
    assert sum(isinstance(event, QuantizeProgress) for event in events) == len(expected)
    return model, Store(folder / "store")


def dequantized(model: tiny.Tiny) -> tiny.Tiny:
    """The same model with every int8 weight rounded to what the store holds."""
    expected = registry.expected_tensors(model.config)
    state = {
        name: dequantize_rows(quantize_rows(tensor, name)) if expected[name].storage == "int8" else tensor
        for name, tensor in model.state.items()
    }
    return tiny.Tiny(None, model.raw, state)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "hidden_size": 40, "intermediate_size": 41}),
        ("deepseek_v3", {"router_bias": 0.2}),
        ("deepseek_v3", {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 11}),
    ],
)
def test_the_store_runs_as_its_dequantized_weights(
    tmp_path: Path, model_type: str, overrides: dict[str, object]
) -> None:
    model, store = stored(model_type, tmp_path, **overrides)
    config = model.config
    bank = CpuBank(store, config.moe.layers, config.moe.num_experts) if config.moe else None
    ours = registry.build(config, StoreWeights(store), bank)
    tokens = tiny.tokens(14)
    wanted = tiny.run_steps(tiny.build_float(dequantized(model)), tokens, [14])
    for steps in ([14], [9, 1, 2]):
        assert tiny.difference(tiny.run_steps(ours, tokens, steps), wanted) < 2e-3
    shifted = tiny.run_steps(ours, tokens.roll(1), [14])
    assert tiny.difference(shifted, wanted) > 2e-2, "the comparison can fail"


def test_what_is_large_in_float_is_not_copied(tmp_path: Path) -> None:
    _, store = store_of(tiny.make("deepseek_v3"), tmp_path, dtype=torch.bfloat16)
    name, weights = "model.layers.0.self_attn.kv_b_proj.weight", StoreWeights(store)
    assert store.tensor(name).dtype == torch.bfloat16
    assert weights.tensor(name).data_ptr() == store.tensor(name).data_ptr()
    assert weights.tensor("model.layers.0.input_layernorm.weight").dtype == torch.float32
    x, weight = torch.randn(3, store.tensor(name).shape[0]), weights.tensor(name)
    assert torch.equal(weights.ops.product(x, weight), x @ weight.float())


def test_float_weights_and_bank_are_the_reference(tmp_path: Path) -> None:
    model = tiny.make("deepseek_v3", router_bias=-0.2)
    checkpoint = Checkpoint(tiny.save(model, tmp_path, dtype=torch.float32, shards=3))
    config = model.config
    assert config.moe is not None
    weights = FloatWeights(checkpoint)
    ours = registry.build(config, weights, FloatBank(weights, config.moe.layers, config.moe.num_experts))
    tokens = tiny.tokens(14)
    assert tiny.difference(tiny.run_steps(ours, tokens, [5, 1]), tiny.reference_logits(model, tokens)) < 1e-4


def test_a_bfloat16_cache_stays_close(tmp_path: Path) -> None:
    model, store = stored("deepseek_v3", tmp_path)
    config = model.config
    assert config.moe is not None
    ours = registry.build(config, StoreWeights(store), CpuBank(store, config.moe.layers, config.moe.num_experts))
    tokens = tiny.tokens(14)
    exact = tiny.run_steps(ours, tokens, [1])
    rounded = tiny.run_steps(ours, tokens, [1], dtype=torch.bfloat16)
    assert 0 < tiny.difference(rounded, exact) < 3e-2
    cache = RowCache(config.cache_layers, config.cache_width, 16, torch.bfloat16)
    assert cache.token_nbytes == 2 * config.num_layers * (16 + 4)


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "llama", "qwen3"])
@pytest.mark.parametrize("kind", ["float32", "bf16", "int8"])
def test_fused_layers_are_the_plain_ones(tmp_path: Path, model_type: str, kind: str) -> None:
    _, store = stored(model_type, tmp_path)
    config = registry.parse_config(tiny.make(model_type).raw)
    mla = isinstance(config.attention, MlaConfig)
    if kind == "int8" and not mla:
        pytest.skip("int8 rows are of latent attention")
    bank = CpuBank(store, config.moe.layers, config.moe.num_experts) if config.moe else None
    tokens, results = tiny.tokens(14), []
    for kernel_rows in (0, 8):
        model = registry.build(config, StoreWeights(store), bank, kernel_rows=kernel_rows)
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        latent = config.attention.kv_lora_rank if kind == "int8" and isinstance(config.attention, MlaConfig) else None
        cache = RowCache(config.cache_layers, config.cache_width, 16, dtype, latent=latent)
        parts = []
        with torch.inference_mode():
            for size in (6, 1, 2, 5):
                part = tokens[cache.length : cache.length + size]
                hidden_TD, logits_TV = model.step(part, cache)
                again_TD, token_T, logit_T = model.likeliest(part, cache)
                assert torch.equal(again_TD, hidden_TD)
                assert torch.equal(token_T, logits_TV.argmax(1)) and torch.equal(logit_T, logits_TV.amax(1))
                parts.append(logits_TV)
                cache.commit(part.tolist())
        results.append(torch.cat(parts))
    assert 0 < tiny.difference(results[1], results[0]) < (2e-3 if kind == "float32" else 3e-2)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe_lite"])
def test_guesses_in_one_call_are_those_one_by_one(tmp_path: Path, family: str) -> None:
    model, store = store_of(tiny.with_mtp(family), tmp_path, mtp=True)
    config = model.config
    bank = CpuBank(store, registry.expert_layers(config, True), config.moe.num_experts) if config.moe else None
    main = registry.build(config, StoreWeights(store), bank)
    mtps = [registry.build_mtp(config, StoreWeights(store), bank, main, kernel_rows=rows) for rows in (8, 0)]
    if mtps[0].fused is None:
        pytest.skip("no integer vector path on this processor")
    tokens = tiny.tokens(4).tolist()
    hidden_TD = torch.randn(4, config.hidden, generator=torch.manual_seed(0))

    def new_cache() -> RowCache:
        return RowCache(1, config.cache_width, 16, torch.float32, config.num_layers)

    with torch.inference_mode():
        at_once, carried_1D = mtps[0].guesses(tokens, hidden_TD, new_cache(), 5)
        cache, pairs, state = new_cache(), tokens, hidden_TD
        one_by_one: list[int] = []
        for _ in range(5):
            guessed, after_1D = mtps[0].guesses(pairs, state, cache, 1)
            if not one_by_one:
                plain_1D = mtps[1].guesses(tokens, hidden_TD, new_cache(), 5)[1]
                assert 0 < tiny.difference(after_1D, plain_1D) < 3e-2
            cache.commit(pairs)
            one_by_one, pairs, state = one_by_one + guessed, guessed, after_1D
    assert at_once == one_by_one
    torch.testing.assert_close(carried_1D, state)


@pytest.mark.parametrize(("latent", "tolerance"), [(None, 3e-2), (16, 1e-1)], ids=["bf16", "int8"])
def test_many_rows_through_the_latent_kernel_are_those_of_matrix_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latent: int | None, tolerance: float
) -> None:
    """Of all layers together; where bytes are multiplied, queries and weights are rounded to bytes in each."""
    _, store = stored("deepseek_v2", tmp_path)
    config = registry.parse_config(tiny.make("deepseek_v2").raw)
    bank = CpuBank(store, config.moe.layers, config.moe.num_experts) if config.moe else None
    monkeypatch.setattr(LatentAttention, "_cheapest", lambda self, rows, cache_SW: self._by_kernel)
    monkeypatch.setattr("localr1.model.mla.ABSORBED_VALUES", 4 * 16 * 10)  # ten rows of four heads at once
    results = []
    for way in ("kernel", "products"):
        cache = RowCache(config.cache_layers, config.cache_width, 40, torch.bfloat16, latent=latent)
        model, tokens, parts = registry.build(config, StoreWeights(store), bank, kernel_rows=1), tiny.tokens(40), []
        if way == "products":
            monkeypatch.setattr(LatentAttention, "_cheapest", lambda self, rows, cache_SW: self._expanded)
        with torch.inference_mode():
            for part in (tokens[:23], tokens[23:]):
                parts.append(model.logits(model.forward(part, cache)))
                cache.commit(part.tolist())
        results.append(torch.cat(parts))
    assert 0 < tiny.difference(results[0], results[1]) < tolerance
