"""An 8-bit store in the making: fed a checkpoint's files in any order, and gone on with after any interruption.

Owns the folder `NAME.partial` beside the store to be: `store/` with the files at their final size, and the journal of
what is finished. What the journal lists was read back, and on disk before its source was let go; a later run checks it
again before believing it. Does not know where the files come
from. Invariant: the store gets its own name only when it is whole, and is byte by byte the same however often the work
was interrupted.
"""

import contextlib
import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from localr1 import __version__
from localr1.errors import CorruptError, DiskError, existing_folder
from localr1.events import Event, LoadProgress, QuantizeProgress
from localr1.model.linear import TensorSpec
from localr1.quantities import bytes_text
from localr1.weights.arriving_file import ArrivingFile, NotHereError, Prefix
from localr1.weights.checkpoint import Checkpoint
from localr1.weights.durable import replace_folder, write_safely
from localr1.weights.file_writer import FileWriter, disk_error
from localr1.weights.journal import Digests, Journal
from localr1.weights.quantize import int8_chunks, not_finite
from localr1.weights.safekeeping import BEHIND, Safekeeping
from localr1.weights.store import CHECKSUM, FORMAT, MANIFEST, Origin, file_digest, layout, scb_name

COMMIT_BYTES = 128 << 20
"""Of the source, made safe at once: little, so that little of a file is left to be made safe when it is whole."""
SPARE_BYTES = 64 << 20


def partial_folder(folder: Path) -> Path:
    """Where the store `folder` is made."""
    return folder.with_name(folder.name + ".partial")


def reserved_bytes(folder: Path) -> int:
    """Room that an earlier run has taken already for the store `folder`."""
    return sum(path.stat().st_size for path in (partial_folder(folder) / "store").glob("*.safetensors"))


def begun_elsewhere(folder: Path, origin: Origin) -> Path | None:
    """The store to be of another revision for which a conversion of the same weights was begun, where none was for
    `folder`."""
    if partial_folder(folder).exists():
        return None
    others = sorted(folder.parent.glob("*.partial"))
    return next((one.with_suffix("") for one in others if Journal(one, origin.identity).is_of_these_weights), None)


def take_over(other: Path, folder: Path) -> None:
    """Have what was begun for `other` be gone on with for `folder`; nobody may be at work on either."""
    with contextlib.suppress(OSError):
        partial_folder(other).rename(partial_folder(folder))


