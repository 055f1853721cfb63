"""The model in training form: MLA, a sigmoid router with a balancing bias, grouped experts, one MTP layer.

Parameter names are DeepSeek-V3's, except that the experts of a layer are stacked (`gate_up` [E, 2F, D], `down`
[E, D, F]); export splits them. Weights stay in float32 and are cast to the activations' type where they are used.

Shapes: B batch, T new tokens, S all tokens, N = B*T, D hidden, H heads, C latent, E experts, K top-k, F expert ff.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NanoConfig:
    vocab_size: int = 768
    hidden_size: int = 192
    num_hidden_layers: int = 5
    first_k_dense_replace: int = 1
    intermediate_size: int = 384
    num_attention_heads: int = 6
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 16
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    n_routed_experts: int = 16
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 64
    routed_scaling_factor: float = 2.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.float()
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(dtype)


class Linear(nn.Linear):
    """No bias; the float32 weight is cast to the input's type."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the interleaved pairs (x0, x1), (x2, x3), ... of the last dimension."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c: NanoConfig) -> None:
        super().__init__()
        self.c = c
        heads, nope, rope = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        self.q_proj = Linear(c.hidden_size, heads * (nope + rope))
        self.kv_a_proj_with_mqa = Linear(c.hidden_size, c.kv_lora_rank + rope)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, 1e-6)
        self.kv_b_proj = Linear(c.kv_lora_rank, heads * (nope + c.v_head_dim))
        self.o_proj = Linear(heads * c.v_head_dim, c.hidden_size)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D] -> queries, keys and values [B, H, T, *]; the queries are scaled."""
        c = self.c
        batch, length, _ = x.shape
        heads, nope, rope = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        q = self.q_proj(x).view(batch, length, heads, nope + rope)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, rope), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent, x.dtype)).view(batch, length, heads, nope + c.v_head_dim)
        q_nope, q_pe = q.split((nope, rope), -1)
        k_nope, v = kv.split((nope, c.v_head_dim), -1)
        q_pe = rotate(q_pe, cos[:, :, None], sin[:, :, None])
        k_pe = rotate(k_pe, cos, sin)[:, :, None].expand(batch, length, heads, rope)
        q = torch.cat((q_nope, q_pe), -1).transpose(1, 2) * (nope + rope) ** -0.5
        return q, torch.cat((k_nope, k_pe), -1).transpose(1, 2), v.transpose(1, 2)

    def output(self, attended: Tensor) -> Tensor:
        """What the heads gathered, [B, H, T, V] -> [B, T, D]."""
        return self.o_proj(attended.transpose(1, 2).flatten(2))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, T, D], mask added to the scores [B or 1, 1, T, S]; returns the output and (k, v), each [B, H, S, *]."""
        q, k, v = self.project(x, cos, sin)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        scores = q @ k.transpose(-1, -2) + mask.to(x.dtype)
        return self.output(scores.softmax(-1) @ v), (k, v)


