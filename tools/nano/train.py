"""Trains the built-in model: `python -m tools.nano.train --run FOLDER`, again with the same folder to go on.

Warm-up, then a constant rate for as long as it is left running, with an exponential average of the weights beside it;
`--decay MINUTES` brings the rate down to zero from the last checkpoint and writes `decayed.pt` apart, so that
the constant phase can go on later. Everything needed to resume exactly is in `checkpoint.pt`.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from tools.nano.batches import Batch, BatchShape, pool_batches
from tools.nano.generate import greedy
from tools.nano.model import Nano, NanoConfig
from tools.nano.optimizer import MuonAdam, Rates
from tools.nano.tasks import FAMILIES, held_out_stream
from tools.nano.tokenizer import PAD, build_tokenizer, known_words, render_prompt, render_reply, save_tokenizer
from tools.nano.workers import Workers, start

START_WEIGHTS = dict.fromkeys(FAMILIES, 1.0) | {
    "multiply": 1.6, "divide": 1.6, "sort": 1.4, "follow_up": 1.6, "story": 1.2,
    "greet": 0.3, "identity": 0.4, "decline": 0.5,
}  # fmt: skip
# Families whose questions are the most varied, or whose traces have the most parts, are never drawn rarely.
LEAST_WEIGHTS = dict.fromkeys(FAMILIES, 0.4) | {
    "multiply": 0.8, "divide": 1.0, "compare": 0.8, "sort": 1.3, "count": 1.0, "reverse": 0.6,
    "follow_up": 0.9, "decline": 1.2,
}  # fmt: skip


@dataclass
class Progress:
    """Where a run is; all of it goes into the checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    decay_seconds: float = 0.0
    pool: int = 0
    batch: int = 0
    weights: dict[str, float] = field(default_factory=lambda: dict(START_WEIGHTS))
    next_weights: dict[str, float] = field(default_factory=lambda: dict(START_WEIGHTS))


@dataclass(frozen=True)
class Schedule:
    seed: int = 0
    warmup_steps: int = 100
    mtp_weight: float = 0.3
    mtp_every: int = 2  # the MTP layer is trained on every second step: it learns quickly and is dear to run
    bias_step: float = 1e-3
    ema: float = 0.997
    checkpoint_s: float = 240.0
    evaluate_s: float = 600.0


def _cross_entropy(model: Nano, h: Tensor, wanted: Tensor) -> Tensor:
    missing = -len(h) % 128  # again few different shapes
    logits = model.lm_head(F.pad(h, (0, 0, 0, missing))).float()
    return F.cross_entropy(logits, F.pad(wanted, (0, missing), value=-100), ignore_index=-100)