class Conversion:
    """Use as a context: `yield from resume()`, then `take` every file, then `finish`.

    `take_early` does what it can of a file that is still on its way; that counts, and is written in the journal, when
    `take` says that the file proved right. Peak memory: a chunk of rows, or one tensor that stays in float.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        expected: Mapping[str, TensorSpec],
        *,
        block: tuple[int, int] | None,
        origin: Origin,
    ) -> None:
        self._folder, self._origin, self._block = folder, origin, block
        self._checkpoint, self._expected = checkpoint, expected
        self._files = layout(expected, lambda name: checkpoint.info(name).dtype)
        self._slots = {slot.name: slot for slots in self._files.values() for slot in slots}
        self._left = {name: None for name in checkpoint.names() if name in expected}  # in the order of the disk
        self._waiting = Counter(file for name in self._left for file in checkpoint.files_of(name))
        self._total_bytes = sum(checkpoint.info(name).nbytes for name in self._left)
        self._done_bytes = 0
        self._early_names = _by_file(checkpoint, self._left)
        self._early: dict[str, dict[str, tuple[int, Digests]]] = {}
        self._buffers: dict[torch.dtype, torch.Tensor] = {}
        self._unsafe: dict[str, Digests] = {}
        self._unsafe_bytes = 0
        self._known: dict[str, Digests] = {}
        self._partial = partial_folder(folder)
        self._stack = ExitStack()
        self._writer_of: dict[str, FileWriter] = {}
        self._journal = Journal(self._partial, origin.identity)
        self._safekeeping = Safekeeping(self._writer_of, self._journal)

    def __enter__(self) -> "Conversion":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        known = {**self._safekeeping.close(), **self._known}
        if known and self._journal.is_open:
            with contextlib.suppress(OSError):
                self._journal.add(known, durable=False)
        with contextlib.suppress(OSError):  # of a full disk, which was told of already
            self._journal.close()
        with contextlib.suppress(OSError, ValueError):
            self._stack.__exit__(kind or GeneratorExit, GeneratorExit(), None)

    @property
    def store_bytes(self) -> int:
        """Size of the store's tensors."""
        return sum(slot.nbytes for slot in self._slots.values())

    def needs(self, file: str) -> bool:
        """Whether a tensor that is not yet in the store, or not yet safe there, is read from this file.

        Raises DiskError."""
        self._let_go_of_safe()
        return self._waiting[file] > 0

    def wait(self) -> None:
        """Return when more is safe than before, if anything is not, and `needs` knows. Raises DiskError."""
        self._let_go_of_safe(behind=max(0, len(self._safekeeping) - 1))

    def settle(self) -> None:
        """Return when all that was converted is safe, and `needs` knows. Raises DiskError."""
        while len(self._safekeeping):
            self.wait()

    def resume(self) -> Generator[Event, None, None]:
        """Reserve the room, and find what an earlier run finished. Raises DiskError when the disk is too small."""
        folder = self._partial / "store"
        try:
            check_room(folder, self.store_bytes - reserved_bytes(self._folder))
            folder.mkdir(parents=True, exist_ok=True)
            for file, slots in self._files.items():
                writer = self._stack.enter_context(FileWriter(folder / file, slots))
                self._writer_of.update((slot.name, writer) for slot in slots)
            lines = self._journal.lines()
            for done, line in enumerate(lines):
                self._believe(line)
                yield LoadProgress("checking what was converted before", done + 1, len(lines))
            self._journal.start(self._known)
            self._let_go(list(self._known))
            self._known.clear()
        except OSError as error:
            raise disk_error(self._folder, 0, error) from error
        if lines:
            yield self._progress("")

    def take_early(self, file: str, prefix: Prefix) -> Generator[Event, None, None]:
        """Convert what has come of `file`, though nobody can tell yet whether it came right."""
        arriving, names = ArrivingFile(prefix, self._buffers), self._early_names[file]
        try:
            while names and self._checkpoint.end_of(names[0]) <= prefix.done_bytes:
                if (name := names.popleft()) in self._left:
                    self._try(name, file, arriving)
                    yield self._progress(name)
                if self._unsafe_bytes >= COMMIT_BYTES:
                    self._commit()
        except OSError as error:
            raise disk_error(self._folder, 0, error) from error

    def take(self, file: str, path: Path, attempt: int = 0) -> Generator[Event, None, None]:
        """Convert what can be converted now that `file` is whole at `path`; then ask `needs` whether it may go.

        What was read of it earlier was right if it was of this `attempt`.
        """
        self._checkpoint.attach(file, path)
        self._settle(file, attempt)
        have = self._checkpoint.files.keys()
        try:
            for name in [name for name in self._left if self._checkpoint.files_of(name) <= have]:
                self._known[name] = self._convert(name)
                yield self._progress(name)
                if self._unsafe_bytes >= COMMIT_BYTES:
                    self._commit()
            self._commit()
        except OSError as error:
            raise disk_error(self._folder, 0, error) from error

    def finish(self, extras: Mapping[str, bytes]) -> None:
        """Give the store its name, with `extras` (config, tokenizer) beside the tensors, in the place of an old one.

        Raises DiskError."""
        folder = self._partial / "store"
        assert not self._left and not self._early, "every file is taken first"
        try:
            self._commit()
            self.settle()
            digests = {file: self._writer_of[slots[0].name].digest() for file, slots in self._files.items()}
            self._stack.close()
            for path in folder.iterdir():
                if path.name not in self._files:
                    path.unlink()
            for name, content in extras.items():
                write_safely(folder / name, content)
            _write_manifest(folder, self._origin, digests)
            replace_folder(folder, self._folder)
            self._journal.close()  # or Windows lets nobody delete it
            shutil.rmtree(self._partial, ignore_errors=True)
        except OSError as error:
            raise disk_error(self._folder, 0, error) from error

    def _try(self, name: str, file: str, arriving: ArrivingFile) -> None:
        """Convert a tensor of a file that may be wrong; if that shows, the tensor is left for the right one."""
        with contextlib.suppress(NotHereError, CorruptError), self._checkpoint.reading(file, arriving):
            self._early.setdefault(file, {})[name] = arriving.attempt, self._convert(name)

    def _settle(self, file: str, attempt: int) -> None:
        """What was converted of a file before it was whole counts from now on, or has to be done again."""
        for name, (read_of, digests) in self._early.pop(file, {}).items():
            if read_of == attempt:
                self._known[name] = digests
            else:
                self.settle()
                self._unsafe.pop(name, None)
                self._left[name] = None
                self._done_bytes -= self._checkpoint.info(name).nbytes

    def _convert(self, name: str) -> Digests:
        writer, shape = self._writer_of[name], self._slots[name].shape
        if self._expected[name].storage == "int8":
            scb = torch.empty(shape[0], dtype=torch.float32)
            rows_of = partial(self._checkpoint.rows, name, block=self._block)
            digests = {name: writer.write_chunks(name, int8_chunks(shape, rows_of, name, scb))}
            digests[scb_name(name)] = self._writer_of[scb_name(name)].write(scb_name(name), scb)
        else:
            tensor = self._checkpoint.tensor(name, self._block).to(self._slots[name].dtype)
            if not bool(torch.isfinite(tensor).all()):
                raise not_finite(name)
            digests = {name: writer.write(name, tensor)}
        self._unsafe[name] = digests
        self._checkpoint.forget(name)
        del self._left[name]
        nbytes = self._checkpoint.info(name).nbytes
        self._done_bytes += nbytes
        self._unsafe_bytes += nbytes
        return digests

    def _progress(self, name: str) -> QuantizeProgress:
        total = len(self._expected)
        return QuantizeProgress(name, total - len(self._left), total, self._done_bytes, self._total_bytes)

    def _commit(self) -> None:
        """Have what was written made safe, and what of it is known to be right noted in the journal."""
        self._safekeeping.keep(self._unsafe, self._known)
        self._unsafe.clear()
        self._known.clear()
        self._unsafe_bytes = 0
        self._let_go_of_safe()

    def _let_go_of_safe(self, behind: int = BEHIND) -> None:
        try:
            self._let_go(self._safekeeping.safe(behind))
        except OSError as error:
            raise disk_error(self._folder, 0, error) from error

    def _let_go(self, names: Iterable[str]) -> None:
        """What is in the journal needs its source no longer."""
        for name in names:
            for file in self._checkpoint.files_of(name):
                self._waiting[file] -= 1
                if not self._waiting[file]:
                    self._checkpoint.detach(file)

    def _believe(self, line: dict[str, Any]) -> None:
        """Take a tensor as done if the store holds what the journal says; else it is simply done again."""
        name, digests = line.get("tensor"), line.get("xxh3_128")
        if name not in self._left or not isinstance(digests, dict):
            return
        parts = {name, scb_name(name)} & self._slots.keys() if self._expected[name].storage == "int8" else {name}
        if digests.keys() == parts and all(self._writer_of[part].written(part, digests[part]) for part in parts):
            del self._left[name]
            self._done_bytes += self._checkpoint.info(name).nbytes
            self._known[name] = digests


