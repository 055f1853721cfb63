"""Activation rows as int16, laid out for the integer products.

Owns the rounding and the layouts: up to FEW rows lie as [chunk][row][CHUNK], so that one pass over a weight row
serves all of them, or in bytes where the processor has products for those (see `byte_products`); more lie as panels of
LANES tokens, [panel][pair][LANES][2]. All are padded with zeros to whole chunks. Long rows in bytes lie in parts: all
rows' first part, then their second.

A row is scaled so that its largest magnitude becomes LARGEST: the error of a product is about 4e-5 of the row's norm.
The scale is a float64, so rows of denormals keep their precision. A row that holds infinity or not-a-number gets a
scale of not-a-number and makes every result of its own not-a-number, and no other's.
"""

import numpy as np

from localr1.kernels.arena import int16s_at, private_room, room_start
from localr1.kernels.byte_products import STEP, split_row
from localr1.kernels.features import BYTE_PRODUCTS, CHUNK, LANES
from localr1.kernels.intrinsics import MAX_ACTIVATION, largest_of_vectors, round_chunks, transpose
from localr1.kernels.jit import (
    address_of,
    bits_of_float,
    compiled,
    float_from_bits,
    floats_at,
    nearest,
    stay_out_of_line,
    used,
)

FEW = 8
"""The most rows that share one pass over a weight row."""

LARGEST = 127 * 256 + 127 if BYTE_PRODUCTS else MAX_ACTIVATION
"""What a row's largest magnitude becomes: two signed bytes of 127, or as large as an int16 can be."""

PART_BYTES = 24 << 10
"""What few rows' parts take together at most: they are to stay in the first-level cache while weights pass through."""

INFINITY_BITS = np.int32(0x7F800000)
MAGNITUDE_BITS = np.int32(0x7FFFFFFF)
SAFE_MAGNITUDE = 1e-30  # below it the reciprocal of a float32 loses its meaning


@compiled(inline=True)
def padded(length):  # type: ignore[no-untyped-def]
    """`length` rounded up to whole chunks."""
    return (length + CHUNK - 1) // CHUNK * CHUNK


@compiled(inline=True)
def steps_of(length):  # type: ignore[no-untyped-def]
    """`length` in steps of a row in bytes."""
    return (length + STEP - 1) // STEP


@compiled(inline=True)
def part_steps(length, rows):  # type: ignore[no-untyped-def]
    """Steps of a part of few rows in bytes, all parts alike but the last; of one row (see `LONG_ROW`), all."""
    steps, most = steps_of(length), max(1, PART_BYTES // (2 * STEP * max(1, rows)))
    if rows == 1:
        return steps
    parts = (steps + most - 1) // most
    return (steps + parts - 1) // parts


@compiled(inline=True)
def few_size(length, rows):  # type: ignore[no-untyped-def]
    """int16 numbers that a packed row takes among few."""
    if not BYTE_PRODUCTS:
        return padded(length)
    steps, part = steps_of(length), part_steps(length, rows)
    return (steps + (steps + part - 1) // part) * STEP


@compiled(inline=True)
def packed_size(rows, length):  # type: ignore[no-untyped-def]
    """int16 numbers that `rows` packed rows take."""
    if rows > FEW:
        return padded(length) * ((rows + LANES - 1) // LANES * LANES)
    return rows * few_size(length, rows)


@compiled(inline=True)
def packed_room(rows, length):  # type: ignore[no-untyped-def]
    """Memory for `rows` packed rows that a thread keeps to itself (see `packed_in`)."""
    return private_room(2 * packed_size(rows, length))


@compiled(inline=True)
def packed_in(room, rows, length):  # type: ignore[no-untyped-def]
    """Packed rows and their scales in such memory, which must be `used` later."""
    return int16s_at(room_start(room), packed_size(rows, length)), np.empty(rows, np.float64)


@compiled()
def largest(x_K):  # type: ignore[no-untyped-def]
    """The largest magnitude of a row; infinity or not-a-number where it holds one."""
    K = x_K.shape[0]
    top = np.zeros(1, np.int32)
    largest_of_vectors(address_of(x_K), K // LANES, address_of(top))
    bits_K = x_K.view(np.int32)
    for i in range(K // LANES * LANES, K):
        top[0] = max(top[0], bits_K[i] & MAGNITUDE_BITS)
    return float_from_bits(top[0])


@compiled()
def round_row(x_at, K, packed, first, stride):  # type: ignore[no-untyped-def]
    """Round a row of K floats into chunks of `packed`, `stride` numbers apart, from `first` on, with zeros after it.

    Returns the row's scale.
    """
    x_K = floats_at(x_at, K)
    whole = K // CHUNK
    top = largest(x_K)
    finite = top <= np.float32(3.4028235e38)
    if top == 0 or not finite:
        for i in range(padded(K) // CHUNK):
            packed[first + i * stride : first + i * stride + CHUNK] = 0
        return 0.0 if finite else np.nan
    times = LARGEST / np.float64(top)
    if top < SAFE_MAGNITUDE:
        whole = 0
    elif whole:
        bits = np.int64(bits_of_float(np.float32(times)))
        round_chunks(x_at, bits, address_of(packed) + 2 * first, 2 * stride, whole)
    for i in range(whole * CHUNK, padded(K)):
        rounded = nearest(np.float32(x_K[i] * times)) if i < K else np.int32(0)
        packed[first + i // CHUNK * stride + i % CHUNK] = np.int16(rounded)
    return np.float64(top) / LARGEST


@compiled()
def pack_words(x_at, K, packed, i, n):  # type: ignore[no-untyped-def]
    """Pack row i of n few rows as int16; returns its scale."""
    return round_row(x_at, K, packed, i * CHUNK, n * CHUNK)


@compiled()
def pack_bytes(x_at, K, packed, i, n):  # type: ignore[no-untyped-def]
    """Pack row i of n few rows in bytes; returns its scale."""
    steps = steps_of(K)
    room = private_room(2 * steps * STEP)
    words = int16s_at(room_start(room), steps * STEP)
    words[padded(K) :] = 0
    scale = round_row(x_at, K, words, 0, CHUNK)
    part = part_steps(K, n)
    for first in range(0, steps, part):
        place = address_of(packed) + 2 * STEP * (n * (first + first // part) + i)
        split_row(address_of(words) + 2 * STEP * first, place, 2 * STEP * n, min(part, steps - first))
    used(room)
    return scale


pack_few = pack_bytes if BYTE_PRODUCTS else pack_words


@compiled()
def pack(x_at, K, token_n, first, n, packed, scale_n):  # type: ignore[no-untyped-def]
    """Pack the rows `token[first + i]`, i < n, of the rows of K floats that lie at `x_at`, into `packed`.

    `scale[first + i]` receives each row's scale.
    """
    stay_out_of_line()
    if n <= FEW:
        for i in range(n):
            scale_n[first + i] = pack_few(x_at + 4 * K * token_n[first + i], K, packed, i, n)
        return
    width = padded(K)
    rows = np.zeros(LANES * width, np.int16)
    for panel in range((n + LANES - 1) // LANES):
        here = min(LANES, n - panel * LANES)
        for i in range(here):
            p = first + panel * LANES + i
            scale_n[p] = round_row(x_at + 4 * K * token_n[p], K, rows, i * width, CHUNK)
        rows[here * width :] = 0
        transpose(address_of(rows), 2 * width, address_of(packed) + 2 * panel * LANES * width, 4 * LANES, width // 2)
