"""Experts on a device and on the CPU at once give what the CPU alone gives, while they move and wherever they are.

The device is the CPU here, with torch operations for kernels: both lanes, the table, the moves and the passage of cold
experts run as they do on a GPU. What only a GPU has (streams, recorded steps) is in `test_gpu.py`.
"""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localr1.decode.cache import RowCache
from localr1.decode.generate import forward, logits, step
from localr1.kernels.gpu import plain
from localr1.model import registry
from localr1.placement import lanes
from localr1.placement.bank import CpuBank
from localr1.placement.gpu import GpuOps, GpuWeights
from localr1.placement.hints import Foretold, Hints
from localr1.placement.linear import StoreWeights
from localr1.placement.policy import Move, Recency, Slots
from localr1.placement.slots import ColdExperts, ExpertSlots
from localr1.placement.split import FEW, GpuBank, SplitBank
from localr1.session import engine
from localr1.weights.quantize import Int8Rows
from localr1.weights.store import Store
from tests import tiny
from tests.placement.test_cpu import stored

CPU = torch.device("cpu")
LAYERS, EXPERTS, TOP_K, HIDDEN = (1, 2), 8, 3, 32
TOLERANCE = 1e-3
"""The CPU's kernels round activations to 16 bits; the other lane is float32."""
NANO = Path(engine.__file__).parent.parent / "nano"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return stored("deepseek_v3", tmp_path_factory.mktemp("split"))[1]


@pytest.fixture(scope="module")
def alone(store: Store) -> CpuBank:
    return CpuBank(store, LAYERS, EXPERTS)


def split(store: Store, alone: CpuBank, count: int, resident: list[tuple[int, int]], **watchers: object) -> SplitBank:
    slots = ExpertSlots(ColdExperts(store, LAYERS, EXPERTS), count, CPU, resident)
    return SplitBank(slots, plain.PlainKernels(), alone, **watchers)


def recency(slots: ExpertSlots) -> Recency:
    return Recency(Slots(slots.cold.layers, slots.cold.experts, slots.count), slots.resident)


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    expert = np.stack([rng.permutation(EXPERTS)[:TOP_K] for _ in range(count)])
    hidden, weight = rng.standard_normal((count, HIDDEN), np.float32), rng.random((count, TOP_K), np.float32)
    return torch.from_numpy(hidden), torch.from_numpy(expert), torch.from_numpy(weight)


def all_experts() -> list[tuple[int, int]]:
    return [(layer, expert) for layer in LAYERS for expert in range(EXPERTS)]


def check(bank: SplitBank | GpuBank, alone: CpuBank, layer: int, count: int, seed: int) -> None:
    arguments = (layer, *rows(count, seed), lambda x: 0.5 * x)
    assert tiny.difference(bank.run(*arguments), alone.run(*arguments)) < TOLERANCE


