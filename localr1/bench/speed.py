"""How fast a model reads a prompt and decodes, by the depth of its context, and how near that is to the floor.

Owns the measuring loop. A round visits every depth in turn, with samples of the machine's own speed around each
measurement, so that a machine whose speed drifts moves all figures alike and their ratios stay. The cache is filled
once; a depth is visited again by cutting it and running the same tokens, so every round does the same work. The first
round warms up and is dropped. Rounds go on for `LEAST_S`, since a spread taken within a second knows nothing of what
other programs do in the next. No round begins after `max_seconds`.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from localr1.bench.energy import Meters
from localr1.bench.floor import Ceilings, operations, read_bytes
from localr1.bench.parts import PARTS, REST, stopwatch_for, timed_twin
from localr1.bench.report import Better, Cell, Figure, Row, Section
from localr1.bench.subject import Subject, fill_cache
from localr1.decode.cache import RowCache
from localr1.decode.generate import prefill, step
from localr1.decode.speculate import Speculation
from localr1.errors import UsageError
from localr1.events import LoadProgress, Progress
from localr1.model.registry import Model, expected_tensors
from localr1.options import BenchOptions
from localr1.quantities import count_text

PART_STEPS = 12
"""Steps of the pass that tells where the time goes, where the text has so many."""

LEAST_S = 15.0
"""Measuring lasts at least this long, the warm-up not counted."""

IMPOSSIBLE = (
    "decode / floor above 1 cannot be: other programs held up the reading that it is judged by; "
    "end them and measure again"
)

FILLING_SHARE = 0.5
"""Of the time that a run may take, what filling the context may."""


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
    """Rounds at one depth."""

    token_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    read_bytes_per_s: list[float] = field(default_factory=list)
    operations_per_s: list[float] = field(default_factory=list)
    energy_j: list[float] = field(default_factory=list)

    def without_the_first(self) -> "Samples":
        """Less the warm-up, unless that is all there is."""
        return Samples(**{name: values[1:] or values for name, values in vars(self).items()})


class SpeedBench:
    """One model's measurements; `run` makes them, `sections` tells them."""

    def __init__(self, subject: Subject, options: BenchOptions) -> None:
        self.subject = subject
        self.options = options
        self.engine = subject.engine
        self.depths, self.skipped = usable_depths(options, self.engine.context_limit, self.engine.name)
        self.late: tuple[int, ...] = ()
        self.sizes = subject.sizes
        self.tokens = subject.tokens(self.depths[-1] + options.prompt_tokens + options.decode_tokens)
        self.samples: dict[int, Samples] = defaultdict(Samples)
        self.warm_up_alone: tuple[int, ...] = ()
        self.parts: dict[int, dict[str, float]] = {}
        self.cache = self.engine.new_cache()
        self.meters = Meters()
        self.least_s = LEAST_S

    def run(self) -> Progress[None]:
        """All rounds, then one pass that times the parts."""
        start_s = time.monotonic()
        yield LoadProgress("filling the context")
        yield from self._fill(start_s + FILLING_SHARE * self.options.max_seconds)
        ceilings = Ceilings(self.subject.store.byte_runs(), self.sizes.active_bytes)
        yield from self._rounds(ceilings, start_s + self.options.max_seconds)
        self.warm_up_alone = tuple(depth for depth in self.depths if len(self.samples[depth].token_s) == 1)
        for depth in self.depths:
            self.samples[depth] = self.samples[depth].without_the_first()
            yield LoadProgress("timing the parts")
            self.parts[depth] = self._time_parts(depth)

    def _fill(self, deadline_s: float) -> Progress[None]:
        """Fill the cache to the deepest depth; the depths that text was not run to in time are left out."""
        if self.depths[-1]:
            wanted = self.tokens[: self.depths[-1]]
            for event in fill_cache(self.engine, self.cache, wanted, self.subject.shape is not None):
                if time.monotonic() > deadline_s and self.cache.length < len(wanted):
                    break
                yield event
        self._leave_out([depth for depth in self.depths if depth > self.cache.length])

    def _rounds(self, ceilings: Ceilings, deadline_s: float) -> Progress[None]:
        """Visit the depths in turn, often and long enough."""
        number, least = 0, self.options.repeats + 1
        began_s = time.monotonic()
        while number < least or time.monotonic() - began_s < self.least_s:
            for at, depth in enumerate(self.depths):
                if time.monotonic() > deadline_s:
                    self._leave_out([depth for depth in self.depths if depth not in self.samples])
                    return
                if number < least:
                    done = number * len(self.depths) + at
                    yield LoadProgress("measuring" if number else "warming up", done, least * len(self.depths))
                elif at == 0:
                    yield LoadProgress("measuring until the figures have seen some time pass")
                self._measure(depth, ceilings)
            number += 1
            if number == 1:
                began_s = time.monotonic()

    def _leave_out(self, late: Sequence[int]) -> None:
        self.late = (*late, *self.late)
        self.depths = tuple(depth for depth in self.depths if depth not in late)
        if not self.depths:
            raise UsageError(
                f"nothing could be measured within {self.options.max_seconds} s",
                "raise --max-seconds, or lower --depths",
            )

    def _measure(self, depth: int, ceilings: Ceilings) -> None:
        """Decode and prefill once at this depth, with the machine's own speed before and after each."""
        read_before = ceilings.read_bytes_per_s()
        visit(self.cache, self.tokens, depth)
        energy = self.meters.read()
        token_s = decode_along(self.engine.model, self.cache, self._after(depth, self.options.decode_tokens))
        joules = self.meters.since(energy)
        read_after, multiplied_before = ceilings.read_bytes_per_s(), ceilings.operations_per_s()
        visit(self.cache, self.tokens, depth)
        start_s = time.perf_counter()
        prompt = self.tokens[: depth + self.options.prompt_tokens]
        for _ in prefill(self.engine.model, self.cache, prompt, Speculation()):
            pass
        prefill_s = time.perf_counter() - start_s
        samples = self.samples[depth]
        samples.token_s.append(token_s)
        samples.prefill_s.append(prefill_s)
        samples.read_bytes_per_s.append(max(read_before, read_after))
        samples.operations_per_s.append(max(multiplied_before, ceilings.operations_per_s()))
        if joules is not None:
            samples.energy_j.append(joules)

    def _after(self, depth: int, count: int) -> list[int]:
        return self.tokens[depth : depth + count]

    def _time_parts(self, depth: int) -> dict[str, float]:
        """Seconds a token by part, of decoding at this depth."""
        watch = stopwatch_for(self.engine.model)
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
        """A model on a GPU has no floor here: its ceilings are the GPU's, and what is sampled are the processor's."""
        if self.engine.on_gpu is not None:
            return self._speed(), self._parts()
        return self._speed(), self._floor(), self._parts()

    def _speed(self) -> Section:
        prompt, decoded = self.options.prompt_tokens, self.options.decode_tokens
        columns = ["context", f"prefill {prompt}", "first token after", f"decode {decoded}"]
        rows = []
        for depth in self.depths:
            samples = self.samples[depth]
            cells: tuple[Cell, ...] = (
                _figure((prompt / seconds for seconds in samples.prefill_s), "tokens/s", "more"),
                _figure(samples.prefill_s, "s", "less"),
                _figure((1 / seconds for seconds in samples.token_s), "tokens/s", "more"),
            )
            if self.meters.names:
                cells += (_figure((joules / decoded for joules in samples.energy_j), "J", "less"),)
            rows.append(Row(f"{depth:,}", cells))
        columns += ["energy a token"] if self.meters.names else []
        return Section("speed", "Speed by context", tuple(columns), tuple(rows), tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        repeated = [depth for depth in self.depths if depth not in self.warm_up_alone]
        rounds = " or ".join(map(str, sorted({len(self.samples[depth].token_s) for depth in repeated})))
        if repeated:
            yield f"{rounds} repeats of each, taken in turn" if rounds != "1" else "each was measured once"
        if self.warm_up_alone:
            where = f"contexts of {_listed(self.warm_up_alone)} show" if repeated else "this is"
            yield f"{where} the warm-up alone, since {self.options.max_seconds} s were over (--max-seconds)"
        yield "decode: by the median token, without guessing ahead; `--compare speculate=off,auto` measures that"
        if self.skipped:
            yield f"contexts of {_listed(self.skipped)} do not fit the limit of {self.engine.context_limit:,} tokens"
        if self.late:
            over = f"since {self.options.max_seconds} s were over (--max-seconds)"
            yield f"contexts of {_listed(self.late)} were left out, {over}"
        if self.subject.shape and self.depths[-1]:
            yield "the context was filled with random rows"
        measured = f"of decoding, by the meters of: {', '.join(self.meters.names)}" if self.meters.names else ""
        yield f"energy: {measured or 'not told by the driver'}"
        if self.engine.on_gpu is not None:
            yield "how near it is to what the GPU could do is not told"

    def _floor(self) -> Section:
        cache_bytes = self.cache.token_nbytes
        tensors = expected_tensors(self.engine.config)
        rows, impossible = [], False
        for depth in self.depths:
            samples = self.samples[depth]
            # While n tokens are decoded the context grows from depth to depth + n.
            needed = read_bytes(self.sizes, depth + self.options.decode_tokens // 2, cache_bytes)
            work = operations(self.engine.config, tensors, self.sizes, self.options.prompt_tokens, depth)
            rate = zip(samples.read_bytes_per_s, samples.token_s, strict=True)
            product = zip(samples.operations_per_s, samples.prefill_s, strict=True)
            share = _figure((needed / (read * seconds) for read, seconds in rate), "", "more")
            impossible = impossible or share.median > 1
            cells: tuple[Cell, ...] = (
                _figure([float(needed)], "B", "less"),
                _figure((one / 1e9 for one in samples.read_bytes_per_s), "GB/s", "more"),
                share,
                _figure((work / 1e9 / seconds for seconds in samples.prefill_s), "GFLOP/s", "more"),
                _figure((one / 1e9 for one in samples.operations_per_s), "GFLOP/s", "more"),
                _figure((work / (rate_ * seconds) for rate_, seconds in product), "", "more"),
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
            *((IMPOSSIBLE,) if impossible else ()),
        )
        title = "Achieved against what this machine could do, measured in turn with the same threads"
        return Section("floor", title, columns, tuple(rows), notes)

    def _parts(self) -> Section:
        seen = [part for part in (*PARTS, REST) if any(part in times for times in self.parts.values())]
        rows = []
        for part in seen:
            cells: list[Cell] = []
            for depth in self.depths:
                seconds = self.parts[depth].get(part, 0.0)
                cells.append(Figure((seconds,), "s", "less"))
                cells.append(Figure((round(100 * seconds / sum(self.parts[depth].values()), 1),), "%"))
            rows.append(Row(part, tuple(cells)))
        columns = ["part"]
        for depth in self.depths:
            columns += [f"at {depth:,}", f"share at {depth:,}"]
        counts = sorted({max(len(self._after(depth, PART_STEPS + 1)) - 1, 1) for depth in self.depths})
        tokens = " or ".join([*map(str, counts[:-1]), count_text(counts[-1], "token")])
        note = f"a pass of its own with a stopwatch around each part; the median of {tokens}"
        return Section("parts", "Where the time of a token goes", tuple(columns), tuple(rows), (note,))


def visit(cache: RowCache, tokens: Sequence[int], depth: int) -> None:
    """Make a cache that holds rows of `tokens` hold exactly the first `depth`; rows beyond its length are still there
    when it was longer before."""
    cache.truncate(min(depth, cache.length))
    cache.commit(tokens[cache.length : depth])


def decode_along(model: Model, cache: RowCache, tokens: Sequence[int]) -> float:
    """Decode as if these were the tokens chosen, so that every repeat does the same work; the median seconds of one.

    The median, since a token during which another program had the processor takes many times as long as the rest.
    """
    seconds = []
    for token in tokens:
        start_s = time.perf_counter()
        step(model, cache, token)
        seconds.append(time.perf_counter() - start_s)
    return median(seconds)


def _listed(depths: Iterable[int]) -> str:
    return ", ".join(f"{depth:,}" for depth in depths)


def _figure(values: Iterable[float], unit: str, better: Better = "") -> Figure:
    return Figure(tuple(values), unit, better)
