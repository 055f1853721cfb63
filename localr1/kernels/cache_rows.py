"""How cache rows lie in memory, as 16-bit words.

Owns the kinds of rows: 1, bfloat16 numbers; 2, float32 numbers in two words each; 0, a latent of int8 with one scale
for the row: [latent C in C / 2 words | rotary key R bfloat16 | scale float32], where C is even.
"""

import numpy as np

from localr1.kernels.jit import bits_of_float, compiled, copy_numbers, float_from_bits, nearest, widen

INT8, BF16, FLOAT32 = 0, 1, 2


@compiled(inline=True)
def narrow(x):  # type: ignore[no-untyped-def]
    """The bits of the bfloat16 nearest to a float32, ties to even."""
    bits = bits_of_float(x)
    if x != x:
        return np.uint16(0x7FC0)
    return np.uint16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))


@compiled()
def store_numbers(x_W, words, kind):  # type: ignore[no-untyped-def]
    """float32 numbers as bfloat16 or float32."""
    if kind == FLOAT32:
        copy_numbers(x_W, words.view(np.float32))
    else:
        for i in range(x_W.size):
            words[i] = narrow(x_W[i])


@compiled()
def store_latent(x_W, C, words, kind):  # type: ignore[no-untyped-def]
    """A row [latent C | rotary key R] of a kind. The scale of a latent that is not finite is not finite either."""
    if kind != INT8:
        store_numbers(x_W, words, kind)
        return
    top_bits = np.int32(0)  # those of not-a-number are above infinity's
    for c in range(C):
        top_bits = max(top_bits, bits_of_float(x_W[c]) & np.int32(0x7FFFFFFF))
    top = float_from_bits(top_bits)
    times = np.float32(127.0) / top if top > 0 else np.float32(0.0)
    numbers = words.view(np.int8)
    for c in range(C):
        numbers[c] = np.int8(nearest(x_W[c] * times))
    store_numbers(x_W[C:], words[(C + 1) // 2 : words.size - 2], BF16)
    words[words.size - 2 :].view(np.float32)[0] = top / np.float32(127.0)


@compiled()
def widen_latent(words, C, out_W):  # type: ignore[no-untyped-def]
    """A row of int8 latents as float32 numbers [latent C | rotary key R]."""
    numbers, scale = words.view(np.int8), words[words.size - 2 :].view(np.float32)[0]
    for c in range(C):
        out_W[c] = numbers[c] * scale
    for r in range(out_W.size - C):
        out_W[C + r] = widen(words[(C + 1) // 2 + r])
