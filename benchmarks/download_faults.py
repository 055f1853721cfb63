"""Kill downloads at random points while the hub misbehaves, and see whether every one still becomes the same store.

    python -m benchmarks.download_faults --kills 300 [--json benchmarks/results/download-faults.json]

A small checkpoint of four shards is fetched from a loopback hub and quantized, through the program's own code in
processes that get kill -9. After each kill nothing partial may look whole, and runs that follow must end with a store
that is byte by byte the undisturbed one. The hub meanwhile cuts connections, stalls, sends too much, too little, wrong
bytes, 429 and 500, ignores ranges and redirects. Where the kills fall is steered by what the runs report: `SHARES`.
Then single cuts of a larger file count the bytes fetched twice. With `--json`, runs of other seeds add up in one file.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from localr1.bench.machine import machine
from tests.download_runner import Run, Runner
from tests.loopback_hub import LoopbackHub

REPO = "org/tiny"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
MANIFEST = "manifest.json"
MOST_RUNS = 12
PATIENCE_S = 10.0
PACE_BYTES_PER_S = 8e6
SHARES = {"starting": 0.1, "fetching": 0.4, "converting": 0.3, "verifying": 0.2}
"""Where kills shall fall: before anything moves, while bytes arrive, while tensors are quantized, and while what an
earlier run converted is checked."""
MARKS = {"FetchProgress": "fetching", "QuantizeProgress": "converting", "LoadProgress": "verifying"}
HARMLESS_ERRORS = {"CorruptError", "NetworkError", "UnsupportedError", "KeyboardInterrupt"}
FAULTS: tuple[dict[str, Any], ...] = (
    {"cut_after_bytes": 20_000},
    {"cut_after_bytes": 0},
    {"flip_byte": 50_000},
    {"flip_byte": 200},
    {"status": 429, "retry_after_s": 0},
    {"status": 500},
    {"stall_s": 0.05},
    {"slow_s": 0.02},
    {"ignore_range": True},
    {"extra_bytes": 5},
    {"missing_bytes": 700},
)


@dataclass
class Outcome:
    """What a campaign saw."""

    kills: int = 0
    kills_while: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    runs: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    downloads: int = 0
    wrong: list[str] = field(default_factory=list)

    def next_phase(self) -> str:
        """The one that lacks the most kills."""
        return max(SHARES, key=lambda phase: SHARES[phase] * (self.kills + 1) - self.kills_while[phase])


@dataclass(frozen=True)
class Undisturbed:
    """What a download takes that nobody kills."""

    sent_bytes: int
    conversions: int
    store: dict[str, str]


def make_checkpoint(folder: Path, hidden: int = 64, layers: int = 3, shards: int = 4) -> Path:
    """A random bfloat16 llama that the program accepts, with a small tokenizer and a template."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    vocab, ff = 256, 4 * hidden
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("q", "k", "v", "o"):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = shapes[f"{prefix}.mlp.up_proj.weight"] = (ff, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, ff)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (hidden,)
    generator = torch.Generator().manual_seed(0)
    names = list(shapes)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        tensors = {name: torch.randn(shapes[name], generator=generator).to(torch.bfloat16) for name in mine}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": alphabet[1], "chat_template": TEMPLATE}))
    return folder


def store_facts(store: Path) -> dict[str, str]:
    """XXH3-128 of every file of a store but its manifest, which must say the same and list no other file."""
    manifest = json.loads((store / MANIFEST).read_text())
    facts = {path.name: xxh3_128(path.read_bytes()).hexdigest() for path in store.iterdir() if path.name != MANIFEST}
    said = {name: entry["xxh3_128"] for name, entry in manifest["files"].items()}
    if facts != said:
        raise ValueError(f"{store} is not what its manifest says")
    return facts


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_taken_as_whole(home: Path, reference: dict[str, str]) -> list[str]:
    """Everything that bears the name of something whole and is not."""
    wrong = []
    for manifest in (home / "localr1" / "models").glob(f"*/*/{MANIFEST}"):
        if manifest.parent.name.endswith((".partial", ".old", ".removed")):
            continue
        try:
            if store_facts(manifest.parent) != reference:
                wrong.append(f"{manifest.parent} differs from the reference")
        except (ValueError, OSError) as error:
            wrong.append(str(error))
    for blob in (home / "hf" / "hub").glob("models--*/blobs/*"):
        oid, _, ending = blob.name.partition(".")
        if ending in ("", "localr1") and oid not in (sha256(blob), git_sha1(blob)):
            wrong.append(f"{blob} has not the content of its name")
    return wrong


