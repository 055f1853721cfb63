"""What this computer has and how fast it is, as records.

Owns the records and their cache on the disk. Measures nothing itself and imports no torch, as `probe`
does; whoever asks hands in a `Source`, so a test can be any computer. Invariants: cached rates are used only for the
hardware and software, this program's included, that they were measured with; those measured while other programs kept
the processors busy are measured again at the next chance; what changes by the minute (free memory) is never cached.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, Protocol

from localr1.events import LoadProgress, Progress
from localr1.placement.load import BUSY_SHARE

FORMAT = 3
MOST_PROBES = 3
"""Of a computer that is always busy: then the best of so many is what it can."""
OLDEST_CAPABILITY = (7, 5)


@dataclass(frozen=True)
class GpuFacts:
    """A GPU that torch can use."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    """For this program: what it holds itself could be placed anew."""
    built_for: bool = True
    """Whether the installed torch has code for it."""

    @property
    def supported(self) -> bool:
        """Whether torch can run on it, and it is as new as the kernels need."""
        return self.built_for and self.capability >= OLDEST_CAPABILITY


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
    """Guessed from a fraction of a second's measuring, or of a GPU that is too full to be measured."""
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
        """Measure, in some seconds; rough where a GPU cannot be measured now."""
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

    Cached ones of a busy computer are measured again, a few times at most, and the best of both are kept. What is
    partly a guess is not kept.
    """
    yield LoadProgress("looking at this computer")
    facts = source.facts()
    before = None if fresh else read_rates(cache, facts)
    if before is not None and not (before.unsure and before.probes < MOST_PROBES):
        return Hardware(facts, before)
    rates = yield from source.rates(facts)
    if rates.rough:
        return Hardware(facts, before or rates)
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
