"""What this computer has and how fast it is, as records, and what is wrong with it.

Owns the records, their cache on the disk and the diagnosis. Measures nothing itself and imports no torch, as `probe`
does; whoever asks hands in a `Source`, so a test can be any computer. Invariants: cached rates are used only for the
hardware and software, this program's included, that they were measured with; those measured while other programs kept
the processors busy are measured again at the next chance; what changes by the minute (free memory) is never cached.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from localr1.events import LoadProgress, Progress
from localr1.placement.load import BUSY_SHARE
from localr1.quantities import bytes_text, percent_text

FORMAT = 3
MOST_PROBES = 3
"""Of a computer that is always busy: then the best of so many is what it can."""
OLDEST_CAPABILITY = (7, 5)
LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The NVIDIA driver that a torch built for this CUDA needs."""
LITTLE_RAM_BYTES = 7_500_000_000
LITTLE_FREE_BYTES = 3_000_000_000
LITTLE_DISK_BYTES = 5_000_000_000
SWAP_IN_USE_BYTES = 500_000_000


@dataclass(frozen=True)
class GpuFacts:
    """A GPU that torch can use."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    """For this program: what it holds itself could be placed anew."""

    @property
    def supported(self) -> bool:
        """Whether it is as new as the kernels need."""
        return self.capability >= OLDEST_CAPABILITY


@dataclass(frozen=True)
class Facts:
    """What is there, told at once; what torch and the driver say of themselves may contradict each other."""

    processor: str
    physical_cores: int
    threads: int
    vector_bits: int
    """Width of the vectors that the CPU kernels were made for; 0 for plain loops."""
    ram_bytes: int
    ram_free_bytes: int
    swap_used_bytes: int
    disk_folder: str
    disk_free_bytes: int
    system: str
    torch_version: str
    torch_cuda: str | None
    """The CUDA version that torch was built for; None for a build without."""
    driver: str | None
    """The version of the NVIDIA driver, None where there is none."""
    driver_gpus: tuple[str, ...]
    """GPUs that the driver shows, whether or not torch can use them."""
    triton: str | None
    gpu: GpuFacts | None
    triton_lacks: str = ""
    """What Triton needs on this computer and does not find; it compiles a little C for every kernel."""
    program: str = ""
    """The version of this program and of its kernels."""

    @property
    def key(self) -> str:
        """Names what measured rates depend on."""
        gpu = (self.gpu.name, self.gpu.capability, self.gpu.total_bytes) if self.gpu else None
        parts = (FORMAT, self.processor, self.physical_cores, self.threads, self.vector_bits, self.ram_bytes)
        software = (self.program, self.torch_version, self.torch_cuda, self.driver, self.triton, gpu)
        return hashlib.sha256(json.dumps([parts, software]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class GpuRates:
    """How fast a GPU is; bytes and multiplications a second."""

    read_bytes_per_s: float
    upload_bytes_per_s: float
    """From ordinary RAM to the GPU."""
    pinned_bytes_per_s: float
    """From page-locked RAM to the GPU."""
    gemm_flops: float
    """Multiply-adds of a large 16-bit matrix product, twice counted."""


LayerKind = Literal["latent", "grouped"]


@dataclass(frozen=True)
class LayerTime:
    """What one layer of a stand-in model took: latent attention and experts, or grouped-query attention and none.

    `decode_s` is that of one token, which read `read_bytes`; `prefill_s` that of 512, which took `flops`.
    """

    kind: LayerKind
    read_bytes: int
    decode_s: float
    flops: float
    prefill_s: float


@dataclass(frozen=True)
class Rates:
    """How fast this computer is, measured; seconds, bytes a second."""

    read_bytes_per_s: float
    """RAM, streamed by all threads."""
    row_bytes_per_s: float
    """RAM, read by the int8 kernel with one row of activations."""
    int8_flops: tuple[tuple[int, float], ...]
    """(rows, operations a second) of the int8 kernel; a multiplication and an addition are two."""
    gemm_flops: float
    """The same of torch's float32 matrix product."""
    layers: tuple[LayerTime, ...]
    """Whole layers of both kinds, of several sizes each, smallest first."""
    disk_bytes_per_s: float | None
    gpu: GpuRates | None
    rough: bool = False
    """Guessed from a fraction of a second's measuring."""
    others_share: float = 0.0
    """Of the processors' time, what other programs took meanwhile; of several probes, in the quietest."""
    probes: int = 1
    """How often it was measured; the best of each rate is kept."""

    @property
    def unsure(self) -> bool:
        """Whether this computer can do more than was seen, because it was busy."""
        return self.others_share > BUSY_SHARE


