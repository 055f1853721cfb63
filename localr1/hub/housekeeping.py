"""What models take on this disk, whole and in part, and how that is given back or checked.

Owns the listing of what an unfinished download left, in this program's folder and among the Hugging Face cache's blobs,
and re-hashing of stores. Knows nothing of tensors. Invariant: of the Hugging Face cache only `*.localr1*` is removed,
which no other tool uses.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from localr1.errors import AccessError, CorruptError, DiskError, LocalR1Error, NotFoundError, typed
from localr1.events import LoadProgress, Progress
from localr1.hub import cache
from localr1.hub.cache import MANIFEST, StoredModel
from localr1.hub.catalog import CATALOG
from localr1.hub.hub_cache import hash_into, hub_cache_folder
from localr1.hub.lock import only_one
from localr1.hub.remote import Digest
from localr1.hub.source import HubRepo

CHECKSUMS: dict[str, Callable[[], Digest]] = {"xxh3_128": xxh3_128, "sha256": hashlib.sha256}
"""What a manifest may say of a file; stores of before have its sha256."""


@dataclass(frozen=True)
class PartialModel:
    """What unfinished downloads, conversions and deletions of one model left; `name` is what to type to go on."""

    name: str
    source: str
    revision: str
    paths: tuple[Path, ...]
    size_bytes: int


def partials() -> list[PartialModel]:
    """Every revision of a model that is here in part, by name; one that was refused before its first byte is not."""
    found: dict[tuple[str, str], list[Path]] = {}
    for folder in [*_left_folders(), *damaged()]:
        found.setdefault((_source_of(folder), _revision_of(folder)), []).append(folder)
    for blob in sorted(hub_cache_folder().glob("models--*/blobs/*.localr1*")):
        repo_id = blob.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        found.setdefault((repo_id, _wanting(blob, repo_id, found)), []).append(blob)
    models = [_partial_model(source, revision, paths) for (source, revision), paths in found.items()]
    return sorted((model for model in models if model.size_bytes), key=lambda model: model.name.lower())


def damaged() -> list[Path]:
    """Folders of stores that cannot be read as such, since their manifest is gone or wrong."""
    weights = (cache.home() / "models").glob("*/*/*.safetensors")
    folders = {path.parent for path in weights if not path.parent.name.endswith(cache.UNFINISHED)}
    return sorted(folder for folder in folders if cache.read_store(folder) is None)


def _left_folders() -> list[Path]:
    return sorted(path for path in (cache.home() / "models").glob("*/*") if path.name.endswith(cache.UNFINISHED))


def _partial_model(source: str, revision: str, paths: list[Path]) -> PartialModel:
    size_bytes = sum(cache.size_of(path) for path in paths)
    name = next((entry.name for entry in CATALOG.values() if entry.repo_id == source), source)
    return PartialModel(name, source, revision, tuple(paths), size_bytes)


def _wanting(blob: Path, repo_id: str, found: Iterable[tuple[str, str]]) -> str:
    """Which unfinished revision of a repository a file is for: one that remembers it, else the only one."""
    oid, revisions = blob.name.partition(".")[0], [revision for source, revision in found if source == repo_id]
    headers = {
        folder.parent.name for folder in (cache.home() / "models").glob("*/*.partial/headers") if _has(folder, oid)
    }
    remembered = [revision for revision in revisions if f"{revision}.partial" in headers]
    return next(iter(remembered or revisions), "")


def _has(headers: Path, oid: str) -> bool:
    return any(headers.glob(f"{oid}.*"))


def _revision_of(folder: Path) -> str:
    return folder.stem if folder.name.endswith(cache.UNFINISHED) else folder.name


def _source_of(folder: Path) -> str:
    """The repository or folder that an unfinished store is made of, or one that is no longer whole was."""
    with contextlib.suppress(OSError, ValueError, AttributeError), (folder / "journal.jsonl").open() as journal:
        source = json.loads(journal.readline()).get("source")
        if isinstance(source, str):
            return source
    source = cache.read_json(folder / MANIFEST).get("source")
    return source if isinstance(source, str) else folder.parent.name.replace("--", "/", 1)


@dataclass(frozen=True)
class Belongings:
    """All that is here of one model."""

    stores: tuple[StoredModel, ...]
    partials: tuple[PartialModel, ...]
    conversations: tuple[Path, ...] = ()

    @property
    def size_bytes(self) -> int:
        parts_bytes = sum(part.size_bytes for part in self.partials)
        return (
            sum(store.size_bytes for store in self.stores)
            + parts_bytes
            + sum(map(cache.size_of, _with_caches(self.conversations)))
        )


def belongings(text: str) -> Belongings:
    """What is here of the model that `text` names; with `@revision`, of that revision only. Raises NotFoundError."""
    source, revision = _named(text)
    stores = [store for store in cache.stores() if source in (store.source, store.name)]
    parts = [part for part in partials() if source in (part.source, part.name)]
    if revision:
        stores = [store for store in stores if store.revision.startswith(revision)]
        parts = [part for part in parts if part.revision.startswith(revision)]
    entry = CATALOG.get(text.lower())
    if not stores and not parts and entry is not None and entry.repo_id is None:
        raise NotFoundError(f"{text} is built into localr1, nothing to remove or verify", "see `localr1 models`")
    if not stores and not parts:
        raise NotFoundError(f"{text} is not here", "see `localr1 models` for what is")
    names = {text, source, *(store.name for store in stores), *(part.name for part in parts)}
    return Belongings(tuple(stores), tuple(parts), () if revision else tuple(_conversations(names)))


def _conversations(models: set[str]) -> Iterator[Path]:
    """The saved conversations that were held with no other model than these."""
    for path in sorted((cache.home() / "conversations").glob("*.jsonl")):
        with contextlib.suppress(OSError, ValueError):
            if (held_with := _models_of(path)) and held_with <= models:
                yield path


def _models_of(conversation: Path) -> set[str]:
    """The model that a conversation was begun with, and those that it moved on to."""
    with conversation.open(encoding="utf-8") as file:
        records = [_record(line) for line in file]
    begun = {record.get("model") for record in records if record.get("kind") == "conversation"}
    moved_on_to = {record.get("name") for record in records if record.get("kind") == "model"}
    return {str(name) for name in begun | moved_on_to}


def _record(line: str) -> dict[str, Any]:
    """What a line of a conversation says; nothing, if it was cut when the process or the machine died."""
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    return {}


def _with_caches(conversations: Iterable[Path]) -> Iterator[Path]:
    """Each conversation's file, and that of its kept cache."""
    for path in conversations:
        yield path
        if (kept := path.with_suffix(".safetensors")).exists():
            yield kept


