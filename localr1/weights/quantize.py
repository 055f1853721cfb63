"""Eight bits a weight: bitsandbytes' row-wise int8.

Owns the format: for a matrix [O, I], `SCB` float32 [O] is each row's largest magnitude and q = round(127 w / SCB) as
int8, never -128, so w ~ q * SCB / 127 (LLM.int8(), arXiv 2208.07339, without the outlier columns). bitsandbytes does
the quantizing where there is a GPU that can; on a CPU `int8_rows` does, with the same numbers.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from localr1.errors import CorruptError


class Int8Rows(NamedTuple):
    """A matrix as int8 rows: `weight` int8 [O, I] and `scb` float32 [O]."""

    weight: Tensor
    scb: Tensor


CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Of a matrix in float32, what is quantized at once: what a CPU's cache holds, and enough to fill a GPU."""
OLDEST_CAPABILITY = (7, 5)
"""Of a GPU: for older ones newer torch and bitsandbytes have no kernels, and bitsandbytes then ends the process."""
SMALLEST_ABSMAX = 1e-30
LEAST_ABSMAX_ON_GPU = 2.0**-7
"""Where a row of bfloat16 has nothing larger, what float16 rounds may come to another step of the eight bits."""


def quantize_rows(matrix_OI: Tensor, name: str) -> Int8Rows:
    """Quantize a float matrix, whose `name` is for messages. Raises CorruptError as `int8_chunks` does."""
    scb = torch.empty(matrix_OI.shape[0], dtype=torch.float32)
    chunks = int8_chunks(matrix_OI.shape, lambda start, end: matrix_OI[start:end], name, scb)
    weight = torch.cat([chunk.clone() for chunk in chunks])
    return Int8Rows(weight, scb)


def int8_chunks(
    shape: tuple[int, ...], rows_of: Callable[[int, int], Tensor], name: str, scb_O: Tensor
) -> Iterator[Tensor]:
    """The int8 rows of a float matrix, some at a time; fills `scb_O`. Each chunk lies where the one before it lay.

    `rows_of(start, end)` gives some rows of the matrix, so that the peak memory is one chunk, however large it is, and
    what is quantized is still in the cache that it was read into. Raises CorruptError when the matrix holds a NaN or an
    infinity.
    """
    rows, columns = shape
    device, quantize = ("cuda", _on_gpu) if _gpu().quantizes else ("cpu", _on_cpu)
    chunk_rows = max(1, CHUNK_BYTES[device] // (4 * max(columns, 1)))
    weight = torch.empty(min(chunk_rows, rows), columns, dtype=torch.int8)
    for start in range(0, rows, chunk_rows):
        end = min(start + chunk_rows, rows)
        chunk = Int8Rows(weight[: end - start], scb_O[start:end])
        quantize(rows_of(start, end), chunk)
        if not bool(torch.isfinite(chunk.scb).all()):
            row = start + int((~torch.isfinite(chunk.scb)).nonzero()[0])
            raise not_finite(name, f" (row {row})")
        yield chunk.weight


def not_finite(name: str, where: str = "") -> CorruptError:
    """The error for a NaN or an infinity, which would be in all that the model says."""
    return CorruptError(f"{name} holds a value that is not finite{where}", "download the checkpoint again")


def _on_cpu(matrix_OI: Tensor, into: Int8Rows) -> None:
    """By a loop of ours, fifteen times as fast as bitsandbytes' own way on a CPU, for the same numbers."""
    from localr1.weights.int8_rows import quantize

    if matrix_OI.dtype != torch.bfloat16:
        matrix_OI = matrix_OI.to(torch.float32)
    words = matrix_OI.contiguous().view(torch.uint16 if matrix_OI.dtype == torch.bfloat16 else torch.uint32)
    quantize(words.numpy(), into.weight.numpy(), into.scb.numpy())


class Gpu:
    """The GPU as long as it is of use: it is as new as bitsandbytes needs, and has not failed."""

    failed = False

    @property
    def quantizes(self) -> bool:
        if not self.failed and torch.cuda.is_available():
            with suppress(RuntimeError):
                return torch.cuda.get_device_capability() >= OLDEST_CAPABILITY
        return False


@cache
def _gpu() -> Gpu:
    return Gpu()


def _on_gpu(matrix_OI: Tensor, into: Int8Rows) -> None:
    """On the CPU after all where the GPU fails, as it does when its memory is full, and where the float16 that it takes
    does not hold the rows as they are."""
    if not _gpu().failed and matrix_OI.dtype in (torch.bfloat16, torch.float16):
        try:
            quantized, scb, _ = _bitsandbytes_quant()(matrix_OI.to("cuda", torch.float16))
            into.weight.copy_(quantized)
            into.scb.copy_(scb)
            if bool((torch.isfinite(into.scb) & (into.scb >= LEAST_ABSMAX_ON_GPU)).all()):
                return
        except RuntimeError:
            _gpu().failed = True
    _on_cpu(matrix_OI, into)


@cache
def _bitsandbytes_quant() -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]:
    """Imported late: it takes a second that only a conversion should pay. What it logs is not for users."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes.functional import int8_vectorwise_quant

    return int8_vectorwise_quant  # type: ignore[no-any-return]


def round_rows(matrix_OI: Tensor) -> Int8Rows:
    """The same format in plain torch, for a small matrix that a store keeps in float and a kernel wants in int8."""
    matrix_OI = matrix_OI.to(torch.float32)
    scb = matrix_OI.abs().amax(dim=1).clamp(min=SMALLEST_ABSMAX)
    return Int8Rows((matrix_OI * (127.0 / scb)[:, None]).round().to(torch.int8), scb)


def dequantize_rows(rows: Int8Rows) -> Tensor:
    """The float32 matrix [O, I] that int8 rows stand for."""
    return rows.weight.to(torch.float32) * (rows.scb / 127.0)[:, None]
