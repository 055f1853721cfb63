"""Computers that tests pretend to be."""

from dataclasses import replace

from localr1.events import LoadProgress, Progress
from localr1.placement.hardware import Facts, GpuFacts, GpuRates, LayerTime, Rates

GB = 10**9
FACTS = Facts(
    processor="Some Processor",
    physical_cores=8,
    threads=8,
    vector_bits=256,
    ram_bytes=32 * GB,
    ram_free_bytes=28 * GB,
    swap_used_bytes=0,
    disk_folder="/home/me",
    disk_free_bytes=200 * GB,
    system="Linux",
    torch_version="2.13.0+cu130",
    torch_cuda="13.0",
    driver=None,
    driver_gpus=(),
    triton="3.7.0",
    gpu=None,
)
CARD = GpuFacts("Some Card", (8, 9), 12 * GB, 11 * GB)
WITH_GPU = replace(FACTS, driver="581.2", driver_gpus=("Some Card",), gpu=CARD)
LAYERS = tuple(
    LayerTime(kind, size, 1e-4 + size / 30e9, 1024.0 * size, 1e-4 + size * 1024 / 4e11)  # type: ignore[arg-type]
    for kind in ("latent", "grouped")
    for size in (10**5, 10**7, 10**8)
)
RATES = Rates(40e9, 30e9, ((1, 60e9), (64, 4e11), (512, 4e11)), 2e11, LAYERS, 3e9, None)
GPU_RATES = GpuRates(500e9, 10e9, 25e9, 80e12)


class Computer:
    """A `Source` of given facts; counts how often it was measured."""

    def __init__(self, facts: Facts = FACTS) -> None:
        self.told = facts
        self.measured = 0

    def facts(self) -> Facts:
        return self.told

    def rates(self, facts: Facts) -> Progress[Rates]:
        yield LoadProgress("measuring", 0, 1)
        self.measured += 1
        return replace(RATES, gpu=GPU_RATES if facts.gpu else None)

    def rough_rates(self, facts: Facts) -> Rates:
        return replace(RATES, rough=True, gpu=GPU_RATES if facts.gpu else None)
