"""Every GPU kernel against the specification: on CUDA, in Triton's interpreter, or as torch operations.

`test_gpu_kernels.py` runs this file again in a process of its own, under TRITON_INTERPRET=1.
"""

import os

import pytest
import torch

from localr1.kernels.gpu import choose, trial
from localr1.kernels.gpu.plain import PlainKernels
from tests.kernels import gpu_cases as cases

DEVICE = os.environ.get("LOCALR1_TEST_DEVICE", "cpu")
KERNELS = choose(torch.device(DEVICE))
TENSOR_CORES = 1e-2 if DEVICE == "cuda" else 3e-3
"""16-bit operands: bfloat16 on a device, float16 (which numpy has) in the interpreter."""


def test_triton_runs_where_it_should() -> None:
    wanted = "FusedKernels" if DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1" else "PlainKernels"
    assert type(KERNELS).__name__ == wanted


@pytest.mark.parametrize("shape", cases.LINEAR, ids=str)
def test_linear(shape: tuple[int, int, int]) -> None:
    for biased in (False, True):
        assert cases.linear(KERNELS, DEVICE, *shape, biased) < (1e-5 if shape[0] <= 8 else TENSOR_CORES)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", cases.PRODUCT, ids=str)
def test_head_product(shape: tuple[int, int, int, int], turned: bool) -> None:
    assert cases.head_product(KERNELS, DEVICE, *shape, turned, False) < 1e-5
    assert cases.head_product(KERNELS, DEVICE, *shape, turned, True) < (1e-5 if shape[0] <= 8 else TENSOR_CORES)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", cases.FRONT, ids=str)
def test_fronts(shape: tuple[int, int, int, int, int], interleaved: bool) -> None:
    for half, tolerance in ((False, 1e-6), (True, 8e-3)):  # the interpreter cuts numbers to 16 bits
        assert cases.latent_front(KERNELS, DEVICE, *shape, interleaved, half) < tolerance
        assert cases.grouped_front(KERNELS, DEVICE, *shape, interleaved, half) < tolerance


@pytest.mark.parametrize(("softmax", "biased"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", cases.ROUTE, ids=str)
def test_route(shape: tuple[int, int, int, int], softmax: bool, biased: bool) -> None:
    assert cases.route(KERNELS, DEVICE, *shape, softmax, biased) < 1e-5


def test_of_scores_that_are_no_numbers_none_is_chosen() -> None:
    if isinstance(KERNELS, PlainKernels):
        pytest.skip("torch's choice of those is open")
    x_TD, weight_ED = torch.ones(2, 4, device=DEVICE), torch.ones(5, 4, device=DEVICE)
    weight_ED[3] = float("nan")
    expert_TK, weight_TK = KERNELS.route(x_TD, weight_ED, None, 5, 1.0, False, False)
    assert expert_TK.tolist() == [[0, 1, 2, 4, -1]] * 2 and weight_TK[0, 4] == 0
    expert_TK, weight_TK = KERNELS.route(x_TD, weight_ED, None, 2, 1.0, True, True)
    assert expert_TK.tolist() == [[-1, -1]] * 2 and not weight_TK.any()


@pytest.mark.parametrize("shape", cases.ROUTED, ids=str)
def test_routed_ffn(shape: tuple[int, int, int, int, int]) -> None:
    for shared in (0, 2):
        assert cases.routed_ffn(KERNELS, DEVICE, *shape, shared=shared) < (1e-5 if shape[0] <= 8 else TENSOR_CORES)


@pytest.mark.parametrize("shape", cases.DENSE, ids=str)
def test_feed_forward(shape: tuple[int, int, int]) -> None:
    assert cases.feed_forward(KERNELS, DEVICE, *shape) < (1e-5 if shape[0] <= 8 else TENSOR_CORES)


def test_an_absent_expert_adds_nothing() -> None:
    assert cases.routed_ffn(KERNELS, DEVICE, 2, 32, 16, 4, 2, absent=1.0) == 0.0
    assert cases.routed_ffn(KERNELS, DEVICE, 20, 32, 16, 4, 2, absent=1.0) == 0.0


@pytest.mark.parametrize(("held", "half"), [(False, True), (True, False)])
@pytest.mark.parametrize("shape", cases.MLA, ids=str)
def test_mla_attention(shape: tuple[int, int, int, int, int], held: bool, half: bool) -> None:
    assert cases.mla(KERNELS, DEVICE, *shape, held, half) < 3e-3


@pytest.mark.parametrize(("held", "half"), [(False, True), (True, False)])
@pytest.mark.parametrize("shape", cases.GQA, ids=str)
def test_gqa_attention(shape: tuple[int, int, int, int, int], held: bool, half: bool) -> None:
    assert cases.gqa(KERNELS, DEVICE, *shape, held, half) < 3e-3


def test_the_trial_before_a_model_stands_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # small for the interpreter, which the shapes mean nothing to
        for name, size in {"INPUTS": 32, "OUTPUTS": 24, "LATENT": 32, "ROTARY": 16, "HEAD_SIZE": 16}.items():
            monkeypatch.setattr(trial, name, size)
    assert not trial.differing(KERNELS, PlainKernels(), torch.device(DEVICE))


def test_rms_norm() -> None:
    assert cases.rms_norm(KERNELS, DEVICE) < 1e-6
