"""The MTP layer is trained on what drafting does, and nothing else of the model changes."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from localr1.decode.cache import RowCache
from localr1.model import registry
from localr1.weights.safetensors_file import read_header
from localr1.weights.store import Store
from tests import tiny
from tools.nano.batches import Batch
from tools.nano.chain import STORE, Schedule, acceptance, chain_loss, chained, export, load_store
from tools.nano.export import hugging_face_tensors
from tools.nano.model import Nano
from tools.nano.ship import ship


@pytest.fixture
def model() -> Nano:
    return load_store(STORE)


def test_drafts_in_training_are_those_of_the_package(model: Nano) -> None:
    config = registry.parse_config(json.loads((STORE / "config.json").read_text()))
    state = hugging_face_tensors(model)
    weights, experts = tiny.FloatWeights(state), tiny.FloatExperts(state)
    main = registry.build(config, weights, experts, kernel_rows=0)
    mtp = registry.build_mtp(config, weights, experts, main, kernel_rows=0)
    tokens = torch.tensor([[0, 3, 120, 9, 77, 300, 41, 5, 620, 12, 13, 700]])
    h, _ = model(tokens, with_mtp=False)
    drafts = chained(model, tokens, h, 3, torch.float32)
    for begin in (0, 4, 8):
        cache = RowCache(1, config.cache_width, 12, torch.float32, config.num_layers)
        normed_TD, carried_TD = mtp.forward(tokens[0, 1 : begin + 2], h[0, : begin + 1], cache)
        cache.commit(tokens[0, 1 : begin + 2].tolist())
        for depth, rows in enumerate(drafts, 1):
            torch.testing.assert_close(normed_TD[-1], rows[0, begin], rtol=1e-4, atol=1e-4)
            following = tokens[0, begin + depth + 1 : begin + depth + 2]
            if depth < len(drafts):
                normed_TD, carried_TD = mtp.forward(following, carried_TD[-1:], cache)
                cache.commit(following.tolist())


def test_only_the_mtp_layer_learns(model: Nano) -> None:
    tokens, all_of_them = torch.randint(8, 700, (2, 24), generator=torch.manual_seed(0)), torch.ones(2, 24) > 0
    model.mtp.requires_grad_(True)
    losses = chain_loss(model, Batch(tokens, all_of_them, all_of_them), Schedule(1, depths=3), torch.float32)
    losses[2].backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert losses.shape == (3,) and learning and all(name.startswith("mtp.") for name in learning)
    assert {"mtp.eh_proj.weight", "mtp.block.self_attn.kv_b_proj.weight", "mtp.block.mlp.down"} <= learning


def test_what_is_not_trained_is_shipped_as_it_was(model: Nano, tmp_path: Path) -> None:
    model.mtp.block.mlp.down[3] += 0.1
    export(model, tmp_path / "export")
    before, after = Store(STORE), ship(tmp_path / "export", tmp_path / "store")
    names = {name for path in STORE.glob("*.safetensors") for name in read_header(path)}
    changed = {name for name in names if not torch.equal(before.tensor(name), after.tensor(name))}
    assert changed and all(f".layers.{model.c.num_hidden_layers}.mlp.experts.3.down_proj" in name for name in changed)
    assert after.nbytes == before.nbytes
    small = {name: facts for name, facts in before.manifest["files"].items() if not name.endswith(".safetensors")}
    assert small.items() <= after.manifest["files"].items()


def test_the_shipped_layer_guesses_several_tokens_rightly(model: Nano) -> None:
    """Held-out questions; a layer trained for one guess is right for 40 % of the second ones."""
    right = acceptance(model, Tokenizer.from_file(str(STORE / "tokenizer.json")), each=1, depths=7)
    assert len(right) == 7 and min(right) > 0.9
