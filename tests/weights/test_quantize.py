"""Int8 rows are bitsandbytes' numbers, and FP8 blocks DeepSeek's."""

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_quant
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.errors import CorruptError
from localr1.weights import quantize
from localr1.weights.fp8 import dequantize_blocks, scale_shape
from localr1.weights.quantize import dequantize_rows, quantize_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_bitsandbytes_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    matrix = torch.randn(37, 51).to(dtype)
    monkeypatch.setattr(quantize, "CHUNK_BYTES", {"cpu": 4 * 51 * 5, "cuda": 4 * 51 * 5})
    rows = quantize_rows(matrix, "m")
    weight, scb, _ = int8_vectorwise_quant(matrix.float())
    assert torch.equal(rows.weight, weight) and torch.equal(rows.scb, scb)
    assert int(rows.weight.min()) >= -127


def test_the_error_is_at_most_half_a_step_a_row() -> None:
    matrix = torch.randn(20, 300) * torch.logspace(-6, 6, 20)[:, None]
    rows = quantize_rows(matrix, "m")
    worst = (dequantize_rows(rows) - matrix).abs().amax(dim=1)
    assert bool((worst <= rows.scb / 254 * 1.0001).all())


def test_rows_of_zeros_and_denormals_become_zeros() -> None:
    matrix = torch.ones(3, 4)
    matrix[0], matrix[1] = 0.0, 1e-40
    rows = quantize_rows(matrix, "m")
    assert rows.weight[:2].abs().max() == 0 and dequantize_rows(rows)[2].tolist() == [1.0] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(bad: float) -> None:
    matrix = torch.ones(3, 4)
    matrix[1, 2] = bad
    with pytest.raises(CorruptError, match=r"lm_head.*row 1"):
        quantize_rows(matrix, "lm_head.weight")


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), block=st.tuples(st.integers(1, 16), st.integers(1, 16)))
def test_fp8_blocks_ragged_at_the_edges(rows: int, columns: int, block: tuple[int, int]) -> None:
    weight = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scale = torch.rand(scale_shape((rows, columns), block)) + 0.1
    result = dequantize_blocks(weight, scale, block)
    for row, column in {(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2), (rows - 1, 0)}:
        expected = weight[row, column].float() * scale[row // block[0], column // block[1]]
        assert result[row, column] == expected
    for first, end in ((0, rows // 2), (rows // 3, rows), (rows - 1, rows)):
        assert torch.equal(dequantize_blocks(weight[first:end], scale, block, first), result[first:end])
