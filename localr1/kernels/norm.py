"""The root-mean-square norm of a few rows: too little work to share out, so it runs where it is called."""

import numpy as np

from localr1.kernels.jit import compiled


@compiled()
def normed(x_D, weight_D, eps, out_D):  # type: ignore[no-untyped-def]
    """One row of `rms_norm`."""
    total = np.float32(0.0)
    for d in range(x_D.size):
        total += x_D[d] * x_D[d]
    scale = np.float32(1.0 / np.sqrt(total / x_D.size + eps))
    for d in range(x_D.size):
        out_D[d] = x_D[d] * scale * weight_D[d]


@compiled()
def rms_norm(x_TD, weight_D, eps, out_TD):  # type: ignore[no-untyped-def]
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row (arXiv 1910.07467), in float32."""
    for t in range(x_TD.shape[0]):
        normed(x_TD[t], weight_D, eps, out_TD[t])
