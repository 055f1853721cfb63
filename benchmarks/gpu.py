"""What a GPU gives a model that is larger than its memory: one engine, its experts placed in several ways.

    python -m benchmarks.gpu [--shapes v2-lite,glm-4.7-flash] [--budgets 6,8,12,16] [--skew 0.3] [--json FILE] [--dry]

For each shape (random weights, routes as uneven as `--skew` makes them) and each budget of GPU memory in GiB: the
hottest experts resident and replaced as the text goes; whole layers resident in as much memory; and, once, none and all
of them. Prints decode and prefill tokens/s, the share of chosen experts found on the GPU, seconds a token of each lane
alone, and the floor: max(GPU bytes / GPU bandwidth, CPU bytes / RAM bandwidth) a token, from bandwidths measured in
this run; and at the end whether that is what was wanted (`gpu_goals`). Before anything is timed, every placement's
logits are compared with the CPU engine's.

The GPU lane's time is that of the same steps with the CPU's sums left out, the CPU lane's that of its sums. `--dry`
runs all of it on the CPU with nano's weights and shares of its experts for budgets: it shows that nothing crashes, and
no speed.
"""

import argparse
import gc
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localr1.events import result_of
from localr1.kernels import threads

threads.unify_openmp()

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402

from benchmarks import gpu_goals, offload  # noqa: E402
from localr1.bench.machine import machine  # noqa: E402
from localr1.bench.synthetic import find_shape, make_store  # noqa: E402
from localr1.bench.text import text_tokens  # noqa: E402
from localr1.chat.tokenizer import Tokenizer  # noqa: E402
from localr1.decode.cache import RowCache  # noqa: E402
from localr1.decode.generate import forward, logits, prefill, step  # noqa: E402
from localr1.decode.speculate import Speculation  # noqa: E402
from localr1.kernels import cpu  # noqa: E402
from localr1.model import registry  # noqa: E402
from localr1.model.config import ModelConfig  # noqa: E402
from localr1.options import EngineOptions  # noqa: E402
from localr1.placement.bank import CpuBank  # noqa: E402
from localr1.placement.linear import StoreWeights  # noqa: E402
from localr1.placement.plan import Budget, Expert, plan_gpu, ranked  # noqa: E402
from localr1.placement.shape import ModelShape, shape_of  # noqa: E402
from localr1.session import engine  # noqa: E402
from localr1.session.gpu import place  # noqa: E402
from localr1.session.gpu_model import GpuModel, Parts  # noqa: E402
from localr1.weights.store import Store  # noqa: E402

GIB = 1 << 30
NANO = Path(engine.__file__).parent.parent / "nano"
CONTEXT, PROMPT, WARM, DECODED, LEARNED, CHECKED = 4096, 1024, 12, 48, 256, 8
MOST_DIFFERENT = 3e-2
"""Of the largest logit: 16-bit operands of attention, and routes of random routers that a last bit may tip."""


@dataclass(frozen=True)
class Row:
    """One placement's figures; `budget_gib` is 0 where no budget was set."""

    shape: str
    placement: str
    budget_gib: float
    resident: int
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    hit_rate: float
    gpu_lane_s: float
    cpu_lane_s: float
    floor_s: float
    of_floor: float
    difference: float
    replayed: bool


@dataclass(frozen=True)
class Bench:
    """A model's weights and text, where it runs, and what memory can do there."""

    name: str
    config: ModelConfig
    store: Store
    sizes: ModelShape
    tokens: list[int]
    device: torch.device
    gpu_bytes_per_s: float
    ram_bytes_per_s: float

    def cache(self) -> RowCache:
        config = self.config
        return RowCache(config.cache_layers, config.cache_width, CONTEXT, torch.bfloat16, 0, self.device)


class TimedBank:
    """A CPU bank that keeps the time it takes; with `idle` it answers zeros at once."""

    def __init__(self, bank: Any) -> None:
        self._bank, self.seconds, self.idle = bank, 0.0, False

    def run(self, layer: int, hidden_TD: torch.Tensor, *rest: Any) -> torch.Tensor:
        if self.idle:
            return torch.zeros_like(hidden_TD)
        start_s = time.perf_counter()
        out_TD = self._bank.run(layer, hidden_TD, *rest)
        self.seconds += time.perf_counter() - start_s
        return out_TD


