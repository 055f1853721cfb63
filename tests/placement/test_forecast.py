"""Forecasts: more is never slower, the parts add up, and the sums are those of the bytes."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.placement.forecast import Forecast, choose, forecast, layer_s, pace
from localr1.placement.hardware import GpuRates
from localr1.placement.plan import Budget, plan_cpu
from localr1.placement.probe import ROUGH_GPU
from localr1.session import outlook
from tests.model import published
from tests.placement import test_plan
from tests.placement.computers import GPU_RATES, RATES
from tests.placement.test_plan import DENSE, GB, GLM, SHAPES, V2_LITE

WITH_GPU = replace(RATES, gpu=GPU_RATES)
speeds = st.floats(1e9, 3e12)


def decode(foretold: Forecast) -> float:
    return foretold.decode_tokens_per_s


@given(
    st.sampled_from(sorted(SHAPES)),
    st.lists(st.integers(0, 40 * GB), min_size=2, max_size=2),
    st.integers(20 * GB, 80 * GB),
    st.tuples(speeds, speeds, speeds),
)
@settings(max_examples=100, deadline=None)
def test_more_gpu_memory_is_never_forecast_slower(
    name: str, vram: list[int], ram: int, gpu: tuple[float, float, float]
) -> None:
    """Whatever the GPU, a very slow one too."""
    rates = replace(RATES, gpu=GpuRates(*gpu, 1e13))
    less, more = (choose(SHAPES[name], Budget(size, ram, 4096), None, rates) for size in sorted(vram))
    assert decode(more) >= decode(less) * (1 - 1e-9)
    assert more.plan.gpu_bytes <= max(vram) and less.plan.gpu_bytes <= min(vram)


@given(st.sampled_from(sorted(SHAPES)), st.lists(st.integers(10 * GB, 60 * GB), min_size=2, max_size=2))
@settings(max_examples=50, deadline=None)
def test_more_ram_is_never_forecast_slower(name: str, ram: list[int]) -> None:
    less, more = (choose(SHAPES[name], Budget(0, size, 2048), None, RATES) for size in sorted(ram))
    assert decode(more) >= decode(less) * (1 - 1e-9)


def test_the_parts_add_up_and_stay_below_the_floor() -> None:
    for shape in SHAPES.values():
        for vram in (0, 8 * GB, 40 * GB):
            foretold = choose(shape, Budget(vram, 64 * GB, 4096), None, WITH_GPU)
            assert 1 / decode(foretold) == pytest.approx(sum(seconds for _, seconds in foretold.parts))
            assert decode(foretold) < foretold.floor_tokens_per_s
            assert foretold.prefill_tokens_per_s > decode(foretold)


def test_in_float32_four_times_the_bytes_are_read_and_as_much_is_multiplied() -> None:
    wide = test_plan.shape(published.V2_LITE, dtype="float32")
    assert wide.weight_bytes == pytest.approx(4 * V2_LITE.weight_bytes, rel=0.01)
    eight, exact = (forecast(plan_cpu(shape, Budget(0, 200 * GB, 4096)), RATES) for shape in (V2_LITE, wide))
    assert exact.rough and not eight.rough
    assert decode(eight) / decode(exact) == pytest.approx(4, rel=0.2)
    assert exact.prefill_tokens_per_s == pytest.approx(eight.prefill_tokens_per_s, rel=0.2)


def test_on_the_cpu_a_large_model_costs_its_bytes() -> None:
    foretold = forecast(plan_cpu(V2_LITE, Budget(0, 64 * GB, 4096)), RATES)
    assert 1 / decode(foretold) == pytest.approx(V2_LITE.active_bytes / 30e9 + 27 * 1e-4, rel=0.01)
    assert foretold.floor_tokens_per_s == pytest.approx(40e9 / V2_LITE.active_bytes)


def test_a_small_model_costs_its_layers() -> None:
    assert layer_s(DENSE, RATES, 1000) == pytest.approx(1e-4 + 1e5 / 30e9)
    assert layer_s(DENSE, RATES, 5 * 10**6) == pytest.approx(1e-4 + 5e6 / 30e9)
    assert layer_s(DENSE, RATES, 10**9) == pytest.approx(1e-4 + 1e9 / 30e9)


def test_too_little_ram_reads_from_disk() -> None:
    enough, little = (choose(GLM, Budget(0, ram * GB, 2048), None, RATES) for ram in (64, 20))
    missing = little.plan.shares[2] * GLM.routed_bytes
    assert little.plan.disk_experts > 0 and enough.plan.disk_experts == 0
    assert 1 / decode(little) - 1 / decode(enough) == pytest.approx(missing / 3e9)


def test_a_gpu_that_only_slows_things_down_is_left_alone() -> None:
    slow = replace(RATES, gpu=GpuRates(5e9, 1e9, 1e9, 1e12))
    alone = choose(V2_LITE, Budget(8 * GB, 64 * GB, 4096), None, slow).plan
    assert alone.device == "cpu" and alone.notes == ("CPU only: with the GPU it would be slower",)
    assert choose(V2_LITE, Budget(8 * GB, 64 * GB, 4096), None, WITH_GPU).plan.device == "gpu"


@pytest.mark.parametrize("read", [40e9, 400e9])
def test_a_guess_keeps_nothing_from_the_gpu(read: float) -> None:
    """Neither where RAM looks fast beside the usual GPU, nor where it was read from a cache, nor while other programs
    were at work."""
    budget = Budget(24 << 30, 64 * GB, 4096)
    guessed = replace(RATES, read_bytes_per_s=read, row_bytes_per_s=0.75 * read, gpu=ROUGH_GPU, rough=True)
    foretold = choose(V2_LITE, budget, None, guessed)
    assert foretold.rough and foretold.plan.slots == V2_LITE.expert_count and not foretold.plan.notes
    measured = replace(guessed, rough=False)
    assert choose(V2_LITE, budget, None, measured).plan.slots < V2_LITE.expert_count
    busy = choose(V2_LITE, budget, None, replace(measured, others_share=0.5))
    assert busy.busy and busy.plan.slots == V2_LITE.expert_count and not busy.plan.notes


def test_all_in_gpu_memory_is_bound_by_it() -> None:
    foretold = choose(DENSE, Budget(16 * GB, 64 * GB, 4096), None, WITH_GPU)
    assert foretold.plan.device == "gpu" and foretold.plan.ram_experts == 0
    assert foretold.floor_tokens_per_s == pytest.approx(500e9 / DENSE.active_bytes)


@pytest.mark.parametrize(
    ("speed", "told"),
    [
        (0.04, "25 s a token"),
        (0.4, "2.5 s a token"),
        (1.0, "1.0 tokens/s"),
        (99.94, "99.9 tokens/s"),
        (1234, "1,234 tokens/s"),
    ],
)
def test_slow_is_told_in_seconds_a_token(speed: float, told: str) -> None:
    assert " ".join(pace(speed)) == told


def test_experts_of_few_rows_take_longer_to_read_a_prompt() -> None:
    steep = replace(RATES, int8_flops=((1, 2e10), (48, 2e11), (512, 8e11)))
    foretold = [forecast(plan_cpu(V2_LITE, Budget(0, 64 * GB, 4096)), rates) for rates in (RATES, steep)]
    assert foretold[1].prefill_tokens_per_s < foretold[0].prefill_tokens_per_s
    assert foretold[1].decode_tokens_per_s == foretold[0].decode_tokens_per_s


def test_the_limit_of_a_busy_computer_is_not_told_below_what_is_expected() -> None:
    busy = replace(RATES, read_bytes_per_s=RATES.read_bytes_per_s / 10, others_share=0.9)
    foretold = forecast(plan_cpu(V2_LITE, Budget(0, 64 * GB, 4096)), busy)
    assert decode(foretold) == foretold.floor_tokens_per_s and foretold.busy
    assert "roughly" in outlook.summary(foretold)
