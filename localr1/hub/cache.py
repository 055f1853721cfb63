"""Where converted models live on this disk, and which was used last.

Owns the layout `home()/models/<slug>/<commit or content id>` and the record of the last model used. A store is a folder
with a readable `manifest.json`; what else is in it is not looked at. Knows nothing of the network or of tensors.
Invariant: only folders below `home()/models` are ever removed, and one that is being removed is no store any more.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs

from localr1.errors import AccessError, DiskError, LocalR1Error, NotFoundError, expanded, is_full, is_held
from localr1.hub.catalog import CATALOG, resolve
from localr1.hub.source import HubRepo, LocalFolder, Snapshot, Source

MANIFEST = "manifest.json"
UNFINISHED = (".partial", ".old", ".removed")
COMMIT_PREFIX = re.compile(r"[0-9a-f]{7,40}")
DEFAULT_BRANCH = "HEAD"
"""Under which name it is recorded what a repository without a revision meant."""


@dataclass(frozen=True)
class StoredModel:
    """A converted model on this disk; `name` is what to type to mean it."""

    name: str
    folder: Path
    source: str
    revision: str
    created: str
    size_bytes: int


def home() -> Path:
    """LOCALR1_HOME, or the user's data folder; it may not exist yet. Raises NotFoundError for `~` of no user."""
    chosen = os.environ.get("LOCALR1_HOME")
    if chosen:
        return expanded(chosen, "LOCALR1_HOME").absolute()
    return platformdirs.user_data_path("localr1", appauthor=False)


def store_folder(source: Snapshot | LocalFolder) -> Path:
    """Where the store of these very files belongs, whether or not it is there yet."""
    if isinstance(source, Snapshot):
        return _models_of(source) / source.commit
    return _models_of(source) / _content_id(source.path)


def source_of(text: str) -> Source:
    """What the user means, as `catalog.resolve`; a folder that is gone is still meant while its store is here."""
    try:
        return resolve(text)
    except NotFoundError:
        gone = LocalFolder(Path(text).expanduser().resolve())
        if find_store(gone) is None:
            raise
        return gone


def find_store(source: Source) -> StoredModel | None:
    """The store of `source`, without asking the hub; None if there is none. Without a revision it is that of the
    default branch as it was last fetched, else the newest of any.

    A folder's store is found only while the folder's files are those that were converted, or when the folder is gone.
    A folder that is itself a store is found as it is.
    """
    if isinstance(source, LocalFolder) and source.path.is_dir():
        return read_store(source.path) or read_store(store_folder(source))
    candidates = list(_stores_in(_models_of(source)))
    if isinstance(source, LocalFolder):
        return max(candidates, key=lambda store: store.created, default=None)
    commit = _recorded_commit(source) or source.revision or ""
    exact = bool(COMMIT_PREFIX.fullmatch(commit))
    meant = [store for store in candidates if exact and store.revision.startswith(commit)]
    if meant or source.revision is not None:
        candidates = meant
    return max(candidates, key=lambda store: store.created, default=None)


def up_to_date(source: Source) -> StoredModel | None:
    """The store of `source` if the hub has no newer commit of it, as far as it says; None also where an unfinished
    conversion lies beside it."""
    here = find_store(source)
    if here is None or here.folder.with_name(here.folder.name + ".partial").exists():
        return None
    if isinstance(source, HubRepo):
        from localr1.hub.lookup import newer_commit

        return here if newer_commit(source, here.revision) is None else None
    return here


def record_revision(source: HubRepo, commit: str) -> None:
    """Remember which commit a branch or tag, or none, meant, so that its store is found without the hub."""
    write_text(_revision_file(source), commit)


def store_of_files(source: HubRepo, files: Mapping[str, str]) -> StoredModel | None:
    """A store of `source` that was made of just these files, by the hub's hashes; of whichever commit."""
    stores = _stores_in(_models_of(source))
    return next((store for store in stores if read_json(store.folder / MANIFEST).get("source_files") == files), None)


def superseded(source: Source, folder: Path) -> list[StoredModel]:
    """The stores of `source` beside the one in `folder` that nobody means any more by a branch, tag or commit."""
    if isinstance(source, HubRepo) and not _text_of(_models_of(source) / "refs" / DEFAULT_BRANCH):
        return []  # it is not known what the default branch means
    others = [store for store in _stores_in(_models_of(source)) if store.folder != folder]
    return [store for store in others if not _is_pinned(store)]


def stores() -> list[StoredModel]:
    """Every whole store, by name, then newest first."""
    root = home() / "models"
    found = [store for slug in _folders(root) for store in _stores_in(slug)]
    found.sort(key=lambda store: store.created, reverse=True)
    return sorted(found, key=lambda store: store.name.lower())