class Source(Protocol):
    """Where facts and rates come from."""

    def facts(self) -> Facts:
        """What is there, in well under a second."""
        ...

    def rates(self, facts: Facts) -> Progress[Rates]:
        """Measure, in some seconds."""
        ...

    def rough_rates(self, facts: Facts) -> Rates:
        """Measure what a fraction of a second allows, and take the rest as usual."""
        ...


@dataclass(frozen=True)
class Hardware:
    """Facts of now and the rates that go with them."""

    facts: Facts
    rates: Rates


def survey(source: Source, cache: Path, *, fresh: bool = False) -> Progress[Hardware]:
    """The hardware, with rates from the cache where it holds those of this very hardware, else measured and cached.

    Cached ones of a busy computer are measured again, a few times at most, and the best of both are kept.
    """
    yield LoadProgress("looking at this computer")
    facts = source.facts()
    before = None if fresh else read_rates(cache, facts)
    if before is not None and not (before.unsure and before.probes < MOST_PROBES):
        return Hardware(facts, before)
    rates = yield from source.rates(facts)
    if before is not None:
        rates = best_of(before, rates)
    _write(cache, facts, rates)
    return Hardware(facts, rates)


def glance(source: Source, cache: Path) -> Hardware:
    """The hardware, with rates from the cache, else rough ones; nothing is written."""
    facts = source.facts()
    return Hardware(facts, read_rates(cache, facts) or source.rough_rates(facts))


def read_rates(cache: Path, facts: Facts) -> Rates | None:
    """The cached rates of this hardware; None where there are none that can be used."""
    try:
        record = json.loads(cache.read_text(encoding="utf-8"))
        if record["key"] != facts.key:
            return None
        values = dict(record["rates"])
        values["gpu"] = GpuRates(**values["gpu"]) if values["gpu"] else None
        values["int8_flops"] = tuple((int(rows), float(flops)) for rows, flops in values["int8_flops"])
        values["layers"] = tuple(LayerTime(**layer) for layer in values["layers"])
        rates = Rates(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return rates if _sensible(rates) else None


def best_of(one: Rates, other: Rates) -> Rates:
    """Of two probes of the same computer, the better of each rate: a busy one can only look slower than it is."""
    layers = tuple(
        replace(a, decode_s=min(a.decode_s, b.decode_s), prefill_s=min(a.prefill_s, b.prefill_s))
        for a, b in zip(one.layers, other.layers, strict=True)
    )
    disk = max(filter(None, (one.disk_bytes_per_s, other.disk_bytes_per_s)), default=None)
    gpu = one.gpu
    if one.gpu is not None and other.gpu is not None:
        gpu = GpuRates(*(max(pair) for pair in zip(asdict(one.gpu).values(), asdict(other.gpu).values(), strict=True)))
    return Rates(
        max(one.read_bytes_per_s, other.read_bytes_per_s),
        max(one.row_bytes_per_s, other.row_bytes_per_s),
        tuple((rows, max(a, b)) for (rows, a), (_, b) in zip(one.int8_flops, other.int8_flops, strict=True)),
        max(one.gemm_flops, other.gemm_flops),
        layers,
        disk,
        gpu or other.gpu,
        others_share=min(one.others_share, other.others_share),
        probes=one.probes + other.probes,
    )


def _sensible(rates: Rates) -> bool:
    numbers = [getattr(rates, one.name) for one in fields(rates) if one.name.endswith(("_per_s", "_flops", "_s"))]
    numbers = [one for one in numbers if not isinstance(one, tuple) and one is not None]
    numbers += [flops for _, flops in rates.int8_flops] + (list(asdict(rates.gpu).values()) if rates.gpu else [])
    numbers += [number for layer in rates.layers for number in list(asdict(layer).values())[1:]]
    kinds = {layer.kind for layer in rates.layers}
    return (
        bool(rates.int8_flops)
        and kinds == {"latent", "grouped"}
        and isinstance(rates.others_share, int | float)
        and isinstance(rates.probes, int)
        and all(isinstance(one, int | float) and 0 < one < 1e18 for one in numbers)
    )


def _write(cache: Path, facts: Facts, rates: Rates) -> None:
    """Keep the rates; where nothing can be written they are measured again."""
    scratch = cache.with_name(f".{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps({"key": facts.key, "rates": asdict(rates)}, indent=1) + "\n", encoding="utf-8")
        scratch.replace(cache)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()


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
    if not facts.gpu.supported:
        has, least_text = ".".join(map(str, facts.gpu.capability)), ".".join(map(str, OLDEST_CAPABILITY))
        what = f"{facts.gpu.name} has compute capability {has}, the GPU kernels need {least_text}"
        yield Finding("wrong", what, "models run on the CPU; --vram 0 says so explicitly")
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
