"""On a real GPU: every kernel against the reference, and models placed, replayed and split as users run them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from localr1.decode.cache import RowCache
from localr1.decode.generate import forward, logits, step
from localr1.events import AnswerText, ReasoningText
from localr1.model import registry
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from localr1.placement.bank import CpuBank
from localr1.placement.gpu import in_ram
from localr1.placement.linear import StoreWeights
from localr1.placement.plan import RECORDED_LAYER_BYTES, recording_bytes
from localr1.placement.shape import shape_of
from localr1.placement.split import FEW
from localr1.session import engine, gpu
from localr1.session.gpu_model import GpuModel, Parts
from localr1.weights.store import Store
from tests import tiny
from tests.placement.test_cpu import stored

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use"),
]
NANO = Path(engine.__file__).parent.parent / "nano"
KERNEL_CHECKS = Path(__file__).parent.parent / "kernels" / "gpu_check.py"


def test_every_kernel_equals_the_reference() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(KERNEL_CHECKS)]
    done = subprocess.run(command, env=os.environ | {"LOCALR1_TEST_DEVICE": "cuda"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def placed(config: registry.ModelConfig, store: Store, slots: int) -> GpuModel:
    assert config.moe is not None
    order = [(layer, expert) for expert in range(config.moe.num_experts) for layer in config.moe.layers]
    parts = gpu.place(config, store, False, torch.device("cuda"), order[:slots])
    decoder = registry.build(config, parts.weights, parts.bank)
    return GpuModel(Parts(parts, decoder))


def on_cpu(config: registry.ModelConfig, store: Store) -> registry.Model:
    assert config.moe is not None
    return registry.build(config, StoreWeights(store), CpuBank(store, config.moe.layers, config.moe.num_experts))


def run(model: registry.Model, device: str, tokens: list[int]) -> Iterator[torch.Tensor]:
    """Logits after a prefill of twelve tokens, eight single steps (later ones replayed), and three tokens at once."""
    cache = RowCache(model.config.cache_layers, model.config.cache_width, 64, torch.bfloat16, 0, device)
    yield logits(model, forward(model, cache, tokens[:12]))
    for token in tokens[12:20]:
        yield step(model, cache, token)
    yield logits(model, forward(model, cache, tokens[20:23]))


@pytest.mark.parametrize("slots", [1, 6, 16])
def test_a_tiny_model_gives_the_cpus_logits(tmp_path: Path, slots: int) -> None:
    model, store = stored("deepseek_v3", tmp_path)
    tokens = tiny.tokens(23).tolist()
    on_gpu = placed(model.config, store, slots)
    ours = torch.stack(list(run(on_gpu, "cuda", tokens)))
    theirs = torch.stack(list(run(on_cpu(model.config, store), "cpu", tokens)))
    assert tiny.difference(ours, theirs) < 3e-2
    assert on_gpu.replays and not on_gpu.notice


def in_turn(model: registry.Model, device: str, tokens: list[int], sizes: Sequence[int]) -> Iterator[torch.Tensor]:
    """Logits after a prefill, and after steps of these sizes."""
    cache = RowCache(model.config.cache_layers, model.config.cache_width, len(tokens), torch.bfloat16, 0, device)
    yield logits(model, forward(model, cache, tokens[:12]))
    for size in sizes:
        yield logits(model, forward(model, cache, tokens[cache.length : cache.length + size]))


@pytest.mark.parametrize("slots", [6, 16])
def test_recordings_of_several_sizes_share_their_memory_and_stay_right(tmp_path: Path, slots: int) -> None:
    """Each overwrites what another computed; those recorded first are replayed last, too."""
    model, store = stored("deepseek_v3", tmp_path)
    sizes = (1, 3, 2, 8) * 6
    tokens = tiny.tokens(12 + sum(sizes)).tolist()
    on_gpu = placed(model.config, store, slots)
    ours = torch.stack(list(in_turn(on_gpu, "cuda", tokens, sizes)))
    theirs = torch.stack(list(in_turn(on_cpu(model.config, store), "cpu", tokens, sizes)))
    assert tiny.difference(ours, theirs) < 3e-2
    assert on_gpu.replays and not on_gpu.notice


def test_recorded_steps_take_no_more_memory_than_a_plan_counts() -> None:
    """Beside cuBLAS's workspace, which is in the pool and counted with its library."""
    store, config = Store(NANO), registry.read_config(NANO)
    sizes = [size for size in range(1, FEW + 1) for _ in range(4)]
    on_gpu = placed(config, store, 40)
    list(in_turn(on_gpu, "cuda", [7] * (12 + sum(sizes)), sizes))
    assert on_gpu.replays and not on_gpu.notice
    (pool,) = {recording.pool for one in on_gpu.replayers for recording in one.recordings}
    segments = torch.cuda.memory_snapshot()
    pool_bytes = sum(one["total_size"] for one in segments if tuple(one["segment_pool_id"]) == tuple(pool))
    shape = shape_of(config, registry.expected_tensors(config), mtp=False)
    driver_bytes = FEW * (shape.layers + 1) * RECORDED_LAYER_BYTES
    assert 0 < pool_bytes < recording_bytes(shape) - driver_bytes + (64 << 20)


