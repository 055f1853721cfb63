"""Looks at this very computer: asks torch, the driver and the system, and measures with the kernels themselves.

Owns the measuring. Every rate is the best of a few short runs: what the hardware can, not what another program left of
it at that moment. Uses some 600 MB of RAM and as much GPU memory for the time of it.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from localr1.errors import existing_folder
from localr1.events import LoadProgress, Progress
from localr1.kernels import compilation, cpu, threads
from localr1.kernels.features import BITS
from localr1.kernels.gpu import built_for, out_of_memory
from localr1.kernels.jit import SOURCES_STAMP
from localr1.placement.hardware import Facts, GpuFacts, GpuRates, LayerKind, LayerTime, Rates
from localr1.placement.load import OtherPrograms

STREAM_BYTES = 512 << 20
LEAST_STREAM_BYTES = 128 << 20
"""Of a GPU that has little memory free: less could lie in its caches."""
MATRIX = 2048
ROWS = (1, 8, 64, 512)
REPEATS = 3
RUNS_A_WAIT = 4
"""Of the GPU: launching and waiting take tens of microseconds, a tenth of what a fast one needs for STREAM_BYTES."""
MOST_REPEATS = 12
AGREE = 1.05
"""Two fastest runs so near each other were not disturbed."""
DISK_BYTES = 128 << 20
PROCESSOR_KEY = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
DRIVER_TIMEOUT_S = 5.0
KERNELS = ("read", "linear")
"""What the rates are measured with; stand-in layers run all kernels."""
KINDS: tuple[LayerKind, ...] = ("latent", "grouped")
ROW_SHARE = 0.75
"""Of the streaming bandwidth, what the int8 kernel usually reaches at one row."""
ROUGH_BYTES = 64 << 20
ROUGH_LAYER_S = 40e-6
"""What a layer usually costs beside reading its weights."""
ROUGH_FLOPS_A_THREAD = 5e10
ROUGH_GPU = GpuRates(300e9, 6e9, 12e9, 40e12)
"""Of a common gaming card, until the real one is measured."""


@dataclass(frozen=True)
class System:
    """The `Source` that is this computer; `folder` is where models live, `measure_layers` runs stand-in models."""

    folder: Path
    version: str = ""
    """Of this program."""
    measure_layers: Callable[[], Progress[tuple[LayerTime, ...]]] | None = None

    def facts(self) -> Facts:
        memory = psutil.virtual_memory()
        driver, driver_gpus = nvidia_driver()
        existing = existing_folder(self.folder)
        return Facts(
            processor=processor_name(),
            physical_cores=threads.physical_cores(),
            threads=threads.threads(),
            vector_bits=BITS,
            ram_bytes=memory.total,
            ram_free_bytes=memory.available,
            swap_used_bytes=_swap_used_bytes(),
            disk_folder=str(existing),
            disk_free_bytes=shutil.disk_usage(existing).free,
            system=platform.system(),
            torch_version=str(torch.__version__),
            torch_cuda=torch.version.cuda,
            driver=driver,
            driver_gpus=driver_gpus,
            triton=_version_of("triton") or _version_of("triton-windows"),
            gpu=_gpu_facts(),
            triton_lacks=triton_lacks(),
            program=f"{self.version}, kernels {SOURCES_STAMP.hex()[:12]}",
        )

    def rates(self, facts: Facts) -> Progress[Rates]:
        has_gpu = facts.gpu is not None and facts.gpu.supported
        stages = ("RAM", "processor", "disk", *(("GPU",) if has_gpu else ()))
        names = iter(range(len(stages)))
        for stage in compilation.compile_all(KERNELS if self.measure_layers is None else tuple(compilation.KERNELS)):
            yield LoadProgress(*stage)
        others = OtherPrograms()
        yield LoadProgress("measuring RAM", next(names), len(stages))
        read, row = _memory()
        yield LoadProgress("measuring the processor", next(names), len(stages))
        int8_flops = ((1, 2 * row), *((rows, _int8_flops(rows)) for rows in ROWS[1:]))
        gemm = _gemm_flops()
        yield LoadProgress("measuring the disk", next(names), len(stages))
        disk = disk_rate(self.folder)
        gpu = None
        if has_gpu:
            yield LoadProgress("measuring the GPU", next(names), len(stages))
            gpu = _gpu_rates()
        guessed = has_gpu and gpu is None
        layers = _rough_layers(row, int8_flops[-1][1])
        if self.measure_layers is not None:
            layers = yield from self.measure_layers()
        gpu = ROUGH_GPU if guessed else gpu
        return Rates(read, row, int8_flops, gemm, layers, disk, gpu, rough=guessed, others_share=others.share())

    def rough_rates(self, facts: Facts) -> Rates:
        words = torch.ones(ROUGH_BYTES // 8, dtype=torch.int64)
        read = ROUGH_BYTES / _best_s(lambda: words.sum(), REPEATS)
        flops = ROUGH_FLOPS_A_THREAD * facts.threads
        curve = ((1, 2 * ROW_SHARE * read), (64, flops), (512, flops))
        gpu = ROUGH_GPU if facts.gpu and facts.gpu.supported else None
        layers = _rough_layers(ROW_SHARE * read, flops)
        return Rates(read, ROW_SHARE * read, curve, flops / 2, layers, None, gpu, rough=True)


def _rough_layers(row_bytes_per_s: float, flops_per_s: float) -> tuple[LayerTime, ...]:
    """A small and a large layer of each kind, from the rates of their parts."""
    return tuple(
        LayerTime(
            kind, size, ROUGH_LAYER_S + size / row_bytes_per_s, 1024.0 * size, ROUGH_LAYER_S + 1024 * size / flops_per_s
        )
        for kind in KINDS
        for size in (100_000, 50_000_000)
    )


def _best_s(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest run, after one that counts for nothing; there are more while the two fastest differ."""
    run()
    took: list[float] = []
    while len(took) < repeats or (len(took) < MOST_REPEATS and took[1] > AGREE * took[0]):
        start = time.perf_counter()
        run()
        took = sorted([*took, time.perf_counter() - start])
    return max(took[0], 1e-9)