def losses(
    model: Nano, forward: torch.nn.Module, batch: Batch, dtype: torch.dtype, with_mtp: bool
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy of the main head and of the MTP layer, on thoughts and answers only."""
    h, y = forward(batch.tokens, dtype, with_mtp)
    main, second = batch.trained[:, 1:], batch.trained[:, 2:]
    loss = _cross_entropy(model, h[:, :-1][main], batch.tokens[:, 1:][main])
    if y is None:
        return loss, None
    return loss, _cross_entropy(model, y[:, :-1][second], batch.tokens[:, 2:][second])


@torch.no_grad()
def expert_counts(model: Nano, batch: Batch) -> Tensor:
    """How often each expert was chosen in the last forward pass, [MoE layers, E], padding left out."""
    counts = []
    for moe in model.moe_layers():
        chosen = moe.chosen
        if chosen is None:  # the MTP layer sat this step out
            counts.append(torch.zeros(model.c.n_routed_experts, dtype=torch.long))
            continue
        valid = batch.valid if chosen.shape[0] == batch.valid.numel() else batch.valid[:, 1:]
        counts.append(torch.bincount(chosen[valid.reshape(-1)].reshape(-1), minlength=model.c.n_routed_experts))
        moe.chosen = None
    return torch.stack(counts).float()


@torch.no_grad()
def balance(model: Nano, counts: Tensor, step: float) -> None:
    """Auxiliary-loss-free balancing (DeepSeek-V3 report, 2.1.2): experts used too little become easier to choose."""
    for moe, used in zip(model.moe_layers(), counts, strict=True):
        moe.gate.e_score_correction_bias += step * torch.sign(used.mean() - used)


def quick_accuracy(model: Nano, tokenizer: Tokenizer, each: int, seed: int, workers: Workers) -> dict[str, float]:
    """Exact answers to `each` held-out questions of every family, the questions shared out among the workers."""
    known = known_words(tokenizer)
    items = [item for f in FAMILIES for item in islice(held_out_stream(f"quick {seed}", f, known), each)]
    items.sort(key=lambda item: len(item.thought))
    right = torch.zeros(len(FAMILIES))
    for first in range(0, len(items), 64):
        if first // 64 % workers.world != workers.rank:
            continue
        group = items[first : first + 64]
        prompts = [tokenizer.encode(render_prompt(item), add_special_tokens=False).ids for item in group]
        longest = max(len(tokenizer.encode(render_reply(item)).ids) for item in group)
        replies = greedy(model, tokenizer, prompts, longest + 8, torch.bfloat16)
        for item, ids in zip(group, replies, strict=True):
            said = tokenizer.decode(ids).split("</think>")[-1].strip()
            right[FAMILIES.index(item.family)] += said == item.answer
    return dict(zip(FAMILIES, (workers.sum(right) / each).tolist(), strict=True))


def adapted(accuracy: dict[str, float]) -> dict[str, float]:
    """More of what it still gets wrong."""
    return {family: LEAST_WEIGHTS[family] + 3.0 * (1 - accuracy[family]) for family in FAMILIES}


def _grad(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


class Run:
    def __init__(
        self,
        folder: Path,
        schedule: Schedule,
        shape: BatchShape,
        rates: Rates,
        config: NanoConfig,
        workers: Workers,
        start_from: tuple[str, ...],
    ) -> None:
        self.folder, self.schedule, self.shape, self.workers = folder, schedule, shape, workers
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(schedule.seed)
        if workers.rank == 0 and not (folder / "tokenizer.json").exists():
            save_tokenizer(build_tokenizer(schedule.seed), folder)
        workers.sum(torch.zeros(1))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model = Nano(config)
        self.average = Nano(config).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = MuonAdam(self.model, rates, workers)
        self.progress = Progress()
        for name in start_from:
            if (folder / name).exists():
                self.load(folder / name)
                break

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=False)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.progress = Progress(**saved["progress"])
        if path.name == "checkpoint.pt":
            self.progress.decay_seconds = 0.0

    def save(self, name: str) -> None:
        if self.workers.rank:
            return
        path = self.folder / name
        torch.save(
            {
                "config": self.model.c.as_dict(),
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": asdict(self.progress),
            },
            path.with_suffix(".tmp"),
        )
        path.with_suffix(".tmp").replace(path)

    def batches(self) -> Iterator[Batch]:
        """From the recorded position on, moving the position along."""
        p, pad = self.progress, self.tokenizer.token_to_id(PAD)
        for pool in count(p.pool):
            skip = p.batch if pool == p.pool else 0
            if pool != p.pool:
                p.weights = dict(p.next_weights)
            p.pool, p.batch = pool, skip
            dealt = (self.workers.rank, self.workers.world)
            batches = pool_batches(self.tokenizer, self.shape, self.schedule.seed, pool, p.weights, pad, *dealt)
            for batch in islice(batches, skip, None):
                p.batch += 1
                yield batch

    @torch.no_grad()
    def update_average(self) -> None:
        keep = min(self.schedule.ema, (1 + self.progress.step) / (10 + self.progress.step))
        ours = [*self.average.parameters(), *self.average.buffers()]
        torch._foreach_lerp_(ours, [*self.model.parameters(), *self.model.buffers()], 1 - keep)

    def log(self, record: dict[str, object]) -> None:
        if self.workers.rank:
            return
        line = json.dumps({"step": self.progress.step, "tokens": self.progress.tokens, **record})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as f:
            f.write(line + "\n")

    def evaluate(self) -> None:
        accuracy = quick_accuracy(self.average, self.tokenizer, 24, self.progress.step, self.workers)
        self.progress.next_weights = adapted(accuracy)
        self.log(
            {"mean": round(sum(accuracy.values()) / len(accuracy), 4), **{f: round(a, 3) for f, a in accuracy.items()}}
        )

    def step(self, forward: torch.nn.Module, batch: Batch, scale: float, bias_step: float) -> Tensor:
        """One update; returns the main loss, the MTP loss and the tokens seen, over all workers."""
        with_mtp = self.progress.step % self.schedule.mtp_every == 0
        main, second = losses(self.model, forward, batch, torch.bfloat16, with_mtp)
        (main if second is None else main + self.schedule.mtp_weight * second).backward()
        counts = expert_counts(self.model, batch)
        numbers = torch.tensor([main.item(), 0.0 if second is None else second.item(), float(batch.valid.sum())])
        parameters = list(self.model.parameters())
        world = self.workers.world
        flat = self.workers.sum(torch.cat([*(_grad(p).flatten() for p in parameters), counts.flatten(), numbers]))
        numbers = flat[-3:] / torch.tensor([world, world, 1.0])
        counts = flat[-3 - counts.numel() : -3].view_as(counts)
        grads = flat[: -3 - counts.numel()].div_(world)
        norm = grads.norm()
        grads.mul_((1.0 / norm).clamp(max=1.0))
        start = 0
        for p in parameters:
            p.grad = grads[start : start + p.numel()].view_as(p)
            start += p.numel()
        self.optimizer.step(scale)
        self.model.zero_grad(set_to_none=True)
        balance(self.model, counts, bias_step)
        self.update_average()
        return numbers

    def train(self, minutes: float, decay: bool, compiled: bool) -> None:
        p, s = self.progress, self.schedule
        forward = torch.compile(self.model, dynamic=True) if compiled else self.model
        name = "decayed.pt" if decay else "checkpoint.pt"
        began = last = saved = evaluated = shown = time.monotonic()
        sums, steps = torch.zeros(3), 0
        for batch in self.batches():
            now = time.monotonic()
            left, due_save, due_evaluation = self.workers.from_first(
                torch.tensor(
                    [
                        1 - (p.decay_seconds if decay else now - began) / (60 * minutes),
                        now - saved > s.checkpoint_s,
                        now - evaluated > s.evaluate_s,
                    ]
                )
            ).tolist()
            if left <= 0:
                p.batch -= 1
                break
            fade = left if decay else 1.0
            numbers = self.step(forward, batch, min(1.0, (p.step + 1) / s.warmup_steps) * fade, s.bias_step * fade)
            p.step += 1
            p.tokens += int(numbers[2])
            p.seconds += now - last
            p.decay_seconds += now - last if decay else 0.0
            last = now
            sums, steps = sums + numbers, steps + 1
            if p.step % 48 == 0:
                self.log({"loss": round(float(sums[0]) / steps, 4),
                          "mtp": round(float(sums[1]) / steps * s.mtp_every, 4),
                          "tokens_per_s": round(float(sums[2]) / (time.monotonic() - shown)),
                          "minutes": round(p.seconds / 60, 1), "fade": round(fade, 3)})  # fmt: skip
                sums, steps, shown = torch.zeros(3), 0, time.monotonic()
            if due_save:
                self.save(name)
                saved = now
            if due_evaluation:
                self.evaluate()
                evaluated = time.monotonic()
        self.save(name)
        self.evaluate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run: tokenizer, checkpoints, log")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after this long")
    parser.add_argument(
        "--decay", action="store_true", help="bring the rate to zero over --minutes and write decayed.pt"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="multiplies every learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--batch-tokens", type=int, default=1536, help="of one worker")
    parser.add_argument("--packed-share", type=float, default=0.05)
    parser.add_argument("--packed-tokens", type=int, default=512)
    parser.add_argument("--evaluate-minutes", type=float, default=10.0)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    workers = start(args.workers)
    shape = BatchShape(args.batch_tokens, packed_share=args.packed_share, packed_tokens=args.packed_tokens)
    start_from = ("decayed.pt", "checkpoint.pt") if args.decay else ("checkpoint.pt",)
    average = 0.99 if args.decay else 0.997
    schedule = Schedule(seed=args.seed, evaluate_s=60 * args.evaluate_minutes, ema=average)
    run = Run(args.run, schedule, shape, Rates().times(args.rate), NanoConfig(), workers, start_from)
    run.train(args.minutes, args.decay, args.compile)


if __name__ == "__main__":
    main()
