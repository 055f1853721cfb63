import ctypes
from collections.abc import Callable

import pytest

from localr1.terminal.clipboard import copy
from tests.terminal.fakes import environment, out


class Windows:
    """Its clipboard, which another program holds for so many tries; functions that are named in `failing` fail."""

    def __init__(self, busy: int = 0, failing: tuple[str, ...] = ()) -> None:
        self.busy, self.failing = busy, failing
        self.called: list[str] = []
        self.text = b"what was there"
        self.memory = ctypes.create_string_buffer(1)

    def library(self, name: str) -> "Windows":
        return self

    def __getattr__(self, name: str) -> Callable[..., int]:
        def function(*arguments) -> int:
            self.called.append(name)
            does = getattr(type(self), f"_{name}", lambda *_: 1)
            return 0 if name in self.failing else does(self, *arguments)

        self.__dict__[name] = function  # as of a library: its signature can be told
        return function

    def _OpenClipboard(self, window: None) -> int:
        self.busy -= 1
        return self.busy < 0

    def _GlobalAlloc(self, kind: int, size_bytes: int) -> int:
        self.memory = ctypes.create_string_buffer(size_bytes)
        return 1 << 40

    def _GlobalLock(self, memory: int) -> int:
        assert memory == 1 << 40
        return ctypes.addressof(self.memory)

    def _EmptyClipboard(self) -> int:
        self.text = b""
        return 1

    def _SetClipboardData(self, kind: int, memory: int) -> int:
        assert (kind, memory) == (13, 1 << 40)
        self.text = self.memory.raw
        return memory


@pytest.fixture
def on_windows(monkeypatch) -> Callable[[Windows], None]:
    def install(windows: Windows) -> None:
        def never(*_, **__):
            raise AssertionError("no program is run")

        monkeypatch.setattr("sys.platform", "win32")
        monkeypatch.setattr("ctypes.WinDLL", windows.library, raising=False)
        monkeypatch.setattr("subprocess.run", never)
        monkeypatch.setattr("shutil.which", lambda name: name)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setattr("localr1.terminal.environment._knows_escapes", lambda terminal: True)

    return install


def test_windows_takes_the_text_whatever_its_code_page(on_windows):
    windows = Windows(busy=2)
    on_windows(windows)
    shown = environment(tty="o")
    assert copy(shown, "x = 'é漢😀'\ny") == "to the clipboard"
    assert windows.text == "x = 'é漢😀'\r\ny\0".encode("utf-16-le")
    assert windows.called.count("OpenClipboard") == 3 and windows.called[-1] == "CloseClipboard"
    assert "GlobalFree" not in windows.called and out(shown) == ""
    assert windows.GlobalAlloc.restype is windows.GlobalLock.restype is ctypes.c_void_p  # 64 bits of them
    assert windows.SetClipboardData.argtypes == [ctypes.c_uint, ctypes.c_void_p]


@pytest.mark.parametrize("failing", ["GlobalAlloc", "GlobalLock", "EmptyClipboard", "SetClipboardData"])
def test_what_windows_refuses_goes_through_the_terminal(on_windows, failing):
    windows = Windows(failing=(failing,))
    on_windows(windows)
    shown = environment(tty="o")
    assert copy(shown, "hi") == "through the terminal, if it allows it"
    assert out(shown) == "\x1b]52;c;aGk=\x07"
    assert windows.called[-1] == "CloseClipboard"
    assert ("GlobalFree" in windows.called) == (failing != "GlobalAlloc")


def test_a_clipboard_that_stays_held_is_left_alone(on_windows):
    windows = Windows(busy=1000)
    on_windows(windows)
    assert copy(environment(), "hi") is None
    assert windows.text == b"what was there" and "CloseClipboard" not in windows.called


def test_a_windows_without_a_clipboard_has_the_terminal(on_windows, monkeypatch):
    def missing(name: str) -> None:
        raise FileNotFoundError(name)

    on_windows(Windows())
    monkeypatch.setattr("ctypes.WinDLL", missing, raising=False)
    assert copy(environment(tty="o"), "hi") == "through the terminal, if it allows it"
