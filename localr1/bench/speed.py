"""How fast a model reads a prompt and decodes, by the depth of its context, and how near that is to the floor.

Owns the measuring loop. A repeat visits every depth in turn, with samples of the machine's own speed around each
measurement, so that a machine whose speed drifts moves all figures alike and their ratios stay. The cache is filled
once; a depth is visited again by cutting it and running the same tokens, so every repeat does the same work. The first
repeat warms up and is dropped.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from localr1.bench.floor import Ceilings, operations, read_bytes
from localr1.bench.machine import energy_j
from localr1.bench.parts import PARTS, REST, Stopwatch, timed_twin
from localr1.bench.report import Cell, Figure, Row, Section
from localr1.bench.subject import Subject, fill_cache
from localr1.decode.cache import RowCache
from localr1.decode.generate import prefill, step
from localr1.decode.speculate import Speculation
from localr1.errors import UsageError
from localr1.events import LoadProgress, Progress
from localr1.model.registry import Model, expected_tensors
from localr1.options import BenchOptions

PART_STEPS = 12
"""Steps of the pass that tells where the time goes."""


def parse_depths(text: str) -> tuple[int, ...]:
    """`0,1k,4k` as numbers, ascending. Raises UsageError for anything else."""
    depths = set()
    for word in text.split(","):
        digits, thousand = word.strip().lower(), 1
        if digits.endswith("k"):
            digits, thousand = digits[:-1], 1024
        if not digits.isdecimal() or len(digits) > 9:
            raise UsageError(
                f"--depths {text}: {word.strip()!r} is no number of tokens", "for example --depths 0,1k,4k"
            )
        depths.add(int(digits) * thousand)
    return tuple(sorted(depths))


def usable_depths(options: BenchOptions, limit: int, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The depths that fit a context of `limit` tokens, and those that do not. UsageError when none fits."""
    around = options.prompt_tokens + options.decode_tokens
    wanted = parse_depths(options.depths)
    fitting = tuple(depth for depth in wanted if depth + around <= limit)
    if not fitting:
        raise UsageError(
            f"{options.prompt_tokens} prompt and {options.decode_tokens} decode tokens at a depth of {wanted[0]:,} "
            f"exceed the context of {limit:,} that {name} has here",
            "ask for fewer, or raise --context",
        )
    return fitting, wanted[len(fitting) :]


@dataclass
class Samples:
    """Repeats at one depth."""

    decode_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    read_bytes_per_s: list[float] = field(default_factory=list)
    operations_per_s: list[float] = field(default_factory=list)
    energy_j: list[float] = field(default_factory=list)


