"""The narrower code paths, run where this processor can run them: numba is told of a lesser one in a new process."""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from localr1.kernels import features

LESSER = {
    256: ("haswell", "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2"),
    0: ("generic", ""),
}


@pytest.mark.parametrize(
    ("present", "bits"),
    [
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512vnni"}, 512),
        ({"avx2", "fma", "avx512f"}, 256),
        ({"avx2"}, 0),
        ({"neon"}, 0),
        (set(), 0),
    ],
)
def test_the_vector_width_follows_the_features(present, bits):
    assert features.vector_bits(present) == bits


def test_byte_products_take_wide_vectors_and_their_instruction():
    wide = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl"}
    assert features.has_byte_products(wide | {"avx512vnni"})
    assert not features.has_byte_products(wide)
    assert not features.has_byte_products({"avx2", "fma", "avxvnni", "avx512vnni"})  # narrow vectors


def test_memory_is_read_in_one_place_on_zen_only():
    assert [features.streams(name) for name in ("znver4", "znver5", "icelake-server", "rocketlake")] == [1, 1, 8, 8]
    assert features.streams(features.target_processor()) == features.STREAMS


def run_as(processor: str, enabled: str, *arguments: str) -> subprocess.Popen[str]:
    """Python told of another processor and its features."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": enabled},
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(1200)
def test_the_kernels_agree_with_the_reference_on_other_processors():
    """On lesser ones, where weight rows are read in one place, or in several, unlike here, and where wide vectors
    multiply no bytes. All at once, since each compiles for a minute."""
    lesser = [bits for bits in LESSER if bits < features.BITS]
    if not lesser:
        pytest.skip("this processor has no vectors to do without")
    for bits in lesser:
        told, _ = run_as(
            *LESSER[bits], "-c", "from localr1.kernels import features; print(features.BITS)"
        ).communicate()
        assert int(told) == bits
    pytest_arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=1200"]
    files = ["test_cpu.py", "test_blocks.py", "test_latent_attention.py"]
    runs = [run_as(*LESSER[bits], *pytest_arguments, *files) for bits in lesser]
    here = llvm.get_host_cpu_features().flatten()  # what is not here is told too: a name stands for features
    others = [("icelake-server" if features.STREAMS == 1 else "znver4", here)]
    if 256 in lesser:
        others.append(("znver3", LESSER[256][1]))
    if features.BYTE_PRODUCTS:
        others.append(("skylake-avx512", here.replace("+avx512vnni", "-avx512vnni").replace("+avxvnni", "-avxvnni")))
    runs += [run_as(*other, *pytest_arguments, "test_cpu.py", "-k", "linear") for other in others]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), "\n".join(text[-3000:] for text in said)
