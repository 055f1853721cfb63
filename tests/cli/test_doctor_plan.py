"""`localr1 doctor` and `localr1 plan` on computers that are described, not measured."""

import json
from dataclasses import replace

import pytest

from localr1.quantities import bytes_text
from localr1.session import outlook
from tests.placement.computers import CARD, FACTS, GB, RATES, WITH_GPU, Computer
from tests.placement.test_plan import V2_LITE


@pytest.fixture
def computer(monkeypatch) -> Computer:
    """Stands for this computer; change `told` to make it another."""
    pretended = Computer()
    monkeypatch.setattr(outlook, "System", lambda *_: pretended)
    return pretended


def words(text: str) -> str:
    return " ".join(text.split())


def test_doctor_shows_what_is_there_and_remembers_it(computer, localr1_command) -> None:
    outcome = localr1_command("doctor")
    assert outcome.status == 0
    shown = words(outcome.out)
    assert "Some Processor, 8 physical cores" in shown and "32.0 GB, 28.0 GB free" in shown
    assert "streaming 40.0 GB/s" in shown and "none that can be used" in shown
    assert "Nothing is wrong." in outcome.err
    localr1_command("doctor")
    assert computer.measured == 1
    localr1_command("doctor", "--fresh")
    assert computer.measured == 2


def test_doctor_says_what_is_wrong_and_how_to_mend_it(computer, localr1_command) -> None:
    computer.told = FACTS.__class__(**{**vars(WITH_GPU), "gpu": None, "torch_cuda": None, "swap_used_bytes": 3 * GB})
    outcome = localr1_command("doctor")
    assert "wrong: torch 2.13.0+cu130 was built without CUDA, so Some Card stays idle" in outcome.err
    assert outcome.err.index("wrong:") < outcome.err.index("mind: 3.0 GB of swap")
    assert outcome.err.count("mend:") == 2
    record = json.loads(localr1_command("doctor", "--json").out)
    assert [finding["weight"] for finding in record["findings"]] == ["wrong", "mind"]


def test_doctor_shows_a_gpu(computer, localr1_command) -> None:
    computer.told = WITH_GPU
    shown = words(localr1_command("doctor").out)
    assert "Some Card, compute capability 8.9" in shown and "25.0 GB/s pinned, 10.0 GB/s not" in shown


def test_plan_of_a_model_that_is_not_here(computer, localr1_command) -> None:
    outcome = localr1_command("plan", "v2-lite")
    assert outcome.status == 0
    shown = words(outcome.out)
    assert shown.startswith("v2-lite: up to 17.2 GB in RAM; about ")
    assert "all 1,664 experts 14.4 GB RAM" in shown
    assert "localr1 download v2-lite" in outcome.err
    record = json.loads(localr1_command("plan", "v2-lite", "--json").out)
    assert record["device"] == "cpu" and record["experts"]["ram"] == 1664 and not record["is_here"]
    assert f"{record['decode_tokens_per_s']:,.1f} tokens/s" in shown


@pytest.mark.parametrize("columns", [20, 30, 60])
def test_no_word_is_lost_in_a_narrow_window(computer, localr1_command, monkeypatch, columns) -> None:
    wide = {command: words(localr1_command(*command.split()).out).split() for command in ("doctor", "plan v2-lite")}
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")  # Rich takes a dumb terminal for one of 80 columns, unless both are told
    for command, shown in wide.items():
        narrow = localr1_command(*command.split(), tty="o").out
        assert max(map(len, narrow.splitlines())) <= columns
        lost = [word for word in shown if len(word) <= 16 and word not in narrow.split()]
        assert lost == []


def test_plan_of_another_computer(computer, localr1_command) -> None:
    half = json.loads(localr1_command("plan", "v2-lite", "--vram", "8GiB", "--json").out)
    assert half["device"] == "gpu" and half["gpu_bytes"] <= 8 << 30 and 0 < half["experts"]["gpu"] < 1664
    assert "assuming a GPU" in half["notes"][0]
    shown = words(localr1_command("plan", "v2-lite", "--vram", "8GiB").out)
    assert shown.startswith(f"v2-lite: up to {bytes_text(half['gpu_bytes'])} on the GPU with ")
    assert f"{half['experts']['gpu']} of 1,664 experts, for 54 % of their work" in shown
    assert "the CPU waits" in shown or "the GPU waits" in shown
    more = json.loads(localr1_command("plan", "v2-lite", "--vram", "12GiB", "--ram", "64GiB", "--json").out)
    assert more["experts"]["gpu"] > half["experts"]["gpu"]
    assert more["decode_tokens_per_s"] > half["decode_tokens_per_s"]
    computer.told = WITH_GPU
    assert json.loads(localr1_command("plan", "v2-lite", "--json").out)["notes"] == []


def test_the_memory_of_a_gpu_that_cannot_be_used_is_no_budget() -> None:
    old = replace(WITH_GPU, gpu=replace(CARD, capability=(6, 1)))
    budgets = [outlook.budget_of(outlook.EngineOptions(), facts, V2_LITE).vram_bytes for facts in (old, WITH_GPU)]
    assert budgets[0] == 0 < budgets[1]


def test_plan_of_the_built_in_model(computer, localr1_command) -> None:
    record = json.loads(localr1_command("plan", "--json").out)
    assert record["model"] == "nano" and record["is_here"] and record["disk_bytes"] == 0


