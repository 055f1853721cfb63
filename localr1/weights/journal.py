"""What of a conversion is finished: `journal.jsonl`, one line a tensor with the digests of what was written for it.

Owns the file. Knows nothing of tensors. Invariant: a journal that cannot be read, or is of other weights, has no lines;
of one whose last line was cut short, the lines before it count.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

NAME = "journal.jsonl"

Digests = dict[str, str]
"""Of the one or two parts of the store that a tensor becomes, the XXH3-128 of what was written."""


class Journal:
    """Read an earlier run's `lines`, then `start` with those that proved right, then `add`."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """`identity` is what a journal says of itself. It is believed if that has the same format and source, and also
        the same revision, or another whose `weights` are the same."""
        self._path, self._identity = folder / NAME, identity
        self._file: TextIO | None = None

    @property
    def is_open(self) -> bool:
        return self._file is not None

    @property
    def is_of_these_weights(self) -> bool:
        """Whether an earlier run began it, so that it is believed."""
        return self._believes(self._written())

    def lines(self) -> list[dict[str, Any]]:
        """What an earlier run wrote; whether it is true, the caller finds out."""
        written = self._written()
        return written[1:] if self._believes(written) else []

    def _believes(self, written: list[dict[str, Any]]) -> bool:
        found = written[0] if written else {}
        same = {key for key, value in self._identity.items() if value and found.get(key) == value}
        return {"format", "source"} <= same and bool({"revision", "weights"} & same)

    def _written(self) -> list[dict[str, Any]]:
        try:
            return list(_parsed(self._path.read_text(encoding="utf-8")))
        except (FileNotFoundError, UnicodeDecodeError):
            return []

    def start(self, done: Mapping[str, Digests]) -> None:
        """A new journal in the place of the old one. Raises OSError."""
        scratch = self._path.with_name(NAME + ".new")
        with scratch.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self._identity) + "\n")
            file.writelines(_line(name, digests) for name, digests in done.items())
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def add(self, done: Mapping[str, Digests], durable: bool) -> None:
        """Tensors that are finished; if `durable`, on the disk on return. Raises OSError."""
        assert self._file is not None, "start() comes first"
        self._file.writelines(_line(name, digests) for name, digests in done.items())
        self._file.flush()
        if durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _line(name: str, digests: Digests) -> str:
    return json.dumps({"tensor": name, "xxh3_128": digests}) + "\n"


def _parsed(text: str) -> Iterator[dict[str, Any]]:
    """The lines up to the first that was not written whole."""
    for line in text.splitlines(keepends=True):
        try:
            value = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            return
        if not isinstance(value, dict):
            return
        yield value