def _memory() -> tuple[float, float]:
    """Bytes a second: streamed, and by the int8 kernel at one row, over more matrices than any cache holds.

    What the kernel reads can be streamed, so the first is never less than the second.
    """
    size = min(STREAM_BYTES, psutil.virtual_memory().available // 4) // MATRIX**2 * MATRIX**2
    stream = np.ones(max(size, MATRIX**2), np.int8)
    read_s = _best_s(lambda: cpu.read(stream), REPEATS)
    matrices = stream.reshape(-1, MATRIX, MATRIX)
    x, scb, out = np.ones((1, MATRIX), np.float32), np.ones(MATRIX, np.float32), np.empty((1, MATRIX), np.float32)

    def all_matrices() -> None:
        for matrix in matrices:
            cpu.linear(x, matrix, scb, out)

    row_s = _best_s(all_matrices, REPEATS)
    return stream.size / min(read_s, row_s), stream.size / row_s


def _int8_flops(rows: int) -> float:
    x, out = np.ones((rows, MATRIX), np.float32), np.empty((rows, MATRIX), np.float32)
    q, scb = np.ones((MATRIX, MATRIX), np.int8), np.ones(MATRIX, np.float32)
    return 2 * rows * MATRIX**2 / _best_s(lambda: cpu.linear(x, q, scb, out), REPEATS)


def _gemm_flops() -> float:
    a, b = torch.ones(512, MATRIX), torch.ones(MATRIX, MATRIX)
    return 2 * 512 * MATRIX**2 / _best_s(lambda: a @ b, REPEATS)


def disk_rate(folder: Path) -> float | None:
    """Bytes a second of reading a file that is not in memory; None where that cannot be arranged."""
    advise = getattr(os, "posix_fadvise", None)
    path = folder / f".probe.{os.getpid()}"
    if advise is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < 4 * DISK_BYTES:
            return None
        block = os.urandom(1 << 20)
        with path.open("wb", buffering=0) as file:
            for _ in range(DISK_BYTES // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            advise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass
        return DISK_BYTES / (time.perf_counter() - start)
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def triton_lacks() -> str:
    """What Triton compiles its launchers with, where the computer must have it and has not; empty elsewhere."""
    if platform.system() != "Linux":
        return ""
    if not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "gcc", "clang")):
        return "a C compiler"
    return "" if Path(sysconfig.get_path("include"), "Python.h").is_file() else "Python's headers"


