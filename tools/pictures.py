"""Draws the README's pictures: what the program shows on an emulated terminal, as SVG under `docs/`.

    python -m tools.pictures [NAME ...]

All of it is the program's own, with the built-in model and SmolLM2-135M-Instruct; the figures are those of the computer
that draws.
"""

import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

from tests.e2e.screen import CTRL_C, CTRL_D, ENTER, Terminal
from tests.loopback_hub import LoopbackHub
from tests.smollm2_fixture import smollm2_build

DOCS = Path(__file__).parent.parent / "docs"
LOCALR1 = [sys.executable, "-m", "localr1"]
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
_FAINT = "808080"
_NAMES = {"brown": "yellow"}


class FaintScreen(pyte.Screen):
    """A screen that knows faint text, as grey."""

    def select_graphic_rendition(self, *attributes: int) -> None:
        super().select_graphic_rendition(*attributes)
        if 2 in attributes and not {38, 48} & set(attributes):
            self.cursor.attrs = self.cursor.attrs._replace(fg=_FAINT)


def picture(written: str, title: str, columns: int, lines: int) -> str:
    """The screen after this, styles included, without the rows at its end that are empty."""
    screen = FaintScreen(columns, lines)
    pyte.Stream(screen).feed(written)
    console = Console(record=True, width=columns, file=io.StringIO(), color_system="truecolor")
    last = max(y for y, row in enumerate(screen.display) if row.strip())
    for y in range(last + 1):
        line = Text()
        for cell in (screen.buffer[y][x] for x in range(columns)):
            line.append(cell.data, _style(cell))
        console.print(line, no_wrap=True, crop=True)
    drawn = console.export_svg(title=title, unique_id="screen")
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)  # nothing is fetched to look at it


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if len(name) == 6 and all(character in "0123456789abcdef" for character in name):
        return f"#{name}"
    return _NAMES.get(name, name.replace("bright", "bright_"))


@contextmanager
def computer() -> Iterator[dict[str, str]]:
    """The variables of one that has SmolLM2."""
    with tempfile.TemporaryDirectory() as home:
        with LoopbackHub({SMOLLM2: smollm2_build()}) as hub:
            variables = hub.environment(Path(home))
            download = Terminal([*LOCALR1, "download", "smollm2-135m"], variables)
            assert download.leave(timeout_s=240) == 0, download.text()
        yield variables | {"HF_HUB_OFFLINE": "1"}


def chat(variables: dict[str, str]) -> str:
    """A sum with its thought folded, another model for some code, and the menu of commands."""
    terminal = Terminal([*LOCALR1, "chat", "nano", "--temperature", "0"], variables, 80, 29)
    terminal.wait_for("❯", timeout_s=300)
    for question, seen in [
        ("What is 347 + 85?", "tokens/s · "),
        ("/model smollm2-135m", "Now smollm2-135m"),
        ("/clear", "forgotten"),
        ("Show a loop in Python that prints the numbers from 1 to 5.", "tokens/s · "),
    ]:
        mark = len(terminal.raw)
        terminal.type(question + ENTER)
        while "❯" not in terminal.raw[mark:].partition(seen)[2]:
            assert terminal.read(), terminal.text()
    terminal.type("/re")
    terminal.wait_for("/retry")
    terminal.read()
    drawn = picture(terminal.raw, "localr1 chat", 80, 29)
    terminal.type(CTRL_C + CTRL_D)
    terminal.leave()
    return drawn


def bench(variables: dict[str, str]) -> str:
    return _command(variables, ["bench", "smollm2-135m", "--depths", "0,1k"], 80)


def plan(variables: dict[str, str]) -> str:
    return _command(variables, ["plan", "v2-lite", "--vram", "8GiB"], 80)


def _command(variables: dict[str, str], words: list[str], columns: int) -> str:
    """A command and all that it shows."""
    terminal = Terminal([*LOCALR1, *words], variables, columns, 100)
    assert terminal.leave(timeout_s=600) == 0, terminal.text()
    prompt = f"\x1b[32m$\x1b[0m localr1 {' '.join(words)}\r\n"
    return picture(prompt + terminal.raw, f"localr1 {words[0]}", columns, 100)


PICTURES: dict[str, Callable[[dict[str, str]], str]] = {"chat": chat, "bench": bench, "plan": plan}


def main() -> None:
    with computer() as variables:
        for name in sys.argv[1:] or PICTURES:
            (DOCS / f"{name}.svg").write_text(PICTURES[name](variables))


if __name__ == "__main__":
    main()
