"""Int8 rows are bitsandbytes' numbers, and FP8 blocks DeepSeek's."""

from functools import cache

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


@pytest.mark.parametrize(("capability", "tries"), [((6, 1), 0), ((8, 9), 1)])
def test_an_old_gpu_is_left_alone_and_one_that_fails_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], tries: int
) -> None:
    tried: list[object] = []

    def fail() -> None:
        tried.append(None)
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    matrix = torch.randn(9, 8).bfloat16()
    weight, scb, _ = int8_vectorwise_quant(matrix.float())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(quantize, "_bitsandbytes_quant", fail)
    monkeypatch.setattr(quantize, "_gpu", cache(quantize.Gpu))
    monkeypatch.setattr(quantize, "CHUNK_BYTES", {"cpu": 4 * 8 * 4, "cuda": 4 * 8 * 4})
    for _ in range(2):
        rows = quantize_rows(matrix, "m")
        assert torch.equal(rows.weight, weight) and torch.equal(rows.scb, scb)
    assert len(tried) == tries


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float32), (1e5, torch.bfloat16), (1e-4, torch.bfloat16)])
def test_what_a_gpus_float16_does_not_hold_is_quantized_from_what_it_is(
    monkeypatch: pytest.MonkeyPatch, scale: float, dtype: torch.dtype
) -> None:
    matrix = (torch.randn(9, 64) * scale).to(dtype)
    expected = quantize_rows(matrix, "m")
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda one, *wanted: to(one, *(w for w in wanted if w != "cuda")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(quantize, "_bitsandbytes_quant", lambda: int8_vectorwise_quant)
    monkeypatch.setattr(quantize, "_gpu", cache(quantize.Gpu))
    rows = quantize_rows(matrix, "m")
    assert torch.equal(rows.weight, expected.weight) and torch.equal(rows.scb, expected.scb)


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
