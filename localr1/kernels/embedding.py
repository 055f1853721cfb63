"""Rows of an int8 matrix as float32: what a few tokens look up."""

import numpy as np

from localr1.kernels.jit import compiled


@compiled()
def embed(q_VD, scb_V, token_T, out_TD):  # type: ignore[no-untyped-def]
    """out = q[token] * scb[token] / 127."""
    for t in range(token_T.size):
        scale = np.float32(scb_V[token_T[t]] / np.float32(127.0))
        row_D = q_VD[token_T[t]]
        for d in range(row_D.size):
            out_TD[t, d] = row_D[d] * scale
