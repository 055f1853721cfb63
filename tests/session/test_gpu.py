"""A model on a "GPU" that is the CPU: wiring, replayed steps, and what happens when memory runs out or a GPU fails.

Recording is a stand-in that keeps the host's calls and runs the step again on the same inputs, as CUDA graphs would;
real ones are in `test_cuda.py`.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from localr1.decode.cache import RowCache
from localr1.decode.depth import FixedDepth
from localr1.decode.draft import MtpDrafter
from localr1.decode.generate import Token, forward, generate, logits, step
from localr1.decode.sampling import Sampler, Sampling
from localr1.decode.speculate import Speculation
from localr1.errors import LocalR1Error, OutOfMemoryError, UnsupportedError, UsageError
from localr1.events import AnswerText, Event, LoadProgress, Notice, ReasoningText, result_of
from localr1.model import registry
from localr1.model.decoder import Head, first_highest
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from localr1.placement import gpu as placement_gpu
from localr1.placement.bank import CpuBank
from localr1.placement.forecast import Forecast
from localr1.placement.linear import StoreWeights
from localr1.placement.plan import CONTEXT_BYTES
from localr1.placement.slots import Arrival, ExpertSlots
from localr1.placement.split import FEW
from localr1.session import engine, gpu, gpu_model
from localr1.session.conversation import Conversation
from localr1.session.gpu_model import GpuModel, Parts
from localr1.session.outlook import RESERVED_VRAM_BYTES, expectation
from localr1.session.replay import Tensors
from localr1.terminal.background import Background
from localr1.weights.store import Store
from tests import tiny
from tests.placement.test_cpu import stored

CPU = torch.device("cpu")
TOKENS = tiny.tokens(20).tolist()
NANO = Path(engine.__file__).parent.parent / "nano"
QUESTION = "What is 17 + 25?"
GREEDY = SamplingOptions(temperature=0.0, max_tokens=60)


class Again:
    """A recording that runs the step again instead of replaying graphs: host calls included, into the same results."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def record(self, run: Callable[[], Tensors]) -> Tensors:
        self.run = run
        self.results = run()
        return self.results

    def cut(self, host: Callable[[], None]) -> None:
        host()

    def replay(self) -> None:
        for held, new in zip(self.results, self.run(), strict=True):
            held.copy_(new)


