"""Conversations on disk: a file each, written as they go.

Owns the format, JSON lines that are only ever appended, and where an ID leads. Knows nothing of models or terminals.
Invariants: what was recorded before the process died is read back; a last line that was cut is left out; files are
for their owner alone (0600, in a folder of 0700); a conversation in which nothing was said leaves no file.

The records, by `kind`: `conversation` (version, id, created, model, system), then in order `user`, `thought` and
`answer` (pieces of text), `end` (reason, tokens), and the changes `undo`, `clear`, `system`, `model`.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from localr1.errors import CorruptError, DiskError, NotFoundError

VERSION = 1
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_ID_LENGTH = 4
_FLUSH_CHARACTERS = 80
_FLUSH_S = 0.5


@dataclass
class Said:
    """One turn: the question, the thoughts, the answer as far as it got, and why it ended ("" if it did not)."""

    question: str
    thought: str = ""
    answer: str = ""
    reason: str = ""
    tokens: int = 0


@dataclass
class Saved:
    """A conversation as its file tells it."""

    id: str
    path: Path
    created: str
    model: str
    system: str | None
    turns: list[Said] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The first question's first line."""
        return self.turns[0].question.strip().partition("\n")[0] if self.turns else ""

    def holds(self, words: str) -> bool:
        """Whether every word is said somewhere, in any case."""
        said = "\n".join(f"{turn.question}\n{turn.answer}" for turn in self.turns).lower()
        return all(word in said for word in words.lower().split())


class Recorder:
    """Appends to one conversation's file, which is made at the first question.

    Raises DiskError where it cannot, once: then it has `failed`, and writes nothing more.
    """

    def __init__(self, folder: Path, model: str, system: str | None, resumed: Saved | None = None) -> None:
        self._folder = folder
        self._model, self._system = model, system
        self._file: TextIO | None = None
        self._size_bytes = 0
        self.failed = False
        self._piece: tuple[str, list[str]] | None = None
        self._flushed_s = 0.0
        self.id = resumed.id if resumed else ""
        self.path = resumed.path if resumed else None
        if resumed is not None:
            self._open_again(resumed)

    def question(self, text: str) -> None:
        if self._file is None and not self.failed:
            self._create()
        self._write("user", text=text, time=_now())

    def piece(self, kind: str, text: str) -> None:
        """A piece of "thought" or "answer"; written at each line end, and at least about twice a second."""
        if self._piece is not None and self._piece[0] != kind:
            self.flush()
        if self._piece is None:
            self._piece = (kind, [])
        self._piece[1].append(text)
        long = sum(map(len, self._piece[1])) >= _FLUSH_CHARACTERS
        if long or "\n" in text or time.monotonic() - self._flushed_s > _FLUSH_S:
            self.flush()

    def end(self, reason: str, tokens: int) -> None:
        self.flush()
        self._write("end", reason=reason, tokens=tokens)

    def turn(self, said: Said) -> None:
        """A whole turn."""
        self.question(said.question)
        self.piece("thought", said.thought)
        self.piece("answer", said.answer)
        self.end(said.reason, said.tokens)

    def change(self, kind: str, **values: Any) -> None:
        """`undo`, `clear`, `system` or `model`; nothing is written for a conversation that has no file yet."""
        self.flush()
        if kind == "system":
            self._system = values["text"]
        elif kind == "model":
            self._model = values["name"]
        self._write(kind, **values)

    def flush(self) -> None:
        piece, self._piece = self._piece, None
        self._flushed_s = time.monotonic()
        if piece is not None:
            self._write(piece[0], text="".join(piece[1]))

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _create(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            taken = {_id_of(path) for path in self._folder.glob("*.jsonl")}
            name = next(name for name in _names() if name not in taken)
            path = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}.jsonl"
            self._file, self._size_bytes = _append(path), 0
        except OSError as error:
            raise self._failure(f"cannot save the conversation in {self._folder}: {error.strerror}") from error
        self.id, self.path = name, path
        self._write("conversation", version=VERSION, id=self.id, created=_now(), model=self._model, system=self._system)

    def _open_again(self, resumed: Saved) -> None:
        try:
            cut = resumed.path.stat().st_size > 0 and not resumed.path.read_bytes().endswith(b"\n")
            self._file = _append(resumed.path)
            if cut:
                self._file.write("\n")
                self._file.flush()
            self._size_bytes = os.fstat(self._file.fileno()).st_size
            if resumed.model != self._model:
                self.change("model", name=self._model)
            if resumed.system != self._system:
                self.change("system", text=self._system)
        except OSError as error:
            raise DiskError(f"cannot write {resumed.path}: {error.strerror}", "go on with --no-save") from error
        except DiskError as error:
            raise DiskError(error.message, "go on with --no-save") from error

    def _write(self, kind: str, **values: Any) -> None:
        if self._file is None:
            return
        try:
            if os.fstat(self._file.fileno()).st_size != self._size_bytes:
                raise self._failure(f"another localr1 goes on with the conversation {self.id}")
            self._file.write(json.dumps({"kind": kind, **values}, ensure_ascii=False) + "\n")
            self._file.flush()
            self._size_bytes = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise self._failure(f"cannot save the conversation: {error.strerror}") from error

    def _failure(self, message: str) -> DiskError:
        """Give up. What could not be written is not written at some later time."""
        file, self._file, self.failed = self._file, None, True
        if file is not None:
            with suppress(OSError):
                file.close()
        return DiskError(message, "it goes on unsaved; in a conversation, /save tries again")


