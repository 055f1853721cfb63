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
    assert cases.linear(KERNELS, DEVICE, *shape) < (1e-5 if shape[0] <= 8 else TENSOR_CORES)


@pytest.mark.parametrize("shape", cases.ROUTED, ids=str)
def test_routed_ffn(shape: tuple[int, int, int, int, int]) -> None:
    assert cases.routed_ffn(KERNELS, DEVICE, *shape) < (1e-5 if shape[0] <= 8 else TENSOR_CORES)


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
        for name, size in {"INPUTS": 64, "OUTPUTS": 48, "LATENT": 32, "ROTARY": 16, "HEAD_SIZE": 16}.items():
            monkeypatch.setattr(trial, name, size)
    assert not trial.differing(KERNELS, PlainKernels(), torch.device(DEVICE))


def test_rms_norm() -> None:
    assert cases.rms_norm(KERNELS, DEVICE) < 1e-6
