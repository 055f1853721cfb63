"""The cache holds rows for exactly the tokens it names."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localr1.decode.cache import RowCache
from localr1.errors import ContextError, OutOfMemoryError
from localr1.model.latent_rows import unpack_latents


def fill(cache: RowCache, tokens: list[int]) -> None:
    """Rows that carry their token, so that a test can see which rows are there."""
    rows = torch.tensor(tokens, dtype=torch.float32)[:, None].expand(-1, 3)
    for layer in range(2):
        cache.append(layer, rows + layer)
    cache.commit(tokens)


def test_append_returns_all_rows_and_changes_no_length() -> None:
    cache = RowCache(2, 3, 8, torch.float32)
    fill(cache, [5, 6])
    rows = cache.append(1, torch.full((2, 3), 9.0))
    assert rows[:, 0].tolist() == [6, 7, 9, 9] and cache.length == 2


def test_bytes_are_those_of_the_rows() -> None:
    cache = RowCache(27, 576, 8, torch.bfloat16)
    assert cache.token_nbytes == 31_104, "V2-Lite's latent cache a token (facts: 31,104 B)"
    cache.commit([1, 2, 3])
    assert cache.nbytes == 3 * 31_104


@pytest.mark.parametrize(("latent", "width"), [(64, 80), (7, 10), (1, 3)])
def test_int8_latents_keep_their_numbers_and_take_little_over_half(latent: int, width: int) -> None:
    row_TW = torch.randn(5, width, generator=torch.Generator().manual_seed(latent))
    row_TW[3, :latent] = 0
    cache = RowCache(1, width, 8, torch.bfloat16, latent=latent)
    stored = cache.append(0, row_TW)
    back = unpack_latents(stored, latent, width)
    assert torch.equal(torch.cat([unpack_latents(row[None], latent, width) for row in stored]), back)
    step_T1 = row_TW[:, :latent].abs().amax(dim=1, keepdim=True) / 127
    assert ((back - row_TW)[:, :latent].abs() <= 0.501 * step_T1).all()
    assert torch.equal(back[:, latent:], row_TW[:, latent:].bfloat16().float())
    assert RowCache(27, 576, 8, torch.bfloat16, latent=512).token_nbytes == 27 * (512 + 2 * 64 + 4)
    assert cache.rows(range(1), 2).shape == (1, 2, cache.token_nbytes)


def test_past_the_capacity_is_a_context_error_with_the_numbers() -> None:
    cache = RowCache(1, 1, 4, torch.float32)
    with pytest.raises(ContextError, match=r"4 tokens, 5"):
        cache.append(0, torch.zeros(5, 1))


@given(held=st.lists(st.integers(0, 3), max_size=8), prompt=st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_the_common_prefix_is_kept_less_the_last_prompt_token(held: list[int], prompt: list[int]) -> None:
    cache = RowCache(2, 3, 16, torch.float32)
    if held:
        fill(cache, held)
    kept = cache.keep_prefix(prompt)
    assert list(cache.tokens) == held[:kept] == prompt[:kept] and kept < len(prompt)
    longer = kept + 1
    assert longer >= len(prompt) or longer > len(held) or held[:longer] != prompt[:longer]


def test_a_context_that_ram_cannot_hold_is_refused_with_what_it_needs() -> None:
    with pytest.raises(OutOfMemoryError, match=r"1,000,000,000,000 tokens needs 31,104,000\.0 GB") as refused:
        RowCache(27, 576, 10**12, torch.bfloat16)
    assert "--context" in refused.value.hint