def _by_file(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, deque[str]]:
    """Of each file the tensors that need no other, in the order of the disk."""
    by_file: dict[str, deque[str]] = {file: deque() for file in checkpoint.file_names}
    for name in names:
        files = checkpoint.files_of(name)
        if len(files) == 1:
            by_file[files.pop()].append(name)
    return by_file


def write_store(
    folder: Path,
    checkpoint: Checkpoint,
    expected: Mapping[str, TensorSpec],
    *,
    block: tuple[int, int] | None,
    origin: Origin,
    extras: Mapping[str, bytes],
) -> Generator[Event, None, None]:
    """Convert a checked checkpoint that is here in full into a store at `folder`, replacing an old one when whole.

    Raises DiskError before any work when the disk is too small, CorruptError, leaving nothing, for a value that is not
    finite. An interrupted conversion is gone on with.
    """
    try:
        with Conversion(folder, checkpoint, expected, block=block, origin=origin) as conversion:
            yield from conversion.resume()
            for name, file in list(checkpoint.files.items()):
                if conversion.needs(name):
                    yield from conversion.take(name, file.path)
            conversion.finish(extras)
    except CorruptError:
        shutil.rmtree(partial_folder(folder), ignore_errors=True)
        raise


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raise DiskError, saying how much is missing, unless the disk of `folder` has room for so many bytes more."""
    existing = existing_folder(folder)
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > 0 and needed_bytes + SPARE_BYTES > free_bytes:
        raise DiskError(
            f"the 8-bit store needs {bytes_text(needed_bytes)}, {existing} has {bytes_text(free_bytes)} free",
            f"free {bytes_text(needed_bytes + SPARE_BYTES - free_bytes)} more, or set LOCALR1_HOME to a larger disk",
        )


def _write_manifest(folder: Path, origin: Origin, digests: Mapping[str, str]) -> None:
    """`digests` of the large files are known."""
    files = {
        path.name: {"bytes": path.stat().st_size, CHECKSUM: digests.get(path.name) or file_digest(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {
        "format": FORMAT,
        "source": origin.source,
        "revision": origin.revision,
        "source_folder": origin.source_folder,
        "source_files": dict(origin.source_files),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "localr1_version": __version__,
        "files": files,
    }
    write_safely(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