def git_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def doing(run: Run) -> str:
    """What a run was at when it ended, by its last event of progress."""
    marks = [MARKS[line["event"]] for line in run.lines if line.get("event") in MARKS]
    return marks[-1] if marks else "starting"


def campaign(scratch: Path, kills: int, seed: int = 0) -> Outcome:
    """Kill at least `kills` times. `scratch` must not exist yet."""
    noise, outcome = random.Random(seed), Outcome()
    with LoopbackHub({REPO: make_checkpoint(scratch / "checkpoint", hidden=128)}) as hub:
        hub.pace_bytes_per_s = PACE_BYTES_PER_S
        home = scratch / "computer"
        with Runner(hub, home) as runner:
            run = runner.finish(REPO)
            if run.folder is None:
                raise ValueError(f"the undisturbed download failed: {run.last}")
            undisturbed = Undisturbed(hub.sent_bytes, len(run.events("QuantizeProgress")), store_facts(run.folder))
            while outcome.kills < kills:
                shutil.rmtree(home)
                home.mkdir()
                disturbed(runner, hub, noise, undisturbed, outcome)
                print(f"\r{outcome.kills} kills, {len(outcome.wrong)} wrong ", end="", file=sys.stderr, flush=True)
    return outcome


def disturbed(runner: Runner, hub: LoopbackHub, noise: random.Random, whole: Undisturbed, outcome: Outcome) -> None:
    """One download with up to three kills, and runs until it is whole."""
    hub.redirect = noise.random() < 0.3
    hub.sent_bytes = 0
    keep_source = noise.random() < 0.2
    kills_left = noise.randint(1, 3)
    for _ in range(MOST_RUNS):
        hub.faults.clear()
        if kills_left or noise.random() < 0.3:
            for _ in range(noise.choice((0, 0, 1, 2))):
                hub.fail(noise.choice(("*", "*.safetensors", "model-00002*")), **noise.choice(FAULTS))
                outcome.faults += 1
        run = runner.start(REPO, keep_source=keep_source)
        if kills_left:
            wait_for(outcome.next_phase(), run, hub, runner.home, noise, whole)
            run.kill()
            kills_left -= 1
        run.wait()
        outcome.runs += 1
        outcome.wrong += partial_taken_as_whole(runner.home, whole.store)
        if "error" in run.last:
            outcome.errors[run.last["error"]] += 1
            if run.last["error"] not in HARMLESS_ERRORS:
                outcome.wrong.append(f"{run.last}")
        elif run.folder is None:
            outcome.kills += 1
            outcome.kills_while[doing(run)] += 1
        else:
            outcome.downloads += 1
            check_whole(run.folder, runner.home, whole.store, keep_source, outcome)
            return
    outcome.wrong.append(f"not whole after {MOST_RUNS} runs: {run.last}")


def wait_for(phase: str, run: Run, hub: LoopbackHub, home: Path, noise: random.Random, whole: Undisturbed) -> None:
    """Until some random moment of a phase; returns also when the run has ended before."""
    until_bytes = hub.sent_bytes + noise.uniform(0, max(1, whole.sent_bytes - hub.sent_bytes))
    converted = sum(
        path.read_bytes().count(b"\n") - 1 for path in home.glob("localr1/models/*/*.partial/journal.jsonl")
    )
    if phase == "verifying" and not converted:
        phase = "converting"  # first there must be something for the next run to check
    until_conversions = noise.randint(1, max(1, whole.conversions - converted))
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        said = run.log.read_bytes() if run.log.exists() else b""
        if (
            b'"store":' in said
            or b'"error":' in said
            or phase == "starting"
            or (phase == "fetching" and hub.sent_bytes >= until_bytes)
            or (phase == "converting" and said.count(b'"QuantizeProgress"') >= until_conversions)
            or (phase == "verifying" and b'"LoadProgress"' in said)
        ):
            break
        time.sleep(0.0005)
    longest_s = {"starting": 0.05, "verifying": 0.01}.get(phase, 0.002)
    time.sleep(noise.uniform(0, longest_s))


