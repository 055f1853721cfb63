"""Muon for matrices, Adam for everything else that is trained, stepped together.

Muon (Jordan 2024): momentum, then an approximate orthogonalisation of each matrix by five Newton-Schulz steps.
Matrices of one shape, experts included, are orthogonalised in one batch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tools.nano.workers import Workers

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Rates:
    matrix: float = 0.02
    other: float = 3e-3
    embedding: float = 1.5e-2
    weight_decay: float = 0.05
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.98)

    def times(self, factor: float) -> "Rates":
        return replace(self, matrix=self.matrix * factor, other=self.other * factor, embedding=self.embedding * factor)


def orthogonalise(g: Tensor) -> Tensor:
    """g [n, rows, columns] with rows <= columns -> the nearest semi-orthogonal matrices, roughly."""
    a, b, c = _COEFFICIENTS
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _as_matrices(name: str, p: Tensor) -> Tensor:
    """[n, rows, columns], with the gate and up halves of stacked experts apart."""
    if name.endswith("gate_up"):
        return p.reshape(p.shape[0] * 2, p.shape[1] // 2, p.shape[2])
    return p if p.dim() == 3 else p.unsqueeze(0)


class MuonAdam:
    def __init__(self, model: nn.Module, rates: Rates, workers: Workers) -> None:
        self.rates, self.workers = rates, workers
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        on_adam = ("lm_head.weight", "gate.weight")
        self.groups: dict[tuple[int, int], list[tuple[str, nn.Parameter]]] = {}
        embedding, others = [], []
        for name, p in named:
            if name == "embed_tokens.weight":
                embedding.append(p)
            elif p.dim() < 2 or name.endswith(on_adam):
                others.append(p)
            else:
                rows, columns = _as_matrices(name, p).shape[1:]
                self.groups.setdefault((min(rows, columns), max(rows, columns)), []).append((name, p))
        self.momenta = {shape: self._gather(shape, group, zero=True) for shape, group in self.groups.items()}
        self.adam = torch.optim.AdamW(
            [{"params": embedding, "lr": rates.embedding}, {"params": others, "lr": rates.other}],
            betas=rates.betas,
            weight_decay=0.0,
            foreach=True,
        )

    def _gather(self, shape: tuple[int, int], group: list[tuple[str, nn.Parameter]], zero: bool = False) -> Tensor:
        parts = []
        for name, p in group:
            source = torch.zeros_like(p) if zero or p.grad is None else p.grad
            m = _as_matrices(name, source)
            parts.append(m if m.shape[1] == shape[0] else m.transpose(1, 2))
        return torch.cat(parts)

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update with every learning rate multiplied by `scale`."""
        lr = self.rates.matrix * scale
        for shape, group in self.groups.items():
            grad, momentum = self._gather(shape, group), self.momenta[shape]
            momentum.lerp_(grad, 1 - self.rates.momentum)
            update = self._orthogonalise_share(grad.lerp(momentum, self.rates.momentum))
            start = 0
            for name, p in group:
                target = _as_matrices(name, p.data)
                part = update[start : start + len(target)]
                start += len(target)
                rows, columns = target.shape[1:]
                part = part if rows == shape[0] else part.transpose(1, 2)
                target.mul_(1 - lr * self.rates.weight_decay).add_(part, alpha=-lr * max(1.0, rows / columns) ** 0.5)
        for param_group, rate in zip(self.adam.param_groups, (self.rates.embedding, self.rates.other), strict=True):
            param_group["lr"] = rate * scale
        self.adam.step()

    def _orthogonalise_share(self, g: Tensor) -> Tensor:
        """Each worker does its share of the matrices; the sum puts them together."""
        update = torch.zeros_like(g, dtype=torch.bfloat16)
        mine = slice(self.workers.rank, None, self.workers.world)
        update[mine] = orthogonalise(g[mine])
        return self.workers.sum(update).float()

    def state_dict(self) -> dict[str, object]:
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.momenta = state["momenta"]  # type: ignore[assignment]
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({**state["adam"], "param_groups": groups})  # type: ignore[dict-item]