class Wrong(Again):
    """A recording that computes something else."""

    def replay(self) -> None:
        self.results[0].mul_(1.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return stored("deepseek_v3", tmp_path_factory.mktemp("gpu"))[1]


@pytest.fixture(scope="module")
def config(store: Store) -> registry.ModelConfig:
    return tiny.make("deepseek_v3").config


def all_experts(config: registry.ModelConfig) -> tuple[tuple[int, int], ...]:
    assert config.moe is not None
    return tuple((layer, expert) for expert in range(8) for layer in config.moe.layers)


def on_device(
    config: registry.ModelConfig, store: Store, slots: int, record: object = Again, observe: object = None
) -> GpuModel:
    placed = gpu.place(config, store, False, CPU, all_experts(config)[:slots], observe=observe)
    decoder = registry.build(config, placed.weights, placed.bank)
    return GpuModel(Parts(placed, decoder), record=record)


def cache_for(config: registry.ModelConfig) -> RowCache:
    return RowCache(config.cache_layers, config.cache_width, 32, torch.float32)


def run(model: registry.Model, config: registry.ModelConfig) -> torch.Tensor:
    """Logits after a prompt, after single tokens, and after three at once."""
    cache = cache_for(config)
    parts = [logits(model, forward(model, cache, TOKENS[:10]))]
    parts += [step(model, cache, token) for token in TOKENS[10:17]]
    parts += [logits(model, forward(model, cache, TOKENS[17:20]))]
    return torch.stack(parts)


@pytest.fixture(scope="module")
def wanted(config: registry.ModelConfig, store: Store) -> torch.Tensor:
    assert config.moe is not None
    bank = CpuBank(store, config.moe.layers, config.moe.num_experts)
    return run(registry.build(config, StoreWeights(store), bank), config)


@pytest.mark.parametrize("slots", [1, 5, 16])
def test_replayed_steps_give_what_the_cpu_engine_gives(config, store, wanted, slots: int) -> None:
    Again.made = 0
    model = on_device(config, store, slots)
    assert tiny.difference(run(model, config), wanted) < 2e-3
    assert Again.made == 2 and not model.notice, "single tokens were recorded once, and three at once"


def test_the_first_step_of_a_number_of_tokens_is_recorded_and_all_others_are_replayed(config, store) -> None:
    """So of a depth's three probes (`decode.depth.PROBES`) the median is of a replay."""
    replays: list[int] = []

    class Counted(Again):
        def replay(self) -> None:
            replays.append(len(self.results[0]))
            super().replay()

    model, cache = on_device(config, store, 5, Counted), cache_for(config)
    for count in (3, 1, 3, 1, 3, 1):
        forward(model, cache, TOKENS[cache.length : cache.length + count])
    assert replays == [3, 1, 3, 1, 3, 1], "at first beside the eager step"


def guessing(
    slots: int, record: object, prompt: str = QUESTION, most: int = 40
) -> tuple[GpuModel, Speculation, Callable[[], list[int]]]:
    """nano with its MTP layer, asked for two guesses a step; each call says what comes after the same prompt."""
    store, config = Store(NANO), registry.read_config(NANO)
    placed = gpu.place(config, store, True, CPU, all_experts(config)[:slots])
    decoder = registry.build(config, placed.weights, placed.bank)
    mtp = registry.build_mtp(config, placed.weights, placed.bank, decoder)
    model = GpuModel(Parts(placed, decoder, mtp), record=record)
    tokens = engine.Tokenizer.open(NANO).encode_text(prompt)
    cache = RowCache(config.cache_layers, config.cache_width, 128, torch.float32)
    own_cache = RowCache(1, config.cache_width, 128, torch.float32, config.num_layers)
    speculation = Speculation(MtpDrafter(model, own_cache), FixedDepth(2))

    def say() -> list[int]:
        sampler = Sampler(Sampling(temperature=0))
        items = generate(model, cache, tokens, sampler, stop_ids=(), max_tokens=most, speculation=speculation)
        return [item.id for item in items if isinstance(item, Token)]

    return model, speculation, say


@pytest.mark.parametrize("slots", [8, 32])
def test_replayed_guesses_are_those_of_an_mtp_layer_that_is_not_replayed(slots: int) -> None:
    rows: list[int] = []

    class Pairs(Again):
        """Notes how many pairs of tokens and hidden states a guess is of."""

        def replay(self) -> None:
            if len(self.results) == 2:
                rows.append(len(self.run.args[0]))
            super().replay()

    _, eager, say_eagerly = guessing(slots, None)
    model, replayed, say = guessing(slots, Pairs)
    assert say() == say_eagerly() and replayed.counts == eager.counts and replayed.counts.accepted > 10
    assert model.replays and not model.notice
    first = list(range(1, FEW + 1))
    assert sorted(rows[:FEW]) == first, "all numbers of pairs are recorded with the first guess"
    assert len(rows) > FEW + replayed.counts.steps and set(rows[FEW:]) <= {1, 2, 3}


def test_recording_guesses_leaves_the_rows_of_the_first_as_they_are() -> None:
    """Others are tried where its rows lie; of a short prompt it is of several pairs."""
    rows = []
    for record in (None, Again):
        model, speculation, say = guessing(32, record, prompt="Count to ten", most=3)
        said = say()
        rows.append((said, speculation.snapshot()))
        assert record is None or sum(1 for _ in model.replayers[1].recordings) == FEW
    assert rows[0][0] == rows[1][0]
    torch.testing.assert_close(rows[0][1], rows[1][1])


@pytest.mark.parametrize("slots", [1, 32])
def test_guesses_of_sizes_that_nobody_asked_for_cost_no_experts(slots: int) -> None:
    model, _, say = guessing(slots, Again)
    _, _, say_undisturbed = guessing(slots, None)
    run = model.replayers[1]._run

    def full_from_five(token_T: torch.Tensor, *rest: object) -> Tensors:
        if 4 < len(token_T) <= FEW:
            raise torch.OutOfMemoryError("full")
        return run(token_T, *rest)

    model.replayers[1]._run = full_from_five
    assert say() == say_undisturbed()
    assert model.bank is not None and model.bank.slots.count == slots and not model.notice
    assert sum(1 for _ in model.replayers[1].recordings) == 4


def test_memory_that_runs_out_in_a_guess_makes_experts_leave() -> None:
    model, _, say = guessing(32, Again)
    _, _, say_undisturbed = guessing(32, None)
    run, errors = model.replayers[1]._run, iter([torch.OutOfMemoryError("full")])

    def fail_once(*inputs: object) -> Tensors:
        for error in errors:
            raise error
        return run(*inputs)

    model.replayers[1]._run = fail_once
    assert say() == say_undisturbed()
    assert model.bank is not None and model.bank.slots.count == 28 and "ran short" in model.notice


def test_what_keeps_steps_from_being_replayed_is_said_once() -> None:
    class Broken(Again):
        def record(self, run: object) -> Tensors:
            raise RuntimeError("no graphs here")

    model, _, say = guessing(32, Broken)
    say()
    assert model.notice == "the GPU's steps are not replayed: a step could not be recorded: no graphs here"


def test_a_step_that_is_tried_is_told_once_and_moves_no_expert(config, store) -> None:
    """Or a replay computes an expert elsewhere than the eager step did, and its numbers differ."""
    told: list[int] = []
    seen: list[list[tuple[int, int]]] = []

    class Seen(Again):
        def replay(self) -> None:
            seen.append(model.bank.slots.resident)
            super().replay()

    model, cache = on_device(config, store, 5, Seen, lambda layer, expert_TK: told.append(layer)), cache_for(config)
    for token in TOKENS[:4]:
        before = model.bank.slots.resident
        forward(model, cache, [token])
        if len(seen) == 1:
            model.bank.slots.finish(wait=True)  # what the eager step let begin
            assert seen[0] == before
    model.bank.turn_over()
    assert told == 4 * list(config.moe.layers)


def test_a_recording_belongs_to_its_cache(config, store, wanted) -> None:
    Again.made = 0
    model = on_device(config, store, 5)
    for _ in range(2):
        assert tiny.difference(run(model, config), wanted) < 2e-3
    assert Again.made == 4


def test_a_recording_that_differs_is_not_used(config, store, wanted) -> None:
    model = on_device(config, store, 5, Wrong)
    assert tiny.difference(run(model, config), wanted) < 2e-3
    assert "differed from the eager one" in model.notice


def test_a_step_that_cannot_be_recorded_runs_eagerly(config, store, wanted) -> None:
    class Broken(Again):
        def record(self, run: object) -> Tensors:
            raise RuntimeError("no graphs here")

    model = on_device(config, store, 5, Broken)
    assert tiny.difference(run(model, config), wanted) < 2e-3
    assert "no graphs here" in model.notice


def failing(model: GpuModel, errors: list[BaseException]) -> None:
    """Its decoder's next forwards fail half-way."""
    forward, left = model.decoder.forward, iter(errors)

    def fail(token_T: torch.Tensor, cache: object) -> torch.Tensor:
        hidden_TD = forward(token_T, cache)
        for error in left:
            raise error
        return hidden_TD

    model.decoder.forward = fail


def test_memory_that_runs_out_makes_experts_leave_and_goes_on(config, store, wanted) -> None:
    model = on_device(config, store, 12)
    failing(model, [torch.OutOfMemoryError("full"), torch.OutOfMemoryError("full")])
    assert tiny.difference(run(model, config), wanted) < 2e-3
    assert model.bank is not None and model.bank.slots.count == 9


@pytest.mark.parametrize(("slots", "left"), [(12, 8), (16, 10)])
def test_memory_that_others_take_while_experts_make_room(
    config, store, wanted, monkeypatch, slots: int, left: int
) -> None:
    model = on_device(config, store, slots)
    make_slab, errors = ExpertSlots._make_slab, iter([torch.OutOfMemoryError("full"), torch.OutOfMemoryError("full")])

    def taken(slots: ExpertSlots, count: int) -> None:
        for error in errors if count else ():
            raise error
        make_slab(slots, count)

    failing(model, [torch.OutOfMemoryError("full")])
    monkeypatch.setattr(ExpertSlots, "_make_slab", taken)
    assert tiny.difference(run(model, config), wanted) < 2e-3
    assert model.bank is not None and len(model.bank.slots.resident) == model.bank.slots.count == left

    errors = iter(lambda: torch.OutOfMemoryError("full"), None)
    failing(model, [torch.OutOfMemoryError("full")])
    with pytest.raises(OutOfMemoryError, match="full"):
        run(model, config)
    assert not model.bank.slots.resident and bool((model.bank.slots.table < 0).all())
    errors = iter([])
    assert tiny.difference(run(model, config), wanted) < 2e-3, "the CPU has them all"


def test_memory_that_runs_out_without_experts_is_told(config, store) -> None:
    model = on_device(config, store, 1)
    failing(model, [torch.OutOfMemoryError("full")])
    with pytest.raises(OutOfMemoryError, match="full") as caught:
        run(model, config)
    assert "--context" in caught.value.hint


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: out of memory")])
def test_a_recording_without_room_makes_experts_leave_or_is_given_up(
    config, store, wanted, error: RuntimeError
) -> None:
    class Full(Again):
        """A recording that there is no memory for."""

        def record(self, run: object) -> Tensors:
            raise error

    model = on_device(config, store, 4, Full)
    for _ in range(4):
        assert tiny.difference(run(model, config), wanted) < 2e-3
    assert model.bank is not None and model.bank.slots.count == 1
    assert "no memory for a recorded step" in model.notice


def test_memory_that_runs_out_while_the_parts_are_placed_makes_experts_leave(config, store) -> None:
    placed = gpu.place(config, store, False, CPU, all_experts(config)[:8])
    errors = iter([torch.OutOfMemoryError("full")])

    def build() -> str:
        for error in errors:
            raise error
        return "built"

    built, left = gpu.built_with_room(placed.bank, build)
    assert placed.bank is not None
    assert built == "built" and placed.bank.slots.count == 7 and "7 of 16 experts stay" in left
    assert gpu.built_with_room(placed.bank, build) == ("built", "")
    errors = iter([torch.OutOfMemoryError("full")])
    with pytest.raises(OutOfMemoryError, match="full"):
        gpu.built_with_room(None, build)


def test_the_likeliest_token_is_the_first_of_the_highest() -> None:
    best_T, logit_T = first_highest(torch.tensor([[0.0, 2.0, 2.0], [-1.0, -3.0, -1.0], [0.0, 1.0, 5.0]]))
    assert best_T.tolist() == [1, 0, 2] and logit_T.tolist() == [2.0, -1.0, 5.0]
    broken_T, _ = first_highest(torch.tensor([[0.0, float("nan"), 1.0]]))
    assert 0 <= int(broken_T) < 3


class OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


class PageLocked(torch.Tensor):
    """Notes what is copied to it."""

    done: ClassVar[list[str]] = []

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        self.done.append("copy" if non_blocking else "copy and wait")
        return self.as_subclass(torch.Tensor).copy_(source.as_subclass(torch.Tensor))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to bring results from a "GPU": copies to page-locked memory, and waits."""
    empty = torch.empty
    PageLocked.done = []

    class Stream:
        def synchronize(self) -> None:
            PageLocked.done.append("wait")

    def locked(*shape: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        return empty(*shape, **options).as_subclass(PageLocked) if pin_memory else empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", locked)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
    return PageLocked.done


def with_far_logits(model: GpuModel) -> None:
    head = model.decoder.head
    model.decoder.head = replace(head, product=lambda x_TD: head.product(x_TD).as_subclass(OnGpu))


def test_the_logits_of_few_tokens_come_through_page_locked_memory(config, store, wanted, copies) -> None:
    model = on_device(config, store, 5)
    with_far_logits(model)
    assert tiny.difference(run(model, config), wanted) < 2e-3
    assert copies == ["copy", "wait"] * 9, "of nine forwards, of the last token each, nothing else waits"
    del copies[:]
    with torch.inference_mode():
        _, token_T, logit_T = model.likeliest(torch.tensor(TOKENS[:2]), cache_for(config))
    assert copies == ["copy", "copy", "wait"] and len(token_T) == len(logit_T) == 2


def test_a_device_that_fails_behind_the_hosts_back_is_a_localr1_error(config, store, copies, monkeypatch) -> None:
    """Kernels fail when they run, which is heard where the host waits."""
    model = on_device(config, store, 5)
    with_far_logits(model)

    def fail(device: object = None) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "current_stream", fail)
    with pytest.raises(LocalR1Error, match="the GPU failed"):
        model.likeliest(torch.tensor(TOKENS[:1]), cache_for(config))
    with pytest.raises(LocalR1Error, match="the GPU failed"):
        model.step(torch.tensor(TOKENS[:1]), cache_for(config))


def test_a_guess_is_found_where_its_logits_are(copies, monkeypatch) -> None:
    """As `MtpLayer.guesses` asks for it: one number comes back, not a vocabulary."""
    monkeypatch.setattr(OnGpu, "to", None)
    logits_TV = torch.tensor([[0.0, 3.0, 3.0]])
    _, token_T, _ = Head(lambda x_TD: x_TD, lambda x_TD: logits_TV.as_subclass(OnGpu)).likeliest(torch.ones(1, 4))
    assert int(token_T) == 1 and copies == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: out of memory")])
def test_too_many_slots_at_load_become_fewer(config, store, monkeypatch, error: RuntimeError) -> None:
    empty = torch.empty

    def small(*shape: object, **options: object) -> torch.Tensor:
        if options.get("dtype") is torch.int8 and shape[0] > 7:
            raise error
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", small)
    model = on_device(config, store, 16)
    assert model.bank is not None and model.bank.slots.count == 7


def test_a_failed_device_is_a_localr1_error(config, store) -> None:
    model = on_device(config, store, 5)
    failing(model, [RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")])
    with pytest.raises(LocalR1Error, match=r"illegal memory access was encountered$") as caught:
        run(model, config)
    assert "--vram 0" in caught.value.hint


FULL = (
    "Triton Error [CUDA]: out of memory",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:1131, please report a bug to PyTorch",
)
"""What others than torch's allocator say when memory runs out."""


@pytest.mark.parametrize("words", FULL)
def test_memory_that_others_lack_makes_experts_leave_too(config, store, wanted, words: str) -> None:
    model = on_device(config, store, 8)
    failing(model, [RuntimeError(words)])
    assert tiny.difference(run(model, config), wanted) < 2e-3
    assert model.bank is not None and model.bank.slots.count == 7
    failing(model, [RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")])
    with pytest.raises(LocalR1Error, match="the GPU failed"):
        run(model, config)


def test_other_errors_are_not_called_the_gpus(config, store) -> None:
    model = on_device(config, store, 5)
    failing(model, [RuntimeError("a bug")])
    with pytest.raises(RuntimeError, match="a bug"):
        run(model, config)


def test_an_error_of_tritons_own_is_a_localr1_error(config, store) -> None:
    class OutOfResources(Exception):
        __module__ = "triton.runtime.errors"

    model = on_device(config, store, 5)
    failing(model, [OutOfResources("out of resource: shared memory, Required: 131072")])
    with pytest.raises(LocalR1Error, match="Triton failed on this GPU: OutOfResources: out of resource") as caught:
        run(model, config)
    assert "--vram 0" in caught.value.hint


def test_no_vram_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert gpu.usable_device(EngineOptions(vram="0")) is None
    assert gpu.usable_device(EngineOptions()) is None, "too old"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert gpu.usable_device(EngineOptions()) == torch.device("cuda", 0)
    assert gpu.usable_device(EngineOptions(dtype="float32")) is None
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    assert gpu.usable_device(EngineOptions()) is None, "torch has no code for it"


def test_the_plan_leaves_other_programs_their_memory(config, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes = 4 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_bytes, 8 << 30))
    given = {
        vram: gpu.plan_for(config, False, 512, EngineOptions(vram=vram, ram="8GiB"), None)
        for vram in (None, "2GiB", "8GiB")
    }
    budgets = {vram: foretold.plan.budget.vram_bytes for vram, foretold in given.items()}
    most = free_bytes - RESERVED_VRAM_BYTES + CONTEXT_BYTES  # what is free was counted beside the driver's context
    assert budgets == {None: most, "2GiB": 2 << 30, "8GiB": most}
    assert gpu.plan_for(config, False, 512, EngineOptions(vram="100MiB", ram="8GiB"), None).plan.device == "cpu"


def test_a_driver_that_does_not_say_what_is_free_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(device: int) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    assert gpu.gpu_bytes() is None


@pytest.fixture
def a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer whose "GPU" is the CPU, with 4 GiB free."""
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    usable = gpu.usable_device
    monkeypatch.setattr(gpu, "usable_device", lambda options: None if options.vram == "0" else CPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 << 30, 8 << 30))
    assert usable(EngineOptions()) is None or torch.cuda.is_available()


def answer(options: EngineOptions) -> tuple[engine.Engine, str]:
    opened = engine._open("nano", NANO, options)
    talk = opened.converse(GREEDY, ConversationOptions())
    return opened, "".join(event.text for event in talk.ask(QUESTION) if isinstance(event, AnswerText | ReasoningText))


@pytest.mark.parametrize("speculate", ["off", "mtp"])
def test_a_conversation_is_the_same_on_either_device(a_gpu: None, speculate: str) -> None:
    on_cpu, wanted = answer(EngineOptions(vram="0", ram="8GiB", context=256, speculate=speculate, kv="bf16"))
    on_gpu, said = answer(EngineOptions(vram="2GiB", ram="8GiB", context=256, speculate=speculate))
    assert on_gpu.kv == "bf16"
    assert said == wanted != ""
    assert on_cpu.on_gpu is None and on_gpu.on_gpu is not None
    assert on_gpu.on_gpu.bank is not None and on_gpu.on_gpu.bank.slots.holds_all


@pytest.mark.parametrize("speculate", ["off", "mtp"])
def test_a_model_that_made_way_comes_back_when_it_is_used(a_gpu: None, speculate: str) -> None:
    """All its memory is free meanwhile, and that without a garbage collection: what is loaded is hidden from those."""
    options = EngineOptions(vram="2GiB", ram="8GiB", context=256, speculate=speculate)

    def ask(talk: Conversation, text: str) -> list[Event]:
        return [event for event in talk.ask(text) if isinstance(event, AnswerText | ReasoningText | LoadProgress)]

    undisturbed = engine._open("nano", NANO, options).converse(GREEDY, ConversationOptions())
    wanted = [ask(undisturbed, text) for text in (QUESTION, "And 3 + 4?")]
    opened = engine._open("nano", NANO, options)
    talk = opened.converse(GREEDY, ConversationOptions())
    assert ask(talk, QUESTION) == wanted[0]
    assert opened.on_gpu is not None and opened.on_gpu.here
    parts = [weakref.ref(part) for part in (opened.on_gpu.decoder, opened.on_gpu.bank)]
    gc.disable()
    try:
        opened.on_gpu.make_way()
        assert [part() for part in parts] == [None, None] and not opened.on_gpu.here and not opened.on_gpu.replays
    finally:
        gc.enable()
    assert all(not cache.length and not cache._rows_LSW.numel() for cache in opened.on_gpu.caches)
    said = ask(talk, "And 3 + 4?")
    assert said[0] == LoadProgress("loading nano again") and said[1:] == wanted[1] and opened.on_gpu.here
    opened.on_gpu.make_way()
    opened.on_gpu.make_way()


def test_what_a_model_did_before_it_can_do_when_it_has_come_back(a_gpu: None, tmp_path: Path) -> None:
    """Have a kept cache, also while it is away, and let experts leave for another cache; and it says nothing anew."""
    opened = engine._open("nano", NANO, EngineOptions(vram="2GiB", ram="8GiB", context=256, speculate="mtp"))
    talk = opened.converse(GREEDY, ConversationOptions())
    list(talk.ask(QUESTION))
    assert opened.on_gpu is not None and talk.keep(tmp_path / "kept") > 0
    opened.on_gpu._left = "of before"
    list(talk.go_on())
    for asked in (True, False):
        opened.on_gpu.make_way()
        events = list(talk.ask("And 3 + 4?")) if asked else []
        assert Notice("") not in events
        talk.resume([(QUESTION, talk.transcript.turns[0].content)])
        held, _ = talk.recall(tmp_path / "kept")
        assert held > 0 and opened.on_gpu.here
    errors = iter([torch.OutOfMemoryError("full")])

    def make() -> RowCache:
        for error in errors:
            raise error
        return cache_for(opened.config)

    opened.on_gpu.new_cache(make)
    assert opened.on_gpu.bank is not None and not opened.on_gpu.bank.slots.holds_all


def test_experts_that_fail_on_their_way_keep_nobody_from_making_way(a_gpu: None) -> None:
    opened = engine._open("nano", NANO, EngineOptions(vram="2GiB", ram="8GiB", context=256))
    talk = opened.converse(GREEDY, ConversationOptions())
    list(talk.ask(QUESTION))
    assert opened.on_gpu is not None and opened.on_gpu.bank is not None
    slots, failed = opened.on_gpu.bank.slots, Future[None]()
    failed.set_exception(torch.OutOfMemoryError("full"))
    slots._arrivals = [Arrival((1, 0), 0, failed)]
    copier, streamer = slots._copier._thread, opened.on_gpu.bank._streamer
    opened.on_gpu.make_way()
    assert copier._shutdown and streamer._thread._shutdown and not opened.on_gpu.here
    assert list(talk.ask(QUESTION))


@pytest.mark.parametrize(("kind", "words"), [(RuntimeError, "CUDA error: device lost"), (UsageError, "no choice")])
def test_what_failed_to_load_leaves_its_memory_without_a_garbage_collection(kind: type[Exception], words: str) -> None:
    """What is loaded is hidden from those, so a cycle of an error and its frames would hold a model to the end."""

    class Model:
        pass

    models: list[weakref.ref[Model]] = []

    def load() -> Iterator[Event]:
        model = Model()
        models.append(weakref.ref(model))
        yield LoadProgress("loading")
        gpu.translated(partial(fail, model))

    def fail(model: Model) -> None:
        raise kind(words)

    gc.disable()
    try:
        with suppress(LocalR1Error):
            list(Background().run(load()))
        assert [model() for model in models] == [None]
    finally:
        gc.enable()


def test_a_model_that_cannot_come_back_says_so(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = engine._open("nano", NANO, EngineOptions(vram="2GiB", ram="8GiB", context=256))
    talk = opened.converse(GREEDY, ConversationOptions())
    list(talk.ask(QUESTION))
    assert opened.on_gpu is not None
    opened.on_gpu.make_way()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (200 << 20, 8 << 30))
    with pytest.raises(OutOfMemoryError, match="no room left"):
        list(talk.ask("And 3 + 4?"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 << 30, 8 << 30))
    assert list(talk.ask("And 3 + 4?"))


def test_another_model_has_all_the_memory_of_the_one_before(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(vram="2GiB", ram="8GiB", context=256)
    before = engine._open("nano", NANO, options)
    there: list[bool] = []
    opened = engine._open
    monkeypatch.setattr(engine, "_open", lambda *of: there.append(before.on_gpu.here) or opened(*of))
    after = result_of(engine.load("nano", options, before))
    assert there == [False] and after.on_gpu is not None and after.on_gpu.here


def test_the_line_that_chat_begins_with_is_of_the_plan_that_placed_the_model(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(vram="2GiB", ram="8GiB", context=256)
    opened = engine._open("nano", NANO, options)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 8 << 30))
    assert " on the GPU with 80 of 80 experts, " in expectation("nano", options, opened.foretold)
    on_cpu = replace(options, vram="0")
    assert "GPU" not in expectation("nano", on_cpu, engine._open("nano", NANO, on_cpu).foretold)


def test_what_is_chosen_on_a_gpu_goes_into_the_history(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_for = gpu.plan_for

    def less(*arguments: object) -> Forecast:
        foretold = plan_for(*arguments)
        return replace(foretold, plan=replace(foretold.plan, resident=foretold.plan.resident[:30]))

    monkeypatch.setattr(gpu, "plan_for", less)
    opened, said = answer(EngineOptions(vram="2GiB", ram="8GiB", context=256, speculate="off"))
    assert said and opened.on_gpu is not None and opened.on_gpu.bank is not None and opened.routing is not None
    opened.on_gpu.bank.turn_over()
    moe = opened.config.moe
    assert moe is not None
    history = opened.routing.history
    prefill, *decoding = history.recent().forwards()
    assert not prefill.hint.any() and len(decoding) > 20 and sum(one.hint.any() for one in decoding) > 20
    tokens = history.tokens + history.unsaved_tokens
    assert tokens > 40
    assert history.hotness(moe.layers).sum() == pytest.approx(tokens * moe.top_k * len(moe.layers), rel=0.02)


def test_a_model_without_room_on_the_gpu_runs_on_the_cpu_and_says_so(a_gpu: None) -> None:
    opened, said = answer(EngineOptions(vram="100MiB", ram="8GiB", context=256, speculate="off"))
    assert opened.on_gpu is None and said and "CPU only" in opened.notes[0] and "104.9 MB given" in opened.notes[0]
    assert opened.kv == "int8"


def test_int8_cache_rows_are_refused_before_anything_is_copied(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[object] = []
    monkeypatch.setattr(gpu, "place", lambda *a, **k: copied.append(a))
    with pytest.raises(UnsupportedError, match="on the CPU alone"):
        engine._open("nano", NANO, EngineOptions(vram="2GiB", ram="8GiB", context=256, kv="int8"))
    assert not copied
    assert engine._open("nano", NANO, EngineOptions(vram="0", context=256, kv="int8")).on_gpu is None


def test_vram_without_a_gpu_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    monkeypatch.setattr(gpu, "usable_device", lambda options: None)
    with pytest.raises(UsageError, match="no GPU"):
        engine._open("nano", NANO, EngineOptions(vram="8GiB"))


@pytest.mark.parametrize(("vram", "said"), [(None, True), ("0", False)])
def test_a_gpu_that_nobody_uses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vram: str | None, said: bool
) -> None:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    monkeypatch.setattr(gpu, "usable_device", lambda options: None)
    monkeypatch.setattr(gpu, "nvidia_driver", lambda: ("580.1", ("NVIDIA GeForce RTX 4070",)))
    notes = engine._open("nano", NANO, EngineOptions(vram=vram, context=256)).notes
    assert ("RTX 4070 is not used: `localr1 doctor` says why" in "".join(notes)) is said


def test_a_failing_gpu_leaves_the_conversation_whole(a_gpu: None) -> None:
    """The question and what was answered stay, and the next question is asked of the same engine."""
    opened = engine._open("nano", NANO, EngineOptions(vram="2GiB", ram="8GiB", context=256, speculate="off"))
    talk = opened.converse(GREEDY, ConversationOptions())
    list(talk.ask(QUESTION))
    assert isinstance(opened.model, GpuModel)
    failing(opened.model, [RuntimeError("CUDA error: device lost")])
    with pytest.raises(LocalR1Error, match="device lost"):
        list(talk.ask("And 3 + 4?"))
    assert [turn.role for turn in talk.transcript.messages[-2:]] == ["user", "assistant"]
    assert list(talk.ask("And 5 + 4?"))


def test_what_befalls_the_gpu_is_said_once_with_the_turn(a_gpu: None) -> None:
    opened = engine._open("nano", NANO, EngineOptions(vram="2GiB", ram="8GiB", context=256, speculate="off"))
    talk = opened.converse(SamplingOptions(temperature=0.0, max_tokens=4), ConversationOptions())
    assert isinstance(opened.model, GpuModel)
    failing(opened.model, [torch.OutOfMemoryError("full")])
    said = [[event.text for event in talk.ask(text) if isinstance(event, Notice)] for text in (QUESTION, QUESTION)]
    assert len(said[0]) == 1 and "ran short" in said[0][0] and said[1] == []


def test_kv_b_is_of_the_type_that_the_device_multiplies_in(config, store, wanted, monkeypatch) -> None:
    monkeypatch.setattr(placement_gpu.plain, "product_dtype", lambda device: torch.bfloat16)
    model = on_device(config, store, 5)
    assert model.decoder.layers[0].attention.key_up_HNC.dtype == torch.bfloat16
    assert tiny.difference(run(model, config), wanted) < 3e-2


def test_warming_up_runs_and_commits_nothing(config, store) -> None:
    told: list[int] = []
    model = on_device(config, store, 5, observe=lambda layer, expert_TK: told.append(layer))
    before = model.bank.slots.resident
    model.warm_up()
    model.bank.turn_over()
    assert not model.notice and not told and model.bank.slots.resident == before


@pytest.mark.parametrize(("kv", "dtype"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_warming_up_is_for_caches_as_conversations_have_them(a_gpu: None, monkeypatch, kv: str, dtype) -> None:
    """Kernels are compiled for the type of what they read and write."""
    opened = engine._open("nano", NANO, EngineOptions(vram="2GiB", ram="8GiB", context=256, speculate="mtp", kv=kv))
    made: list[torch.dtype] = []

    class Noted(RowCache):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            made.append(self._rows_LSW.dtype)

    monkeypatch.setattr(gpu_model, "RowCache", Noted)
    list(engine.compile_kernels(opened))
    assert made == [dtype, dtype] and opened.new_cache()._rows_LSW.dtype == dtype