def check_whole(folder: Path, home: Path, reference: dict[str, str], keep_source: bool, outcome: Outcome) -> None:
    """The store is the undisturbed one, and of what it was made of only what was asked for is left."""
    if store_facts(folder) != reference:
        outcome.wrong.append(f"{folder} differs from the undisturbed store")
    left = [path.name for path in (home / "hf" / "hub").glob("models--*/blobs/*.localr1*")]
    partial = [path.name for path in (home / "localr1" / "models").glob("*/*.partial")]
    if left or partial:
        outcome.wrong.append(f"left over: {left + partial}")
    shards = list((home / "hf" / "hub").glob("models--*/snapshots/*/*.safetensors"))
    if bool(shards) != keep_source:
        outcome.wrong.append(f"keep_source={keep_source}, and {len(shards)} shards are in the cache")


def fetched_twice(scratch: Path, cuts: int, seed: int = 0, hidden: int = 1024) -> list[float]:
    """For each single kill -9 in the middle of a fetch: the share of all bytes that the hub had to send again."""
    noise, shares = random.Random(seed), []
    with LoopbackHub({REPO: make_checkpoint(scratch / "larger", hidden=hidden, shards=2)}) as hub:
        total_bytes = sum(path.stat().st_size for path in hub.repos[REPO].folder.iterdir())
        home = scratch / "cut"
        with Runner(hub, home) as runner:
            for _ in range(cuts):
                shutil.rmtree(home)
                home.mkdir()
                hub.faults.clear()
                hub.sent_bytes = 0
                hub.fail("*.safetensors", slow_s=0.004, times=99)
                run = runner.start(REPO)
                until_bytes = noise.uniform(0.1, 0.9) * total_bytes
                while hub.sent_bytes < until_bytes and "error" not in run.last:
                    time.sleep(0.005)
                run.kill()
                run.wait()
                if runner.finish(REPO).folder is None:
                    raise ValueError("the download after the cut failed")
                shares.append(hub.sent_bytes / total_bytes - 1)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="add what was seen to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.monotonic()
        outcome = campaign(Path(folder) / "campaign", arguments.kills, arguments.seed)
        print(f"{outcome.kills} kills while {dict(outcome.kills_while)}, {outcome.faults} faults of the hub")
        print(f"{outcome.downloads} downloads in {outcome.runs} runs; errors told: {dict(outcome.errors)}")
        print(f"wrong: {len(outcome.wrong)} ({time.monotonic() - started_s:.0f} s)", *outcome.wrong[:10], sep="\n  ")
        shares = fetched_twice(Path(folder) / "twice", arguments.cuts, arguments.seed, hidden=2048)
        most = max(shares, default=0.0)
        print(f"fetched twice after one cut: at most {most:.2%} of all bytes, {len(shares)} cuts")
    if arguments.json is not None:
        add_to(arguments.json, {"seed": arguments.seed, **vars(outcome), "fetched_twice": shares})
    raise SystemExit(bool(outcome.wrong) or most > 0.01)


def add_to(path: Path, piece: dict[str, Any]) -> None:
    """A piece of the campaign beside those of other seeds, and the sums of all."""
    pieces = json.loads(path.read_text())["pieces"] if path.exists() else []
    pieces = [other for other in pieces if other["seed"] != piece["seed"]] + [piece]
    total: dict[str, Any] = {key: sum(part[key] for part in pieces) for key in ("kills", "faults", "runs", "downloads")}
    for key in ("kills_while", "errors"):
        total[key] = dict(sum((Counter(part[key]) for part in pieces), Counter()))
    total["wrong"] = sum(len(part["wrong"]) for part in pieces)
    total["most_fetched_twice"] = max((share for part in pieces for share in part["fetched_twice"]), default=None)
    path.write_text(json.dumps({"machine": machine(), "total": total, "pieces": pieces}, indent=1) + "\n")


if __name__ == "__main__":
    main()
