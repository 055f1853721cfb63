"""The GPU kernels' cases: ragged inputs, and each kernel's result beside the specification's.

Shared by the runs in Triton's interpreter, in torch operations, and on a real device.
"""

from collections.abc import Callable

import numpy as np
import torch

from localr1.kernels import reference
from localr1.kernels.gpu import Gated, Kernels

LINEAR = [(1, 257, 33), (2, 64, 40), (3, 100, 17), (8, 129, 21), (11, 96, 50)]
"""T, D, O."""
ROUTED = [(1, 48, 33, 5, 3), (3, 40, 24, 6, 2), (6, 33, 9, 4, 2), (45, 48, 40, 6, 3)]
"""T, D, F, E, K."""
DENSE = [(1, 48, 33), (8, 20, 24), (13, 33, 24), (300, 24, 20)]
"""T, D, F."""
MLA = [(1, 4, 24, 8, 5), (3, 3, 16, 4, 70), (2, 20, 40, 8, 33)]
"""T, H, C, R, rows committed before."""
GQA = [(1, 4, 2, 16, 9), (2, 6, 3, 12, 100)]
"""T, H, G, d, rows committed before."""

PRODUCT = [(1, 3, 20, 70), (2, 2, 130, 24), (8, 1, 5, 5), (11, 2, 16, 8)]
"""T, H, N, O."""
FRONT = [(1, 4, 2, 24, 8), (3, 3, 1, 20, 6), (12, 2, 2, 16, 2)]
"""T, H, G, C, R."""
ROUTE = [(1, 40, 12, 4), (3, 33, 64, 6), (8, 20, 5, 5), (19, 24, 9, 1)]
"""T, D, E, K."""


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


def linear(kernels: Kernels, device: str, T: int, D: int, O: int, biased: bool = False) -> float:  # noqa: E741
    """With a bias also onto other numbers, which stay as they are."""
    rng = np.random.default_rng(T * D)
    x, q, scb = numbers(rng, T, D), weights(rng, O, D), rng.uniform(0.1, 3, O).astype(np.float32)
    bias, base = 10 * numbers(rng, O), 10 * numbers(rng, T, O)
    want = np.empty((T, O))
    reference.linear(x, q, scb, want)
    if not biased:
        return error(kernels.linear(*on(device, x, q, scb)), want)
    onto = on(device, base)[0]
    alone = error(kernels.linear(*on(device, x, q, scb, bias)), want + bias)
    both = error(kernels.linear(*on(device, x, q, scb, bias), onto), want + bias + base)
    return max(alone, both, error(onto, base))


def head_product(kernels: Kernels, device: str, T: int, H: int, N: int, O: int, turned: bool, half: bool) -> float:  # noqa: E741
    """Of queries that are part of longer ones, in rows that hold more; the matrices are part of wider ones, as they lie
    or transposed."""
    rng = np.random.default_rng(T + N)
    x = torch.from_numpy(numbers(rng, T, H * (N + 3) + 7)).to(device)[:, :-7].unflatten(1, (H, -1))[..., :N]
    weight = torch.from_numpy(numbers(rng, H, *((O + 2, N) if turned else (N + 2, O))))
    weight = weight.to(torch.float16 if half else torch.float32).to(device)
    weight = weight[:, 2:].transpose(1, 2) if turned else weight[:, 2:]
    want = np.empty((T, H, O))
    reference.head_product(x.cpu().numpy(), weight.cpu().numpy(), want)
    return error(kernels.head_product(x, weight), want)