def _named(text: str) -> tuple[str, str]:
    """Source and revision; a folder need not be there any more for its store to be named by it."""
    try:
        source = cache.source_of(text)
    except NotFoundError:
        path = str(Path(text).expanduser().resolve())
        known = {part.source for part in partials()}
        named = next((name for name in (text, path) if name in known), None)
        if named is None:
            raise
        return named, ""
    if isinstance(source, HubRepo):
        found = cache.find_store(source) if source.revision else None
        return source.repo_id, found.revision if found else source.revision or ""
    return source.entry.name if source.entry else str(source.path), ""


def remove(doomed: Belongings) -> int:
    """Delete all of it and return about the bytes freed. Raises LocalR1Error when it is being written, or cannot go."""
    freed_bytes, left = 0, [path for part in doomed.partials for path in part.paths]
    folders = [*(store.folder for store in doomed.stores), *left]
    with contextlib.ExitStack() as nobody:
        for lock, folder in {_lock_of(folder): folder for folder in folders}.items():
            nobody.enter_context(only_one(lock, f"{folder.name[:12]} is being downloaded or converted just now"))
        for store in doomed.stores:
            freed_bytes += cache.remove(store)
        for path in left:
            freed_bytes += cache.size_of(path)
            _delete(path)
    for path in _with_caches(doomed.conversations):
        freed_bytes += cache.size_of(path)
        _delete(path)
    for slug in {folder.parent for folder in folders if folder.parent.name != "blobs"}:
        cache.forget_slug(slug)
    return freed_bytes


def _lock_of(path: Path) -> Path:
    """The lock of whoever writes a store's folder, what is left of one, or an arriving file."""
    if path.parent.name == "blobs":
        repository = path.parent.parent
        return repository.parent / ".locks" / repository.name / "localr1.lock"
    return cache.lock_path(path.with_name(_revision_of(path)))


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except PermissionError as error:
        raise AccessError(f"cannot delete {path}: {error.strerror}", "check its permissions") from error
    except OSError as error:
        raise DiskError(f"cannot delete {path}: {error.strerror}", "check the disk") from error


def verify(store: StoredModel) -> Progress[None]:
    """Hash every file of a store again. Raises CorruptError naming the first that is not as it was written.

    That finds damage. That the weights are the publisher's, the sha256 said with which their source arrived.
    """
    files = cache.read_json(store.folder / MANIFEST).get("files", {})
    hint = f"make it again with `localr1 download {typed(store.name)} --force`"
    if not all(isinstance(facts, dict) and isinstance(facts.get("bytes"), int) for facts in files.values()):
        raise CorruptError(f"{store.folder / MANIFEST} is damaged", hint)
    total_bytes = sum(facts["bytes"] for facts in files.values())
    done_bytes = 0
    for name, facts in files.items():
        path = store.folder / name
        kind = next((kind for kind in CHECKSUMS if kind in facts), "xxh3_128")
        digest = CHECKSUMS[kind]()
        try:
            for read_bytes in hash_into(digest, path):
                done = (done_bytes + read_bytes) // 1_000_000
                yield LoadProgress(f"checking {store.name}, MB", done, max(total_bytes // 1_000_000, 1))
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            raise CorruptError(f"{path} is gone", hint) from None
        except OSError as error:
            raise DiskError(f"{path} cannot be read: {error.strerror}", "check the disk") from error
        if digest.hexdigest() != facts.get(kind):
            raise CorruptError(f"{path} has changed since it was written ({size_bytes:,} bytes)", hint)
        done_bytes += size_bytes


def verify_all(stores: list[StoredModel]) -> Progress[dict[str, LocalR1Error]]:
    """Check several stores; returns what is wrong, by the store's folder."""
    wrong: dict[str, LocalR1Error] = {}
    for store in stores:
        try:
            yield from verify(store)
        except LocalR1Error as error:
            wrong[str(store.folder)] = error
    return wrong
