"""Shows a turn on a terminal that can redraw: thoughts that fold to a line, the answer as Markdown.

Owns which lines are live and which are final, and how often they are drawn. Does not know how lines are laid out
(`markdown`) or written (`live`). Invariants: a finished block is written once; drawing takes at most about a
twentieth of the time, however fast the text comes.
"""

import time
from collections.abc import Callable

from localr1.options import TerminalOptions
from localr1.quantities import seconds_text, thought_line
from localr1.terminal.blocks import Block, BlockSplitter
from localr1.terminal.environment import Environment
from localr1.terminal.live import LiveLines
from localr1.terminal.markdown import Layout
from localr1.terminal.visible import VisibleStream

_WINDOW_LINES = 8
_WINDOW_CHARACTERS = 2000
_TYPED_LINES = 3
_DRAWS_PER_S = 20
_SHARE_OF_TIME = 1 / 20
_STEADY_S = 0.3
"""A window that is being dragged changes again and again, and says so late: nothing is drawn until it stands still."""


class RichView:
    """One turn. `clock` and `cpu` are monotonic seconds of the wall and of this thread's work."""

    def __init__(
        self,
        environment: Environment,
        options: TerminalOptions,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        thoughts_hint: str = "",
    ) -> None:
        self._environment = environment
        self._mode = options.thoughts
        self._clock, self._cpu = clock, cpu
        self._thoughts_hint = f"; {thoughts_hint}" if thoughts_hint and self._mode != "show" else ""
        self._layout = Layout(environment.colours, ascii_only=environment.glyph("•─▌", "") == "")
        self._lines = LiveLines(environment.stdout, environment.size, environment.reflows)
        self._visible = VisibleStream()
        self._blocks = BlockSplitter()
        self._thought = ""
        self._thinking_since_s: float | None = None
        self._thought_tokens = 0
        self._thought_s = 0.0
        self._answered = False
        self._typed = ""
        self._next_draw_s = 0.0
        self._size = environment.size()

    def thought(self, text: str) -> None:
        if self._answered:
            self._finish_answer()
        if self._thinking_since_s is None:
            self._thinking_since_s = self._clock()
            self._next_draw_s = 0.0
        self._thought += self._visible.push(text)
        self._thought_tokens += 1
        if self._mode == "show":
            self._show_whole_thoughts()
        if self._due():
            self._draw()

    def end_thought(self, tokens: int, duration_s: float) -> None:
        self._thought_tokens, self._thought_s = tokens, duration_s

    def answer(self, text: str) -> None:
        if self._thinking_since_s is not None:
            self._fold()
        if not self._answered:
            text = text.lstrip("\r\n")
            if not text:
                return
            self._answered = True
            self._next_draw_s = 0.0
        done = self._blocks.push(self._visible.push(text))
        if done:
            self._settle(done)
        if self._due() or (done and self._typed):
            self._draw()

    def typed(self, text: str) -> None:
        """Shown at once below what comes, which a first piece of it begins."""
        self._typed = text
        under_way = self._answered or self._thinking_since_s is not None
        if under_way and self._size == self._environment.size():
            self._draw()

    def clear(self) -> None:
        self._lines.clear()

    def close(self) -> None:
        if self._thinking_since_s is not None:
            self._fold()
        if self._answered:
            self._finish_answer()

    def _finish_answer(self) -> None:
        self._settle([*self._blocks.push(self._visible.flush()), *self._blocks.flush()])
        self._lines.settle([])
        self._blocks, self._answered = BlockSplitter(), False

    def _settle(self, blocks: list[Block]) -> None:
        self._lines.settle([line for block in blocks for line in self._laid_out(block)])

    def _laid_out(self, block: Block, live: bool = False) -> list[str]:
        lines = self._layout.block(block, self._width, live)
        return ["", *lines] if block.gap and lines else lines

    def _draw_live(self) -> None:
        if self._thinking_since_s is not None:
            # What is folded away must not scroll off before.
            self._lines.draw([*self._thought_lines(), *self._typed_lines()], scroll=self._mode == "show")
            return
        block = self._blocks.live
        lines = [] if block is None else self._laid_out(block, live=True)
        # A table's columns may still change, so its rows must not scroll off before it is whole.
        self._lines.draw([*lines, *self._typed_lines()], scroll=block is None or not block.is_table)

    def _typed_lines(self) -> list[str]:
        if not self._typed:
            return []
        arrow = self._environment.glyph("❯", ">")
        return self._layout.dim(f"{arrow} {self._typed}", self._width)[-_TYPED_LINES:]

    def _fold(self) -> None:
        """The thought is over: one line stays of it, or all of it in the mode "show"."""
        since_s, self._thinking_since_s = self._thinking_since_s, None
        duration_s = self._thought_s or self._clock() - (since_s or 0.0)
        dim = self._layout.dim
        self._thought += self._visible.flush()
        if self._mode == "show":
            self._lines.settle([line for part in self._thought.rstrip().split("\n") for line in dim(part, self._width)])
        note = thought_line(self._thought_tokens, duration_s)
        self._lines.settle([*dim(note + self._thoughts_hint, self._width), ""])
        self._thought, self._visible = "", VisibleStream()
        self._thought_tokens, self._thought_s = 0, 0.0

    def _thought_lines(self) -> list[str]:
        if self._mode == "show":
            return self._layout.dim(self._thought.rpartition("\n")[2], self._width)
        seconds = self._clock() - (self._thinking_since_s or 0.0)
        head = self._layout.dim(f"thinking for {seconds_text(float(int(seconds)))}", self._width)
        if self._mode == "hide":
            return head
        recent = self._thought[-_WINDOW_CHARACTERS:].strip("\n")
        lines = [line for part in recent.split("\n") if part.strip() for line in self._layout.dim(part, self._width)]
        return head + lines[-_WINDOW_LINES:]

    def _show_whole_thoughts(self) -> None:
        whole, line_end, rest = self._thought.rpartition("\n")
        if line_end:
            self._lines.settle([line for part in whole.split("\n") for line in self._layout.dim(part, self._width)])
            self._thought = rest

    @property
    def _width(self) -> int:
        return max(self._environment.size()[0], 1)

    def _due(self) -> bool:
        now_s = self._clock()
        if now_s < self._next_draw_s:
            return False
        size, self._size = self._size, self._environment.size()
        if size != self._size:
            self._next_draw_s = now_s + _STEADY_S
        return size == self._size

    def _draw(self) -> None:
        before_s, began_s = self._cpu(), time.perf_counter()
        self._draw_live()
        # Windows counts a thread's work in 16 ms at a time; the wall's clock also counts how long the terminal took.
        cost_s = min(self._cpu() - before_s, time.perf_counter() - began_s)
        self._next_draw_s = self._clock() + max(1 / _DRAWS_PER_S, cost_s / _SHARE_OF_TIME)
