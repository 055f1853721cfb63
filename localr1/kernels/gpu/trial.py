"""Whether one set of kernels gives on a device what another gives, by one small call of each.

Owns the inputs. Their shapes are those of common models where a shape decides how a kernel is compiled, so that one
that a device cannot hold, or that is compiled wrongly for it, is found before a model stands on it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from localr1.kernels.gpu import Gated, Kernels
from localr1.kernels.gpu.plain import product_dtype

TOLERANCE = 3e-2
"""Of the largest value: some products take 16-bit operands."""
FEW_ROWS, MANY_ROWS = 2, 24
INPUTS, OUTPUTS, EXPERTS, TOP_K = 512, 1024, 4, 2
HEADS, LATENT, ROTARY = 16, 512, 64
KV_HEADS, HEAD_SIZE = 4, 128
ROUTED, CHOSEN = 64, 6
COMMITTED = 40


def differing(kernels: Kernels, wanted: Kernels, device: torch.device) -> str:
    """The first kernel whose result is not finite or not near the wanted one's; empty where there is none."""
    for name, call in _calls(device).items():
        got, want = call(kernels), call(wanted)
        if not bool((got - want).abs().max() <= TOLERANCE * want.abs().max()):
            return name
    return ""


def _calls(device: torch.device) -> dict[str, Callable[[Kernels], Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def weights(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator).to(device)

    def routed(rows: int) -> Callable[[Kernels], Tensor]:
        expert_TK = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(rows)]).to(device)
        weight_TK = torch.rand(rows, TOP_K, generator=generator).to(device)
        chosen = slot_E, expert_TK, weight_TK
        return lambda kernels: kernels.routed_ffn(x_TD[:rows], slab_XM, scb_XS, *chosen, shared, x_TD[:rows])

    x_TD, norm_D = numbers(MANY_ROWS, INPUTS), numbers(INPUTS)
    q_OD, scb_O = weights(OUTPUTS, INPUTS), numbers(OUTPUTS).abs() / INPUTS**0.5
    slab_XM = weights(EXPERTS, 3 * OUTPUTS * INPUTS)
    scb_XS = numbers(EXPERTS, 2 * OUTPUTS + INPUTS).abs() / INPUTS**0.5
    slot_E = torch.tensor([2, 0, -1, 1], dtype=torch.int32, device=device)
    shared = Gated(weights(6 * OUTPUTS * INPUTS), numbers(4 * OUTPUTS + INPUTS).abs() / INPUTS**0.5)
    q_latent_THC, q_rope_THR = numbers(FEW_ROWS, HEADS, LATENT), numbers(FEW_ROWS, HEADS, ROTARY)
    latent_SW = numbers(COMMITTED + FEW_ROWS, LATENT + ROTARY).to(torch.bfloat16)
    q_THd = numbers(FEW_ROWS, HEADS, HEAD_SIZE)
    cache_SW = numbers(COMMITTED + FEW_ROWS, 2 * KV_HEADS * HEAD_SIZE).to(torch.bfloat16)
    scale = (LATENT + ROTARY) ** -0.5
    bias_O, onto_TO = numbers(OUTPUTS), numbers(FEW_ROWS, OUTPUTS)
    router_ED, bias_E = numbers(ROUTED, INPUTS) / INPUTS**0.5, numbers(ROUTED)
    row_TW, norm_C = numbers(FEW_ROWS, LATENT + ROTARY), numbers(LATENT)
    up_HdC = numbers(HEADS, HEAD_SIZE, LATENT).to(product_dtype(device))
    k_TGd, v_TGd = numbers(FEW_ROWS, KV_HEADS, HEAD_SIZE), numbers(FEW_ROWS, KV_HEADS, HEAD_SIZE)

    latent_turns, group_turns = (_turns(numbers(FEW_ROWS, size // 2)) for size in (ROTARY, HEAD_SIZE))

    latent = q_THd, row_TW, norm_C

    def written(
        rows_SW: Tensor, front: Callable[[Kernels, tuple[Tensor, Tensor]], Tensor]
    ) -> Callable[[Kernels], Tensor]:
        """What a front gives, and the cache that it wrote to."""

        def run(kernels: Kernels) -> Tensor:
            cache_SW = rows_SW.clone()
            out = front(kernels, (cache_SW, torch.tensor([COMMITTED], device=device)))
            return torch.cat((out.flatten(), cache_SW.flatten().float()))

        return run

    def chosen(kernels: Kernels, bias_E: Tensor | None, softmax: bool, normalize: bool) -> Tensor:
        """Every expert's weight, 0 of those that were not chosen."""
        expert_TK, weight_TK = kernels.route(x_TD[:FEW_ROWS], router_ED, bias_E, CHOSEN, 1.0, softmax, normalize)
        return torch.zeros(FEW_ROWS, ROUTED, device=device).scatter_(1, expert_TK.clamp_min(0), weight_TK)

    return {
        "rms_norm": lambda kernels: kernels.rms_norm(x_TD, norm_D, 1e-6),
        "linear": lambda kernels: kernels.linear(x_TD[:FEW_ROWS], q_OD, scb_O),
        "linear onto": lambda kernels: kernels.linear(x_TD[:FEW_ROWS], q_OD, scb_O, bias_O, onto_TO),
        "head_product": lambda kernels: kernels.head_product(q_THd, up_HdC),
        "head_product of rows": lambda kernels: kernels.head_product(q_latent_THC, up_HdC.transpose(1, 2)),
        "latent_front": written(
            latent_SW, lambda kernels, to: kernels.latent_front(*latent, 1e-6, *latent_turns, True, *to)
        ),
        "latent_front of halves": written(
            latent_SW, lambda kernels, to: kernels.latent_front(*latent, 1e-6, *latent_turns, False, *to)
        ),
        "grouped_front": written(
            cache_SW, lambda kernels, to: kernels.grouped_front(q_THd, k_TGd, v_TGd, *group_turns, False, *to)
        ),
        "route": lambda kernels: chosen(kernels, None, softmax=True, normalize=False),
        "route with a bias": lambda kernels: chosen(kernels, bias_E, softmax=False, normalize=True),
        "routed_ffn": routed(FEW_ROWS),
        "routed_ffn of many rows": routed(MANY_ROWS),
        "feed_forward": lambda kernels: kernels.feed_forward(x_TD[:FEW_ROWS], shared, x_TD[:FEW_ROWS]),
        "mla_attention": lambda kernels: kernels.mla_attention(q_latent_THC, q_rope_THR, latent_SW, COMMITTED, scale),
        "gqa_attention": lambda kernels: kernels.gqa_attention(q_THd, cache_SW, KV_HEADS, COMMITTED, HEAD_SIZE**-0.5),
    }


def _turns(angle_TP: Tensor) -> tuple[Tensor, Tensor]:
    """Angles' tables, cos twice, and -sin then sin."""
    cos_TP, sin_TP = angle_TP.cos(), angle_TP.sin()
    return torch.cat((cos_TP, cos_TP), dim=1), torch.cat((-sin_TP, sin_TP), dim=1)
