"""Cache rows of latents as the compiled kernels keep them, made and read with numpy alone."""

import numpy as np

from localr1.kernels import reference
from tests.kernels.test_cpu import bfloat16


def latent_bytes(row_W, C):
    """A row as `kernels.cache_rows` lays int8 latents out."""
    scale = np.float32(np.abs(row_W[:C]).max() / 127)
    latent = np.round(row_W[:C] / (scale or 1)).astype(np.int8).tobytes() + b"\0" * (C % 2)
    return np.frombuffer(latent + bfloat16(row_W[C:].copy()).tobytes() + scale.tobytes(), np.int8)


def numbers_of(cache, C):
    """The numbers of such rows, or of bfloat16 or float32 ones, in float64 where they were int8."""
    if cache.dtype != np.int8:
        return reference.widen(cache)
    scale, start = cache[:, -4:].copy().view(np.float32), C + C % 2
    return np.hstack(
        (cache[:, :C] * scale.astype(np.float64), reference.widen(cache[:, start:-4].copy().view(np.uint16)))
    )
