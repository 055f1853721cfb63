"""The baseline of `benchmarks.gpu`: transformers in bfloat16, whole modules offloaded by accelerate.

Owns its building and timing. The model has the shape's first layers, random weights and a part of the GPU budget in
proportion; a token's time is scaled up to all layers, which leaves out the head's share and so flatters the baseline.
Not measured where accelerate is missing.
"""

import gc
import importlib.util
import time
from dataclasses import dataclass
from typing import Any

import torch

from localr1.hub.shapes import SHAPES

LAYERS, CONTEXT, TOKENS = 4, 64, 6
GIB = 1 << 30


@dataclass(frozen=True)
class Offloaded:
    """What transformers with accelerate reached; `layers` were run of `of_layers`."""

    shape: str
    budget_gib: float
    layers: int
    of_layers: int
    decode_tokens_per_s: float


def missing() -> str:
    """Which library the baseline lacks; empty when it can be measured."""
    return next((name for name in ("transformers", "accelerate") if importlib.util.find_spec(name) is None), "")


def build(raw: dict[str, Any]) -> Any:
    """A model of random weights in bfloat16, on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {key: value for key, value in raw.items() if key != "model_type"}
    config = AutoConfig.for_model(raw["model_type"], **known)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def measure(name: str, budget_gib: float, layers: int = LAYERS) -> Offloaded:
    """Decode by transformers with as much of the model on the GPU as the budget's part of these layers allows."""
    from accelerate import dispatch_model, infer_auto_device_map

    of_layers = SHAPES[name]["num_hidden_layers"]
    model = build({**SHAPES[name], "num_hidden_layers": layers})
    room = int(budget_gib * GIB * layers / of_layers)
    blocks = getattr(model, "_no_split_modules", None)
    where = infer_auto_device_map(
        model, {0: room, "cpu": 1 << 40}, no_split_module_classes=list(blocks) if blocks else None
    )
    model = dispatch_model(model, where, main_device=0, force_hooks=True)
    decode_s = token_s(model, torch.device("cuda"))
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return Offloaded(name, budget_gib, layers, of_layers, layers / of_layers / decode_s)


@torch.inference_mode()
def token_s(model: Any, device: torch.device) -> float:
    """Seconds of a decoded token after a short prompt, the fastest of some."""
    token_BT = torch.arange(7, 7 + CONTEXT, device=device)[None]
    out, fastest_s = model(token_BT, use_cache=True), float("inf")
    for _ in range(TOKENS):
        start_s = time.perf_counter()
        out = model(token_BT[:, -1:], past_key_values=out.past_key_values, use_cache=True)
        int(out.logits[0, -1].argmax())
        fastest_s = min(fastest_s, time.perf_counter() - start_s)
    return fastest_s
