"""What is wrong with a computer for this program, and how to mend it.

Owns the limits and the words. Knows the records of `hardware` alone.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from localr1.placement.hardware import OLDEST_CAPABILITY, Facts, Hardware, Rates
from localr1.quantities import bytes_text, percent_text

LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The NVIDIA driver that a torch built for this CUDA needs."""
LITTLE_RAM_BYTES = 7_500_000_000
LITTLE_FREE_BYTES = 3_000_000_000
LITTLE_DISK_BYTES = 5_000_000_000
SWAP_IN_USE_BYTES = 500_000_000


@dataclass(frozen=True)
class Finding:
    """Something that stands in the way, and how to mend it."""

    weight: Literal["wrong", "mind"]
    what: str
    mend: str


def disturbed(rates: Rates) -> Finding:
    """That the computer was busy while it was measured."""
    what = f"other programs took {percent_text(rates.others_share)} of the processors while this was measured"
    return Finding("mind", what, "when the computer is quiet, measure again: localr1 doctor --fresh")


def diagnose(facts: Facts, rates: Rates | None = None) -> tuple[Finding, ...]:
    """What is wrong, with how the rates were measured if they are given; the worst first."""
    found = [*_gpu_findings(facts), *_memory_findings(facts)]
    if rates is not None and rates.unsure:
        found.append(disturbed(rates))
    if rates is not None and rates.rough and facts.gpu is not None:
        what = "the GPU has too little memory free to be measured, so what is expected of it is a guess"
        found.append(Finding("mind", what, "close what uses it, then run: localr1 doctor"))
    if facts.vector_bits == 0:
        what = "the CPU kernels run without vector instructions: this processor lacks AVX2"
        found.append(Finding("mind", what, "expect a fraction of the speed; there is nothing to install"))
    if facts.disk_free_bytes < LITTLE_DISK_BYTES:
        what = f"{bytes_text(facts.disk_free_bytes)} are free on the disk of {facts.disk_folder}"
        found.append(Finding("mind", what, "free some room, or set LOCALR1_HOME to a folder on a larger disk"))
    return tuple(sorted(found, key=lambda finding: finding.weight == "mind"))


def _gpu_findings(facts: Facts) -> Iterator[Finding]:
    names = ", ".join(facts.driver_gpus)
    if facts.gpu is None and facts.driver_gpus:
        if facts.torch_cuda is None:
            yield Finding(
                "wrong",
                f"torch {facts.torch_version} was built without CUDA, so {names} stays idle",
                "install torch's CUDA build: PyTorch's own install page gives the command for your system",
            )
        else:
            least = LEAST_DRIVERS.get(_major(facts.torch_cuda), 0)
            old = _major(facts.driver) < least
            yield Finding(
                "wrong",
                f"torch {facts.torch_version} cannot use {names}: its CUDA {facts.torch_cuda} "
                + (
                    f"needs driver {least}, {facts.driver} is installed"
                    if old
                    else f"and driver {facts.driver} disagree, or its memory is full"
                ),
                "update the NVIDIA driver, then start the computer again",
            )
    if facts.gpu is None:
        return
    has = ".".join(map(str, facts.gpu.capability))
    if facts.gpu.capability < OLDEST_CAPABILITY:
        least_text = ".".join(map(str, OLDEST_CAPABILITY))
        what = f"{facts.gpu.name} has compute capability {has}, the GPU kernels need {least_text}"
        yield Finding("wrong", what, "models run on the CPU; --vram 0 says so explicitly")
    elif not facts.gpu.built_for:
        what = f"torch {facts.torch_version} has no code for {facts.gpu.name} (compute capability {has})"
        hint = "install a build for a newer CUDA, or a newer torch: PyTorch's own install page gives the command"
        yield Finding("wrong", what, hint)
    elif facts.triton is None:
        package = "triton-windows" if facts.system == "Windows" else "triton"
        what = "Triton is missing, so the GPU runs plain torch operations, far slower"
        yield Finding("wrong", what, f"pip install {package}")
    elif facts.triton_lacks:
        what = f"Triton needs {facts.triton_lacks}, so the GPU runs plain torch operations, far slower"
        yield Finding("wrong", what, "install what is missing, such as gcc and python3-dev of your system")
    if facts.gpu.free_bytes < 0.6 * facts.gpu.total_bytes:
        used = bytes_text(facts.gpu.total_bytes - facts.gpu.free_bytes)
        yield Finding("mind", f"other programs hold {used} of GPU memory", "close them for more experts on the GPU")


def _memory_findings(facts: Facts) -> Iterator[Finding]:
    if facts.ram_bytes < LITTLE_RAM_BYTES:
        what = f"{bytes_text(facts.ram_bytes)} of RAM is little"
        yield Finding("wrong", what, "the smallest models fit: localr1 models")
    elif facts.ram_free_bytes < LITTLE_FREE_BYTES:
        what = f"{bytes_text(facts.ram_free_bytes)} of {bytes_text(facts.ram_bytes)} RAM are free"
        yield Finding("mind", what, "close other programs before a larger model")
    if facts.swap_used_bytes > SWAP_IN_USE_BYTES:
        what = f"{bytes_text(facts.swap_used_bytes)} of swap are in use: memory was too little"
        yield Finding(
            "mind", what, "close other programs; a model that is swapped out is read from disk for every token"
        )


def _major(version: str | None) -> int:
    digits = (version or "").split(".")[0]
    return int(digits) if digits.isdigit() else 0


def to_record(hardware: Hardware) -> dict[str, Any]:
    """All of it as JSON, with what is wrong."""
    facts = asdict(hardware.facts)
    return {
        **facts,
        "rates": asdict(hardware.rates),
        "findings": [asdict(one) for one in diagnose(hardware.facts, hardware.rates)],
    }
