"""A plan never exceeds its budget, adds up, and only gets better with more room."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.model.registry import expected_tensors, parse_config
from localr1.placement.plan import (
    CONTEXT_SPLITS,
    CUDA_BYTES,
    RECORDED_LAYER_BYTES,
    RECORDED_ROWS,
    Budget,
    DoesNotFitError,
    PlacementPlan,
    activation_bytes,
    plan,
    ranked,
    recording_bytes,
    stream_bytes,
)
from localr1.placement.shape import Dtype, ModelShape, kv_type, shape_of
from localr1.placement.split import FEW
from tests.model import published

GB = 10**9


def shape(raw: dict, mtp: bool = False, dtype: Dtype = "int8") -> ModelShape:
    config = parse_config(raw)
    return shape_of(config, expected_tensors(config, mtp), mtp, dtype)


V2_LITE = shape(published.V2_LITE)
GLM = shape(published.GLM_4_7_FLASH, mtp=True)
R1 = shape(published.R1)
DENSE = shape(published.R1_0528_QWEN3_8B)
SHAPES = {"v2-lite": V2_LITE, "glm-4.7-flash": GLM, "r1-0528-qwen3-8b": DENSE}


def budget(vram_gb: float = 0, ram_gb: float = 64, context: int = 8192, kv: str = "bf16") -> Budget:
    return Budget(int(vram_gb * GB), int(ram_gb * GB), context, kv)  # type: ignore[arg-type]


def test_a_shape_is_what_is_known_of_the_model() -> None:
    assert V2_LITE.expert_bytes == pytest.approx(8.65e6, rel=0.01)
    assert V2_LITE.routed_bytes == pytest.approx(1.35e9, rel=0.01)
    assert V2_LITE.weight_bytes == pytest.approx(15.9e9, rel=0.02)
    assert V2_LITE.cache_bytes(1, "bf16") == 31_104
    assert GLM.expert_bytes == pytest.approx(9.44e6, rel=0.01)
    assert GLM.cache_bytes(1, "bf16") == 54_144 + 1152
    assert GLM.expert_layers[-1] == 47 and GLM.main_expert_layers == 46
    assert DENSE.expert_count == DENSE.routed_bytes == 0
    assert DENSE.weight_bytes == pytest.approx(8.2e9, rel=0.02)


def test_the_worked_example() -> None:
    small = dataclasses.replace(V2_LITE, expert_layers=(1, 2), experts=4, top_k=2, expert_bytes=10**7)
    whole = plan(small, budget(64))
    assert (whole.slots, whole.disk_bytes, whole.hit_rate) == (8, 0, 1.0)
    part = plan(small, Budget(whole.gpu_bytes - 4 * 10**7, 64 * GB, 8192))
    assert part.slots == 4 and part.ram_experts == 4
    assert part.resident == ((1, 0), (2, 0), (1, 1), (2, 1))


sizes = st.integers(0, 40 * GB)


@given(st.sampled_from(sorted(SHAPES)), sizes, st.integers(2 * GB, 80 * GB), st.integers(16, 100_000))
@settings(max_examples=60, deadline=None)
def test_within_budget_and_every_weight_in_one_place(name: str, vram: int, ram: int, context: int) -> None:
    model = SHAPES[name]
    try:
        chosen = plan(model, Budget(vram, ram, context))
    except DoesNotFitError as error:
        cache_bytes = model.cache_bytes(context, kv_type("auto", model.latent, "cpu"))
        assert error.hint and model.always_bytes + cache_bytes > ram - 2 * GB
        return
    assert chosen.gpu_bytes <= vram and chosen.ram_bytes <= ram
    assert chosen.slots + chosen.ram_experts + chosen.disk_experts == model.expert_count
    assert min(chosen.slots, chosen.ram_experts, chosen.disk_experts) >= 0
    assert sum(chosen.shares) == pytest.approx(1) and min(chosen.shares) >= -1e-9
    assert len(set(chosen.resident)) == chosen.slots


@given(st.sampled_from(sorted(SHAPES)), sizes, sizes, st.integers(20 * GB, 80 * GB))
@settings(max_examples=60, deadline=None)
def test_more_gpu_memory_never_takes_an_expert_its_place(name: str, one: int, other: int, ram: int) -> None:
    less, more = (plan(SHAPES[name], Budget(vram, ram, 4096)) for vram in sorted((one, other)))
    assert more.resident[: less.slots] == less.resident
    assert more.hit_rate >= less.hit_rate or more.shape.experts == 0


def placed(chosen: PlacementPlan) -> set[tuple[int, int]]:
    return set(chosen.resident)


def test_the_hottest_are_resident_over_all_layers() -> None:
    small = dataclasses.replace(V2_LITE, expert_layers=(1, 2), experts=4, top_k=2, expert_bytes=10**9)
    hotness = np.array([[0, 0, 90, 10], [25, 25, 25, 25.0]])
    whole = plan(small, budget(64), hotness)
    chosen = plan(small, Budget(whole.gpu_bytes - 6 * 10**9, 64 * GB, 8192), hotness)
    assert chosen.slots == 2
    assert chosen.resident == ((1, 2), (2, 0))
    order, share = ranked(small, hotness)
    assert order[:2] == list(chosen.resident) and share[-1] == pytest.approx(1)
    assert chosen.hit_rate == pytest.approx((91 / 104 + 26 / 104) / 2)


def test_counts_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="hotness of shape"):
        plan(V2_LITE, budget(8), np.ones((3, 3)))


def test_what_cannot_work_says_what_could() -> None:
    with pytest.raises(DoesNotFitError, match=r"needs .* of RAM .* may be used") as caught:
        plan(DENSE, budget(ram_gb=6))
    assert caught.value.longest_context == 0
    with pytest.raises(DoesNotFitError) as caught:
        plan(DENSE, budget(ram_gb=11, context=100_000))
    longest = caught.value.longest_context
    assert str(longest) in caught.value.hint
    plan(DENSE, budget(ram_gb=11, context=longest))
    with pytest.raises(DoesNotFitError):
        plan(DENSE, budget(ram_gb=11, context=longest + 2))


def test_too_little_gpu_memory_means_the_cpu_and_says_so() -> None:
    chosen = plan(V2_LITE, budget(1))
    assert chosen.device == "cpu" and chosen.gpu_bytes == 0
    assert "1.0 GB given" in chosen.notes[0]
    assert plan(V2_LITE, budget(0)).notes == ()


def test_a_context_with_which_a_dense_model_would_fit_the_gpu_is_named() -> None:
    chosen = plan(DENSE, budget(12, context=32768))
    assert chosen.device == "cpu"
    (said,) = [note for note in chosen.notes if "--context" in note]
    context = int(said.split("--context ")[1].split()[0])
    assert context % 1024 == 0 and plan(DENSE, budget(12, context=context)).device == "gpu"
    assert plan(DENSE, budget(12, context=context + 2048)).device == "cpu"


def pool_bytes(steps: list[tuple[int, int, int]]) -> int:
    """What torch's allocator takes from the driver for steps, each of bytes that it gives back, others that it keeps,
    and others again that it gives back."""
    pieces: list[list[int]] = []  # what is left of each

    def piece_for(size: int) -> list[int]:
        for piece in pieces:
            if piece[0] >= size:
                return piece
        pieces.append([20 << 20 if size < 10 << 20 else -(-size // (2 << 20)) * (2 << 20)])
        sizes.append(pieces[-1][0])
        return pieces[-1]

    sizes: list[int] = []
    for before, kept, after in steps:
        piece_for(before)
        piece_for(kept)[0] -= kept
        piece_for(after)
    return sum(sizes)


def test_recorded_steps_have_room() -> None:
    """What a step's attention and head allocate, in every size of step, is in the plan's workspace."""
    fused = pytest.importorskip("localr1.kernels.gpu.fused", reason="Triton is not installed")
    assert fused.FusedKernels().splits == CONTEXT_SPLITS and FEW == RECORDED_ROWS
    for model, heads, width in ((V2_LITE, 16, 512), (GLM, 20, 512), (R1, 128, 512), (DENSE, 32, 128)):
        rows = range(1, FEW + 1)
        pools_bytes = pool_bytes(
            [(n * heads * width * 4 * CONTEXT_SPLITS, n * 4 * model.vocab, n * 5 * model.vocab) for n in rows]
        )
        driver_bytes = FEW * (model.layers + 1 + bool(model.mtp_bytes)) * RECORDED_LAYER_BYTES
        assert pools_bytes < recording_bytes(model) - driver_bytes < 1.1 * pools_bytes + (50 << 20)
    chosen = plan(V2_LITE, budget(16))
    other_bytes = activation_bytes(V2_LITE) + CUDA_BYTES + stream_bytes(V2_LITE)
    assert chosen.workspace_bytes == other_bytes + recording_bytes(V2_LITE)


def test_an_eight_bit_cache_leaves_more_slots() -> None:
    assert plan(V2_LITE, budget(8, kv="int8")).slots > plan(V2_LITE, budget(8)).slots


def test_by_default_a_latent_cache_has_eight_bits_on_the_cpu_and_all_others_sixteen() -> None:
    for model, vram, kv in ((V2_LITE, 0, "int8"), (V2_LITE, 8, "bf16"), (DENSE, 0, "bf16"), (DENSE, 16, "bf16")):
        chosen = plan(model, budget(vram, kv="auto"))
        assert chosen.device == ("gpu" if vram else "cpu") and chosen.kv == kv
        assert chosen.cache_bytes == model.cache_bytes(8192, kv)
    little = plan(V2_LITE, budget(1, kv="auto"))
    assert little.device == "cpu" and little.kv == "int8"
    assert plan(V2_LITE, budget(kv="bf16")).kv == "bf16"
