"""MTP's maths against transformers' `MtpModel`, at depth 1 and fed with itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from localr1.decode.cache import RowCache
from localr1.decode.draft import MtpDrafter
from localr1.decode.generate import Token, generate
from localr1.decode.sampling import Sampler, Sampling
from localr1.decode.speculate import FixedDepth, Speculation
from localr1.model import registry
from localr1.model.mtp import MtpLayer
from tests import tiny

FAMILIES = ("deepseek_v3", "glm4_moe_lite")


def ours(model: tiny.Tiny) -> tuple[registry.Model, MtpLayer]:
    weights, experts = tiny.FloatWeights(model.state), tiny.FloatExperts(model.state)
    main = registry.build(model.config, weights, experts, kernel_rows=0)
    return main, registry.build_mtp(model.config, weights, experts, main, kernel_rows=0)


def reference(model: tiny.Tiny, folder: Path) -> tuple[Any, Any]:
    """transformers' main and MTP model, loaded from the folder as a user of it would."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_layers import MtpModel

    tiny.save(model, folder)
    raw = json.loads((folder / "config.json").read_text())
    raw["num_mtp_layers"] = raw.pop("num_nextn_predict_layers")
    if raw["model_type"] == "glm4_moe_lite":
        raw["mtp_mlp_layer_types"] = ["sparse"]
    (folder / "config.json").write_text(json.dumps(raw))
    main = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{tiny.MTP_LAYER}.*"]
    return main, MtpModel.from_pretrained(main).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_references(family: str, tmp_path: Path) -> None:
    from transformers.cache_utils import MtpCache

    model = tiny.with_mtp(family)
    theirs, their_mtp = reference(model, tmp_path)
    token_T = tiny.tokens(14)
    with torch.inference_mode():
        hidden = theirs.model(input_ids=token_T[None]).last_hidden_state
        positions = torch.arange(1, 14)[None]
        cache = MtpCache(config=theirs.config.get_mtp_config())
        state = their_mtp.forward_layer(0, hidden[:, :-1], positions, cache, input_ids=token_T[None, 1:])
        wanted = their_mtp._project_to_logits(state)[0]
        main, mtp = ours(model)
        caches = [tiny.FloatCache(main.config.cache_width) for _ in range(2)]
        hidden_TD = main.forward(token_T, caches[0])
        assert tiny.difference(hidden_TD, hidden[0]) < 1e-4
        normed_TD, carried_TD = mtp.forward(token_T[1:], hidden_TD[:-1], caches[1])
        logits = main.logits(normed_TD)
        assert tiny.difference(logits, wanted) < 1e-4
        swapped, _ = mtp.forward(token_T[:-1], hidden_TD[:-1], tiny.FloatCache(main.config.cache_width))
        assert tiny.difference(main.logits(swapped), wanted) > 1e-2, "a pair shifted by one is seen"
        unnormed, _ = mtp.forward(token_T[1:], 2 * hidden_TD[:-1].roll(1, 1), tiny.FloatCache(main.config.cache_width))
        assert tiny.difference(main.logits(unnormed), wanted) > 1e-2, "a wrong hidden state is seen"
        assert torch.equal(carried_TD, normed_TD) == (family == "glm4_moe_lite")


@pytest.mark.parametrize("family", FAMILIES)
def test_step_by_step_is_all_at_once(family: str) -> None:
    main, mtp = ours(tiny.with_mtp(family))
    token_T = tiny.tokens(10)
    with torch.inference_mode():
        hidden_TD = main.forward(token_T, tiny.FloatCache(main.config.cache_width))
        whole, _ = mtp.forward(token_T[1:], hidden_TD[:-1], tiny.FloatCache(main.config.cache_width))
        cache, parts = tiny.FloatCache(main.config.cache_width), []
        for at in range(9):
            parts.append(mtp.forward(token_T[at + 1 : at + 2], hidden_TD[at : at + 1], cache)[0])
            cache.length += 1
    assert tiny.difference(torch.cat(parts), whole) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [1, 3])
def test_guessing_says_what_the_references_guessing_says(family: str, depth: int, tmp_path: Path) -> None:
    model = tiny.with_mtp(family)
    theirs, _ = reference(model, tmp_path)
    prompt, count = tiny.tokens(11, seed=9), 24
    with torch.inference_mode():
        said = theirs.generate(prompt[None], use_mtp=True, do_sample=False, max_new_tokens=count, eos_token_id=None)
    main, mtp = ours(model)
    config = main.config
    cache = RowCache(config.cache_layers, config.cache_width, 64, torch.float32)
    drafter = MtpDrafter(mtp, RowCache(1, config.cache_width, 64, torch.float32, config.num_layers))
    speculation = Speculation(drafter, FixedDepth(depth))
    sampler = Sampler(Sampling(temperature=0))
    items = generate(main, cache, prompt.tolist(), sampler, stop_ids=(), max_tokens=count, speculation=speculation)
    tokens = [item.id for item in items if isinstance(item, Token)]
    assert tokens == said[0, len(prompt) :].tolist()
    assert speculation.counts.drafted > 0
