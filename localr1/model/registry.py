"""Every architecture this program runs, by the `model_type` of its config.json.

Owns the one table that maps a name to how its config is read, which tensors it has and how it is built. A model that
`read_config` accepts can be built from tensors that match `expected_tensors`.
"""

import json
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from localr1.errors import AccessError, CorruptError, NotFoundError, UnsupportedError
from localr1.model.attention import KERNEL_ROWS
from localr1.model.config import ModelConfig
from localr1.model.decoder import Decoder
from localr1.model.deepseek import (
    build_deepseek,
    build_deepseek_layer,
    deepseek_tensors,
    read_deepseek_v2,
    read_deepseek_v3,
)
from localr1.model.dense import build_dense, dense_tensors, read_llama, read_qwen2, read_qwen3
from localr1.model.fields import Fields
from localr1.model.linear import Cache, ExpertBank, TensorSpec, Weights
from localr1.model.mtp import MtpLayer


class Model(Protocol):
    """What the decode loop runs: one sequence, one cache."""

    @property
    def config(self) -> ModelConfig:
        """What the model is."""
        ...

    def forward(self, token_T: Tensor, cache: Cache) -> Tensor:
        """Hidden states after the final norm, [T, D] float32, for int64 tokens at positions `cache.length` onwards."""
        ...

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Next-token logits, [T, vocab] float32."""
        ...

    def step(self, token_T: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """`forward` of few tokens and the `logits` of all of them."""
        ...

    def likeliest(self, token_T: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of few tokens, the likeliest next token of each, int64 [T], and its logit [T]."""
        ...


@dataclass(frozen=True)
class Architecture:
    """How one `model_type` is read, what it holds and how it is built."""

    read: Callable[[Fields], ModelConfig]
    tensors: Callable[[ModelConfig, bool], dict[str, TensorSpec]]
    build: Callable[[ModelConfig, Weights, ExpertBank | None, int], Decoder]


ARCHITECTURES: Mapping[str, Architecture] = {
    "deepseek_v2": Architecture(read_deepseek_v2, deepseek_tensors, build_deepseek),
    "deepseek_v3": Architecture(read_deepseek_v3, deepseek_tensors, build_deepseek),
    "glm4_moe_lite": Architecture(read_deepseek_v3, deepseek_tensors, build_deepseek),
    "llama": Architecture(read_llama, dense_tensors, build_dense),
    "qwen2": Architecture(read_qwen2, dense_tensors, build_dense),
    "qwen3": Architecture(read_qwen3, dense_tensors, build_dense),
}


def read_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder; `generation_config.json` may add ids that end a sequence."""
    config = parse_config(_read_json(folder / "config.json"))
    if not (folder / "generation_config.json").is_file():
        return config
    extra = Fields(_read_json(folder / "generation_config.json"), "generation_config.json").integers("eos_token_id")
    return replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + extra)))


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The config of a parsed config.json; `UnsupportedError` names the architectures that work."""
    fields = Fields(raw)
    model_type = fields.value("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"This program cannot run architecture {model_type!r} (it runs: {', '.join(sorted(ARCHITECTURES))})",
            "Choose a model of one of these architectures: `localr1 models`.",
        )
    return ARCHITECTURES[model_type].read(fields)


def expected_tensors(config: ModelConfig, mtp: bool = False) -> dict[str, TensorSpec]:
    """Every tensor that the checkpoint must hold, by its name on disk; with `mtp`, those of the MTP layers too."""
    return ARCHITECTURES[config.model_type].tensors(config, mtp)


def ignorable(config: ModelConfig, name: str) -> bool:
    """Whether a tensor that `expected_tensors` does not list is a known extra rather than a mistake.

    Known extras: MTP layers that are not loaded and an MTP layer's copies of the embedding and the head, stored rotary
    frequencies, and the head of a tied model.
    """
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer and config.num_layers <= int(layer[1]) < config.num_layers + config.num_mtp_layers:
        return True
    return name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")


def build(
    config: ModelConfig, weights: Weights, experts: ExpertBank | None, *, kernel_rows: int = KERNEL_ROWS
) -> Decoder:
    """The model. Steps of at most `kernel_rows` tokens attend through the compiled kernels; 0 keeps to plain torch."""
    return ARCHITECTURES[config.model_type].build(config, weights, experts, kernel_rows)


def has_mtp(config: ModelConfig, names: Container[str]) -> bool:
    """Whether the config announces an MTP layer and a checkpoint or store of these tensor names holds it."""
    return config.num_mtp_layers > 0 and f"model.layers.{config.num_layers}.eh_proj.weight" in names


def expert_layers(config: ModelConfig, mtp: bool) -> tuple[int, ...]:
    """The layers with routed experts, with `mtp` those of the MTP layers too."""
    if config.moe is None:
        return ()
    extra = range(config.num_layers, config.num_layers + config.num_mtp_layers) if mtp else ()
    return (*config.moe.layers, *extra)


def build_mtp(
    config: ModelConfig, weights: Weights, experts: ExpertBank | None, main: Decoder, *, kernel_rows: int = KERNEL_ROWS
) -> MtpLayer:
    """The first MTP layer of a model that has any, beside the `main` model that `build` made."""
    assert config.num_mtp_layers
    return MtpLayer(
        config, weights, main, build_deepseek_layer(config, weights, experts, config.num_layers, kernel_rows)
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist", "Name a folder that holds a Hugging Face checkpoint.") from None
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {error.strerror}", "Check the file's permissions.") from None
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path} is not valid JSON: {error}", "Download the model again.") from None
    if not isinstance(raw, dict):
        raise CorruptError(f"{path} holds {type(raw).__name__}, expected an object", "Download the model again.")
    return raw
