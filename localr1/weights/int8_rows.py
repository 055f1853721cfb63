"""The loop of the 8-bit quantization: one row at a time, in the processor's cache.

Owns the arithmetic, which must give bitsandbytes' numbers to the last bit: q = nearest(w * (127 * (1 / absmax))) with
every operation rounded to float32. So it is compiled without the liberties that the kernels of the forward pass take.
Invariant: a row whose largest magnitude is below `SMALLEST_ABSMAX` becomes zeros; one with a value that is not finite
has a scale that is not finite either.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

SMALLEST_ABSMAX = np.float32(1e-30)
"""Of a row below this nothing can be seen: 127 / absmax would overflow long before it mattered."""
MAGNITUDE = np.int32(0x7FFFFFFF)
UPPER_HALF = np.uint32(16)
"""Where the bits of a bfloat16 stand in a float32."""


def exact(function: F) -> Any:
    """Compiled as it is written, and kept on disk where there is a folder for it."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        return njit(nogil=True, error_model="numpy")(function)


@exact
def quantize(words_OI, weight_OI, scb_O):  # type: ignore[no-untyped-def]
    """Rows of floats, given as their bits (uint16 for bfloat16, uint32 for float32), as int8 rows and their largest
    magnitudes. Of bits without the sign, larger ones mean larger numbers, so the largest is sought among integers.

    Each loop does one thing to numbers of 32 bits: so they become vector instructions. Of mixed widths numba makes 64.
    """
    row = np.empty(words_OI.shape[1], np.int32)
    numbers = row.view(np.float32)
    top = np.empty(1, np.int32)
    for o in range(words_OI.shape[0]):
        if words_OI.itemsize == 2:
            for i in range(row.size):
                row[i] = np.uint32(words_OI[o, i]) << UPPER_HALF
        else:
            for i in range(row.size):
                row[i] = words_OI[o, i]
        largest = np.int32(0)
        for i in range(row.size):
            largest = np.int32(max(largest, np.int32(row[i] & MAGNITUDE)))
        top[0] = largest
        absmax = top.view(np.float32)[0]
        if absmax < SMALLEST_ABSMAX:
            scb_O[o] = np.float32(0.0)
            weight_OI[o, :] = 0
            continue
        scb_O[o] = absmax
        scale = np.float32(127.0) * (np.float32(1.0) / absmax)
        for i in range(row.size):
            row[i] = np.int32(np.rint(numbers[i] * scale))
        for i in range(row.size):
            weight_OI[o, i] = np.int8(row[i])
