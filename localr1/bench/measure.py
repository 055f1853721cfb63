"""`localr1 bench` from the options to the report.

Owns which measurements a run makes, and in which order. What each one does is its own module's.
"""

from dataclasses import asdict

import torch

from localr1.bench.claims import claims
from localr1.bench.compare import compare, parse_comparison
from localr1.bench.fidelity import fidelity
from localr1.bench.machine import machine, peak_rss_bytes
from localr1.bench.report import Figure, Report, Row, Section
from localr1.bench.speed import SpeedBench, parse_depths, usable_depths
from localr1.bench.subject import Subject
from localr1.bench.synthetic import Shape
from localr1.errors import UnsupportedError, UsageError
from localr1.events import Progress
from localr1.options import BenchOptions, EngineOptions
from localr1.placement.load import BUSY_SHARE, OtherPrograms
from localr1.session import Engine

NOT_RECORDED = ("json", "plot", "markdown", "csv", "words")
"""Options that say where results go, not what they are of."""


def check(options: BenchOptions, engine: EngineOptions) -> None:
    """Refuse what cannot be measured before anything is loaded. Raises UsageError."""
    parse_depths(options.depths)
    if (options.claims or options.fidelity) and engine.dtype != "int8":
        raise UsageError("--claims and --fidelity are of the 8-bit model", f"leave out --dtype {engine.dtype}")
    for text in options.compare:
        parse_comparison(text, engine)


def bench(subject: Subject, options: BenchOptions) -> Progress[Report]:
    """What the options ask for: comparisons, claims or fidelity where they are named, else the speed."""
    sections: list[Section] = []
    others = OtherPrograms()
    if options.claims:
        sections += yield from claims(subject, options)
    if options.fidelity:
        section = yield from fidelity(subject, options)
        sections.append(section)
    for text in options.compare:  # last, since the engine makes way for them on a GPU
        section = yield from compare(subject, options, parse_comparison(text, subject.engine.options))
        sections.append(section)
    if not sections:
        speed = SpeedBench(subject, options)
        yield from speed.run()
        sections += speed.sections()
    subject.use_threads(subject.engine)
    return Report(
        subject.label,
        subject.shape is not None,
        machine(),
        (overview(subject, options.claims or options.fidelity, others.share()), *sections),
        settings(options, subject.engine),
    )


def settings(options: BenchOptions, engine: Engine) -> dict[str, object]:
    """The options that the figures depend on; threads and cache rows as they are in force."""
    chosen = {name: value for name, value in asdict(options).items() if name not in NOT_RECORDED}
    chosen["compare"] = list(options.compare)
    return {**chosen, **asdict(engine.options), "kv": engine.kv, "threads": torch.get_num_threads()}


def overview(subject: Subject, baselines: bool, others: float) -> Section:
    """The model's sizes, and what loading and running it took."""
    engine, sizes = subject.engine, subject.sizes
    rows = [
        Row("parameters", (Figure((float(engine.parameters),), ""),)),
        Row("weights", (Figure((float(engine.weight_bytes),), "B", "less"),)),
        Row("less than float32", (Figure((4 * engine.parameters / engine.weight_bytes,), "x", "more"),)),
        Row("read a token", (Figure((float(sizes.active_bytes),), "B", "less"),)),
        Row("cache a token", (Figure((float(engine.new_cache().token_nbytes),), "B", "less"),)),
        *(Row(f"load, {start.state}", (Figure((start.load_s,), "s", "less"),)) for start in subject.starts),
        *(
            Row(f"first token, {start.state}", (Figure((start.first_token_s,), "s", "less"),))
            for start in subject.starts
        ),
        Row(
            "peak memory" + (", baselines included" if baselines else ""),
            (Figure((float(peak_rss_bytes()),), "B", "less"),),
        ),
    ]
    rows.append(Row("other programs took", (Figure((round(100 * others, 1),), "% of the processors"),)))
    notes = list(subject.notes)
    if others > BUSY_SHARE:
        notes.append(
            "too noisy to tell absolute speeds: other programs wanted the processors; ratios are more reliable"
        )
    return Section("model", f"{subject.label}, {engine.options.dtype}", ("", ""), tuple(rows), tuple(notes))


def synthetic_context(shape: Shape, options: BenchOptions, engine: EngineOptions) -> int:
    """Tokens that a synthetic model is made for: `--context`, else as many of those asked for as the shape can hold.

    Raises UnsupportedError for a context beyond that, UsageError where it holds no depth that speeds are asked of.
    """
    longest = shape.config.max_position
    if engine.context is not None and engine.context > longest:
        raise UnsupportedError(
            f"--context {engine.context:,} is beyond what {shape.name} was made for",
            f"its longest context is {longest:,}",
        )
    needed = parse_depths(options.depths)[-1] + options.prompt_tokens + 4 * options.decode_tokens
    context = engine.context or min(needed, longest)
    if options.compare or not (options.claims or options.fidelity):
        usable_depths(options, context, shape.label)
    return context