def test_results_come_through_page_locked_memory() -> None:
    there = torch.arange(6.0, device="cuda").view(2, 3)
    here, first = in_ram(there, there[:, 0])
    assert here.is_pinned() and here.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] and first.tolist() == [0.0, 3.0]


@pytest.mark.parametrize("slots", [8, 40])
def test_nano_decodes_the_same_tokens_while_experts_move(slots: int) -> None:
    store, config = Store(NANO), registry.read_config(NANO)
    prompt = engine.Tokenizer.open(NANO).encode_text("What is 17 + 25? Think, then answer.")
    said = []
    for model, device in ((on_cpu(config, store), "cpu"), (placed(config, store, slots), "cuda")):
        cache = RowCache(config.cache_layers, config.cache_width, 200, torch.bfloat16, 0, device)
        logits_V, tokens = logits(model, forward(model, cache, prompt)), []
        for _ in range(60):
            tokens.append(int(logits_V.argmax()))
            logits_V = step(model, cache, tokens[-1])
        said.append(tokens)
    assert said[0] == said[1]


@pytest.mark.parametrize("speculate", ["off", "mtp"])
def test_a_conversation_is_the_cpus_and_its_steps_and_guesses_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speculate: str
) -> None:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    said = []
    for vram in ("0", "2GiB"):
        opened = engine._open("nano", NANO, EngineOptions(vram=vram, context=256, speculate=speculate, kv="bf16"))
        talk = opened.converse(SamplingOptions(temperature=0.0, max_tokens=60), ConversationOptions())
        events = talk.ask("What is 17 + 25?")
        said.append("".join(event.text for event in events if isinstance(event, AnswerText | ReasoningText)))
    assert said[0] == said[1] != ""
    assert opened.on_gpu is not None and not opened.notice
    assert [one.ready for one in opened.on_gpu.replayers] == [True] * (2 if speculate == "mtp" else 1)


def test_memory_that_runs_out_in_use_makes_experts_leave(tmp_path: Path) -> None:
    model, store = stored("deepseek_v3", tmp_path)
    on_gpu, left = placed(model.config, store, 12), [torch.OutOfMemoryError("full")]
    forward_whole = on_gpu.decoder.forward

    def fail_once(token_T: torch.Tensor, cache: object) -> torch.Tensor:
        if left:
            raise left.pop()
        return forward_whole(token_T, cache)

    on_gpu.decoder.forward = fail_once
    tokens = tiny.tokens(23).tolist()
    ours = torch.stack(list(run(on_gpu, "cuda", tokens)))
    theirs = torch.stack(list(run(on_cpu(model.config, store), "cpu", tokens)))
    assert tiny.difference(ours, theirs) < 3e-2
    assert on_gpu.bank is not None and on_gpu.bank.slots.count == 10
