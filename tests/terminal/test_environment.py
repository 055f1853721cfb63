import ctypes
import io
import sys
import types

import pytest

from localr1.errors import LocalR1Error, UsageError
from localr1.terminal.environment import Environment
from tests.terminal.fakes import Stream, environment, err


def test_only_terminals_on_both_ends_are_interactive():
    assert environment(tty="io").interactive
    assert not environment(tty="i").interactive
    assert not environment(tty="o").interactive


@pytest.mark.parametrize(
    ("tty", "variables", "styled"),
    [
        ("o", {}, True),
        ("", {}, False),
        ("o", {"NO_COLOR": "1"}, False),
        ("o", {"NO_COLOR": ""}, True),
        ("o", {"TERM": "dumb"}, False),
    ],
)
def test_styles_need_a_terminal_that_wants_them(tty, variables, styled):
    shown = environment(tty=tty, **variables)
    assert shown.styled(shown.stdout) is styled
    assert (shown.style("x", "dim", shown.stdout) == "\x1b[2mx\x1b[0m") is styled


def test_an_error_is_two_lines_whatever_is_in_it():
    shown = environment()
    shown.error(LocalR1Error("no file\nnamed '\x1b[2J'", "try\nanother"))
    assert err(shown) == "error: no file named '␛[2J'\nhint: try another\n"


def test_of_a_status_of_several_lines_each_is_broken_by_itself():
    shown = environment(tty="e")
    shown.status("one\n\n  " + "word " * 20 + "\n\tlast")
    assert err(shown) == "one\n\n  " + "word " * 14 + "word\n  word word word word word\n        last\n"


def test_an_error_without_a_hint_is_one_line():
    shown = environment(tty="e")
    shown.error(LocalR1Error("no"))
    assert err(shown) == "\x1b[31merror:\x1b[0m no\n"


def test_glyphs_fall_back_where_the_encoding_lacks_them():
    assert environment().glyph("·", "-") == "·"
    assert environment(encoding="ascii").glyph("·", "-") == "-"
    assert environment(encoding="cp1252").glyph("·", "-") == "·"


def test_a_terminal_is_not_read_to_its_end():
    assert environment("never read", tty="i").read_piped() == ""


def test_piped_text_loses_only_its_last_line_ends():
    assert environment("  a\n\nb \r\n\n").read_piped() == "  a\n\nb "


@pytest.mark.parametrize(("platform", "way"), [("linux", "iconv"), ("win32", "chcp 65001")])
def test_piped_bytes_that_are_no_text_are_a_usage_error_with_their_place(platform, way, monkeypatch):
    monkeypatch.setattr("sys.platform", platform)
    piped = io.TextIOWrapper(io.BytesIO(b"caf\xe9 au lait"), encoding="utf-8")
    shown = Environment(piped, io.StringIO(), io.StringIO())
    with pytest.raises(UsageError, match="not utf-8: byte 0xe9 at 3") as caught:
        shown.read_piped()
    assert way in caught.value.hint


def test_current_streams_write_escapes_for_what_they_cannot_encode(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    shown = Environment.current()
    shown.stdout.write("é")
    shown.stdout.flush()
    assert raw.getvalue() == b"\\xe9"


def test_pipes_of_windows_are_utf_8(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("漢".encode()), encoding="cp1252"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    monkeypatch.setattr("sys.stderr", None)
    shown = Environment.current()
    shown.stdout.write(shown.read_piped())
    shown.stdout.flush()
    assert raw.getvalue() == "漢".encode()


def test_a_byte_order_mark_is_no_text():
    assert environment("\ufeffhello").read_piped() == "hello"


def test_missing_streams_read_as_empty(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert Environment.current().read_piped() == ""


class Consoles:
    """Windows' consoles by their handles, with their modes; old ones obey no escape sequences."""

    def __init__(self, modes: dict[int, int], old: bool = False) -> None:
        self.modes, self.old = modes, old

    def GetConsoleMode(self, handle: ctypes.c_void_p, mode) -> int:
        if handle.value in self.modes:
            mode._obj.value = self.modes[handle.value]
        return handle.value in self.modes

    def SetConsoleMode(self, handle: ctypes.c_void_p, mode: int) -> int:
        if not self.old:
            self.modes[handle.value] = mode
        return not self.old


class Numbered(Stream):
    """A terminal with a descriptor."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(tty=True)
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor


@pytest.fixture
def on_windows(monkeypatch):
    def install(consoles: Consoles, legacy: bool = True) -> None:
        monkeypatch.setattr("sys.platform", "win32")
        monkeypatch.setitem(
            sys.modules, "msvcrt", types.SimpleNamespace(get_osfhandle=lambda descriptor: (1 << 40) + descriptor)
        )
        monkeypatch.setattr("ctypes.WinDLL", lambda name: consoles, raising=False)
        monkeypatch.setattr("rich.console.detect_legacy_windows", lambda: legacy)

    return install


OUT, ERR = (1 << 40) + 1, (1 << 40) + 2


@pytest.mark.parametrize("mode", [0b0011, 0b0111])
def test_a_console_of_windows_is_asked_to_obey_escapes(on_windows, mode):
    consoles = Consoles({OUT: mode, ERR: mode})
    on_windows(consoles)
    shown = Environment(io.StringIO(), Numbered(1), Numbered(2))
    assert shown.redraws and shown.styled(shown.stdout) and consoles.modes == {OUT: 0b0111, ERR: mode}
    assert shown.styled(shown.stderr) and consoles.modes[ERR] == 0b0111
    assert not shown.console(shown.stdout).legacy_windows and not shown.console(shown.stderr).legacy_windows


def test_a_console_of_windows_has_its_errors_styled_where_the_answer_goes_into_a_file(on_windows):
    on_windows(Consoles({ERR: 0b0011}))
    shown = Environment(io.StringIO(), io.StringIO(), Numbered(2))
    assert shown.styled(shown.stderr) and not shown.redraws
    assert not shown.console(shown.stderr).legacy_windows and not shown.console(shown.stdout).legacy_windows


def test_an_old_console_of_windows_gets_no_escapes(on_windows):
    on_windows(Consoles({OUT: 0b0011, ERR: 0b0011}, old=True))
    shown = Environment(io.StringIO(), Numbered(1), Numbered(2))
    assert not shown.redraws and not shown.styled(shown.stderr)
    assert shown.console(shown.stderr).legacy_windows


@pytest.mark.parametrize("legacy", [False, True])
def test_what_rich_says_of_windows_holds_where_there_is_no_console_to_ask(on_windows, legacy):
    on_windows(Consoles({}), legacy)
    for terminal in (Numbered(1), Stream(tty=True)):
        shown = Environment(io.StringIO(), terminal, Stream())
        assert shown.redraws is shown.styled(terminal) is not legacy
        assert shown.console(terminal).legacy_windows is legacy