class Watcher:
    """Counts what is chosen, and how much of it was resident then."""

    def __init__(self, layers: Sequence[int], experts: int) -> None:
        self.counts = np.zeros((len(layers), experts))
        self.rows = {layer: row for row, layer in enumerate(layers)}
        self.slots: Any = None
        self.reset()

    def reset(self) -> None:
        self.hits = self.chosen = 0

    def __call__(self, layer: int, expert_TK: np.ndarray) -> None:
        row = self.rows[layer]
        self.counts[row] += np.bincount(expert_TK.reshape(-1), minlength=self.counts.shape[1])
        self.chosen += expert_TK.size
        if self.slots is not None:
            self.hits += int((self.slots.row_of[row][expert_TK] >= 0).sum())

    @property
    def hit_rate(self) -> float:
        return self.hits / self.chosen if self.chosen else 1.0


def gpu_bytes_per_s(device: torch.device) -> float:
    """Reading once, the best of some runs."""
    if device.type == "cpu":
        return ram_bytes_per_s(np.ones(64 << 20, np.int8))
    words = torch.ones(GIB // 4, device=device)
    best_s = float("inf")
    for _ in range(8):
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        for _ in range(8):
            words.sum()
        torch.cuda.synchronize()
        best_s = min(best_s, (time.perf_counter() - start_s) / 8)
    return words.nbytes / best_s


def ram_bytes_per_s(bytes_N: np.ndarray) -> float:
    best_s = float("inf")
    for _ in range(5):
        start_s = time.perf_counter()
        cpu.read(bytes_N)
        best_s = min(best_s, time.perf_counter() - start_s)
    return bytes_N.nbytes / best_s


def open_bench(name: str, skew: float, dry: bool) -> Bench:
    """The weights, drawn or nano's."""
    device = torch.device("cpu" if dry else "cuda")
    if dry:
        store, config = Store(NANO), registry.read_config(NANO)
    else:
        shape = find_shape(name, None, skew)
        config, store = shape.config, result_of(make_store(shape, EngineOptions(), CONTEXT))
    tokens = text_tokens(Tokenizer.open(NANO), CONTEXT)
    sizes = shape_of(config, registry.expected_tensors(config, False), False)
    ram = ram_bytes_per_s(np.ones((64 if dry else 2048) << 20, np.int8))
    return Bench(name, config, store, sizes, tokens, device, gpu_bytes_per_s(device), ram)


def on_cpu(bench: Bench) -> registry.Model:
    moe = bench.config.moe
    assert moe is not None
    return registry.build(bench.config, StoreWeights(bench.store), CpuBank(bench.store, moe.layers, moe.num_experts))


def few_logits(model: registry.Model, cache: RowCache, tokens: list[int]) -> torch.Tensor:
    """After a short prompt, and after single tokens, some of which are replayed."""
    parts = [logits(model, forward(model, cache, tokens[:CHECKED]))]
    parts += [step(model, cache, token) for token in tokens[CHECKED : 2 * CHECKED]]
    return torch.stack(parts)


def measure(
    bench: Bench,
    wanted: torch.Tensor,
    placement: str,
    budget_gib: float,
    resident: Sequence[Expert],
    hotness: np.ndarray | None,
) -> Row:
    """Place, check, then time decoding and prefill."""
    moe = bench.config.moe
    assert moe is not None
    watcher = Watcher(moe.layers, moe.num_experts)
    adaptive = placement == "experts"
    placed = place(bench.config, bench.store, False, bench.device, resident, hotness, watcher, adaptive=adaptive)
    decoder, bank = registry.build(bench.config, placed.weights, placed.bank), placed.bank
    assert bank is not None
    timed = bank.cold = TimedBank(bank.cold)
    watcher.slots = bank.slots
    model = GpuModel(Parts(placed, decoder))
    model.warm_up()
    cache = bench.cache()
    difference = float((few_logits(model, cache, bench.tokens) - wanted).abs().max() / wanted.abs().max())
    cache.truncate(0)
    run_prefill(model, cache, bench.tokens)
    cache.truncate(0)
    prefill_s = seconds(lambda: run_prefill(model, cache, bench.tokens))
    decode(model, cache, bench.tokens, WARM)
    watcher.reset()
    timed.seconds = 0.0
    decode_s = seconds(lambda: decode(model, cache, bench.tokens, DECODED)) / DECODED
    bank.turn_over()
    cpu_s, hit_rate = timed.seconds / DECODED, watcher.hit_rate
    timed.idle = True
    gpu_s = seconds(lambda: decode(model, cache, bench.tokens, DECODED)) / DECODED
    least_s = floor_s(bench, hit_rate, cache.length)
    row = Row(
        bench.name,
        placement,
        budget_gib,
        len(bank.slots.resident),
        1 / decode_s,
        PROMPT / prefill_s,
        hit_rate,
        gpu_s,
        cpu_s,
        least_s,
        least_s / decode_s,
        difference,
        model.replays,
    )
    bank.close()
    return row


def run_prefill(model: registry.Model, cache: RowCache, tokens: list[int]) -> None:
    for _ in prefill(model, cache, tokens[:PROMPT], Speculation()):
        pass


def decode(model: registry.Model, cache: RowCache, tokens: list[int], count: int) -> None:
    """Along the text, so that every placement does the same work."""
    for token in tokens[cache.length : cache.length + count]:
        step(model, cache, token)


def seconds(run: Any) -> float:
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


def floor_s(bench: Bench, hit_rate: float, depth: int) -> float:
    """What a token cannot take less than."""
    sizes = bench.sizes
    always = sizes.active_bytes - sizes.routed_bytes + sizes.cache_bytes(depth, "bf16")
    on_gpu = always + hit_rate * sizes.routed_bytes
    return max(on_gpu / bench.gpu_bytes_per_s, (1 - hit_rate) * sizes.routed_bytes / bench.ram_bytes_per_s)


def learn(bench: Bench) -> np.ndarray:
    """How often each expert is chosen, by text that is not measured."""
    moe = bench.config.moe
    assert moe is not None
    watcher = Watcher(moe.layers, moe.num_experts)
    placed = place(bench.config, bench.store, False, bench.device, (), None, watcher, adaptive=False)
    model = registry.build(bench.config, placed.weights, placed.bank)
    forward(model, bench.cache(), bench.tokens[-LEARNED:])
    assert placed.bank is not None
    placed.bank.turn_over()
    placed.bank.close()
    return watcher.counts


def residents(bench: Bench, budget_gib: float, hotness: np.ndarray, dry: bool) -> tuple[Expert, ...]:
    """The hottest experts that a budget has room for; in a dry run the budget is a share of 16."""
    if dry:
        order, _ = ranked(bench.sizes, hotness)
        return tuple(order[: int(bench.sizes.expert_count * budget_gib / 16)])
    budget = Budget(int(budget_gib * GIB), psutil.virtual_memory().total, CONTEXT)
    plan = plan_gpu(bench.sizes, budget, hotness)
    return plan.resident if plan is not None else ()


def placements(bench: Bench, budgets: Sequence[float], hotness: np.ndarray, dry: bool) -> Iterator[tuple[Any, ...]]:
    """Name, budget and residents of everything that is compared."""
    sizes = bench.sizes
    everything, _ = ranked(sizes, hotness)
    yield "none", 0.0, ()
    for budget in budgets:
        hot = residents(bench, budget, hotness, dry)
        if not hot:
            print(f"  {budget:g} GiB: no room for what every token needs")
            continue
        layers = sizes.expert_layers[: len(hot) // sizes.experts]
        yield "experts", budget, hot
        yield "layers", budget, tuple((layer, expert) for layer in layers for expert in range(sizes.experts))
    reclaim()
    free = bench.device.type == "cpu" or sizes.weight_bytes + 2 * GIB < torch.cuda.mem_get_info()[0]
    if free:
        yield "all", 0.0, tuple(everything)


def show(row: Row) -> str:
    budget = f"{row.budget_gib:g} GiB" if row.budget_gib else ""
    return (
        f"  {row.placement:8} {budget:7} {row.resident:5} resident {row.decode_tokens_per_s:8.2f} tok/s decode "
        f"{row.prefill_tokens_per_s:9.1f} prefill  hits {row.hit_rate:4.0%}  GPU {1e3 * row.gpu_lane_s:7.2f} ms "
        f"CPU {1e3 * row.cpu_lane_s:7.2f} ms  floor {1e3 * row.floor_s:7.2f} ms ({row.of_floor:4.0%})"
        f"  differs {row.difference:.1e}{'' if row.replayed else '  eager'}"
    )


def offloaded(names: Sequence[str], budgets: Sequence[float]) -> list[offload.Offloaded]:
    """The baseline at the budget that is nearest to 8 GiB, for each shape that its libraries can build."""
    if lacking := offload.missing():
        print(f"no baseline: {lacking} is not installed")
        return []
    budget, found = min(budgets, key=lambda one: abs(one - 8)), []
    for name in names:
        reclaim()
        try:
            one = offload.measure(name, budget)
        except Exception as error:  # of libraries that move: it must not cost what was measured before
            print(f"no baseline for {name}: {type(error).__name__}: {error}")
            continue
        found.append(one)
        print(
            f"  {name}: transformers with accelerate at {budget:g} GiB, {one.decode_tokens_per_s:.2f} tok/s decode "
            f"({one.layers} of {one.of_layers} layers, scaled)"
        )
    return found


def reclaim() -> None:
    """Give the last placement's memory back to the driver."""
    gc.collect()
    torch.cuda.empty_cache()


def write(
    options: argparse.Namespace,
    rows: Sequence[Row],
    baselines: Sequence[offload.Offloaded],
    goals: Sequence[gpu_goals.Goal],
) -> None:
    """All that was measured so far, in case what follows is cut off."""
    if not options.json:
        return
    device = "cpu (dry)" if options.dry else torch.cuda.get_device_name()
    record = {"device": device, "skew": options.skew, "machine": machine(), "rows": [asdict(row) for row in rows]}
    record["offloaded"] = [asdict(one) for one in baselines]
    record["goals"] = [{**asdict(goal), "met": goal.met} for goal in goals]
    options.json.write_text(json.dumps(record, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="v2-lite,glm-4.7-flash")
    parser.add_argument("--budgets", default="6,8,12,16")
    parser.add_argument("--skew", type=float, default=0.3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --dry runs without one")
    torch.set_num_threads(threads.set_threads())
    budgets = [float(word) for word in options.budgets.split(",")]
    rows: list[Row] = []
    for name in ["nano"] if options.dry else options.shapes.split(","):
        bench = open_bench(name, options.skew, options.dry)
        print(f"{name}: GPU {bench.gpu_bytes_per_s / 1e9:.0f} GB/s, RAM {bench.ram_bytes_per_s / 1e9:.0f} GB/s")
        wanted = few_logits(
            on_cpu(bench),
            RowCache(bench.config.cache_layers, bench.config.cache_width, CONTEXT, torch.bfloat16),
            bench.tokens,
        )
        hotness = learn(bench)
        for placement, budget, resident in placements(bench, budgets, hotness, options.dry):
            reclaim()
            rows.append(measure(bench, wanted, placement, budget, resident, hotness))
            print(show(rows[-1]), flush=True)
            write(options, rows, [], [])
    if not options.dry:
        write(options, rows, [], gpu_goals.goals(rows, []))
    baselines = [] if options.dry else offloaded(options.shapes.split(","), budgets)
    goals = [] if options.dry else gpu_goals.goals(rows, baselines)
    for goal in goals:
        print(f"  {goal}")
    write(options, rows, baselines, goals)
    wrong = [row for row in rows if not row.difference < MOST_DIFFERENT]
    for row in wrong:
        print(f"{row.shape} {row.placement} {row.budget_gib:g}: logits differ by {row.difference:.2g} of the largest")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