def _gpu_facts() -> GpuFacts | None:
    """None also where the driver refuses: without free memory it cannot even be asked how much is free."""
    if not torch.cuda.is_available():
        return None
    try:
        properties = torch.cuda.get_device_properties(0)
        free_bytes, total_bytes = torch.cuda.mem_get_info(0)
    except RuntimeError:
        return None
    ours_bytes = torch.cuda.memory_reserved(0)
    capability = (properties.major, properties.minor)
    return GpuFacts(properties.name, capability, total_bytes, free_bytes + ours_bytes, built_for(capability))


def _gpu_rates() -> GpuRates | None:
    """None where too little of the GPU's memory is free to measure it."""
    try:
        return _measure_gpu()
    except RuntimeError as error:
        if out_of_memory(error):
            return None
        raise
    finally:
        torch.cuda.empty_cache()


def _measure_gpu() -> GpuRates | None:
    free_bytes, _ = torch.cuda.mem_get_info(0)
    size = min(STREAM_BYTES, free_bytes // 4) // 8 * 8
    if size < LEAST_STREAM_BYTES:
        return None
    there, here = torch.ones(size, dtype=torch.int8, device="cuda"), torch.ones(size // 2, dtype=torch.int8)
    pinned = here.pin_memory()

    def timed_s(run: Callable[[], Any]) -> float:
        def waited() -> None:
            for _ in range(RUNS_A_WAIT):
                run()
            torch.cuda.synchronize()

        return _best_s(waited, REPEATS) / RUNS_A_WAIT

    read = size / timed_s(lambda: there.view(torch.int64).sum())
    copied = 2 * (size // 2) / timed_s(lambda: there[: size // 2].copy_(there[size // 2 : size // 2 * 2]))
    upload = here.numel() / timed_s(lambda: there[: here.numel()].copy_(here))
    pinned_upload = here.numel() / timed_s(lambda: there[: here.numel()].copy_(pinned, non_blocking=True))
    a = torch.ones(4 * MATRIX, 2 * MATRIX, dtype=torch.float16, device="cuda")
    flops = 2 * a.shape[0] ** 2 * a.shape[1] / timed_s(lambda: a @ a.T)
    return GpuRates(max(read, copied), upload, pinned_upload, flops)


def _swap_used_bytes() -> int:
    """0 where the system does not tell: Windows may have its performance counters turned off."""
    try:
        return int(psutil.swap_memory().used)
    except (RuntimeError, OSError):
        return 0


def nvidia_driver() -> tuple[str | None, tuple[str, ...]]:
    """The driver's version and the GPUs it shows, whatever torch thinks; (None, ()) without its tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, ()
    query = [tool, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None, ()
    return parse_driver(told)


def parse_driver(told: str) -> tuple[str | None, tuple[str, ...]]:
    """What `nvidia-smi --query-gpu=driver_version,name --format=csv,noheader` prints."""
    rows = [line.split(",", 1) for line in told.splitlines() if "," in line]
    return (rows[0][0].strip() or None if rows else None), tuple(name.strip() for _, name in rows)


def processor_name() -> str:
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return _registered_name() or platform.processor() or platform.machine()


def _registered_name() -> str:
    """What Windows has written down of its processor."""
    if sys.platform != "win32":
        return ""
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, PROCESSOR_KEY) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    except OSError:
        return ""


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
