"""What the machine's own meters say of energy: RAPL for the processors (Linux), NVML for an NVIDIA GPU.

Owns the reading of both counters, which run on from some moment of their own; only differences mean something. A meter
that is missing or may not be read is left out, and `Meters.names` says which are there. `nvidia-ml-py` (module
`pynvml`) reads the GPU's and is used where it is installed.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

RAPL = Path("/sys/class/powercap")


class Meters:
    """The meters that this machine has for what it runs on: the processors, and the GPU where there is one."""

    def __init__(self, rapl: Path = RAPL) -> None:
        self._packages = [path for path in sorted(rapl.glob("intel-rapl:*")) if path.name.count(":") == 1]
        self._wrap_j = [_joules(path / "max_energy_range_uj") or 0.0 for path in self._packages]
        if not self._packages or any(_joules(path / "energy_uj") is None for path in self._packages):
            self._packages = []
        self._nvml, self._gpu = _open_gpu()

    @property
    def names(self) -> tuple[str, ...]:
        """Whose energy is told."""
        return ("processors",) * bool(self._packages) + ("GPU",) * (self._gpu is not None)

    def read(self) -> tuple[float, ...]:
        """Every counter, in joules."""
        packages = [_joules(path / "energy_uj") or 0.0 for path in self._packages]
        gpu = [] if self._gpu is None else [self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) / 1e3]
        return (*packages, *gpu)

    def since(self, before: tuple[float, ...]) -> float | None:
        """Joules of all meters together since `before`; None without a meter. A counter that began again is mended."""
        if not before:
            return None
        wraps = (*self._wrap_j, 0.0)
        used = (now - then for now, then in zip(self.read(), before, strict=True))
        return sum(one if one >= 0 else one + wrap for one, wrap in zip(used, wraps, strict=False))


def _joules(path: Path) -> float | None:
    try:
        return int(path.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def _open_gpu() -> tuple[Any, Any]:
    """NVML and the GPU that torch uses; None twice where there is none or its driver does not tell."""
    if not torch.cuda.is_available():
        return None, None
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None, None
    try:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except nvml.NVMLError:
        return None, None
    return nvml, gpu
