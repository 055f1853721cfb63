"""Puts text on the clipboard.

Owns the ways to it: Windows itself, the desktop's own program where there is one, else the terminal's (OSC 52), which
also works over ssh. Invariant: the text is memory, a program's stdin or base64; nothing in it is obeyed.
"""

import base64
import shutil
import subprocess
import sys
import time
from contextlib import suppress

from localr1.terminal.environment import Environment

_LONGEST_BY_TERMINAL = 74_000
_TRIES, _BETWEEN_TRIES_S = 5, 0.05
_UNICODE_TEXT, _MOVEABLE = 13, 0x0002
"""CF_UNICODETEXT and GMEM_MOVEABLE of Windows."""


def copy(environment: Environment, text: str) -> str | None:
    """How it was copied, for the user to read; None if there is no way."""
    with suppress(OSError):
        if _taken_by_windows(text):
            return "to the clipboard"
    for command in _programs(environment):
        if shutil.which(command[0]):
            try:
                subprocess.run(command, input=text.encode(), check=True, timeout=5, stdout=subprocess.DEVNULL)
            except (OSError, subprocess.SubprocessError):
                continue
            return f"with {command[0]}"
    encoded = base64.b64encode(text.encode()).decode()
    if environment.redraws and len(encoded) <= _LONGEST_BY_TERMINAL:
        environment.stdout.write(f"\x1b]52;c;{encoded}\x07")
        environment.stdout.flush()
        return "through the terminal, if it allows it"
    return None


def _programs(environment: Environment) -> list[list[str]]:
    if sys.platform == "darwin":
        return [["pbcopy"]]
    if sys.platform == "win32":
        return []
    programs = []
    if environment.variables.get("WAYLAND_DISPLAY"):
        programs.append(["wl-copy"])
    if environment.variables.get("DISPLAY"):
        programs += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    return programs


def _taken_by_windows(text: str) -> bool:
    """Whether Windows has it now, with its line ends; another program may hold the clipboard for a moment."""
    if sys.platform != "win32":
        return False
    import ctypes
    from ctypes import c_size_t, c_uint, c_void_p

    user, kernel = ctypes.WinDLL("user32"), ctypes.WinDLL("kernel32")
    user.OpenClipboard.argtypes = [c_void_p]  # or handles, which have 64 bits, are cut to 32
    user.SetClipboardData.argtypes, user.SetClipboardData.restype = [c_uint, c_void_p], c_void_p
    kernel.GlobalAlloc.argtypes, kernel.GlobalAlloc.restype = [c_uint, c_size_t], c_void_p
    kernel.GlobalLock.argtypes, kernel.GlobalLock.restype = [c_void_p], c_void_p
    kernel.GlobalUnlock.argtypes = kernel.GlobalFree.argtypes = [c_void_p]
    data = text.replace("\r\n", "\n").replace("\n", "\r\n").encode("utf-16-le", "replace") + b"\0\0"
    for _ in range(_TRIES):
        if user.OpenClipboard(None):
            break
        time.sleep(_BETWEEN_TRIES_S)
    else:
        return False
    memory, taken = None, False
    try:
        memory = kernel.GlobalAlloc(_MOVEABLE, len(data))
        place = kernel.GlobalLock(memory) if memory else None
        if place:
            ctypes.memmove(place, data, len(data))
            kernel.GlobalUnlock(memory)
            taken = bool(user.EmptyClipboard() and user.SetClipboardData(_UNICODE_TEXT, memory))
    finally:
        if memory and not taken:  # what the clipboard took is its own
            kernel.GlobalFree(memory)
        user.CloseClipboard()
    return taken