@given(data=st.data(), seed=st.integers(0, 99), count=st.sampled_from([1, 2, FEW, FEW + 1, 40]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_gives_what_the_cpu_alone_gives(store: Store, alone: CpuBank, data, seed: int, count: int) -> None:
    resident = data.draw(st.lists(st.sampled_from(all_experts()), unique=True))
    bank = split(store, alone, max(len(resident), 1), resident)
    for layer in LAYERS:
        check(bank, alone, layer, count, seed)
    assert sorted(bank.slots.resident) == sorted(resident)


@given(seed=st.integers(0, 9999))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_results_stay_while_experts_move(store: Store, alone: CpuBank, seed: int) -> None:
    """Random moves are begun and finish whenever they do; sums in between never differ."""
    chance = random.Random(seed)
    bank = split(store, alone, 5, all_experts()[:5])
    slots = bank.slots
    for turn in range(6):
        if not slots.moving:
            outside = [one for one in all_experts() if one not in slots.resident]
            coming = chance.sample(outside, chance.randrange(4))
            going = chance.sample(slots.resident, len(coming))
            slots.begin([Move(one, other) for one, other in zip(coming, going, strict=True)])
        for layer in LAYERS:
            check(bank, alone, layer, chance.choice([1, 3, 20]), seed + turn)
        slots.finish(wait=chance.random() < 0.5)
    slots.finish(wait=True)
    assert len(slots.resident) == 5 and np.array_equal(slots.table.numpy(), slots.row_of)


def test_the_lanes_never_both_compute_an_expert(store: Store, alone: CpuBank) -> None:
    """With weights doubled in the slab, the sum says which lane computed: the check above can fail."""
    bank = split(store, alone, 16, all_experts()[:8])
    bank.slots.scb.mul_(2.0)
    arguments = (1, *rows(4, 0))
    assert tiny.difference(bank.run(*arguments), alone.run(*arguments)) > 0.1


def test_the_policy_is_told_choices_and_its_moves_are_made(store: Store, alone: CpuBank) -> None:
    seen: list[tuple[int, list[list[int]]]] = []
    bank = split(
        store, alone, 4, [], make_policy=recency, observe=lambda layer, chosen: seen.append((layer, chosen.tolist()))
    )
    for seed in range(30):
        for layer in LAYERS:
            check(bank, alone, layer, 1, seed % 2)
        bank.slots.finish(wait=True)
    bank.turn_over()
    bank.slots.finish(wait=True)
    assert seen[:2] == [(layer, rows(1, 0)[1].tolist()) for layer in LAYERS] and len(seen) == 60
    assert bank.policy is not None and len(bank.policy.resident) == 4
    assert sorted(bank.slots.resident) == sorted(bank.policy.resident)


def test_what_is_foretold_reaches_the_policy_first_and_the_record_with_its_forward(
    store: Store, alone: CpuBank
) -> None:
    """The record hears of a forward after the choices of the one before, the policy before it decides."""
    told: list[object] = []

    class Listening(Recency):
        def expect(self, hint: np.ndarray) -> None:
            told.append(("expects", hint.tolist()))

        def step(self, most: int | None = None) -> list[Move]:
            told.append("decides")
            return []

    embedded = torch.eye(4)
    hints = Hints(lambda token_T: embedded[token_T], 4)
    slots = ExpertSlots(ColdExperts(store, LAYERS, EXPERTS), 4, CPU, [])
    bank = SplitBank(
        slots,
        plain.PlainKernels(),
        alone,
        lambda slots: Listening(Slots(LAYERS, EXPERTS, slots.count)),
        lambda layer, _: told.append(("chosen", layer)),
        hints,
        lambda foretold: told.append(("foretold", *foretold.tokens)),
    )
    for turn in range(3):
        if turn < 2:
            bank.foretell(Foretold([turn, 2], embedded[3]))
        for layer in LAYERS:
            check(bank, alone, layer, 1, turn)
    chosen = [("chosen", layer) for layer in LAYERS]
    expected = [("expects", hints([Foretold([turn, 2], embedded[3])])[0].tolist()) for turn in range(2)]
    assert told == [
        *[("foretold", 0, 2), expected[0], "decides"],
        *[*chosen, ("foretold", 1, 2), expected[1], "decides"],
        *[*chosen, "decides"],
    ]


def test_a_smaller_slab_keeps_what_it_can_and_the_numbers(store: Store, alone: CpuBank) -> None:
    bank = split(store, alone, 12, all_experts()[:12], make_policy=recency)
    before = bank.slots.nbytes
    bank.shrink(3)
    assert bank.slots.resident == all_experts()[:3] and bank.slots.nbytes * 4 == before
    for seed in range(20):
        check(bank, alone, 1, 2, seed)
    with pytest.raises(ValueError, match="3 slots cannot shrink to 3"):
        bank.slots.shrink(3)


def test_a_copy_that_fails_is_told_where_the_experts_change(store: Store, alone: CpuBank, monkeypatch) -> None:
    bank = split(store, alone, 2, all_experts()[:2])
    monkeypatch.setattr(bank.slots.cold, "rows", lambda expert: (_ for _ in ()).throw(OSError("gone")))
    bank.slots.begin([Move((2, 7), (1, 0))])
    check(bank, alone, 2, 2, 0)
    with pytest.raises(OSError, match="gone"):
        bank.slots.finish(wait=True)


def test_with_every_expert_resident_the_gpu_bank_serves_alone(store: Store, alone: CpuBank) -> None:
    slots = ExpertSlots(ColdExperts(store, LAYERS, EXPERTS), 99, CPU, all_experts())
    assert slots.holds_all and slots.count == 16
    for count in (1, 30):
        check(GpuBank(slots, plain.PlainKernels()), alone, 2, count, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_prefill_through_the_device_or_on_the_cpu(store: Store, alone: CpuBank, monkeypatch, stream: bool) -> None:
    bank = split(store, alone, 3, all_experts()[:3])
    monkeypatch.setattr(lanes, "FIRST_TOKENS", 0 if stream else 1 << 30)
    check(bank, alone, 1, 50, 0)
    assert (bank.lanes.stream_s is not None, bank.lanes.pair_s is not None) == (stream, not stream)


class Stream:
    """A device's stream; notes what its user has it do, or does with it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def wait_event(self, event: object) -> None:
        self.done.append("wait for other work")

    def synchronize(self) -> None:
        self.done.append("wait for the end")


def test_the_passage_does_not_wait_for_the_resident_experts(store: Store, alone: CpuBank, monkeypatch) -> None:
    """Which the device was given just before: the copies can begin while it is at them."""
    monkeypatch.setattr(lanes, "FIRST_TOKENS", 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    bank, stream = split(store, alone, 3, all_experts()[:3]), Stream()
    monkeypatch.setattr(bank._streamer, "_compute", stream)
    check(bank, alone, 1, 50, 0)
    assert stream.done == ["wait for the end"]


def test_both_lanes_end_together_by_what_they_cost() -> None:
    costs, tokens_E = lanes.Lanes(), np.array([5, 0, 100, 40, 1])
    assert costs.streamed(tokens_E).tolist() == [2, 3], "unmeasured: those of 32 tokens or more"
    costs.pair_s, costs.stream_s = 1.0, 30.0
    assert costs.streamed(tokens_E).tolist() == [2], "30 s beside 46; two would be 60 beside 6"
    costs.stream_s = 1e-3
    assert costs.streamed(tokens_E).tolist() == [2, 3, 0, 4]
    costs.stream_s = 1e3
    assert costs.streamed(tokens_E).tolist() == []


def build(config: registry.ModelConfig, store: Store, count: int | None) -> registry.Model:
    """On the CPU's engine (None), or with the GPU's weights and so many slots on a device that is the CPU."""
    assert config.moe is not None
    cold = CpuBank(store, config.moe.layers, config.moe.num_experts)
    if count is None:
        return registry.build(config, StoreWeights(store), cold)
    ops = GpuOps(CPU)
    experts = ColdExperts(store, config.moe.layers, config.moe.num_experts)
    order = [(layer, expert) for expert in range(experts.experts) for layer in experts.layers]
    slots = ExpertSlots(experts, count, CPU, order)
    return registry.build(config, GpuWeights(store, ops), SplitBank(slots, ops.kernels, cold, recency))


def greedy(model: registry.Model, prompt: list[int], count: int) -> Iterator[int]:
    cache = RowCache(model.config.cache_layers, model.config.cache_width, 400, torch.bfloat16)
    logits_V = logits(model, forward(model, cache, prompt))
    for _ in range(count):
        token = int(logits_V.argmax())
        yield token
        logits_V = step(model, cache, token)


def test_nano_says_the_same_on_both_engines() -> None:
    """A question of its own kind, answered greedily: prefill in one chunk, then token by token while experts move."""
    store, config = Store(NANO), registry.read_config(NANO)
    tokenizer = engine.Tokenizer.open(NANO)
    prompt = tokenizer.encode_text("What is 17 + 25? Think, then answer.")
    said = list(greedy(build(config, store, None), prompt, 40))
    for count in (1, 40):
        assert list(greedy(build(config, store, count), prompt, 40)) == said


@pytest.mark.parametrize(
    ("model_type", "extra"),
    [
        ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("qwen3", {}),
        ("deepseek_v2", {"q_lora_rank": None, "attention_bias": True, "n_shared_experts": 2}),  # no bias of q_proj
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gpu_weights_give_the_stores_numbers(tmp_path: Path, model_type: str, extra: dict[str, object]) -> None:
    model, store = stored(model_type, tmp_path, **extra)
    config, ops = model.config, GpuOps(CPU)
    bank = CpuBank(store, config.moe.layers, config.moe.num_experts) if config.moe else None
    tokens = tiny.tokens(14)
    ours = tiny.run_steps(registry.build(config, GpuWeights(store, ops), bank), tokens, [9, 1, 2])
    theirs = tiny.run_steps(registry.build(config, StoreWeights(store), bank), tokens, [9, 1, 2])
    assert tiny.difference(ours, theirs) < 2e-3


@pytest.mark.parametrize(("model", "head"), [("nano", "lm_head"), ("llama", "model.embed_tokens")])
def test_rows_of_several_parts_are_copied_to_the_device_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, head: str
) -> None:
    """As a plan counts them: an MTP layer's head is the model's, a tied model's head its embedding."""
    store = Store(NANO) if model == "nano" else stored(model, tmp_path, tie_word_embeddings=True)[1]
    config = registry.read_config(NANO) if model == "nano" else tiny.make(model, tie_word_embeddings=True).config
    copied: Counter[str] = Counter()
    rows_of = store.int8_rows

    def counted(prefix: str) -> Int8Rows:
        copied[prefix] += 1
        return rows_of(prefix)

    monkeypatch.setattr(store, "int8_rows", counted)
    weights, moe = GpuWeights(store, GpuOps(CPU)), config.moe
    cold = CpuBank(store, registry.expert_layers(config, mtp=True), moe.num_experts) if moe else None
    decoder = registry.build(config, weights, cold)
    if config.num_mtp_layers:
        registry.build_mtp(config, weights, cold, decoder)
    assert head in copied and set(copied.values()) == {1}


def test_an_expert_whose_copy_failed_leaves_the_others_where_they_are(store: Store, alone: CpuBank) -> None:
    bank = split(store, alone, 4, [(1, e) for e in range(4)], make_policy=recency)
    cold, failures = bank.slots.cold, [RuntimeError("a copy failed")]
    copied = cold.rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold, "rows", lambda expert: fail(failures.pop()) if failures else copied(expert))
        seen = []
        for seed in range(60):
            try:
                check(bank, alone, 1, 1, seed)
            except RuntimeError as error:
                seen.append(str(error))
            while bank.slots.moving and not all(one.copied.done() for one in bank.slots._arrivals):
                pass
    assert seen == ["a copy failed"]


def fail(error: Exception) -> Int8Rows:
    raise error


def test_every_call_of_a_layer_between_two_forwards_is_told(store: Store, alone: CpuBank) -> None:
    told: list[tuple[int, int]] = []
    bank = split(store, alone, 4, [(1, 0)], observe=lambda layer, expert_TK: told.append((layer, len(expert_TK))))
    for layer, count in ((1, 1), (2, 1), (2, 1), (2, 3)):
        check(bank, alone, layer, count, count)
    bank.turn_over()
    assert told == [(1, 1), (2, 1), (2, 1), (2, 3)]
