"""Is downloading and quantizing at once nearly as fast as the slower of the two alone? And in how much memory?

    python -m benchmarks.download_throughput [--gigabytes 4] [--json benchmarks/results/download-throughput.json]

A random bfloat16 llama is served by a loopback hub in a process of its own. Each measurement is a fresh process:

- download: the shards as `localr1 download` takes them, hashed, at most two on the disk; each goes when it is whole;
- convert: the same checkpoint from its folder into a store, hashed and on the disk;
- both: `localr1 download`.

So the stages alone hash and make durable just what the whole does. Rounds are interleaved, each beginning with another
stage, with nothing left to be written to the disk, and with free memory taken up by cached file pages, as it is on a
computer that was used for a while. Of a virtual machine, whose idle memory the host may have taken back, that is more
than a nicety: pages that nobody had used for seconds were 16 times as slow to write as others. `--limit` slows the hub
to so many MB/s, as a network would; without it the hub is as fast as this computer lets it be, and competes with the
client for the processor: its processor time is told too.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.download_faults import REPO, make_checkpoint
from tests.loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
BYTES_A_LAYER = 2 * 16 * 2048**2  # of make_checkpoint's llama with hidden size 2048
STAGES = ("download", "convert", "both")
LEFT_FREE_BYTES = 512 << 20


def serve(folder: str, home: str, limit_mb_per_s: float, pipe: Connection) -> None:
    with LoopbackHub({REPO: Path(folder)}) as hub:
        hub.send_buffer_bytes = 1 << 20  # for a line of some length, as a real one has
        for path in Path(folder).iterdir():
            hub.hashes(path)
        hub.pace_bytes_per_s = limit_mb_per_s * 1e6
        pipe.send(hub.environment(Path(home)))
        while pipe.recv() == "processor time":
            pipe.send(time.process_time())


def stage(name: str, source: Path) -> None:
    """One measurement, in this process; prints seconds, processor seconds and peak memory."""
    import torch

    from localr1.bench.machine import peak_rss_bytes
    from localr1.options import DownloadOptions
    from localr1.session import convert, download
    from localr1.weights.quantize import quantize_rows
    from localr1.weights.store import Origin

    quantize_rows(torch.ones(1, 1, dtype=torch.bfloat16), "warm")  # loads, or once compiles, the loop
    home = Path(os.environ["LOCALR1_HOME"])
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    if name == "download":
        download_alone(home)
    elif name == "convert":
        drain(convert(source, home / "alone", Origin(REPO, "0" * 40)))
    else:
        drain(download(DownloadOptions(REPO)))
    seconds, cpu_s = time.monotonic() - started_s, time.process_time() - started_cpu_s
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_s, "peak_bytes": peak_rss_bytes()}))


def download_alone(home: Path) -> None:
    """The shards as a conversion would want them, let go as soon as it could begin."""
    from localr1.hub.download import Download
    from localr1.hub.lookup import look_up, talking_to_hub
    from localr1.hub.remote import Listing
    from localr1.hub.source import HubRepo

    repo = HubRepo(REPO)
    with talking_to_hub(repo):
        lookup = look_up(repo)
        try:
            while True:
                next(lookup)
        except StopIteration as end:
            listing: Listing = end.value
        arriving = Download(repo, listing, scratch=home / "scratch")
        drain(arriving.small_files())
        drain(arriving.heads())
        arriving.start([file.path for file in listing.shards])
        while not arriving.finished or arriving.arrived:
            drain(arriving.news(wait=not arriving.arrived))
            while arriving.arrived:
                arriving.release(arriving.arrived.popleft().name)
        arriving.close()


def drain(operation: Any) -> None:
    for _ in operation:
        pass


def use_memory(filler: Path) -> None:
    """Read from a file without contents until little memory is free; the system takes cached pages back as it needs."""
    with filler.open("ab") as file:
        file.truncate(psutil.virtual_memory().total)
    read_through(filler, lambda: psutil.virtual_memory().free < LEFT_FREE_BYTES)


def read_through(path: Path, enough: Callable[[], bool] = lambda: False) -> None:
    """Read a file into the system's memory, up to where there is enough of it."""
    room = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while not enough() and file.readinto(room):
            pass


