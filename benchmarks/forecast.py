"""How near `localr1 plan` comes to what is then measured: `python -m benchmarks.forecast [FOLDER] [--json FILE]`.

Measures this computer afresh, foretells nano, SmolLM2 (whose checkpoint is in FOLDER, if given) and four layers of
V2-Lite's shape with random weights, each without guessing ahead, and measures them as `localr1 bench` does.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from localr1 import session
from localr1.bench.machine import machine
from localr1.bench.speed import SpeedBench
from localr1.bench.stand_ins import measure_layers
from localr1.bench.subject import Subject, open_model, open_synthetic
from localr1.bench.synthetic import find_shape
from localr1.events import result_of
from localr1.model.registry import expected_tensors
from localr1.options import BenchOptions, DownloadOptions, EngineOptions
from localr1.placement.forecast import choose
from localr1.placement.hardware import Hardware
from localr1.placement.plan import Budget
from localr1.placement.shape import ModelShape, shape_of
from localr1.session.outlook import find_subject, survey_computer

BENCH = BenchOptions(depths="0", repeats=5)
CONTEXT = 1024


def judged(name: str, shape: ModelShape, subject: Subject, hardware: Hardware) -> dict[str, Any]:
    """Foretold, measured and their ratio."""
    budget = Budget(0, hardware.facts.ram_bytes, CONTEXT)
    foretold = choose(shape, budget, None, hardware.rates)
    bench = SpeedBench(subject, BENCH)
    result_of(bench.run())
    samples = bench.samples[0]
    decode = [1 / seconds for seconds in samples.token_s]
    prefill = [BENCH.prompt_tokens / seconds for seconds in samples.prefill_s]
    found = {
        "model": name,
        "decode": {"foretold": foretold.decode_tokens_per_s, "measured": decode},
        "prefill": {"foretold": foretold.prefill_tokens_per_s, "measured": prefill},
    }
    for kind in ("decode", "prefill"):
        found[kind]["ratio"] = found[kind]["foretold"] / median(found[kind]["measured"])
        told = f"{found[kind]['foretold']:,.1f} foretold, {median(found[kind]['measured']):,.1f} measured tokens/s"
        print(f"{name:14} {kind:8} {told}, ratio {found[kind]['ratio']:.2f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="SmolLM2's checkpoint")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
    options = EngineOptions(threads=chosen.threads, speculate="off", context=CONTEXT, vram="0")
    with tempfile.TemporaryDirectory() as home:
        os.environ["LOCALR1_HOME"] = home
        if chosen.folder:
            result_of(session.download(DownloadOptions(chosen.folder)))
        hardware = result_of(survey_computer(options, lambda: measure_layers(options), fresh=True))
        found = []
        for name in filter(None, ("nano", chosen.folder)):
            subject = result_of(open_model(name, options))
            found.append(
                judged(subject.engine.name.split("/")[-1], find_subject(name, options).shape, subject, hardware)
            )
        part = find_shape("v2-lite", 4, 0.5)
        shape = shape_of(part.config, expected_tensors(part.config), mtp=False)
        subject = result_of(open_synthetic(part, options, CONTEXT))
        found.append(judged("v2-lite, 4 layers", shape, subject, hardware))
    if chosen.json:
        record = {"machine": machine(), "threads": hardware.facts.threads, "models": found}
        chosen.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
