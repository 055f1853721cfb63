"""What this processor can do, as the compiler will see it: the vector width everything else is laid out by.

Owns the choice alone. It follows numba's own target (so `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` choose a narrower
path, and numba's disk cache keeps each apart). Invariant: constant for the life of the process.
"""

import llvmlite.binding as llvm
from numba.core import config


def target_features() -> set[str]:
    """The names of the features that numba compiles for, in LLVM's spelling."""
    if config.CPU_FEATURES is not None:
        return {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}
    return {name for name, present in llvm.get_host_cpu_features().items() if present}


def target_processor() -> str:
    """What numba compiles for, by LLVM's name, such as `znver4`."""
    return str(config.CPU_NAME or llvm.get_host_cpu_name())


def vector_bits(features: set[str]) -> int:
    """The width of the 16-bit multiply-add that the kernels use: 512, 256, or 0 where there is none."""
    if {"avx512f", "avx512bw", "avx512vl"} <= features:
        return 512
    return 256 if {"avx2", "fma"} <= features else 0


def has_byte_products(features: set[str]) -> bool:
    """Whether vectors of 512 bits multiply unsigned by signed bytes."""
    return vector_bits(features) == 512 and "avx512vnni" in features


def streams(processor: str) -> int:
    """In how many places at once a core should read memory that it streams through. Ice Lake reads 20 GB/s in one place
    and 26 in eight; with two Zen 4 has half of what one gives."""
    return 1 if processor.startswith("znver") else 8


BITS = vector_bits(target_features())
BYTE_PRODUCTS = has_byte_products(target_features())
STREAMS = streams(target_processor())
APART = STREAMS > 1
"""Whether weight rows that are taken at once lie apart, each in a stretch of its own. Next to each other, short ones
lie in one page of memory, and what the processor reads ahead is one stream."""

LANES = max(BITS, 128) // 32
"""Floats, or int32 sums, in a vector."""

CHUNK = 2 * LANES
"""int16 numbers in a vector: the unit of a packed activation row."""

STREAM_AHEAD_BYTES = 512
"""How far ahead in each of several streams memory is asked for, into the second-level cache."""

SUMS = 16 if BITS == 512 else 12
"""Vectors of sums that a loop over weight or cache rows keeps at most: of 16 registers, some hold what it adds."""
