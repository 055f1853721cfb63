"""How fast a placement will be, from what was measured of the hardware: an estimate with its reasons.

Owns the model of time, as pure functions; no torch. On the CPU alone a layer costs what stand-in layers of its kind
and about its size cost, with all their overhead, which is nearly all that a tiny model costs; then come the head and
the experts that must be read from disk. With a GPU each layer's attention and routing go first, then two
lanes run side by side, resident and shared experts on the GPU and the others on the CPU; the slower one counts.

Invariant: where the rates are sure, with more GPU memory the chosen placement is never forecast to decode slower.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from localr1.placement.hardware import GpuRates, LayerTime, Rates
from localr1.placement.plan import Budget, DoesNotFitError, Hotness, PlacementPlan, plan_cpu, plan_gpu, ranked
from localr1.placement.shape import ModelShape

PROMPT_TOKENS = 512
STAND_IN_SHARE = 1 / 3
"""Of a prompt's tokens, those that each expert of a stand-in layer gets."""
GPU_SHARE = 0.65
"""Of its streaming bandwidth, what the GPU's kernels reach on one row."""
GPU_GEMM_SHARE = 0.4
"""Of its large matrix products, what the GPU reaches in a prefill."""
GPU_LAYER_S = 20e-6
"""A layer's launches on the GPU: 9 to 15 without groups of experts, one to two microseconds each by guess."""
HANDOVER_S = 60e-6
"""Handing a layer's rows to the CPU and its sum back."""
Share = np.float64 | NDArray[np.float64]
DISK_BYTES_PER_S = 500e6
"""Where the disk was not measured."""


@dataclass(frozen=True)
class Forecast:
    """What is expected of a placement, tokens a second; `parts` are the seconds of a decoded token, by what they go to.

    `floor_tokens_per_s` is what memory bandwidth alone would allow: the slower of the two lanes, nothing else counted;
    no less than what is expected, though, where other programs slowed the measuring of the one more than of the other.
    `rough`: by guessed rates, or of matrices in float32, of which none were measured; `busy`: by those of a computer
    that did other things.
    """

    plan: PlacementPlan
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    floor_tokens_per_s: float
    parts: tuple[tuple[str, float], ...]
    rough: bool
    busy: bool = False


def choose(shape: ModelShape, budget: Budget, hotness: Hotness | None, rates: Rates) -> Forecast:
    """The faster of the placements that fit: with the GPU or on the CPU alone. Raises DoesNotFitError.

    A guess keeps nothing from the GPU: where the rates are rough, or those of a computer that was busy, which slows the
    one more than the other, it gets all that fits.
    """
    with_gpu = plan_gpu(shape, budget, hotness) if rates.gpu is not None else None
    if with_gpu is None:
        return forecast(plan_cpu(shape, budget, hotness), rates)
    if rates.rough or rates.unsure:
        return forecast(with_gpu, rates)
    with_gpu = plan_gpu(shape, budget, hotness, _best_slots(with_gpu, hotness, rates))
    assert with_gpu is not None
    ours = forecast(with_gpu, rates)
    try:
        alone = forecast(plan_cpu(shape, budget, hotness), rates)
    except DoesNotFitError:
        return ours
    if ours.decode_tokens_per_s >= alone.decode_tokens_per_s:
        return ours
    return replace(alone, plan=replace(alone.plan, notes=("CPU only: with the GPU it would be slower",)))


def forecast(chosen: PlacementPlan, rates: Rates) -> Forecast:
    """Of decoding one token at a time after a short prompt, and of reading a prompt of 512 tokens."""
    if chosen.device == "gpu":
        assert rates.gpu is not None, "a placement on a GPU that was not measured"
        parts, prefill_s = _gpu_token(chosen, rates, rates.gpu), _gpu_prefill_s(chosen, rates, rates.gpu)
    else:
        parts, prefill_s = _cpu_token(chosen, rates), _cpu_prefill_s(chosen, rates)
    token_s = sum(seconds for _, seconds in parts)
    return Forecast(
        chosen,
        1 / token_s,
        PROMPT_TOKENS / prefill_s,
        1 / min(token_s, _floor_s(chosen, rates)),
        tuple(parts),
        rates.rough or chosen.shape.number_bytes > 1,
        rates.unsure,
    )


def _cpu_token(chosen: PlacementPlan, rates: Rates) -> list[tuple[str, float]]:
    shape = chosen.shape
    disk_bytes = chosen.shares[2] * shape.routed_bytes
    layers_s = shape.dense_layers * layer_s(shape, rates, shape.dense_layer_bytes)
    layers_s += shape.main_expert_layers * layer_s(shape, rates, shape.expert_layer_bytes)
    return [
        (f"{shape.layers} layers", layers_s),
        ("the head", shape.last_bytes / rates.row_bytes_per_s),
        ("experts from disk", _disk_s(disk_bytes, rates)),
    ]


