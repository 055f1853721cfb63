"""`localr1 doctor`: what this computer has, how fast it is, what is wrong and how to mend it."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from localr1.cli.start import STARTING
from localr1.errors import ExitStatus
from localr1.events import Progress
from localr1.options import DoctorOptions, EngineOptions
from localr1.quantities import bytes_text, count_text
from localr1.terminal.environment import Environment
from localr1.terminal.progress import follow
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from localr1.session.outlook import Hardware


def run(environment: Environment, options: DoctorOptions) -> ExitStatus:
    """Look at this computer: what it has, how fast it is, what is wrong and how to mend it.

    The first time it measures, which takes about a minute; later it remembers, until the hardware or torch changes.
    """
    hardware = follow(environment, _look(options), quiet=options.json)

    from localr1.session.outlook import diagnose, to_record

    if options.json:
        environment.stdout.write(json.dumps(to_record(hardware)) + "\n")
        return ExitStatus.OK
    from localr1.terminal.tables import labelled

    console = environment.console(environment.stdout)
    console.print(labelled([(label, visible(value)) for label, value in rows(hardware)], console.width, wraps=1))
    findings = diagnose(hardware.facts, hardware.rates)
    for finding in findings:
        environment.status(f"{finding.weight}: {finding.what}", "red" if finding.weight == "wrong" else "yellow")
        environment.status(f"  mend: {finding.mend}")
    if not findings:
        environment.status("Nothing is wrong.", "dim")
    return ExitStatus.OK


def _look(options: DoctorOptions) -> "Progress[Hardware]":
    yield STARTING
    from localr1.bench.stand_ins import measure_layers
    from localr1.session.outlook import survey_computer

    engine = EngineOptions(threads=options.threads)
    return (yield from survey_computer(engine, lambda: measure_layers(engine), fresh=options.fresh))


def rows(hardware: "Hardware") -> Iterator[tuple[str, str]]:
    """Label and value of each line of the table."""
    facts, rates = hardware.facts, hardware.rates
    cores = f"{facts.physical_cores} physical core{'s' if facts.physical_cores > 1 else ''}"
    vectors = f"{facts.vector_bits}-bit vectors" if facts.vector_bits else "no vectors"
    yield "processor", f"{facts.processor}, {cores}, {facts.threads} used, {vectors}"
    yield (
        "  int8 products",
        ", ".join(f"{flops / 1e9:.0f} GFLOP/s at {count_text(rows, 'row')}" for rows, flops in rates.int8_flops),
    )
    yield "  float32 products", f"{rates.gemm_flops / 1e9:.0f} GFLOP/s"
    yield "RAM", f"{bytes_text(facts.ram_bytes)}, {bytes_text(facts.ram_free_bytes)} free"
    yield "  streaming", f"{_speed(rates.read_bytes_per_s)}; int8 weights at one row {_speed(rates.row_bytes_per_s)}"
    yield "  swap", f"{bytes_text(facts.swap_used_bytes)} in use"
    if facts.gpu is not None:
        capability = ".".join(map(str, facts.gpu.capability))
        yield "GPU", f"{facts.gpu.name}, compute capability {capability}"
        yield "  memory", f"{bytes_text(facts.gpu.total_bytes)}, {bytes_text(facts.gpu.free_bytes)} free"
    else:
        yield "GPU", "none that can be used: models run on the CPU"
    if rates.gpu is not None and rates.rough:
        yield "  speed", "not measured: too little of its memory is free"
    elif rates.gpu is not None:
        yield "  streaming", _speed(rates.gpu.read_bytes_per_s)
        yield "  from RAM", f"{_speed(rates.gpu.pinned_bytes_per_s)} pinned, {_speed(rates.gpu.upload_bytes_per_s)} not"
        yield "  16-bit products", f"{rates.gpu.gemm_flops / 1e12:.1f} TFLOP/s"
    yield (
        "driver",
        f"NVIDIA {facts.driver}, shows {', '.join(facts.driver_gpus)}" if facts.driver else "no NVIDIA driver",
    )
    build = f"CUDA {facts.torch_cuda}" if facts.torch_cuda else "without CUDA"
    yield "torch", f"{facts.torch_version}, {build}; Triton {facts.triton or 'missing'}"
    disk = f", reads at {_speed(rates.disk_bytes_per_s)}" if rates.disk_bytes_per_s else ""
    yield "disk", f"{bytes_text(facts.disk_free_bytes)} free{disk} ({facts.disk_folder})"


def _speed(bytes_per_s: float) -> str:
    return f"{bytes_text(int(bytes_per_s))}/s"