class SpeedBench:
    """One model's measurements; `run` makes them, `sections` tells them."""

    def __init__(self, subject: Subject, options: BenchOptions) -> None:
        self.subject = subject
        self.options = options
        self.engine = subject.engine
        self.depths, self.skipped = usable_depths(options, self.engine.context_limit, self.engine.name)
        self.sizes = subject.sizes
        self.tokens = subject.tokens(self.depths[-1] + options.prompt_tokens + options.decode_tokens)
        self.samples: dict[int, Samples] = defaultdict(Samples)
        self.parts: dict[int, dict[str, float]] = {}
        self.cache = self.engine.new_cache()

    def run(self) -> Progress[None]:
        """All repeats, then one pass that times the parts."""
        yield LoadProgress("filling the context")
        synthetic = self.subject.shape is not None
        if self.depths[-1]:
            yield from fill_cache(self.engine, self.cache, self.tokens[: self.depths[-1]], synthetic)
        ceilings = Ceilings(self.subject.store.byte_runs(), self.sizes.active_bytes)
        total = (self.options.repeats + 1) * len(self.depths)
        for repeat in range(self.options.repeats + 1):
            for at, depth in enumerate(self.depths):
                yield LoadProgress("measuring" if repeat else "warming up", repeat * len(self.depths) + at, total)
                found = self._measure(depth, ceilings)
                if repeat:
                    _add(self.samples[depth], found)
        for depth in self.depths:
            yield LoadProgress("timing the parts")
            self.parts[depth] = self._time_parts(depth)

    def _measure(self, depth: int, ceilings: Ceilings) -> tuple[float, float, float, float, float | None]:
        """Seconds of decoding and of prefill, bytes and operations a second, and joules of decoding."""
        before = ceilings.read_bytes_per_s()
        visit(self.cache, self.tokens, depth)
        energy, start_s = energy_j(), time.perf_counter()
        decode_along(self.engine.model, self.cache, self._after(depth, self.options.decode_tokens))
        decode_s, energy_after = time.perf_counter() - start_s, energy_j()
        between = ceilings.read_bytes_per_s(), ceilings.operations_per_s()
        visit(self.cache, self.tokens, depth)
        start_s = time.perf_counter()
        prompt = self.tokens[: depth + self.options.prompt_tokens]
        for _ in prefill(self.engine.model, self.cache, prompt, Speculation()):
            pass
        prefill_s = time.perf_counter() - start_s
        joules = None if energy is None or energy_after is None else energy_after - energy
        operations_per_s = (between[1] + ceilings.operations_per_s()) / 2
        return decode_s, prefill_s, (before + between[0]) / 2, operations_per_s, joules

    def _after(self, depth: int, count: int) -> list[int]:
        return self.tokens[depth : depth + count]

    def _time_parts(self, depth: int) -> dict[str, float]:
        """Seconds a token by part, of decoding at this depth."""
        watch = Stopwatch()
        twin = timed_twin(self.engine.model, watch)
        visit(self.cache, self.tokens, depth)
        steps: list[dict[str, float]] = []
        for token in self._after(depth, PART_STEPS + 1):
            watch.seconds.clear()
            start_s = time.perf_counter()
            step(twin, self.cache, token)
            rest_s = time.perf_counter() - start_s - sum(watch.seconds.values())
            steps.append({**watch.seconds, REST: rest_s})
        return {part: median(one[part] for one in steps[1:] or steps) for part in steps[0]}

    def sections(self) -> tuple[Section, ...]:
        return self._speed(), self._floor(), self._parts()

    def _speed(self) -> Section:
        prompt, decoded = self.options.prompt_tokens, self.options.decode_tokens
        energy = any(samples.energy_j for samples in self.samples.values())
        columns = ("context", f"prefill {prompt}", "first token after", f"decode {decoded}")
        rows = []
        for depth in self.depths:
            samples = self.samples[depth]
            cells: tuple[Cell, ...] = (
                figure([prompt / seconds for seconds in samples.prefill_s], "tokens/s", "more"),
                figure(samples.prefill_s, "s", "less"),
                figure([decoded / seconds for seconds in samples.decode_s], "tokens/s", "more"),
            )
            if energy:
                cells += (figure([joules / decoded for joules in samples.energy_j], "J", "less"),)
            rows.append(Row(f"{depth:,}", cells))
        notes = ["without guessing ahead; `--compare speculate=off,auto` measures that"]
        if self.skipped:
            skipped = ", ".join(f"{depth:,}" for depth in self.skipped)
            notes.append(f"contexts of {skipped} do not fit the limit of {self.engine.context_limit:,} tokens")
        if self.subject.shape and self.depths[-1]:
            notes.append("the context was filled with random rows")
        if not energy:
            notes.append("energy: this machine does not tell it")
        return Section(
            "speed", "Speed by context", columns + (("energy a token",) if energy else ()), tuple(rows), tuple(notes)
        )

    def _floor(self) -> Section:
        cache_bytes = self.cache.token_nbytes
        tensors = expected_tensors(self.engine.config)
        rows = []
        for depth in self.depths:
            samples = self.samples[depth]
            # While n tokens are decoded the context grows from depth to depth + n.
            needed = read_bytes(self.sizes, depth + self.options.decode_tokens // 2, cache_bytes)
            work = operations(self.engine.config, tensors, self.sizes, self.options.prompt_tokens, depth)
            token_s = [seconds / self.options.decode_tokens for seconds in samples.decode_s]
            rate = zip(samples.read_bytes_per_s, token_s, strict=True)
            product = zip(samples.operations_per_s, samples.prefill_s, strict=True)
            cells: tuple[Cell, ...] = (
                figure([float(needed)], "B", "less"),
                figure([one / 1e9 for one in samples.read_bytes_per_s], "GB/s", "more"),
                figure([needed / (read * seconds) for read, seconds in rate], "", "more"),
                figure([work / 1e9 / seconds for seconds in samples.prefill_s], "GFLOP/s", "more"),
                figure([one / 1e9 for one in samples.operations_per_s], "GFLOP/s", "more"),
                figure([work / (rate_ * seconds) for rate_, seconds in product], "", "more"),
            )
            rows.append(Row(f"{depth:,}", cells))
        columns = (
            "context",
            "read a token",
            "memory reads",
            "decode / floor",
            "prefill does",
            "fp32 GEMM does",
            "prefill / GEMM",
        )
        notes = (
            "decode / floor: the time to read the active weights and the cache once, over the time it took",
            "prefill / GEMM: useful operations a second over those of torch's fp32 product; int8 products may pass 1",
        )
        return Section(
            "floor",
            "Achieved against what this machine could do, measured in turn with the same threads",
            columns,
            tuple(rows),
            notes,
        )

    def _parts(self) -> Section:
        seen = [part for part in (*PARTS, REST) if any(part in times for times in self.parts.values())]
        rows = []
        for part in seen:
            cells: list[Cell] = []
            for depth in self.depths:
                seconds = self.parts[depth].get(part, 0.0)
                cells.append(figure([seconds], "s", "less"))
                cells.append(figure([round(100 * seconds / sum(self.parts[depth].values()), 1)], "%"))
            rows.append(Row(part, tuple(cells)))
        columns = ["part"]
        for depth in self.depths:
            columns += [f"at {depth:,}", f"share at {depth:,}"]
        note = f"a pass of its own with a stopwatch around each part; the median of {PART_STEPS} tokens"
        return Section("parts", "Where the time of a token goes", tuple(columns), tuple(rows), (note,))


def visit(cache: RowCache, tokens: Sequence[int], depth: int) -> None:
    """Make a cache that holds rows of `tokens` hold exactly the first `depth`; rows beyond its length are still there
    when it was longer before."""
    cache.truncate(min(depth, cache.length))
    cache.commit(tokens[cache.length : depth])


def decode_along(model: Model, cache: RowCache, tokens: Sequence[int]) -> None:
    """Decode as if these were the tokens chosen, so that every repeat does the same work."""
    for token in tokens:
        step(model, cache, token)


def figure(values: Sequence[float], unit: str, better: str = "") -> Figure:
    assert better in ("more", "less", "")
    return Figure(tuple(values), unit, better)  # type: ignore[arg-type]


def _add(samples: Samples, found: tuple[float, float, float, float, float | None]) -> None:
    decode_s, prefill_s, read, multiplied, joules = found
    samples.decode_s.append(decode_s)
    samples.prefill_s.append(prefill_s)
    samples.read_bytes_per_s.append(read)
    samples.operations_per_s.append(multiplied)
    if joules is not None:
        samples.energy_j.append(joules)
