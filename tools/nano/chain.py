"""Trains the shipped model's MTP layer to guess several tokens in a row: `python -m tools.nano.chain --run FOLDER`.

The layer is fed as it is when drafting: guess d + 1 comes from a token and the layer's own un-normed output of guess d,
and attends to the rows of true pairs up to where the draft begins and to the draft's own rows behind them. It learns
the main model's distribution of each token guessed. Only the layer is trained; the main model comes from the shipped
8-bit store and is written back as it was, number for number. The same folder goes on from `chain.pt`.

`--export FOLDER` writes the result as a Hugging Face folder for `tools.nano.ship`; without a run, `--measure FILE` adds
to the file how often each guess of the shipped store is right.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import count, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from localr1.weights.store import Store, scb_name
from tools.nano.batches import Batch, BatchShape, pool_batches
from tools.nano.evaluate import REPOSITORY, questions
from tools.nano.export import hugging_face_tensors
from tools.nano.model import Attention, Nano, NanoConfig
from tools.nano.optimizer import MuonAdam, Rates
from tools.nano.tokenizer import PAD, render_prompt, render_reply
from tools.nano.train import START_WEIGHTS
from tools.nano.workers import start

STORE = REPOSITORY / "localr1" / "nano"
CONFIG_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Schedule:
    steps: int
    seed: int = 0
    warmup_steps: int = 50
    depths: int = 7
    deeper_counts: float = 0.9
    """What a guess counts in the loss, of the guess before it."""
    checkpoint_every: int = 100
    evaluate_every: int = 200


def whole(store: Store, name: str) -> Tensor:
    """A tensor in float32; int8 rows so that quantizing them gives the same bytes again."""
    tensor = store.tensor(name)
    if tensor.dtype != torch.int8:
        return tensor.float().clone()
    return (tensor.double() * store.tensor(scb_name(name)).double()[:, None] / 127).float()


def load_store(folder: Path) -> Nano:
    """The model of an 8-bit store."""
    store, wanted = Store(folder), {field.name for field in fields(NanoConfig)}
    read = json.loads((folder / "config.json").read_text())
    config = NanoConfig(**{name: read[name] for name in wanted})
    model = Nano(config)
    layers = [*((f"model.layers.{i}", layer) for i, layer in enumerate(model.layers))]
    mtp = f"model.layers.{config.num_hidden_layers}"
    layers.append((mtp, model.mtp.block))
    own: list[tuple[str, Tensor]] = [
        ("model.embed_tokens.weight", model.embed_tokens.weight),
        ("model.norm.weight", model.norm.weight),
        ("lm_head.weight", model.lm_head.weight),
        (f"{mtp}.enorm.weight", model.mtp.enorm.weight),
        (f"{mtp}.hnorm.weight", model.mtp.hnorm.weight),
        (f"{mtp}.eh_proj.weight", model.mtp.eh_proj.weight),
        (f"{mtp}.shared_head.norm.weight", model.mtp.norm.weight),
    ]
    for prefix, layer in layers:
        own += [(f"{prefix}.{name}", tensor) for name, tensor in layer.state_dict().items()]
    with torch.no_grad():
        for name, tensor in own:
            tensor.copy_(_stacked(store, name, config.n_routed_experts))
    return model.requires_grad_(False)


def _stacked(store: Store, name: str, experts: int) -> Tensor:
    """A tensor by the name that it has in training, where a layer's experts are one."""
    layer, _, part = name.rpartition(".mlp.")
    each = [f"{layer}.mlp.experts.{e}" for e in range(experts)]
    if part == "gate_up":
        halves = [(f"{expert}.gate_proj.weight", f"{expert}.up_proj.weight") for expert in each]
        return torch.stack([torch.cat([whole(store, half) for half in both]) for both in halves])
    if part == "down":
        return torch.stack([whole(store, f"{expert}.down_proj.weight") for expert in each])
    return whole(store, name)


