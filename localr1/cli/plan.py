"""`localr1 plan`: where a model's parts would go on this computer and how fast it would be, before it is here."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localr1.cli.start import STARTING
from localr1.errors import ExitStatus, typed
from localr1.events import Progress
from localr1.options import EngineOptions, PlanOptions
from localr1.terminal.environment import Environment
from localr1.terminal.progress import follow
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from localr1.session.outlook import Forecast, Hardware, Subject


def run(environment: Environment, options: PlanOptions, engine: EngineOptions) -> ExitStatus:
    """Say where a model's parts would go on this computer, and how fast it would be.

    The model need not be here. With --vram and --ram it is asked of another computer: one that is like this one but
    for those.
    """
    subject, hardware, assumed = follow(environment, _look(options, engine), quiet=options.json)

    from localr1.session.outlook import budget_of, foresee

    foretold = foresee(subject, budget_of(engine, hardware.facts, subject.shape, what_if=True), hardware)
    if options.json:
        environment.stdout.write(json.dumps(_record(subject, foretold, assumed)) + "\n")
    else:
        _show(environment, subject, foretold, assumed)
    return ExitStatus.OK


def _look(options: PlanOptions, engine: EngineOptions) -> "Progress[tuple[Subject, Hardware, tuple[str, ...]]]":
    yield STARTING
    from localr1.bench.stand_ins import measure_layers
    from localr1.session.outlook import assume_gpu, disturbed, find_subject, survey_computer

    subject = find_subject(options.model, engine)
    hardware = yield from survey_computer(engine, lambda: measure_layers(engine))
    hardware, notes = assume_gpu(engine, hardware)
    if hardware.rates.unsure:
        busy = disturbed(hardware.rates)
        notes = (*notes, f"{busy.what}; {busy.mend}")
    return subject, hardware, (*subject.notes, *notes)


def _show(environment: Environment, subject: "Subject", foretold: "Forecast", notes: tuple[str, ...]) -> None:
    from rich.text import Text

    from localr1.session.outlook import pace, reasons, summary, table
    from localr1.terminal.tables import labelled

    chosen, console = foretold.plan, environment.console(environment.stdout)
    console.print(Text(visible(f"{subject.name}: {summary(foretold)}"), style="bold"))
    console.print()
    rows = [
        *table(chosen),
        ("",),
        ("writing an answer", *pace(foretold.decode_tokens_per_s)),
        ("reading a prompt", *pace(foretold.prefill_tokens_per_s)),
        ("the most that memory allows for an answer", *pace(foretold.floor_tokens_per_s)),
        ("",),
        ("where the time for each token of an answer goes",),
        *((f"  {what}", *_duration(seconds)) for what, seconds in reasons(foretold)),
    ]
    console.print(labelled(rows, console.width, wraps=0, justify=("left", "right", "left")))
    told = [*chosen.notes, *notes]
    if not chosen.measured and 0 < chosen.ram_experts < chosen.shape.expert_count:
        told.append(
            "which experts your conversations use is not known yet: a quarter of them is taken to do 44 % of the work"
        )
    if not subject.is_here:
        told.append(f"get it with: localr1 download {typed(subject.name)}")
    for line in told:
        environment.status(line, "dim")


def _duration(seconds: float) -> tuple[str, str]:
    return (f"{seconds:.1f}", "s") if seconds >= 1 else (f"{1000 * seconds:.2f}", "ms")


def _record(subject: "Subject", foretold: "Forecast", notes: tuple[str, ...]) -> dict[str, Any]:
    chosen = foretold.plan
    return {
        "model": subject.name,
        "is_here": subject.is_here,
        "device": chosen.device,
        "budget": asdict(chosen.budget),
        "gpu_bytes": chosen.gpu_bytes,
        "ram_bytes": chosen.ram_bytes,
        "disk_bytes": chosen.disk_bytes,
        "dense_bytes": chosen.dense_bytes,
        "kv": chosen.kv,
        "cache_bytes": chosen.cache_bytes,
        "workspace_bytes": chosen.workspace_bytes,
        "expert_bytes": chosen.shape.expert_bytes,
        "experts": {
            "gpu": chosen.slots,
            "ram": chosen.ram_experts,
            "disk": chosen.disk_experts,
            "shares": chosen.shares,
            "measured": chosen.measured,
        },
        "decode_tokens_per_s": foretold.decode_tokens_per_s,
        "prefill_tokens_per_s": foretold.prefill_tokens_per_s,
        "floor_tokens_per_s": foretold.floor_tokens_per_s,
        "parts_s": dict(foretold.parts),
        "notes": [*chosen.notes, *notes],
    }