def layer_s(shape: ModelShape, rates: Rates, read_bytes: int) -> float:
    """Of one token through a layer that reads so many bytes: between stand-ins linear in the bytes."""
    points = [(one.read_bytes, one.decode_s) for one in _stand_ins(shape, rates)]
    beyond = (read_bytes - points[-1][0]) / rates.row_bytes_per_s
    return points[-1][1] + beyond if beyond > 0 else _between(points, read_bytes)


def _prefill_layer_s(shape: ModelShape, rates: Rates, flops: float) -> float:
    points = [(one.flops, one.prefill_s) for one in _stand_ins(shape, rates)]
    last_flops, last_s = points[-1]
    return last_s * flops / last_flops if flops > last_flops else _between(points, flops)


def _stand_ins(shape: ModelShape, rates: Rates) -> list[LayerTime]:
    return [one for one in rates.layers if one.kind == ("latent" if shape.latent else "grouped")]


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """Linear between points in order, level before the first."""
    for (less, before), (more, after) in pairwise(points):
        if at <= more:
            return before + (after - before) * max(0.0, (at - less) / (more - less))
    return points[-1][1]


def _best_slots(largest: PlacementPlan, hotness: Hotness | None, rates: Rates) -> int:
    """How many of the experts that fit should be resident: nearly always all, fewer where the GPU is little faster than
    RAM, since the lanes run side by side."""
    shape = largest.shape
    if not shape.experts or rates.gpu is None:
        return largest.slots
    _, share = ranked(shape, hotness)
    slots = np.arange(largest.slots + 1)
    ram_experts = np.minimum(largest.ram_experts + largest.slots - slots, largest.ram_room)
    in_ram = share[slots + ram_experts] - share[slots]
    seconds = sum(part for _, part in _gpu_parts(largest, rates, rates.gpu, share[slots], 1 - share[slots] - in_ram))
    return int(largest.slots - np.argmin(np.asarray(seconds)[::-1]))


def _gpu_token(chosen: PlacementPlan, rates: Rates, gpu: GpuRates) -> list[tuple[str, float]]:
    parts = _gpu_parts(chosen, rates, gpu, np.float64(chosen.shares[0]), np.float64(chosen.shares[2]))
    return [(what, float(seconds)) for what, seconds in parts]


def _gpu_parts(
    chosen: PlacementPlan, rates: Rates, gpu: GpuRates, hot: Share, on_disk: Share
) -> list[tuple[str, Share]]:
    """Seconds of a token's parts, for one or for many shares of choices that are resident or on disk."""
    shape, gpu_rate = chosen.shape, GPU_SHARE * gpu.read_bytes_per_s
    cache_bytes = shape.cache_bytes(PROMPT_TOKENS, chosen.kv)
    first_bytes = shape.active_bytes - shape.routed_bytes - shape.shared_bytes + cache_bytes
    gpu_lane = (shape.shared_bytes + hot * shape.routed_bytes) / gpu_rate
    disk_bytes = on_disk * shape.routed_bytes
    cold_bytes = np.maximum((1 - hot - on_disk) * shape.routed_bytes, 0.0)
    cpu_lane = cold_bytes / rates.row_bytes_per_s + disk_bytes / (rates.disk_bytes_per_s or DISK_BYTES_PER_S)
    layers_with_cold = shape.main_expert_layers * (1 - hot**shape.top_k)
    return [
        ("all but the experts, on the GPU", hot * 0 + first_bytes / gpu_rate),
        ("experts, on GPU and CPU at once", np.minimum(gpu_lane, cpu_lane)),
        ("experts, on the GPU while the CPU waits", np.maximum(gpu_lane - cpu_lane, 0.0)),
        ("experts, on the CPU while the GPU waits", np.maximum(cpu_lane - gpu_lane, 0.0)),
        ("starting work and handing it over", shape.layers * GPU_LAYER_S + layers_with_cold * HANDOVER_S),
    ]


def _floor_s(chosen: PlacementPlan, rates: Rates) -> float:
    shape = chosen.shape
    if chosen.device == "cpu":
        return shape.active_bytes / rates.read_bytes_per_s
    assert rates.gpu is not None
    hot_bytes = shape.active_bytes - (1 - chosen.hit_rate) * shape.routed_bytes
    cold_bytes = (1 - chosen.hit_rate) * shape.routed_bytes
    return max(hot_bytes / rates.gpu.read_bytes_per_s, cold_bytes / rates.read_bytes_per_s)


def _disk_s(disk_bytes: float, rates: Rates) -> float:
    return disk_bytes / (rates.disk_bytes_per_s or DISK_BYTES_PER_S)