def remove(store: StoredModel) -> int:
    """Delete a store and return the bytes freed; it stops being a store before its first file goes. `forget_slug` then
    takes what is empty, when nobody holds a lock in it."""
    root = (home() / "models").resolve()
    folder = store.folder.resolve()
    if len(folder.parts) != len(root.parts) + 2 or root not in folder.parents:
        raise AccessError(f"{store.folder} is not one of this program's stores", "delete it yourself if you mean to")
    if not folder.is_dir():
        raise NotFoundError(f"{store.folder} is already gone", "see `localr1 models` for what is there")
    doomed = folder.with_name(folder.name + ".removed")
    try:
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)
        _forget_use(store.folder)
        for path in (routing := routing_file(folder)), routing.with_suffix(".lock"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise _disk_failure("delete", folder, error) from error
    return store.size_bytes


def set_last_used(store: StoredModel) -> None:
    """Make this the model that `localr1 chat` without a name means."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before = read_json(home() / "last-used.json").get("all")
    times = {folder: at for folder, at in before.items() if Path(folder).is_dir()} if isinstance(before, dict) else {}
    record = {"folder": str(store.folder), "name": store.name, "used": now, "all": {**times, str(store.folder): now}}
    write_text(home() / "last-used.json", json.dumps(record) + "\n")


def last_used() -> StoredModel | None:
    """The model used last, if its store is still there."""
    folder = read_json(home() / "last-used.json").get("folder")
    return read_store(Path(folder)) if isinstance(folder, str) else None


def _forget_use(folder: Path) -> None:
    record = read_json(home() / "last-used.json")
    last, times = record.get("folder") == str(folder), record.get("all")
    kept = {key: value for key, value in record.items() if not last or key == "all"}
    if isinstance(times, dict):
        kept["all"] = {at: when for at, when in times.items() if at != str(folder)}
    if kept != record:
        write_text(home() / "last-used.json", json.dumps(kept) + "\n")


def used(store: StoredModel) -> str:
    """When a model was last used, as ISO time; "" if it was not."""
    times = read_json(home() / "last-used.json").get("all")
    return str(times.get(str(store.folder), "")) if isinstance(times, dict) else ""


def weights_id(folder: Path) -> str:
    """Names the very weights of a store: converting the same checkpoint again gives the same."""
    files = read_json(folder / MANIFEST).get("files")
    files = files if isinstance(files, dict) else {}
    digests = {name: facts.get("xxh3_128") or facts.get("sha256") for name, facts in files.items()}
    weights = {name: digest for name, digest in digests.items() if name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()[:16]


def routing_file(folder: Path) -> Path:
    """Where the routing history of the store in `folder` belongs, which may lie where nobody may write."""
    folder = folder.resolve()
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return home() / "routing" / f"{folder.parent.name}-{folder.name[:12]}-{digest}.routes"


def lock_path(folder: Path) -> Path:
    """The lock of whoever makes the store `folder`."""
    return folder.parent / f".{folder.name}.lock"


def _is_pinned(store: StoredModel) -> bool:
    """Whether a branch, tag or commit that was asked for is this store."""
    refs = store.folder.parent / "refs"
    return any(_text_of(ref) == store.revision for ref in refs.glob("*"))


def _models_of(source: Source | Snapshot) -> Path:
    if isinstance(source, LocalFolder):
        path = source.path.resolve()
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
        slug = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', path.name) or 'folder'}-{digest}"
    else:
        slug = source.repo_id.replace("/", "--")
    return home() / "models" / slug


def _content_id(folder: Path) -> str:
    """Changes when a checkpoint's file is added, removed, resized or rewritten; its bytes are not read."""
    try:
        files = sorted(
            path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".jinja", ".model")
        )
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except OSError as error:
        raise _disk_failure("read", folder, error) from error
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:40]


def _revision_file(source: HubRepo) -> Path:
    return _models_of(source) / "refs" / quote(source.revision or DEFAULT_BRANCH, safe="")


def _recorded_commit(source: HubRepo) -> str | None:
    return _text_of(_revision_file(source))


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _disk_failure("read", parent, error) from error


def _stores_in(slug: Path) -> Iterator[StoredModel]:
    for folder in _folders(slug):
        store = read_store(folder)
        if store is not None:
            yield store


def read_store(folder: Path) -> StoredModel | None:
    """The store in a folder, if it is one."""
    manifest = read_json(folder / MANIFEST)
    source, files = manifest.get("source"), manifest.get("files")
    if folder.name.endswith(UNFINISHED) or not isinstance(source, str) or not isinstance(files, dict):
        return None
    revision, created = (str(manifest.get(key) or "") for key in ("revision", "created"))
    return StoredModel(_name(source), folder, source, revision, created, size_of(folder))


def _name(source: str) -> str:
    return next((entry.name for entry in CATALOG.values() if source in (entry.repo_id, entry.name)), source)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, which may go meanwhile."""
    total_bytes = 0
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        with contextlib.suppress(FileNotFoundError):
            total_bytes += file.lstat().st_size if file.is_file() else 0
    return total_bytes


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or nothing if it cannot be read as one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_text(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise _disk_failure("write", path, error) from error


def forget_slug(slug: Path) -> None:
    """Drop a model's folder when nothing of it is left."""
    if slug.is_dir() and all(path.name == "refs" or path.name.endswith(".lock") for path in slug.iterdir()):
        shutil.rmtree(slug, ignore_errors=True)


def _disk_failure(doing: str, path: Path, error: OSError) -> LocalR1Error:
    if is_full(error):
        return DiskError(f"no room on the disk for {path}", "free some space, or set LOCALR1_HOME to a larger disk")
    message = f"cannot {doing} {path}: {error.strerror or error}"
    if is_held(error):
        return AccessError(message, "another program may be using it, such as a localr1 chat: end that first")
    if isinstance(error, PermissionError):
        return AccessError(message, "check its permissions, or set LOCALR1_HOME to a folder of yours")
    return DiskError(message, "check the disk, or set LOCALR1_HOME to a folder on another one")