def _attend(attention: Attention, q: Tensor, rows: Sequence[tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
    """Draft i's query over the true pairs' rows up to i, `rows[0]`, and over row i of each of the others."""
    length = q.shape[2]
    (keys, values), own = rows[0], [(k[:, :, :length], v[:, :, :length]) for k, v in rows[1:]]
    scores = [q @ keys.transpose(-1, -2) + mask, *((q * k).sum(-1, keepdim=True) for k, _ in own)]
    shares = torch.cat(scores, -1).softmax(-1)
    out = shares[..., : keys.shape[2]] @ values
    for place, (_, v) in enumerate(own, keys.shape[2]):
        out = out + shares[..., place, None] * v
    return attention.output(out)


def chained(model: Nano, tokens: Tensor, h: Tensor, depths: int, dtype: torch.dtype) -> list[Tensor]:
    """What the MTP layer makes of drafts that begin at every token, for the head: [B, T - d, D] for d = 1, 2, ...

    tokens [B, T], h [B, T, D] the main model's states after its final norm. Row i of the d-th result, of a draft that
    begins with token i + 1 and guessed right so far, is for token i + d + 1.
    """
    mtp, attention = model.mtp, model.mtp.block.self_attn
    embedded, length = model.embed_tokens(tokens), tokens.shape[1]
    cos, sin = model.rope(torch.arange(length, device=tokens.device)[None])
    blocked = torch.full((length - 1, length - 1), float("-inf"), device=tokens.device, dtype=dtype).triu(1)
    rows: list[tuple[Tensor, Tensor]] = []
    results, carried = [], h
    for depth in range(1, depths + 1):
        x = mtp.joined(embedded[:, depth:], carried[:, : length - depth], dtype)
        q, k, v = attention.project(mtp.block.input_layernorm(x, dtype), cos[:, depth:], sin[:, depth:])
        rows.append((k, v))
        x = x + _attend(attention, q, rows, blocked[: length - depth])
        carried = x + mtp.block.mlp(mtp.block.post_attention_layernorm(x, dtype))
        results.append(mtp.norm(carried, dtype))
    return results


def chain_loss(model: Nano, batch: Batch, schedule: Schedule, dtype: torch.dtype) -> Tensor:
    """Cross-entropy of the guesses against what the main model expects, on thoughts and answers only, [depths]."""
    with torch.no_grad():
        h, _ = model(batch.tokens, dtype, with_mtp=False)
        expected = model.lm_head(h).float().softmax(-1)
    losses = []
    for depth, y in enumerate(chained(model, batch.tokens, h, schedule.depths, dtype), 1):
        learned = batch.trained[:, depth + 1 :]
        logits = model.lm_head(y[:, :-1][learned]).float()
        losses.append(F.cross_entropy(logits, expected[:, depth:-1][learned]))
    return torch.stack(losses)


@torch.no_grad()
def acceptance(model: Nano, tokenizer: Tokenizer, each: int, depths: int) -> list[float]:
    """Over `each` held-out questions a family with their right answers: how often the d-th guess is the main model's
    likeliest token, where those before it were."""
    right, tried = torch.zeros(depths), torch.zeros(depths)
    for item in questions(tokenizer, each):
        prompt = tokenizer.encode(render_prompt(item), add_special_tokens=False).ids
        reply = tokenizer.encode(render_reply(item), add_special_tokens=False).ids
        tokens = torch.tensor([prompt + reply])
        h, _ = model(tokens, with_mtp=False)
        wanted = model.lm_head(h[0]).argmax(-1)
        still = torch.ones(max(len(reply) - depths, 0), dtype=torch.bool)
        for depth, y in enumerate(chained(model, tokens, h, depths, torch.float32), 1):
            first = len(prompt) - 1
            guesses = model.lm_head(y[0]).argmax(-1)[first : first + len(still)]
            good = guesses == wanted[first + depth : first + depth + len(still)]
            tried[depth - 1] += still.sum()
            still = still & good
            right[depth - 1] += still.sum()
    return (right / tried.clamp_min(1)).tolist()


class Run:
    """A model whose MTP layer is in training, and how far it is."""

    def __init__(self, folder: Path, schedule: Schedule, rates: Rates, shape: BatchShape) -> None:
        self.folder, self.schedule, self.shape = folder, schedule, shape
        self.tokenizer = Tokenizer.from_file(str(STORE / "tokenizer.json"))
        self.model = load_store(STORE)
        self.model.mtp.requires_grad_(True)
        self.optimizer = MuonAdam(self.model, rates, start(1, "tools.nano.chain"))
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "chain.pt").exists():
            saved = torch.load(folder / "chain.pt", weights_only=False)
            self.model.mtp.load_state_dict(saved["mtp"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]

    def save(self) -> None:
        path = self.folder / "chain.pt"
        state = {"mtp": self.model.mtp.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def batches(self) -> Iterator[Batch]:
        """From the step on that the run is at."""
        pad, seed = self.tokenizer.token_to_id(PAD), self.schedule.seed
        pools = (
            pool_batches(self.tokenizer, self.shape, seed, pool, START_WEIGHTS, pad, 0, 1) for pool in count(1_000_000)
        )
        return islice((batch for pool in pools for batch in pool), self.step, None)

    def train(self) -> None:
        s = self.schedule
        weights = s.deeper_counts ** torch.arange(s.depths)
        recent = torch.zeros(s.depths)
        if not self.step:
            self.log({"acceptance": acceptance(self.model, self.tokenizer, 4, s.depths)})
        for batch in self.batches():
            if self.step >= s.steps:
                break
            losses = chain_loss(self.model, batch, s, torch.bfloat16)
            (losses * weights).sum().backward()
            torch.nn.utils.clip_grad_norm_(self.model.mtp.parameters(), 1.0)
            self.optimizer.step(min(1.0, (self.step + 1) / s.warmup_steps) * (1 - self.step / s.steps))
            self.model.zero_grad(set_to_none=True)
            self.step += 1
            recent += losses.detach()
            if self.step % s.checkpoint_every == 0:
                self.log({"loss": (recent / s.checkpoint_every).tolist()})
                recent.zero_()
                self.save()
            if self.step % s.evaluate_every == 0:
                self.log({"acceptance": acceptance(self.model, self.tokenizer, 4, s.depths)})
        self.save()
        self.log({"acceptance": acceptance(self.model, self.tokenizer, 8, s.depths)})

    def log(self, record: dict[str, list[float]]) -> None:
        line = json.dumps(
            {"step": self.step} | {key: [round(n, 4) for n in numbers] for key, numbers in record.items()}
        )
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as f:
            f.write(line + "\n")


def export(model: Nano, folder: Path) -> None:
    """As `tools.nano.export` writes a checkpoint, with the store's own config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(hugging_face_tensors(model), str(folder / "model.safetensors"), metadata={"format": "pt"})
    for name in CONFIG_FILES:
        shutil.copyfile(STORE / name, folder / name)


def measure(each: int, path: Path) -> None:
    """Of the shipped store, over `each` held-out questions a family."""
    model, tokenizer = load_store(STORE), Tokenizer.from_file(str(STORE / "tokenizer.json"))
    right = acceptance(model, tokenizer, each, Schedule(0).depths)
    earlier = json.loads(path.read_text())
    earlier["store"]["mtp_acceptance_by_position"] = right
    path.write_text(json.dumps(earlier, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of the run: checkpoint, log")
    parser.add_argument("--steps", type=int, default=1500, help="the rate falls to zero over so many")
    parser.add_argument("--rate", type=float, default=0.5, help="multiplies every learning rate")
    parser.add_argument("--batch-tokens", type=int, default=2304)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, help="write what the run has come to, and train no more")
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--each", type=int, default=200, help="questions per family that --measure asks")
    args = parser.parse_args()
    if args.measure:
        measure(args.each, args.measure)
        return
    if not args.run:
        parser.error("either --run or --measure")
    schedule = Schedule(args.steps, args.seed)
    run = Run(args.run, schedule, Rates().times(args.rate), BatchShape(args.batch_tokens, packed_share=0.05))
    if args.export:
        export(run.model, args.export)
    else:
        run.train()


if __name__ == "__main__":
    main()
