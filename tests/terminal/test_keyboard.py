import os
import pty
import select
import signal
import sys
import termios
import threading

import pytest

from localr1.terminal.keyboard import TypedAhead, TypedLines, seen, unechoed
from tests.terminal.fakes import Stream

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ("hello", "hello"),
        ("helo\x7flo", "hello"),
        ("\x7f\x7fa", "a"),
        ("two\rlines\n", "two⏎lines⏎"),
        ("wrong words\x15right", "right"),
        ("one\rtwo wrong words\x17\x17right", "one⏎two right"),
        ("up\x1b[A and \x1b[1;5C\x1bOPgone", "up and gone"),
        ("\x1b[200~pasted\x1b[201~", "pasted"),
        ("tab\tand\x04and\x00", "tabandand"),
        ("日本é", "日本é"),
        ("unfinished\x1b[", "unfinished"),
    ],
)
def test_of_keys_only_characters_are_seen(keys, shown):
    assert seen(keys) == shown


def test_keys_are_heard_at_once_and_handed_out_once():
    master, slave = pty.openpty()
    told, more = [], threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        more.set()

    with os.fdopen(slave, "r") as stdin:
        typed = TypedAhead(stdin, Stream(), tell)
        with typed.listening():
            for piece in ("né\n".encode()[:2], "né\n".encode()[2:]):
                os.write(master, piece)
            while not told or "⏎" not in told[-1]:
                assert more.wait(30)
                more.clear()
        assert typed.take() == "né\n" and typed.take() == ""
        os.write(master, b"later\n")
        assert os.read(slave, 100) == b"later\n"  # nobody listens any more
    os.close(master)


def test_ctrl_c_throws_nothing_away_while_keys_are_heard():
    main, end = pty.openpty()
    with os.fdopen(end, "r") as stdin:
        before = termios.tcgetattr(end)
        with TypedAhead(stdin, Stream(), lambda typed: None).listening():
            assert termios.tcgetattr(end)[3] & termios.NOFLSH
        assert termios.tcgetattr(end) == before
    os.close(main)


def test_a_stop_finds_the_modes_as_they_were_and_they_are_set_again_whatever_it_left():
    main, end = pty.openpty()
    found, marks = [], []

    def shell(signal_number, frame) -> None:
        found.append(termios.tcgetattr(end))
        marks.append(stdout.getvalue())
        termios.tcsetattr(end, termios.TCSANOW, other)

    before = termios.tcgetattr(end)
    other = [*before[:3], before[3] & ~termios.ISIG, *before[4:]]
    system = signal.signal(signal.SIGTSTP, shell)
    try:
        with open(end, closefd=False) as stdin, unechoed(stdin):
            stdout = Stream()
            with TypedAhead(stdin, stdout, lambda typed: None).listening():
                within = termios.tcgetattr(end)
                signal.raise_signal(signal.SIGTSTP)
                assert termios.tcgetattr(end) == within
                signal.raise_signal(signal.SIGTSTP)
                assert termios.tcgetattr(end) == within
        assert termios.tcgetattr(end) == before and signal.getsignal(signal.SIGTSTP) is shell
    finally:
        signal.signal(signal.SIGTSTP, system)
        os.close(main)
        os.close(end)
    assert found == [before, before]
    assert [mark[-8:] for mark in marks] == ["\x1b[?2004l"] * 2
    assert stdout.getvalue() == "\x1b[?2004h\x1b[?2004l" * 3


@pytest.mark.parametrize(
    ("ahead", "then", "lines", "shown"),
    [
        ("", "now\r", ["now"], "> "),
        ("ahead\r", "now\r", ["ahead", "now"], "> ahead\n> "),
        ("one\rtwo\r", "now\r", ["one", "two", "now"], "> one\n> two\n> "),
        ("one\rbeg", "in\r", ["one", "begin"], "> one\n> beg"),
        ("\x7fwr\x7f\x7fr\tight\x1b[D\r", "", ["r ight"], "> r ight\n"),
        ("mid\x04", "dle\r", ["middle"], "> mid"),
        ("\x04", "", [], "> "),
        ("\x04\r", "", [], "> "),
        ("one\r\x04", "", ["one"], "> one\n> "),
        ("", "\x04", [], "> "),
        ("", "one\r\x04", ["one"], "> > "),
        ("", "one\x04\x04\x04", ["one"], "> > "),
        ("é\rü", "ö\r", ["é", "üö"], "> é\n> ü"),
    ],
)
def test_lines_typed_before_and_while_they_are_read_come_whole_and_ctrl_d_ends_them(ahead, then, lines, shown):
    main, end = pty.openpty()

    class Prompted(Stream):
        def write(self, text):
            if super().write(text) and self.getvalue().count("> ") == ahead.count("\r") + 1 and text == "> ":
                os.write(main, then.encode())
            return len(text)

    stdout = Prompted()
    with open(end, encoding="utf-8", closefd=False) as stdin, unechoed(stdin):
        typed = TypedLines(stdin, stdout)
        os.write(main, ahead.encode())
        assert not ahead or select.select([end], [], [], 30)[0]
        for line in lines:
            assert typed.read("> ") == line
        if not lines or "\x04" in (ahead + then)[-2:]:
            with pytest.raises(EOFError):
                typed.read("> ")
    assert stdout.getvalue() == shown
    os.close(main)
    os.close(end)


def test_forgetting_is_told():
    told = []
    typed = TypedAhead(Stream(tty=True), Stream(), told.append)
    with typed.listening():  # no terminal, whatever it says
        typed.forget()
    assert told == [""] and typed.take() == ""


def test_a_ctrl_c_while_it_ends_leaves_nobody_listening():
    class Interrupted(Stream):
        def write(self, text):
            if text == "\x1b[?2004l":
                raise KeyboardInterrupt
            return super().write(text)

    main, end = pty.openpty()
    before = threading.active_count()
    try:
        with (
            open(end, closefd=False) as stdin,
            pytest.raises(KeyboardInterrupt),
            TypedAhead(stdin, Interrupted(), lambda typed: None).listening(),
        ):
            pass
    finally:
        os.close(main)
        os.close(end)
    assert threading.active_count() == before
