"""What can go wrong that a person can do something about.

Owns the error type, its few kinds and their exit statuses, and what all rooms ask of disks, folders and words to say
it. Every error carries one line that says what happened with the values in it, and a hint that says what to do next.
They are caught in one place, `localr1.cli.app.main`.
"""

import difflib
import errno
import shlex
import sys
from collections.abc import Collection
from enum import IntEnum
from pathlib import Path
from typing import TypeGuard


class ExitStatus(IntEnum):
    """What the process returns; scripts rely on these numbers."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    NETWORK = 4
    ACCESS = 5
    DISK = 6
    CORRUPT = 7
    UNSUPPORTED = 8
    CONTEXT = 9
    MEMORY = 10
    INTERRUPTED = 130


class LocalR1Error(Exception):
    """A failure with a message (what, with values) and a hint (the next thing to do)."""

    status = ExitStatus.ERROR

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LocalR1Error):
    """An option or argument that makes no sense."""

    status = ExitStatus.USAGE


class NotFoundError(LocalR1Error):
    """A model, revision, file or folder that does not exist."""

    status = ExitStatus.NOT_FOUND


class NetworkError(LocalR1Error):
    """The hub cannot be reached, or we were told not to try."""

    status = ExitStatus.NETWORK


class AccessError(LocalR1Error):
    """A gated or private repository, or a folder we may not write."""

    status = ExitStatus.ACCESS


class DiskError(LocalR1Error):
    """Not enough room, or the disk failed."""

    status = ExitStatus.DISK


class CorruptError(LocalR1Error):
    """A file whose content contradicts itself or its hash."""

    status = ExitStatus.CORRUPT


class UnsupportedError(LocalR1Error):
    """A valid model or setting that this program cannot run."""

    status = ExitStatus.UNSUPPORTED


class ContextError(LocalR1Error):
    """A prompt or conversation longer than the context."""

    status = ExitStatus.CONTEXT


class OutOfMemoryError(LocalR1Error):
    """Not enough RAM or GPU memory."""

    status = ExitStatus.MEMORY


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether what failed is that a disk, or one's share of it, has no room left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_held(error: BaseException) -> bool:
    """Whether what failed may be that another program has the file open: Windows lets nobody move or delete it then."""
    return sys.platform == "win32" and isinstance(error, PermissionError)


def expanded(text: str, what: str) -> Path:
    """The folder that a variable named `what` says, `~` expanded. Raises NotFoundError for `~` of no user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise NotFoundError(f"{what} is {text}: {error}", "set it to a folder of yours") from error


def existing_folder(path: Path) -> Path:
    """The nearest folder at or above a path that is there, on the same disk. Raises DiskError where none is."""
    for folder in (path, *path.absolute().parents):
        if folder.exists():
            return folder
    raise DiskError(f"the disk of {path} is not there", "connect it, or set LOCALR1_HOME to a folder on another one")


def typed(word: str) -> str:
    """A word as a person types it on a command line. To cmd.exe single quotation marks are characters like others."""
    if sys.platform == "win32":
        import subprocess

        return subprocess.list2cmdline([word])
    return shlex.quote(word)


_MOST_MEANT = 3


def meant(name: str, names: Collection[str], otherwise: str, before: str = "") -> str:
    """The hint for a name that there is not: which of the `names` was meant, written with what comes `before` names, or
    `otherwise`. Those are meant that begin so, if they are few, or else the one most like it."""
    near = [each for each in names if each.startswith(name)]
    if not 0 < len(near) <= _MOST_MEANT:
        near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {' or '.join(before + each for each in near)}?" if near else otherwise
