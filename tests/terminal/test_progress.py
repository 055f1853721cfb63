import re

import pyte
import pytest

from localr1.events import FetchProgress, LoadProgress, Notice, PrefillProgress, QuantizeProgress
from localr1.quantities import bytes_text, seconds_text
from localr1.terminal.progress import LineDisplay, follow
from tests.terminal.fakes import environment, err, out


def download():
    yield Notice("Using the copy in the hub's cache")
    for done in (0, 50, 100):
        yield FetchProgress("model.safetensors", done * 1_000_000, 100_000_000, done * 1_000_000, 100_000_000)
    for done in (1, 2):
        yield QuantizeProgress(f"layers.{done}.weight", done, 2, done * 50_000_000, 100_000_000)
    return "the store"


def test_the_result_is_the_generators_and_a_log_gets_few_lines():
    shown = environment()
    assert follow(shown, download()) == "the store"
    assert out(shown) == ""
    assert without_times(err(shown).splitlines()) == [
        "Using the copy in the hub's cache",
        "Fetching model.safetensors: 0 B of 100.0 MB",
        "Fetching: 100.0 MB of 100.0 MB, done in _ s",
        "Quantizing layers.1.weight: 1 of 2 tensors",
        "Quantizing: 2 of 2 tensors, done in _ s",
    ]


def test_quiet_shows_nothing():
    shown = environment(tty="e", TERM="xterm")
    assert follow(shown, download(), quiet=True) == "the store"
    assert err(shown) == ""


def test_a_dumb_terminal_gets_lines():
    shown = environment(tty="e", TERM="dumb")
    follow(shown, download())
    assert "\x1b" not in err(shown)


def test_a_long_stage_in_a_log_is_told_now_and_then():
    shown = environment()
    times = iter([0.0, 0.0, 1.0, 5.0, 6.0])
    display = LineDisplay(shown, clock=lambda: next(times))
    for done in range(4):
        display.show(PrefillProgress(done * 100, 400))
    assert err(shown).splitlines() == ["Reading the prompt: 200 of 400 tokens"]


def test_a_log_says_nothing_twice():
    shown, times = environment(), iter(range(0, 600, 6))
    display = LineDisplay(shown, clock=lambda: next(times))
    for done in (0, 0, 0, 1, 1):
        display.show(LoadProgress("compiling", done, 2))
    assert err(shown).splitlines() == ["Compiling: 0 of 2", "Compiling: 1 of 2"]


def test_bars_leave_the_screen_as_lines():
    shown = environment(tty="e", TERM="xterm")
    assert follow(shown, download()) == "the store"
    assert without_times(screen_of(err(shown))) == [
        "Using the copy in the hub's cache",
        "Fetching: 100.0 MB of 100.0 MB, done in _ s",
        "Quantizing: 2 of 2 tensors, done in _ s",
    ]


def test_a_stage_of_unknown_length_and_names_that_others_chose():
    shown = environment(tty="e", TERM="xterm")

    def load():
        yield LoadProgress("Mapping \x1b]0;x\x07")
        yield FetchProgress("[red]\x1b[2J", 1, 2, 1, 2)
        return 3

    assert follow(shown, load()) == 3
    assert "Mapping ␛]0;x␇" in err(shown)
    assert "[red]␛[2J" in err(shown)
    assert "\x1b]0;" not in err(shown)
    assert screen_of(err(shown)) == []  # neither leaves a line: one is short, the other did not end


def test_an_error_closes_the_bar_and_the_operation():
    shown = environment(tty="e", TERM="xterm")
    closed = []

    def broken():
        try:
            yield FetchProgress("a", 1, 2, 1, 2)
            raise OSError("disk")
        finally:
            closed.append(True)

    with pytest.raises(OSError, match="disk"):
        follow(shown, broken())
    assert closed
    assert err(shown).rindex("\x1b[?25h") > err(shown).rindex("\x1b[?25l")  # the cursor is shown again


def test_ctrl_c_while_showing_closes_the_operation(monkeypatch):
    closed = []

    def operation():
        try:
            yield Notice("a")
            yield Notice("b")
        finally:
            closed.append(True)

    shown = environment()
    monkeypatch.setattr(shown.stderr, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        follow(shown, operation())
    assert closed


def without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"done in [\d.]+ s", "done in _ s", line) for line in lines]


def interrupt(text):
    raise KeyboardInterrupt


def screen_of(written: str, columns: int = 80) -> list[str]:
    """The lines a terminal shows after the text, without the empty ones."""
    screen = pyte.Screen(columns, 24)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(written)
    return [line.rstrip() for line in screen.display if line.strip()]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_960, "1.0 MB"), (134_515_008, "134.5 MB")]
)
def test_bytes_are_short(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (4320, "1 h 12 min")],
)
def test_seconds_are_short(seconds, text):
    assert seconds_text(seconds) == text