def flops_at(rates: Rates, rows: float) -> float:
    """Operations a second of the int8 kernel at so many rows, between and beyond the measured ones.

    Interpolated by the logarithm of the rows, and never less than proportionally to what one row reaches.
    """
    curve = rates.int8_flops
    if rows <= curve[0][0]:
        return curve[0][1] * max(rows, 1e-9) / curve[0][0]
    for (less, slower), (more, faster) in pairwise(curve):
        if rows <= more:
            part = math.log(rows / less) / math.log(more / less)
            return float(slower * (faster / slower) ** part)
    return curve[-1][1]


def _cpu_prefill_s(chosen: PlacementPlan, rates: Rates) -> float:
    shape, rows = chosen.shape, PROMPT_TOKENS
    attention_flops = _attention_flops(shape, rows) / shape.layers
    seconds = shape.last_bytes / rates.row_bytes_per_s
    for count, read_bytes in (
        (shape.dense_layers, shape.dense_layer_bytes),
        (shape.main_expert_layers, shape.expert_layer_bytes),
    ):
        multiplied = 2.0 * rows * read_bytes / shape.number_bytes
        seconds += count * _prefill_layer_s(shape, rates, multiplied + attention_flops)
    if shape.experts:
        touched, rows_each = _touched(shape, rows)
        seconds += shape.main_expert_layers * _fewer_rows_s(shape, rates, rows, rows_each)
        disk_bytes = chosen.disk_experts / shape.expert_count * touched * shape.main_expert_layers * shape.expert_bytes
        seconds += _disk_s(disk_bytes, rates)
    return seconds


def _fewer_rows_s(shape: ModelShape, rates: Rates, rows: int, rows_each: float) -> float:
    """What a layer's experts take longer, or less, than a stand-in's, of which each gets another number of rows."""
    flops = 2.0 * rows * shape.top_k * shape.expert_bytes / shape.number_bytes
    return flops / flops_at(rates, rows_each) - flops / flops_at(rates, rows * STAND_IN_SHARE)


def _gpu_prefill_s(chosen: PlacementPlan, rates: Rates, gpu: GpuRates) -> float:
    """Cold experts are streamed to the GPU or computed on the CPU, whichever is faster, beside what the GPU has."""
    shape, rows = chosen.shape, PROMPT_TOKENS
    gpu_flops = GPU_GEMM_SHARE * gpu.gemm_flops
    always = shape.always_bytes - shape.mtp_bytes - shape.head_bytes
    flops = 2 * always * rows + _attention_flops(shape, rows)
    first_s = flops / gpu_flops + always / gpu.read_bytes_per_s + shape.layers * GPU_LAYER_S
    if not shape.experts:
        return first_s
    touched, rows_each = _touched(shape, rows)
    in_all = touched * shape.main_expert_layers
    resident = chosen.slots / shape.expert_count
    all_s = in_all * (2 * shape.expert_bytes * rows_each / gpu_flops + shape.expert_bytes / gpu.read_bytes_per_s)
    cold = in_all * (1 - resident)
    streamed_s = max(cold * shape.expert_bytes / gpu.pinned_bytes_per_s, all_s)
    computed_s = max(cold * 2 * shape.expert_bytes * rows_each / flops_at(rates, rows_each), all_s * resident)
    disk_s = _disk_s(chosen.disk_experts / shape.expert_count * in_all * shape.expert_bytes, rates)
    return first_s + min(streamed_s, computed_s) + disk_s


def _touched(shape: ModelShape, rows: int) -> tuple[float, float]:
    """Experts of a layer that a chunk of rows touches, and the rows each gets; all alike, independently."""
    touched = shape.experts * (1 - (1 - shape.top_k / shape.experts) ** rows)
    return touched, rows * shape.top_k / touched


def _attention_flops(shape: ModelShape, rows: int) -> float:
    """Scores and values of rows that see each other and those before them: half of all pairs."""
    return 2.0 * shape.layers * shape.heads * shape.score_width * rows * rows / 2


def pace(tokens_per_s: float) -> tuple[str, str]:
    """A speed as a number and its unit, three digits at most: tokens a second, or seconds a token where it is slow."""
    if tokens_per_s >= 1:
        return f"{tokens_per_s:,.0f}" if tokens_per_s >= 99.95 else f"{tokens_per_s:.1f}", "tokens/s"
    seconds = 1 / tokens_per_s
    return f"{seconds:,.0f}" if seconds >= 9.95 else f"{seconds:.1f}", "s a token"


def reasons(foretold: Forecast) -> Iterator[tuple[str, float]]:
    """What a decoded token's time goes to, in seconds."""
    for what, seconds in foretold.parts:
        if seconds > 0:
            yield what, seconds
