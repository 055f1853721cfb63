"""Tables in windows of any width."""

import pytest

from localr1.terminal.tables import show_table
from tests.terminal.fakes import environment, out

ROWS = (("0", "10,023 tokens/s (5,452 to 10,399)", ""), ("1,024", "5,145 tokens/s", "a [red]word\x1b[2J"))


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
def test_nothing_is_lost_and_no_line_is_too_long(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    shown_on = environment(tty="o", NO_COLOR="1", TERM="dumb")
    show_table(shown_on, "Speed", ("context", "prefill", "verdict"), ROWS, ("a note that is as long as notes are",))
    lines = out(shown_on).splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(out(shown_on).split())
    for word in ("10,023", "10,399)", "5,145", "[red]word", "1,024", "notes are"):
        assert word in words
    assert "\x1b" not in out(shown_on)
    assert words.count("prefill") == (1 if width >= 80 else 2), "a column a line where the table is too wide"
    assert words.count("verdict") == 1


def test_values_without_headings_stand_beside_their_names_in_any_window(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown_on = environment(tty="o", NO_COLOR="1", TERM="dumb")
    show_table(
        shown_on, "nano", ("", ""), (("parameters", "4,387,280"), ("took", "0.8 % of what there is of time")), ()
    )
    assert [line.split() for line in out(shown_on).splitlines()][2] == ["parameters", "4,387,280"]


def test_values_without_room_beside_their_names_stand_below_them(monkeypatch):
    monkeypatch.setenv("COLUMNS", "14")
    shown_on = environment(tty="o", NO_COLOR="1", TERM="dumb")
    show_table(shown_on, "nano", ("", ""), (("parameters", "4,387,280"), ("  took", "no time")), ())
    assert [line.rstrip() for line in out(shown_on).splitlines()][2:6] == [
        "parameters",
        "  4,387,280",
        "  took",
        "    no time",
    ]