def test_plan_refuses_with_the_numbers_and_what_would_do(computer, localr1_command) -> None:
    outcome = localr1_command("plan", "r1-distill-llama-70b")
    assert outcome.status == 10
    assert "r1-distill-llama-70b: this needs" in outcome.err and "may be used" in outcome.err
    assert "moonlight would fit" in outcome.err
    outcome = localr1_command("plan", "r1-0528-qwen3-8b", "--ram", "11GB", "--context", "100000")
    assert outcome.status == 10 and "--context" in outcome.err


@pytest.mark.parametrize(
    ("model", "options", "fitting"),
    [
        ("r1-distill-llama-70b", ["--context", "65536"], "moonlight would fit with --context 8192"),
        ("r1-distill-llama-70b", ["--context", "8192"], "moonlight would fit"),
        ("r1", ["--kv", "int8", "--ram", "14GB"], "gigachat3.1-10b would fit"),
        ("r1", ["--ram", "10GB"], "r1-distill-qwen-1.5b would fit"),
        ("r1", ["--kv", "int8", "--ram", "10GB"], None),  # all that are so small are dense
        ("r1", ["--kv", "int8", "--ram", "14GB", "--vram", "8GiB"], None),  # they would go on the GPU
    ],
)
def test_the_model_that_would_fit_does(computer, localr1_command, model, options, fitting) -> None:
    outcome = localr1_command("plan", model, *options)
    assert outcome.status == 10
    if fitting is None:
        assert "would fit" not in outcome.err
        return
    assert outcome.err.rstrip().endswith(f"; {fitting}")
    name, *lowered = fitting.replace("would fit", "").replace("with", "").split()
    assert localr1_command("plan", name, *options, *lowered).status == 0


def test_plan_of_an_inferred_shape_says_so_whatever_it_is_called(computer, localr1_command) -> None:
    for name in ("gigachat3.1-10b", "GIGACHAT3.1-10B", "ai-sage/GigaChat3.1-10B-A1.8B-bf16"):
        assert "parts of its shape are inferred" in localr1_command("plan", name).err
    assert "inferred" not in localr1_command("plan", "v2-lite").err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("r1x",), 3, "there is no model called"),
        (("some/repository",), 3, "--dry-run"),
        (("v2-lite", "--vram", "8X"), 2, "is not an amount of memory"),
        (("v2-lite", "--ram", "24"), 2, "did you mean --ram 24GiB?"),
        (("v2-lite", "--context", "999999"), 8, "163,840"),
        (("r1-distill-qwen-7b", "--kv", "int8"), 8, "latent attention"),
        (("v2-lite", "--vram", "8GiB", "--kv", "int8"), 8, "CPU alone"),
        (("v2-lite", "--dtype", "float32", "--kv", "int8"), 2, "keeps its cache in float32"),
        (("r1-distill-qwen-7b", "--dtype", "float32", "--vram", "40GiB", "--ram", "24GiB"), 10, "30.5 GB of weights"),
    ],
)
def test_what_makes_no_sense_is_refused(computer, localr1_command, arguments, status, said) -> None:
    outcome = localr1_command("plan", *arguments)
    assert outcome.status == status and said in outcome.err
    assert outcome.out == "" and "Traceback" not in outcome.err


@pytest.mark.parametrize("command", [("plan", "v2-lite", "--vram", "8GiB"), ("doctor",)])
def test_a_narrow_terminal_shows_it_all(computer, localr1_command, command, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    outcome = localr1_command(*command, tty="oe")
    assert outcome.status == 0
    assert "tokens/s" in outcome.out or "GB/s" in outcome.out


def test_the_line_that_chat_begins_with(computer, tmp_path, monkeypatch, localr1_command) -> None:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    line = outlook.expectation("nano", outlook.EngineOptions(), None)
    assert line.endswith(" in RAM; over 300 tokens/s expected"), "more than is foretold of any conversation"
    record = json.loads(localr1_command("plan", "nano", "--json").out)
    everything = bytes_text(record["ram_bytes"])
    assert line.startswith(f"up to {everything} in RAM"), "the program counts, as in the bar below the conversation"
    computer.told = FACTS.__class__(**{**vars(FACTS), "ram_free_bytes": GB})
    assert outlook.expectation("nano", outlook.EngineOptions(), None).startswith("this may be slow or fail: nano")


def test_what_is_said_before_a_download(computer, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    from localr1.hub.catalog import resolve

    def said(name: str) -> str:
        return " ".join(outlook.outlook(resolve(name), 20 * GB, outlook.EngineOptions()))

    assert "in RAM; roughly" in said("v2-lite") and "`localr1 doctor`" in said("v2-lite")
    assert "will not run well" in said("r1-distill-llama-70b") and "would fit" in said("r1-distill-llama-70b")
    assert "read from disk when needed" in said("r1")
    assert "20.0 GB of weights fits in the 26.9 GB of RAM" in said("some/repository")
    assert RATES.gpu is None
    computer.told = replace(WITH_GPU, gpu=replace(CARD, free_bytes=12 * GB))
    assert "in RAM; roughly" in said("r1-distill-llama-8b"), "with a whole conversation it is more than the card has"
    assert "with --context 20480 it would fit on the GPU" in said("r1-distill-llama-8b")


def test_a_replay_needs_conversations_with_experts(localr1_command) -> None:
    outcome = localr1_command("bench", "nano", "--replay")
    assert outcome.status == 2 and "talk with the model first" in outcome.err


def test_a_replay_goes_with_nothing_that_measures_or_prints_otherwise(localr1_command) -> None:
    for other in (["--shape", "v2-lite"], ["--claims"], ["--fidelity"], ["--compare", "kv=int8,bf16"], ["--csv"]):
        outcome = localr1_command("bench", "--replay", *other)
        assert outcome.status == 2 and f"not {other[0]}" in outcome.err