def tables(rng: np.random.Generator, T: int, R: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angles [T, P] and their tables [T, R]."""
    angle = rng.uniform(-np.pi, np.pi, (T, R // 2)).astype(np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    return angle, np.concatenate([cos, cos], axis=1), np.concatenate([-sin, sin], axis=1)


def latent_front(
    kernels: Kernels, device: str, T: int, H: int, G: int, C: int, R: int, interleaved: bool, half: bool = False
) -> float:
    """Of queries and rows that lie side by side, as one projection gives them."""
    rng = np.random.default_rng(T + C)
    q, row, norm = numbers(rng, T, H, R + 5), numbers(rng, T, C + R), numbers(rng, C)
    angle, cos, sin = tables(rng, T, R)
    tables_on = on(device, cos, sin)
    q_T, row_TW = beside(device, q, row)
    want = np.empty((T, C))
    reference.rms_norm(row[:, :C], norm, 1e-5, want)
    key = reference.rotate(row[:, None, C:], angle, interleaved)[:, 0]
    return front(
        lambda *to: kernels.latent_front(
            q_T.unflatten(1, (H, -1)), row_TW, *on(device, norm), 1e-5, *tables_on, interleaved, *to
        ),
        reference.rotate(q[..., 5:], angle, interleaved),
        np.concatenate([want, key], axis=1),
        half,
        device,
    )


def grouped_front(
    kernels: Kernels, device: str, T: int, H: int, G: int, C: int, R: int, interleaved: bool, half: bool = False
) -> float:
    rng = np.random.default_rng(T + C)
    q, k, v = numbers(rng, T, H, R), numbers(rng, T, G, R), numbers(rng, T, G, R)
    angle, cos, sin = tables(rng, T, R)
    tables_on = on(device, cos, sin)
    heads = [part.unflatten(1, (-1, R)) for part in beside(device, q, k, v)]
    return front(
        lambda *to: kernels.grouped_front(*heads, *tables_on, interleaved, *to),
        reference.rotate(q, angle, interleaved),
        np.concatenate([reference.rotate(k, angle, interleaved), v], axis=1).reshape(T, -1),
        half,
        device,
    )


def beside(device: str, *parts: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Each token's numbers of all parts in one row, of which views come back, one a part."""
    flat = [part.reshape(len(part), -1) for part in parts]
    return on(device, np.concatenate(flat, axis=1))[0].split([part.shape[1] for part in flat], dim=1)


def front(
    run: Callable[..., torch.Tensor], wanted_q: np.ndarray, wanted_row: np.ndarray, half: bool, device: str
) -> float:
    """The larger error of the queries and of the cache's new rows, whether a number or the device says where they go;
    infinite where another row changes."""
    errors, tokens = [], len(wanted_row)
    for start in (3, torch.tensor([3], device=device)):
        before = torch.full((tokens + 5, wanted_row.shape[1]), 7.0, dtype=torch.bfloat16 if half else torch.float32)
        cache_SW = before.to(device)
        errors.append(error(run(cache_SW, start), wanted_q))
        errors.append(error(cache_SW[3 : 3 + tokens].float(), wanted_row))
        cache_SW[3 : 3 + tokens] = 7.0
        errors.append(0.0 if torch.equal(cache_SW.cpu(), before) else float("inf"))
    return max(errors)


def route(kernels: Kernels, device: str, T: int, D: int, E: int, K: int, softmax: bool, biased: bool) -> float:
    """Infinite where another expert is chosen; weights are made to add up to 1 where there is a bias."""
    rng = np.random.default_rng(T + E)
    x, weight, bias = numbers(rng, T, D), numbers(rng, E, D) / np.float32(D**0.5), numbers(rng, E)
    expert, shares = np.empty((T, K), np.int64), np.empty((T, K))
    reference.route(x, weight, bias if biased else None, 1.7, softmax, biased, expert, shares)
    on_device = on(device, x, weight, bias)
    got, got_shares = kernels.route(*on_device[:2], on_device[2] if biased else None, K, 1.7, softmax, biased)
    return error(got_shares, shares) if np.array_equal(got.cpu().numpy(), expert) else float("inf")


def routed_ffn(
    kernels: Kernels, device: str, T: int, D: int, F: int, E: int, K: int, absent: float = 0.3, shared: int = 0
) -> float:
    """Experts lie in shuffled slots of a larger slab full of other numbers; some have none, some choices are -1. Where
    there is a shared one, so many times as wide, it goes onto other numbers."""
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
    given = on(device, x, slab, scales, slot, expert, weight)
    if not shared:
        return error(kernels.routed_ffn(*given), want)
    of_all, base = weights(rng, 3 * D * F * shared), numbers(rng, T, D)
    of_all_scb = (rng.uniform(0.5, 2.0, 2 * F * shared + D) / np.sqrt(D)).astype(np.float32)
    added = np.empty((T, D))
    reference.routed_ffn(x, of_all[None], of_all_scb[None], np.zeros((T, 1), np.int64), np.ones((T, 1)), added)
    gated, onto = Gated(*on(device, of_all, of_all_scb)), on(device, base)[0]
    return max(error(kernels.routed_ffn(*given, gated, onto), want + added + base), error(onto, base))


def feed_forward(kernels: Kernels, device: str, T: int, D: int, F: int) -> float:
    """By itself if of one row, else onto other numbers."""
    rng = np.random.default_rng(T + F)
    x, weight = numbers(rng, T, D), weights(rng, 3 * D * F)
    scb = (rng.uniform(0.5, 2.0, 2 * F + D) / np.sqrt(D)).astype(np.float32)
    want = np.empty((T, D))
    reference.routed_ffn(x, weight[None], scb[None], np.zeros((T, 1), np.int64), np.ones((T, 1)), want)
    base = numbers(rng, T, D)
    rows, onto = on(device, x, base)
    gated = Gated(*on(device, weight, scb))
    if T == 1:
        return error(kernels.feed_forward(rows, gated), want)
    return max(error(kernels.feed_forward(rows, gated, onto), want + base), error(onto, base))


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