def kept_cache(path: Path) -> Path:
    """Where the key-value cache of the conversation in this file is kept, if it is."""
    return path.with_suffix(".safetensors")


def read(path: Path) -> Saved:
    """The conversation in a file. Raises NotFoundError, or CorruptError when it is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}") from error
    saved: Saved | None = None
    try:
        for record in _records(lines):
            if record["kind"] == "conversation":
                created, model = str(record.get("created", "")), str(record.get("model", ""))
                saved = Saved(_id_of(path), path, created, model, _system_of(record.get("system")))
            elif saved is not None:
                _replay(saved, record)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CorruptError(f"{path} holds what no conversation has: {error}", "delete it, or restore it") from error
    if saved is None:
        raise CorruptError(f"{path} holds no conversation", "delete it, or restore it from a copy")
    return saved


def listing(folder: Path, words: str = "") -> list[Saved]:
    """The conversations of a folder that hold all the words, newest first; files that are none are left out."""
    return [saved for saved in _newest_first(folder) if saved.holds(words)]


def _newest_first(folder: Path) -> Iterator[Saved]:
    """The conversations of a folder in which something was said."""
    for path in _paths(folder):
        with suppress(NotFoundError, CorruptError):
            saved = read(path)
            if saved.turns:
                yield saved


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"), key=_changed_s, reverse=True)


def ids(folder: Path) -> list[str]:
    """The IDs of all conversations of a folder, newest first, by the names of their files alone."""
    return [_id_of(path) for path in _paths(folder)]


def find(folder: Path, name: str) -> Saved:
    """The conversation whose ID begins so. Raises NotFoundError when there is none or more than one."""
    matches = [path for path in folder.glob("*.jsonl") if name and _id_of(path).startswith(name.lower())]
    exact = [path for path in matches if _id_of(path) == name.lower()]
    if len(exact or matches) == 1:
        return read((exact or matches)[0])
    if matches:
        raise NotFoundError(f"{name} begins {len(matches)} conversations' IDs", "give one more letter")
    raise NotFoundError(f"there is no saved conversation {name}", "list them with /history, or localr1 chat --list")


def latest(folder: Path) -> Saved:
    """The conversation used last. Raises NotFoundError when there is none."""
    found = next(_newest_first(folder), None)
    if found is None:
        raise NotFoundError("there is no saved conversation yet", "start one with: localr1 chat")
    return found


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _records(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut when the process or the machine died
        if isinstance(record, dict) and isinstance(record.get("kind"), str):
            yield record


def _replay(saved: Saved, record: dict[str, Any]) -> None:
    text = str(record.get("text") or "")
    match record["kind"]:
        case "user":
            saved.turns.append(Said(text))
        case "thought" | "answer" as part if saved.turns:
            setattr(saved.turns[-1], part, getattr(saved.turns[-1], part) + text)
        case "end" if saved.turns:
            saved.turns[-1].reason = str(record.get("reason", ""))
            saved.turns[-1].tokens += int(record.get("tokens", 0))
        case "undo" if saved.turns:
            saved.turns.pop()
        case "clear":
            saved.turns.clear()
        case "system":
            saved.system = _system_of(record.get("text"))
        case "model":
            saved.model = str(record.get("name", ""))


def _system_of(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"a system prompt that is {value!r}")
    return value


def _append(path: Path) -> TextIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    return os.fdopen(descriptor, "a", encoding="utf-8", errors="replace", newline="\n")


def _names() -> Iterator[str]:
    while True:
        yield "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))


def _id_of(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
