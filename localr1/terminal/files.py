"""Reads a file for a message, within bounds, and says what it left out.

Owns what may be read and how it is put into a message. Invariant: what comes back is plain text; it stays text for
the tokenizer too, which takes no special token from a message.
"""

import codecs
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localr1.errors import AccessError, NotFoundError, UnsupportedError

LARGEST_BYTES = 200_000


@dataclass(frozen=True)
class Attachment:
    """A file's text and, in `notes`, what a person must know of how it was read."""

    name: str
    text: str
    notes: tuple[str, ...] = ()

    def message(self) -> str:
        """The text with its name and a fence that the text does not contain."""
        fence = "```"
        while fence in self.text:
            fence += "`"
        return f"{self.name}:\n{fence}\n{self.text}\n{fence}"


def typed_path(text: str) -> Path:
    """The path that was typed; `~name` stays as it is where there is no such user."""
    with suppress(RuntimeError):
        return Path(text).expanduser()
    return Path(text)


def is_there(path: Path) -> bool:
    """Whether there is such a file, as far as can be seen; a name may also be too long to be one."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_attachment(path: Path, largest_bytes: int = LARGEST_BYTES) -> Attachment:
    """The beginning of the file, all of it where it is no larger than that. It is UTF-8, or UTF-16 where it begins with
    a byte order mark, as what Windows' PowerShell writes.

    Raises NotFoundError, AccessError, or UnsupportedError for a folder, a device or a file that is no text.
    """
    try:
        if path.exists() and not path.is_file():
            raise UnsupportedError(f"{path} is not a file", "name one file")
        with path.open("rb") as file:
            data = file.read(largest_bytes + 1)
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", "Tab completes names after /read") from None
    except OSError as error:
        raise AccessError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # the name holds what none may
        raise NotFoundError(f"there is no file {str(path)!r}: {error}") from error
    notes = []
    if len(data) > largest_bytes:
        data = data[:largest_bytes]
        notes.append(f"only the first {largest_bytes:,} of its {size_bytes:,} bytes are taken")
    encoding = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    text = data.decode(encoding, errors="ignore" if notes else "replace").removeprefix("\ufeff")
    if "\0" in text[:8192]:
        raise UnsupportedError(f"{path} is not text", "only text files can be read")
    if "\ufffd" in text:
        notes.append(f"what is not {encoding} in it became \ufffd")
    return Attachment(path.name, text.replace("\r\n", "\n").rstrip("\n"), tuple(notes))
