"""/plan and /bench in a conversation with the built-in model, as a person would use them."""

import sys

from tests.e2e.screen import CTRL_C, CTRL_D, ENTER, Terminal


def test_plan_and_bench_show_their_tables_and_ctrl_c_brings_the_prompt_back(tmp_path):
    command = [sys.executable, "-m", "localr1", "chat", "nano", "--no-save", "--threads", "1"]
    terminal = Terminal(command, {"LOCALR1_HOME": str(tmp_path)})
    try:
        terminal.wait_for("❯", timeout_s=300)  # the kernels are compiled when they never were
        terminal.type("/bench" + ENTER)
        await_in_raw(terminal, "━")
        terminal.type(CTRL_C)
        await_prompts(terminal, 2)
        assert "parameters" not in terminal.text()
        terminal.type("/plan" + ENTER)
        terminal.wait_for("tokens/s\n", timeout_s=300)
        terminal.wait_for("the program itself")
        await_prompts(terminal, 3)
        terminal.type("/bench" + ENTER)
        terminal.wait_for("Where the time of a token goes", timeout_s=300)
        assert "parameters" in terminal.text() and "decode / floor" in terminal.text()
        await_prompts(terminal, 4)
        terminal.type("What is 347 + 85?" + ENTER)
        terminal.wait_for("347 + 85 = 432")
        await_prompts(terminal, 5)
        terminal.type(CTRL_D)
        assert terminal.leave() == 0
        assert "Traceback" not in terminal.text() and terminal.plain()
    finally:
        terminal.close()


def await_in_raw(terminal: Terminal, text: str) -> None:
    """Also what was erased again."""
    before = len(terminal.raw)
    while text not in terminal.raw[before:]:
        assert terminal.read(), terminal.text()


def await_prompts(terminal: Terminal, count: int) -> None:
    while terminal.text().count("❯") < count:
        assert terminal.read(), terminal.text()
