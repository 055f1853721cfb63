import io
import random
import textwrap

import pyte
import pytest

from localr1.terminal.live import LiveLines
from tests.e2e.screen import ResizableScreen


class Window:
    """Live lines on an emulated terminal."""

    def __init__(self, columns: int = 20, rows: int = 6, reflows: bool = False) -> None:
        self.screen = ResizableScreen(columns, rows, history=1000)
        self.screen.reflows = reflows
        self.screen.set_mode(pyte.modes.LNM)
        self.stream = pyte.Stream(self.screen)
        self.written = io.StringIO()
        self.written.write = self.take  # type: ignore[method-assign]
        self.raw: list[str] = []
        self.lines = LiveLines(self.written, lambda: (self.screen.columns, self.screen.lines), reflows)

    def take(self, text: str) -> int:
        self.raw.append(text.replace("\x1b[?7l", "").replace("\x1b[?7h", ""))
        self.stream.feed(text)
        return len(text)

    def text(self) -> list[str]:
        scrolled = ["".join(row[x].data for x in range(max(row, default=-1) + 1)) for row in self.screen.history.top]
        lines = [line.rstrip() for line in [*scrolled, *self.screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def test_a_line_that_grows_is_never_written_again():
    window = Window()
    for length in range(1, 6):
        window.lines.draw(["a", "b" * length])
    assert window.raw == ["a\nb", "b", "b", "b", "b"]


def test_only_lines_that_changed_are_written():
    window = Window()
    window.lines.draw(["one", "two", "three"])
    window.lines.draw(["one", "2", "three", "four"])
    assert window.text() == ["one", "2", "three", "four"]
    assert "one" not in window.raw[-1]


def test_lines_can_become_fewer():
    window = Window()
    window.lines.draw(["a", "b", "c"])
    window.lines.draw(["a"])
    window.lines.draw(["a!"])
    assert window.text() == ["a!"]
    window.lines.draw([])
    assert window.text() == []


def test_settled_lines_stay_and_the_next_come_below():
    window = Window()
    window.lines.draw(["live"])
    window.lines.settle(["done", "too"])
    window.lines.draw(["next"])
    assert window.text() == ["done", "too", "next"]


def test_cleared_lines_come_again_below_what_another_program_wrote_and_what_scrolled_off_does_not():
    window = Window()
    lines = [f"line {number}" for number in range(8)]
    window.lines.draw(lines)
    window.lines.clear()
    assert window.text() == lines[:3]
    window.take("another\n")
    window.lines.draw([*lines, "more"])
    window.lines.settle([*lines, "more"])
    assert window.text() == [*lines[:3], "another", *lines[3:], "more"]


def test_more_lines_than_the_window_scroll_off_and_come_once():
    window = Window()
    for count in range(1, 21):
        window.lines.draw([f"line {number}" for number in range(count)])
    window.lines.settle([f"line {number}" for number in range(20)])
    assert window.text() == [f"line {number}" for number in range(20)]


def test_a_block_that_may_not_scroll_is_shown_by_its_end_until_it_is_whole():
    window = Window()
    for count in range(1, 21):
        window.lines.draw([f"{count} {number}" for number in range(count)], scroll=False)
    assert window.text() == [f"20 {number}" for number in range(15, 20)]
    window.lines.settle([f"row {number}" for number in range(20)])
    assert window.text() == [f"row {number}" for number in range(20)]


@pytest.mark.parametrize("columns", [12, 40])
def test_after_a_resize_nothing_final_is_lost_and_the_live_lines_are_whole(columns):
    window = Window()
    window.lines.settle(["final"])
    window.lines.draw(["live one", "live two"])
    window.screen.resize(6, columns)
    window.lines.draw(["live one", "live two", "live three"])
    window.lines.settle(["live one", "live two", "live three"])
    assert window.text() == ["final", "live one", "live two", "live three"]


@pytest.mark.parametrize("reflows", [True, False])
def test_whatever_the_window_does_nothing_final_is_lost_and_nothing_live_stays(reflows):
    chance = random.Random(3)
    for _ in range(200):
        window = Window(20, 40, reflows)
        window.lines.settle(["final", "x"])
        for _ in range(6):
            wide = chance.randint(0, 2)
            text = "語" * wide + ("live" * chance.randint(0, 4))[: window.screen.columns - 2 * wide]
            window.lines.draw([f"\x1b[2m{text}\x1b[0m"] * chance.randint(1, 6))
            window.screen.resize(40, chance.randint(5, 20))
        window.lines.settle(["end"])
        assert window.text() == ["final", "x", "end"]


def test_wide_characters_that_a_terminal_shows_wider_than_thought_do_not_wrap():
    window = Window(columns=6)
    window.lines.draw(["abcdéfghij", "x"])
    window.lines.draw(["abcdéfghij", "y"])
    assert len(window.text()) == 2
    assert pyte.modes.DECAWM in window.screen.mode


def test_any_sequence_of_drawings_ends_as_the_last():
    chance = random.Random(7)
    for _ in range(200):
        window, final = Window(), []
        for _ in range(10):
            lines = [chance.choice("abc") * chance.randint(0, 5) for _ in range(chance.randint(0, 5))]
            if chance.random() < 0.2:
                window.lines.settle(lines)
                final += lines
            else:
                window.lines.draw(lines)
        window.lines.settle(["end"])
        expected = [*final, "end"]
        assert window.text() == expected


@pytest.mark.parametrize(("what", "reflows"), [("width", True), ("height", True), ("height", False)])
def test_of_a_block_longer_than_a_window_that_changes_no_word_is_lost(reflows, what):
    """Lines come while nothing is drawn, as where a window is pulled. In another height each word is there once; a
    terminal that does not break lines anew cuts off by itself what is too wide for it."""
    chance = random.Random(11)
    for _ in range(40):
        window, words = Window(24, 8, reflows), [f"<w{number:03}>" for number in range(160)]
        for end in range(4, 160, 4):
            window.lines.draw(textwrap.wrap(" ".join(words[:end]), window.screen.columns))
            if chance.random() < 0.1:
                if what == "width":
                    window.screen.resize(8, chance.randint(14, 40))
                else:
                    window.screen.resize(chance.randint(4, 12), 24)
        window.lines.settle(textwrap.wrap(" ".join(words), window.screen.columns))
        said = "".join(window.text()).replace(" ", "")  # words may be broken that the window pushed off
        assert [word for word in words if word not in said] == []
        assert what == "width" or said == "".join(words)
