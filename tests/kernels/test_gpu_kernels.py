"""The GPU kernels without a GPU: right in Triton's interpreter and as torch operations, and compiled for every target.

The interpreter is chosen when Triton's decorators run, so those checks have a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from localr1.kernels import gpu
from localr1.kernels.gpu import plain, trial
from tests.kernels import gpu_cases as cases

HERE = Path(__file__).parent
triton_only = pytest.mark.skipif(
    not gpu.has_triton(), reason="Triton is not installed (it has no build for this system)"
)


def test_torch_operations_equal_the_reference() -> None:
    kernels = gpu.choose(torch.device("cpu"))
    assert isinstance(kernels, plain.PlainKernels)
    assert max(cases.linear(kernels, "cpu", *shape) for shape in cases.LINEAR) < 1e-5
    assert max(cases.routed_ffn(kernels, "cpu", *one, shared=n) for one in cases.ROUTED for n in (0, 2)) < 1e-5
    assert max(cases.feed_forward(kernels, "cpu", *shape) for shape in cases.DENSE) < 1e-5
    assert max(cases.mla(kernels, "cpu", *shape, held, True) for shape in cases.MLA for held in (True, False)) < 1e-5
    assert max(cases.gqa(kernels, "cpu", *shape, held, True) for shape in cases.GQA for held in (True, False)) < 1e-5
    assert cases.rms_norm(kernels, "cpu") < 1e-6
    for either in (False, True):
        assert max(cases.head_product(kernels, "cpu", *shape, either, False) for shape in cases.PRODUCT) < 1e-5
        assert max(cases.latent_front(kernels, "cpu", *shape, either) for shape in cases.FRONT) < 1e-6
        assert max(cases.grouped_front(kernels, "cpu", *shape, either) for shape in cases.FRONT) < 1e-6
        assert max(cases.route(kernels, "cpu", *shape, either, not either) for shape in cases.ROUTE) < 1e-5


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC"), "Failed to find C compiler"),
        (subprocess.CalledProcessError(1, ["gcc", "main.c"]), "gcc"),
        (OSError(), "OSError"),
    ],
)
def test_where_triton_cannot_compile_torch_operations_say_why(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(device: torch.device) -> None:
        raise error

    monkeypatch.setattr(gpu, "_tried", tried)
    monkeypatch.setattr(gpu, "has_triton", lambda: True)
    kernels = gpu.choose(torch.device("cuda"))
    assert isinstance(kernels, plain.PlainKernels) and why in kernels.why_plain
    monkeypatch.setattr(gpu, "has_triton", lambda: False)
    assert "pip install triton" in gpu.choose(torch.device("cuda")).why_plain  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("Triton Error [CUDA]: out of memory")])
def test_memory_that_runs_out_is_no_reason_against_triton(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def tried(device: torch.device) -> None:
        raise error

    monkeypatch.setattr(gpu, "_tried", tried)
    monkeypatch.setattr(gpu, "has_triton", lambda: True)
    with pytest.raises(type(error)):
        gpu.choose(torch.device("cuda"))


def test_a_device_that_fails_is_no_reason_against_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(gpu, "_tried", tried)
    monkeypatch.setattr(gpu, "has_triton", lambda: True)
    with pytest.raises(torch.AcceleratorError):
        gpu.choose(torch.device("cuda"))


@pytest.mark.parametrize(
    "broken",
    [
        "rms_norm",
        "linear",
        "head_product",
        "latent_front",
        "grouped_front",
        "route",
        "routed_ffn",
        "feed_forward",
        "mla_attention",
        "gqa_attention",
    ],
)
@pytest.mark.parametrize("number", [1.1, float("nan")])
def test_kernels_that_give_wrong_numbers_are_found_out(broken: str, number: float) -> None:
    right = plain.PlainKernels()

    class Broken(plain.PlainKernels):
        def __getattribute__(self, name: str) -> object:
            found = getattr(right, name)

            def wrong(*arguments: object, **named: object) -> object:
                result = found(*arguments, **named)
                results = result if isinstance(result, tuple) else (result,)
                spoilt = tuple(one * number if one.is_floating_point() else one for one in results)
                return spoilt if isinstance(result, tuple) else spoilt[0]

            return wrong if name == broken else found

    assert trial.differing(Broken(), right, torch.device("cpu")) == broken
    assert trial.differing(right, right, torch.device("cpu")) == ""


@pytest.mark.parametrize("lost", ["bias", "onto"])
def test_a_product_that_adds_nothing_to_a_few_outputs_is_found_out(lost: str) -> None:
    class Broken(plain.PlainKernels):
        def linear(self, x_TD: Any, q_OD: Any, scb_O: Any, bias_O: Any = None, onto_TO: Any = None) -> torch.Tensor:
            added = bias_O if lost == "bias" else onto_TO
            out_TO = super().linear(x_TD, q_OD, scb_O, bias_O, onto_TO)
            if added is not None:
                out_TO[..., -16:] -= added[..., -16:]
            return out_TO

    assert trial.differing(Broken(), plain.PlainKernels(), torch.device("cpu")) == "linear onto"


def test_a_router_that_chooses_wrongly_is_found_out() -> None:
    class Broken(plain.PlainKernels):
        def route(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
            expert_TK, weight_TK = super().route(*arguments)
            return (expert_TK + 1) % trial.ROUTED, weight_TK

    assert trial.differing(Broken(), plain.PlainKernels(), torch.device("cpu")) == "route"


@pytest.mark.parametrize(
    ("architectures", "capability", "built"),
    [
        (["sm_75", "sm_80", "sm_86", "sm_90"], (8, 9), True),
        (["sm_75", "sm_80", "sm_86", "sm_90"], (12, 0), False),
        (["sm_75", "sm_80", "sm_90a", "compute_90"], (12, 0), True),
        (["sm_80", "sm_120"], (7, 5), False),
        (["sm_86"], (8, 0), False),
        ([], (8, 0), True),
    ],
)
def test_a_torch_without_code_for_a_card_is_known(
    architectures: list[str], capability: tuple[int, int], built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    assert gpu.built_for(capability) == built


def test_wide_matrices_are_widened_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "STEP_WEIGHTS", 300)
    assert cases.linear(plain.PlainKernels(), "cpu", 9, 100, 17) < 1e-5


@triton_only
def test_triton_equals_the_reference_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=280", "gpu_check.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@triton_only
@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 120])
def test_kernels_compile_for_every_target_without_spills(capability: int) -> None:
    from tests.kernels import gpu_targets

    launches = gpu_targets.launches(capability)
    if capability in (80, 86, 89):  # the rest of the code is much alike from one of these to the next
        launches = [one for one in launches if one.name in gpu_targets.HOT]
    assert {one.name for one in launches} >= gpu_targets.HOT - ({"mla"} if capability < 80 else set())
    for launch in launches:
        used = gpu_targets.resources(launch, capability)
        assert used.spilled_bytes == 0, f"{launch.name} spills {used}"
        assert used.shared_bytes <= gpu_targets.SHARED_LIMIT_BYTES[capability], f"{launch.name} needs {used}"