def measure(name: str, source: Path, environment: dict[str, str], hub: Connection, scratch: Path) -> dict[str, float]:
    """One stage on a computer that has nothing yet."""
    shutil.rmtree(environment["HF_HOME"], ignore_errors=True)
    shutil.rmtree(environment["LOCALR1_HOME"], ignore_errors=True)
    os.sync()
    use_memory(scratch / "filler")
    for shard in source.glob("*.safetensors"):  # used last, so that it is not what the system takes back first
        read_through(shard)
    hub.send("processor time")
    before_s = hub.recv()
    command = [sys.executable, "-m", "benchmarks.download_throughput", "--stage", name, "--checkpoint", str(source)]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    hub.send("processor time")
    return {**json.loads(done.stdout.splitlines()[-1]), "hub_cpu_seconds": hub.recv() - before_s}


def campaign(source: Path, repeats: int, limit_mb_per_s: float, scratch: Path) -> list[dict[str, dict[str, float]]]:
    """What each stage took, round by round."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    hub = spawn.Process(target=serve, args=(str(source), str(scratch / "computer"), limit_mb_per_s, there))
    hub.start()
    environment, rounds = here.recv(), []
    for number in range(repeats):
        order = [STAGES[(number + place) % len(STAGES)] for place in range(len(STAGES))]
        rounds.append({name: measure(name, source, environment, here, scratch) for name in order})
    here.send("enough")
    hub.join()
    return rounds


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians, and of each round how near the whole comes to the slower stage."""
    ratios = [max(one["download"]["seconds"], one["convert"]["seconds"]) / one["both"]["seconds"] for one in rounds]
    medians = {
        name: {key: round(statistics.median(one[name][key] for one in rounds), 3) for key in rounds[0][name]}
        for name in STAGES
    }
    return {
        "medians": medians,
        "of_the_slower_stage": round(statistics.median(ratios), 3),
        "of_the_slower_stage_by_round": [round(ratio, 3) for ratio in ratios],
        "peak_bytes": max(one["both"]["peak_bytes"] for one in rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=0.0, help="MB/s that the hub gives (0: all it can)")
    parser.add_argument("--checkpoint", type=Path, help="use this folder, made if it is not there, and keep it")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--stage", choices=STAGES, help="measure one stage in this process (used by the others)")
    arguments = parser.parse_args()
    if arguments.stage:
        stage(arguments.stage, arguments.checkpoint)
        return
    if arguments.checkpoint is not None:
        arguments.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.checkpoint and arguments.checkpoint.parent) as scratch:
        source = arguments.checkpoint or Path(scratch) / "checkpoint"
        if not source.exists():
            layers = max(1, round(arguments.gigabytes * 1e9 / BYTES_A_LAYER))
            make = multiprocessing.get_context("spawn").Process(  # its memory is not this process's
                target=make_checkpoint, args=(source, 2048, layers, arguments.shards)
            )
            make.start()
            make.join()
        rounds = campaign(source, arguments.repeats, arguments.limit, Path(scratch))
        shards = [path.stat().st_size for path in source.glob("*.safetensors")]
    told = summary(rounds)
    print(f"{sum(shards) / 1e9:.2f} GB of bfloat16 in {len(shards)} shards, medians of {len(rounds)} rounds")
    for name, median in told["medians"].items():
        seconds = sorted(one[name]["seconds"] for one in rounds)
        print(
            f"{name:9} {median['seconds']:5.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}), "
            f"{sum(shards) / 1e6 / median['seconds']:5.0f} MB/s; processor {median['cpu_seconds']:.2f} s, "
            f"the hub's {median['hub_cpu_seconds']:.2f} s"
        )
    print(f"both at once: {told['of_the_slower_stage']:.0%} of the slower stage alone, by round", end=" ")
    print(", ".join(f"{ratio:.0%}" for ratio in told["of_the_slower_stage_by_round"]), end="; ")
    print(f"peak memory {told['peak_bytes'] / 1e9:.2f} GB")
    if arguments.json is not None:
        write(arguments.json, {"shard_bytes": shards, "limit_mb_per_s": arguments.limit, **told, "rounds": rounds})


def write(path: Path, figures: dict[str, Any]) -> None:
    from localr1.bench.machine import machine

    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
