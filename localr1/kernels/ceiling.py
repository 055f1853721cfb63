"""The plainest streaming read: the ceiling that every memory-bound kernel is measured against.

Owns no meaning. Each thread reads in as many places at once as its processor does best with (see `features.streams`).
Invariant: each byte is loaded once, by vector loads, and nothing is written.
"""

import numpy as np
from numba import prange

from localr1.kernels.intrinsics import read_kilobytes
from localr1.kernels.jit import address_of, compiled


@compiled(parallel=True)
def read(bytes_N, threads):  # type: ignore[no-untyped-def]
    """Read the whole kilobytes of an int8 array once, each thread its own stretch."""
    totals = np.zeros(threads * 8, np.int64)  # a cache line for each thread
    kilobytes = bytes_N.size // 1024
    for n in prange(threads):
        first, last = n * kilobytes // threads, (n + 1) * kilobytes // threads
        read_kilobytes(address_of(bytes_N) + first * 1024, last - first, address_of(totals) + n * 64)
    return totals.sum() + bytes_N[0]
