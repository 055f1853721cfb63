"""The whole way on a real model: `localr1 download` from a hub, then `localr1 chat`, as a person would."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.screen import CTRL_C, CTRL_D, ENTER, Terminal
from tests.loopback_hub import LoopbackHub
from tests.smollm2_fixture import smollm2_folder

__all__ = ["smollm2_folder"]

pytestmark = pytest.mark.smollm2
LOCALR1 = [sys.executable, "-m", "localr1"]
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
PARIS = "What is the capital of France?"
# One thread: two on a computer that does other things too wait for each other, and a test must not hang on that.
GREEDY = ["--temperature", "0", "--max-tokens", "200", "--threads", "1"]


@pytest.fixture(scope="module")
def computer(smollm2_folder, tmp_path_factory) -> Iterator[dict[str, str]]:
    """The variables of a computer that has downloaded the model and is offline now."""
    home = tmp_path_factory.mktemp("computer")
    with LoopbackHub({REPOSITORY: smollm2_folder}) as hub:
        variables = hub.environment(home)
        terminal = Terminal([*LOCALR1, "download", "smollm2-135m"], variables)
        assert terminal.leave(timeout_s=240) == 0, terminal.text()
    assert "model.safetensors" in terminal.raw
    assert "Fetched " in terminal.text() and "Quantized 272 tensors" in terminal.text()
    assert "Ready: 1" in terminal.text() and "Next:  localr1 chat smollm2-135m" in terminal.text()
    assert terminal.plain()
    yield variables | {"HF_HUB_OFFLINE": "1"}
    shutil.rmtree(home)


def test_a_second_download_says_that_it_is_here(computer):
    result = subprocess.run([*LOCALR1, "download", "smollm2-135m"], capture_output=True, text=True, env=computer)
    assert (result.returncode, result.stdout) == (0, "")
    assert "already here" in result.stderr
    assert "Quantizing" not in result.stderr


def test_a_conversation(computer):
    terminal = Terminal([*LOCALR1, "chat", "smollm2-135m", *GREEDY], computer)
    terminal.wait_for("❯", timeout_s=240)  # the kernels are compiled when they never were
    terminal.type(PARIS + ENTER)
    terminal.wait_for("is Paris", timeout_s=120)
    wait_for_statistics(terminal, 1)
    terminal.type("Write a long story about a dog." + ENTER)
    terminal.wait_for(" dog ")
    terminal.type(CTRL_C)
    terminal.wait_for("interrupted · ")
    terminal.type("What did I ask first?" + ENTER)
    wait_for_statistics(terminal, 3)
    terminal.type("/clear" + ENTER)
    terminal.wait_for("forgotten")
    terminal.type(PARIS + ENTER)
    wait_for_statistics(terminal, 4)
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    assert terminal.plain()
    first, *_, last = statistics(terminal)
    assert first == last  # the same question after /clear is a conversation's first again


def test_a_pipe_gets_the_answer_alone(computer):
    command = [*LOCALR1, "chat", "smollm2-135m", *GREEDY, "Answer in one sentence:"]
    result = subprocess.run(command, input=PARIS + "\n", capture_output=True, text=True, env=computer)
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
    assert result.stdout.endswith("\n") and "tokens/s" not in result.stdout and "\x1b" not in result.stdout
    assert "tokens/s" in result.stderr


def test_one_question_in_a_narrow_window_without_colour(computer):
    variables = computer | {"NO_COLOR": "1"}
    terminal = Terminal([*LOCALR1, "chat", "smollm2-135m", *GREEDY, PARIS], variables, columns=40, lines=20)
    assert terminal.leave(timeout_s=60) == 0
    assert "Paris" in terminal.text()
    assert "\x1b[2m" not in terminal.raw
    assert terminal.plain()


def test_a_prompt_longer_than_the_context_is_one_line_and_a_hint(computer):
    command = [*LOCALR1, "chat", "smollm2-135m", "--context", "64"]
    result = subprocess.run(command, input="word " * 500, capture_output=True, text=True, env=computer)
    assert (result.returncode, result.stdout) == (9, "")
    assert "error: " in result.stderr and "hint: " in result.stderr and "Traceback" not in result.stderr


def statistics(terminal: Terminal) -> list[str]:
    """The `context` figures of each turn so far."""
    return re.findall(r"·\scontext\s([\d,]+/[\d,]+)(?![\d,])", terminal.text())


def wait_for_statistics(terminal: Terminal, turns: int) -> None:
    while len(statistics(terminal)) < turns:
        assert terminal.read(), terminal.text()
