"""The GPU kernels' cases: ragged inputs, and each kernel's result beside the specification's.

Shared by the runs in Triton's interpreter, in torch operations, and on a real device.
"""

import numpy as np
import torch

from localr1.kernels import reference
from localr1.kernels.gpu import Kernels

LINEAR = [(1, 257, 33), (2, 64, 40), (3, 100, 17), (8, 129, 21), (11, 96, 50)]
"""T, D, O."""
ROUTED = [(1, 48, 33, 5, 3), (3, 40, 24, 6, 2), (6, 33, 9, 4, 2), (45, 48, 40, 6, 3)]
"""T, D, F, E, K."""
MLA = [(1, 4, 24, 8, 5), (3, 3, 16, 4, 70), (2, 20, 40, 8, 33)]
"""T, H, C, R, rows committed before."""
GQA = [(1, 4, 2, 16, 9), (2, 6, 3, 12, 100)]
"""T, H, G, d, rows committed before."""


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-127, 128, shape).astype(np.int8)


def on(device: str, *arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array.copy()).to(device) for array in arrays]


def error(got: torch.Tensor, want: np.ndarray) -> float:
    """The largest difference over the largest value; infinite where not finite."""
    value = np.abs(got.cpu().numpy() - want).max() / max(np.abs(want).max(), 1e-30)
    return float(value) if np.isfinite(value) else float("inf")


def linear(kernels: Kernels, device: str, T: int, D: int, O: int) -> float:  # noqa: E741
    rng = np.random.default_rng(T * D)
    x, q, scb = numbers(rng, T, D), weights(rng, O, D), rng.uniform(0.1, 3, O).astype(np.float32)
    want = np.empty((T, O))
    reference.linear(x, q, scb, want)
    return error(kernels.linear(*on(device, x, q, scb)), want)


def routed_ffn(kernels: Kernels, device: str, T: int, D: int, F: int, E: int, K: int, absent: float = 0.3) -> float:
    """Experts lie in shuffled slots of a larger slab full of other numbers; some have none, some choices are -1."""
    rng = np.random.default_rng(T + D)
    x, experts = numbers(rng, T, D), weights(rng, E, 3 * D * F)
    scb = (rng.uniform(0.5, 2.0, (E, 2 * F + D)) / np.sqrt(D)).astype(np.float32)
    expert = np.stack([rng.permutation(E)[:K] for _ in range(T)]).astype(np.int64)
    expert[rng.random(expert.shape) < 0.1] = -1
    weight = rng.random((T, K), np.float32)
    present = rng.random(E) >= absent
    slot = np.where(present, rng.permutation(E + 3)[:E], -1).astype(np.int32)
    slab, scales = weights(rng, E + 3, 3 * D * F), numbers(rng, E + 3, 2 * F + D)
    slab[slot[present]], scales[slot[present]] = experts[present], scb[present]
    want = np.empty((T, D))
    chosen = np.where((expert >= 0) & present[expert], expert, -1)
    reference.routed_ffn(x, experts, scb, chosen, weight, want)
    return error(kernels.routed_ffn(*on(device, x, slab, scales, slot, expert, weight)), want)


def mla(kernels: Kernels, device: str, T: int, H: int, C: int, R: int, start: int, held: bool, half: bool) -> float:
    """With `held` the start lies on the device, and the cache has room behind the rows that may be seen."""
    rng = np.random.default_rng(start)
    q_c, q_r, cache = numbers(rng, T, H, C), numbers(rng, T, H, R), numbers(rng, start + T, C + R)
    rows = cached(cache, half, held, device)
    want = np.empty((T, H, C))
    reference.mla_attention(q_c, q_r, rows[: start + T].float().cpu().numpy(), start, 0.3, want)
    at = torch.tensor([start], device=device) if held else start
    return error(kernels.mla_attention(*on(device, q_c, q_r), rows, at, 0.3), want)


def gqa(kernels: Kernels, device: str, T: int, H: int, G: int, d: int, start: int, held: bool, half: bool) -> float:
    rng = np.random.default_rng(start)
    q, cache = numbers(rng, T, H, d), numbers(rng, start + T, 2 * G * d)
    rows = cached(cache, half, held, device)
    want = np.empty((T, H, d))
    reference.gqa_attention(q, rows[: start + T].float().cpu().numpy(), G, start, 0.3, want)
    at = torch.tensor([start], device=device) if held else start
    return error(kernels.gqa_attention(*on(device, q), rows, G, at, 0.3), want)


def cached(cache: np.ndarray, half: bool, held: bool, device: str) -> torch.Tensor:
    behind = np.full((40 if held else 0, cache.shape[1]), np.nan, np.float32)
    rows = torch.from_numpy(np.concatenate([cache, behind]))
    return rows.to(torch.bfloat16 if half else torch.float32).to(device)


def rms_norm(kernels: Kernels, device: str) -> float:
    """Rows that are part of wider ones, as MLA's latent is of the projection's."""
    rng = np.random.default_rng(0)
    x, weight = numbers(rng, 5, 70), numbers(rng, 50)
    want = np.empty((5, 50))
    reference.rms_norm(x[:, :50], weight, 1e-5, want)
    wide, scale = on(device, x, weight)
    heads = kernels.rms_norm(wide[:, :50].reshape(1, 5, 50), scale, 1e-5)[0]
    return max(error(kernels.rms_norm(wide[:, :50], scale, 1e-5), want), error(heads, want))