class MLP(nn.Module):
    def __init__(self, hidden: int, ff: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, ff)
        self.up_proj = Linear(hidden, ff)
        self.down_proj = Linear(ff, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def expert_layout(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
    """Where each of the N*K routed calls goes when they are laid out expert by expert, each expert's share padded to a
    multiple of a block: matrices then come in few sizes, and a kernel is prepared once for each size.

    Returns the token of each row (0 for padding), the row of each call, and (expert, first row, end row) of the
    experts in use.
    """
    flat = chosen.reshape(-1)
    block = 64 if flat.numel() >= 4096 else 8
    counts = torch.bincount(flat, minlength=experts)
    padded = (counts + block - 1) // block * block
    ends = padded.cumsum(0)
    order = flat.argsort(stable=True)
    owner = flat[order]
    call = torch.arange(flat.numel(), device=flat.device)
    place = torch.empty_like(order)
    place[order] = (ends - padded)[owner] + call - (counts.cumsum(0) - counts)[owner]
    bounds = [0, *ends.tolist()]
    rows = flat.new_zeros(bounds[-1])
    rows[place] = call // chosen.shape[1]
    return rows, place, [(e, a, b) for e, (a, b) in enumerate(pairwise(bounds)) if b > a]


class GroupedExperts(torch.autograd.Function):
    """y_n = sum over k of weight_nk * down_e(silu(gate_e x_n) * up_e x_n): rows sorted by expert."""

    @staticmethod
    def forward(ctx, x, gate_up, down, weights, chosen):
        top_k = chosen.shape[1]
        rows, place, spans = expert_layout(chosen, gate_up.shape[0])
        w = x.new_zeros(rows.numel(), 1)
        w[place, 0] = weights.reshape(-1).to(x.dtype)
        xs = x[rows]
        h = xs.new_empty(xs.shape[0], gate_up.shape[1])
        y = torch.empty_like(xs)
        for e, start, end in spans:
            torch.mm(xs[start:end], gate_up[e].t(), out=h[start:end])
        gate, up = h.chunk(2, 1)
        act = F.silu(gate) * up
        aw = act * w
        for e, start, end in spans:
            torch.mm(aw[start:end], down[e].t(), out=y[start:end])
        ctx.save_for_backward(gate_up, down, rows, place, w, xs, h, act, aw)
        ctx.spans, ctx.top_k = spans, top_k
        return y[place].view(-1, top_k, x.shape[1]).sum(1)

    @staticmethod
    def backward(ctx, grad):
        gate_up, down, rows, place, w, xs, h, act, aw = ctx.saved_tensors
        grad_y = grad[rows]
        grad_aw = torch.empty_like(aw)
        grad_down, grad_gate_up = torch.zeros_like(down), torch.zeros_like(gate_up)
        for e, start, end in ctx.spans:
            torch.mm(grad_y[start:end], down[e], out=grad_aw[start:end])
            torch.mm(grad_y[start:end].t(), aw[start:end], out=grad_down[e])
        grad_w = (grad_aw * act).sum(1, dtype=torch.float32)[place]
        grad_act = grad_aw * w
        gate, up = h.chunk(2, 1)
        sig = torch.sigmoid(gate)
        silu = gate * sig
        grad_h = torch.empty_like(h)
        torch.mul(grad_act, silu, out=grad_h[:, up.shape[1] :])
        torch.mul(grad_act * up, sig + silu * (1 - sig), out=grad_h[:, : up.shape[1]])
        grad_xs = torch.empty_like(xs)
        for e, start, end in ctx.spans:
            torch.mm(grad_h[start:end], gate_up[e], out=grad_xs[start:end])
            torch.mm(grad_h[start:end].t(), xs[start:end], out=grad_gate_up[e])
        grad_x = grad_xs[place].view(-1, ctx.top_k, xs.shape[1]).sum(1)
        return grad_x, grad_gate_up, grad_down, grad_w.view(-1, ctx.top_k), None


@torch.compiler.disable
def grouped_experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    out: Tensor = GroupedExperts.apply(x, gate_up, down, weights, chosen)
    return out


class Router(nn.Module):
    def __init__(self, c: NanoConfig) -> None:
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.randn(c.n_routed_experts, c.hidden_size) * c.hidden_size**-0.5)
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, D] -> weights [N, K] in float32 and chosen experts [N, K]; the bias decides only the choice."""
        scores = F.linear(x.float(), self.weight).sigmoid()
        chosen = (scores + self.e_score_correction_bias).topk(self.c.num_experts_per_tok, -1).indices
        weights = scores.gather(1, chosen)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.c.routed_scaling_factor, chosen


class MoE(nn.Module):
    def __init__(self, c: NanoConfig) -> None:
        super().__init__()
        experts, hidden, ff = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
        self.gate = Router(c)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * ff, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, ff))
        self.shared_experts = MLP(hidden, ff * c.n_shared_experts)
        self.chosen: Tensor | None = None  # [N, K] of the last call, for balancing and for statistics

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(flat)
        self.chosen = chosen
        routed = grouped_experts(flat, self.gate_up.to(x.dtype), self.down.to(x.dtype), weights, chosen)
        return routed.view_as(x) + self.shared_experts(x)


class DecoderLayer(nn.Module):
    def __init__(self, c: NanoConfig, dense: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c.hidden_size, c.intermediate_size) if dense else MoE(c)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        dtype: torch.dtype,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, kv = self.self_attn(self.input_layernorm(x, dtype), cos, sin, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x, dtype)), kv


class MTPLayer(nn.Module):
    """Layer N: x_i = eh_proj [enorm(Emb(t_i+1)); hnorm(h_i)], h_i after the final norm, then a decoder layer."""

    def __init__(self, c: NanoConfig) -> None:
        super().__init__()
        self.enorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.hnorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.eh_proj = Linear(2 * c.hidden_size, c.hidden_size)
        self.block = DecoderLayer(c, dense=False)
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def joined(self, embedded_next: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
        return self.eh_proj(torch.cat((self.enorm(embedded_next, dtype), self.hnorm(h, dtype)), -1))

    def forward(
        self, embedded_next: Tensor, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, dtype: torch.dtype
    ) -> Tensor:
        y, _ = self.block(self.joined(embedded_next, h, dtype), cos, sin, mask, dtype)
        return self.norm(y, dtype)


class Nano(nn.Module):
    def __init__(self, c: NanoConfig) -> None:
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(c, i < c.first_k_dense_replace) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = Linear(c.hidden_size, c.vocab_size)
        self.mtp = MTPLayer(c)
        self._initialise()

    def _initialise(self) -> None:
        depth = (2 * self.c.num_hidden_layers) ** -0.5
        for name, p in self.named_parameters():
            if p.dim() < 2 or name.endswith("gate.weight"):
                continue
            scale = p.shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "down")):
                scale *= depth
            nn.init.normal_(p, std=0.5 if name == "embed_tokens.weight" else scale)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, T, rope / 2] for positions [B, T]."""
        half = torch.arange(0, self.c.qk_rope_head_dim, 2, dtype=torch.float32, device=positions.device)
        angle = positions.float()[..., None] * self.c.rope_theta ** (-half / self.c.qk_rope_head_dim)
        return angle.cos(), angle.sin()

    def forward(
        self, tokens: Tensor, dtype: torch.dtype = torch.float32, with_mtp: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """tokens [B, T] -> (h after the final norm [B, T, D], the MTP layer's normed output [B, T - 1, D])."""
        length = tokens.shape[1]
        cos, sin = self.rope(torch.arange(length, device=tokens.device)[None])
        mask = torch.full((length, length), float("-inf"), device=tokens.device).triu(1)[None, None]
        embedded = self.embed_tokens(tokens)
        x = embedded
        for layer in self.layers:
            x, _ = layer(x, cos, sin, mask, dtype)
        h = self.norm(x, dtype)
        if not with_mtp:
            return h, None
        y = self.mtp(embedded[:, 1:], h[:, :-1], cos[:, 1:], sin[:, 1:], mask[..., 1:, 1:], dtype)
        return h, y

    def moe_layers(self) -> list[MoE]:
        return [m for m in self.modules() if isinstance(m, MoE)]
