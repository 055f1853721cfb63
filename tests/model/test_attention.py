"""The ways to compute attention agree with each other, whatever the block sizes and the cache's dtype."""

import pytest
import torch

from localr1.decode.cache import RowCache
from localr1.model import attention, mla
from tests.model import parity
from tests.model.parity import Case
from tests.model.test_deepseek_v3 import MSCALE
from tests.tiny import FloatCache, build_float, difference, run_steps, tokens

MLA = Case("deepseek_v3", {"rope_parameters": MSCALE, "v_head_dim": 12})
GQA = Case("llama", {"head_dim": 12})
MLA_LATENT = 16
STEPS = [[24], [13, 9, 2], [1], [3, 2, 4]]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("absorbed", [True, False])
def test_absorbed_and_expanded_both_equal_transformers(absorbed, steps, monkeypatch):
    way = mla.LatentAttention._absorbed if absorbed else mla.LatentAttention._expanded
    monkeypatch.setattr(mla.LatentAttention, "_cheapest", lambda self, rows, cache_SW: way.__get__(self))
    tiny, token_T, theirs_TV = parity.model(MLA)
    assert difference(run_steps(build_float(tiny), token_T, steps), theirs_TV) < parity.TOLERANCE


@pytest.mark.parametrize("case", [MLA, GQA])
@pytest.mark.parametrize("scores", [1, 100, 900])
@pytest.mark.parametrize("stretch", [1, 7, 4096])
def test_block_sizes_do_not_change_the_numbers(case, scores, stretch, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_SCORES", scores)
    monkeypatch.setattr(attention, "STRETCH_ROWS", stretch)
    monkeypatch.setattr(mla, "EXPANDED_VALUES", scores)
    tiny, token_T, theirs_TV = parity.model(case)
    for steps in ([24], [13, 9, 2]):
        assert difference(run_steps(build_float(tiny), token_T, steps), theirs_TV) < parity.TOLERANCE


@pytest.mark.parametrize("case", [MLA, GQA])
@pytest.mark.parametrize("kernel_rows", [0, 8])
def test_a_bfloat16_cache_costs_little(case, kernel_rows):
    tiny, token_T, theirs_TV = parity.model(case)
    for steps in STEPS:
        ours_TV = run_steps(build_float(tiny, kernel_rows), token_T, steps, dtype=torch.bfloat16)
        assert parity.TOLERANCE < difference(ours_TV, theirs_TV) < 0.03


@pytest.mark.parametrize("case", [MLA, GQA])
def test_kernels_and_torch_read_the_same_bfloat16_cache(case):
    tiny, token_T, _ = parity.model(case)
    torch_TV, kernel_TV = (run_steps(build_float(tiny, rows), token_T, [3, 2], torch.bfloat16) for rows in (0, 8))
    # A last-bit difference before rounding to bfloat16 can flip a cache value by 1/256 of itself.
    assert difference(kernel_TV, torch_TV) < 5e-3


@pytest.mark.parametrize("case", [MLA, GQA])
def test_a_forward_commits_nothing(case):
    tiny, token_T, _ = parity.model(case)
    model, cache = build_float(tiny), FloatCache(tiny.config.cache_width)
    with torch.inference_mode():
        first_TD = model.forward(token_T[:5], cache)
        assert cache.length == 0
        assert torch.equal(model.forward(token_T[:5], cache), first_TD)
        assert sorted(cache.layers) == list(range(tiny.config.cache_layers))


@pytest.mark.parametrize("case", [MLA, GQA])
def test_later_tokens_do_not_change_earlier_ones(case):
    tiny, token_T, theirs_TV = parity.model(case)
    changed_T = torch.cat((token_T[:10], tokens(14, seed=9)))
    ours_TV = run_steps(build_float(tiny), changed_T, [24])
    assert difference(ours_TV[:10], theirs_TV[:10]) < parity.TOLERANCE
    assert difference(ours_TV[10:], theirs_TV[10:]) > 10 * parity.TOLERANCE


@pytest.mark.parametrize(
    ("rows", "cached", "rate", "way"),
    [
        (9, 9, 0, "expanded"),
        (9, 4096, 0, "absorbed"),
        (512, 4096, 0, "expanded"),
        (512, 512, 2.5, "expanded"),
        (512, 4096, 2.5, "by_kernel"),
        (9, 4096, 2.5, "by_kernel"),
    ],
)
def test_the_way_is_chosen_by_its_cost(rows, cached, rate, way, monkeypatch):
    """V2-Lite's widths: 131,072 multiplications a row or a cached token; 1,088 or 320 for each pair of them."""
    tiny, _, _ = parity.model(MLA)
    layer = build_float(tiny, kernel_rows=8).layers[0].attention
    layer.mla = mla.MlaConfig(16, None, 512, 128, 64, 128, bias=False)
    monkeypatch.setattr(type(layer.ops), "latent_rate", lambda self, cache_SW: rate)
    assert layer._cheapest(rows, torch.empty(cached, 576, dtype=torch.bfloat16)) == getattr(layer, f"_{way}")


@pytest.mark.parametrize("stretch", [1, 3, 8, 64])
@pytest.mark.parametrize("scores", [1, 40, 1 << 22])
@pytest.mark.parametrize("rising", [True, False])
def test_a_softmax_over_stretches_is_the_whole_one(rising, scores, stretch, monkeypatch):
    """Scores of up to 100, rising or falling along the cache, of which exponentials alone would overflow."""
    monkeypatch.setattr(attention, "BLOCK_SCORES", scores)
    monkeypatch.setattr(attention, "STRETCH_ROWS", stretch)
    G, T, shared, start, width = 2, 6, 3, 7, 4
    generator, taken = torch.Generator().manual_seed(0), []
    q_GTk = torch.ones(G, T * shared, 1) + torch.rand(G, T * shared, 1, generator=generator)
    height_S = torch.linspace(-100, 100, start + T)
    k_GSk = (height_S if rising else height_S.flip(0)).expand(G, -1)[..., None] / 2
    v_GSv = torch.randn(G, start + T, width, generator=generator)

    def rows(part):
        taken.append(part.stop - part.start)
        return k_GSk[:, part], v_GSv[:, part]

    out_GTv = attention.causal_attention(q_GTk, rows, start, 1.0, shared)
    score_GTS = (q_GTk.double() @ k_GSk.double().transpose(1, 2)).view(G, T, shared, -1)
    behind_TS = torch.arange(start + T) > start + torch.arange(T)[:, None]
    share_GTS = score_GTS.masked_fill(behind_TS[:, None], float("-inf")).softmax(-1).flatten(1, 2)
    torch.testing.assert_close(out_GTv.double(), share_GTS @ v_GSv.double(), atol=1e-5, rtol=1e-4)
    assert max(taken) == min(stretch, start + T) and sum(taken) == start + T


@pytest.mark.parametrize("latent", [None, MLA_LATENT])
def test_latents_are_widened_a_stretch_at_a_time(latent, monkeypatch):
    """So a prefill deep in a context needs no more memory than one near its beginning."""
    tiny, token_T, _ = parity.model(MLA)
    widened, floats, model = [], mla.LatentAttention._floats, build_float(tiny)

    def noted(layer, rows_SW):
        widened.append(len(rows_SW))
        return floats(layer, rows_SW)

    def logits():
        cache, parts = (
            RowCache(tiny.config.cache_layers, tiny.config.cache_width, 24, torch.bfloat16, latent=latent),
            [],
        )
        with torch.inference_mode():
            for part_T in token_T.split(12):
                parts.append(model.logits(model.forward(part_T, cache)))
                cache.commit(part_T.tolist())
        return torch.cat(parts)

    whole_TV = logits()
    monkeypatch.setattr(attention, "STRETCH_ROWS", 5)
    monkeypatch.setattr(mla.LatentAttention, "_floats", noted)
    assert difference(logits(), whole_TV) < 2e-2  # a last-bit difference may flip a rounded row's
    assert max(widened) == 5
