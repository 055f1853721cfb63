"""Is downloading and quantizing at once nearly as fast as the slower of the two alone? And in how much memory?

    python -m benchmarks.download_throughput --gigabytes 4

A random bfloat16 llama is served by a loopback hub in a process of its own. Measured, each in a fresh process: the
download alone, the conversion alone (of the files that the first one left), and both at once. `--limit` slows the hub
to so many MB/s, as a network would; without it the hub is as fast as this computer lets it be, and competes with the
client for the processor.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.download_faults import REPO, make_checkpoint
from tests.loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
BYTES_A_LAYER = 2 * 16 * 2048**2  # of make_checkpoint's llama with hidden size 2048
STAGES = ("download", "convert", "both")


def serve(folder: str, limit_mb_per_s: float, pipe: Connection) -> None:
    with LoopbackHub({REPO: Path(folder)}) as hub:
        hub.send_buffer_bytes = 1 << 20  # for a line of some length, as a real one has
        for path in Path(folder).iterdir():
            hub.hashes(path)
        if limit_mb_per_s:
            hub.pace_bytes_per_s = limit_mb_per_s * 1e6
        pipe.send(hub.environment(Path(folder).parent / "computer"))
        pipe.recv()


def stage(name: str) -> None:
    """One measurement, in this process; prints seconds and peak memory."""
    import torch

    from localr1.hub.download import HubRepo, fetch
    from localr1.options import DownloadOptions
    from localr1.session import convert, download
    from localr1.weights.quantize import quantize_rows
    from localr1.weights.store import Origin

    quantize_rows(torch.ones(1, 1, dtype=torch.bfloat16), "warm")  # loads, or once compiles, the loop
    home = Path(os.environ["LOCALR1_HOME"])
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    if name == "download":
        drain(fetch(HubRepo(REPO)))
    elif name == "convert":
        (snapshot,) = (Path(os.environ["HF_HOME"]) / "hub").glob("models--*/snapshots/*")
        drain(convert(snapshot, home / "alone", Origin(REPO, "0" * 40)))
    else:
        drain(download(DownloadOptions(REPO)))
    seconds = time.monotonic() - started_s
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cpu_s = time.process_time() - started_cpu_s
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_s, "peak_bytes": peak_bytes}))


def drain(operation: object) -> None:
    for _ in operation:  # type: ignore[attr-defined]
        pass


def measure(name: str, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.download_throughput", "--stage", name]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=0.0, help="MB/s that the hub gives (0: all it can)")
    parser.add_argument("--stage", choices=STAGES)
    arguments = parser.parse_args()
    if arguments.stage:
        stage(arguments.stage)
        return
    with tempfile.TemporaryDirectory() as scratch:
        layers = max(1, round(arguments.gigabytes * 1e9 / BYTES_A_LAYER))
        source = make_checkpoint(Path(scratch) / "checkpoint", 2048, layers, arguments.shards)
        total_bytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        here, there = multiprocessing.get_context("spawn").Pipe()
        hub = multiprocessing.get_context("spawn").Process(target=serve, args=(str(source), arguments.limit, there))
        hub.start()
        environment = here.recv()
        seconds: dict[str, list[float]] = {name: [] for name in STAGES}
        peak_bytes = 0.0
        for _ in range(arguments.repeats):
            shutil.rmtree(Path(scratch) / "computer", ignore_errors=True)
            for name in STAGES:
                if name == "both":
                    shutil.rmtree(Path(scratch) / "computer")
                result = measure(name, environment)
                seconds[name].append(result["seconds"])
                if name == "both":
                    peak_bytes = max(peak_bytes, result["peak_bytes"])
        here.send("done")
        hub.join()
    print(f"{total_bytes / 1e9:.2f} GB of bfloat16 in {arguments.shards} shards, median of {arguments.repeats}")
    for name in STAGES:
        median_s = statistics.median(seconds[name])
        spread = f"{min(seconds[name]):.1f} to {max(seconds[name]):.1f}"
        print(f"{name:9} {median_s:6.1f} s ({spread})  {total_bytes / 1e6 / median_s:7.0f} MB/s")
    rounds = zip(seconds["download"], seconds["convert"], seconds["both"], strict=True)
    ratio = statistics.median(max(download, convert) / both for download, convert, both in rounds)
    print(f"both at once: {ratio:.0%} of the slower stage alone; peak memory {peak_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
