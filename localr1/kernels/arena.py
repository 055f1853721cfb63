"""Room for what a job needs between its phases, carved out of one buffer that all calls share.

Owns the views. A job carves the same room in the same order on every thread; where the buffer's address is 0 it carves
nothing, and learns how many bytes it takes. What a thread needs for itself is `private_room`.
"""

import numpy as np
from numba import types

from localr1.kernels.jit import address_of, compiled, stack_at, viewing

LINE_BYTES = 64

int64s_at, int16s_at, doubles_at = viewing(types.int64), viewing(types.int16), viewing(types.float64)
rows_at, cube_at, block_at = viewing(types.float32, 2), viewing(types.float32, 3), viewing(types.float32, 4)
line_at = viewing(types.float32)
bytes_at = viewing(types.int8)
indices_at, cache_at = viewing(types.int64, 2), viewing(types.uint16, 2)


@compiled(inline=True)
def line_start(at):  # type: ignore[no-untyped-def]
    """The first start of a cache line from an address on: vectors that lie across two take twice as long to load."""
    return (at + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES


MOST_ON_STACK = 64 << 10
"""Bytes of a private room that the smallest stacks have room for a few times: other systems' threads have 512 KiB."""


@compiled(inline=True)
def private_room(size):  # type: ignore[no-untyped-def]
    """Memory of so many bytes, from `room_start` on, that a thread keeps to itself until the function that asks for it
    returns, where it must be `used`. Threads that allocate at the same time wait for each other; a stack each has."""
    if size <= MOST_ON_STACK:
        return bytes_at(stack_at(size + LINE_BYTES), size + LINE_BYTES)
    return np.empty(size + LINE_BYTES, np.int8)


@compiled(inline=True)
def room_start(room):  # type: ignore[no-untyped-def]
    """Where a private room begins: at the start of a cache line."""
    return line_start(address_of(room))


@compiled(inline=True)
def after(at, numbers, item_bytes):  # type: ignore[no-untyped-def]
    """The address behind so many numbers, at the start of a cache line."""
    return at + (numbers * item_bytes + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES
