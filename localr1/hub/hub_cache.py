"""The Hugging Face cache of this computer, as other tools know it.

Owns the paths of one repository's blobs, snapshots and refs, adding a finished file, and the memory of which files were
hashed. Never fetches. Invariants: a blob under its own name is whole; unfinished ones are called `*.incomplete`; what
is called `*.localr1*` is this program's alone, and only that does it ever remove without finding it damaged.
"""

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from localr1.errors import LocalR1Error, expanded
from localr1.hub.cache import home, read_json, write_text
from localr1.hub.remote import Digest, RemoteFile, needed_files
from localr1.hub.source import HubRepo

READ_BYTES = 1 << 20
COMMIT = re.compile(r"[0-9a-f]{40}")
OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def hub_cache_folder() -> Path:
    """Where the hub's own client keeps files. Raises NotFoundError where that is in the home of no user."""
    return expanded(constants.HF_HUB_CACHE, "HF_HUB_CACHE")


class HubCache:
    """One repository's folder in the cache."""

    def __init__(self, repo: HubRepo) -> None:
        self._repo = repo
        self.root = hub_cache_folder()
        self._name = f"models--{repo.repo_id.replace('/', '--')}"
        self.folder = self.root / self._name

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, oid: str) -> Path:
        return self.folder / "blobs" / oid

    def unfinished(self, oid: str) -> Path:
        """Ours alone: the client names its own otherwise, and throws them away."""
        return self.folder / "blobs" / f"{oid}.localr1.incomplete"

    def private(self, oid: str) -> Path:
        """A whole file that only this program knows of, and will remove when its tensors are in the store."""
        return self.folder / "blobs" / f"{oid}.localr1"

    def find(self, file: RemoteFile, commit: str) -> Path | None:
        """The file's content if it is here with the right size, from this commit or another, everyone's or ours."""
        for path in (self.snapshot(commit) / file.path, self.blob(file.oid), self.private(file.oid)):
            with contextlib.suppress(OSError):
                if path.stat().st_size == file.size_bytes:
                    return path
        return None

    def unfinished_bytes(self, file: RemoteFile) -> int:
        try:
            return min(self.unfinished(file.oid).stat().st_size, file.size_bytes)
        except OSError:
            return 0

    def discard(self, file: RemoteFile, commit: str) -> None:
        """Forget a file whose content is wrong, under all of its names."""
        pointer, blob = self.snapshot(commit) / file.path, self.blob(file.oid or "none")
        self.private(file.oid or "none").unlink(missing_ok=True)
        for path in (pointer.resolve(), blob.resolve(), pointer, blob):
            path.unlink(missing_ok=True)

    def make_folders(self, commit: str) -> None:
        self.blob("").mkdir(parents=True, exist_ok=True)
        self.snapshot(commit).mkdir(parents=True, exist_ok=True)

    def add(self, file: RemoteFile, commit: str, content: Path) -> None:
        """Give content that was found or received its two names, the blob's and the commit's file's."""
        pointer, blob = self.snapshot(commit) / file.path, self.blob(file.oid)
        if content == pointer:
            return
        if content != blob:
            content.replace(blob)
        pointer.unlink(missing_ok=True)
        _link(blob, pointer)

    def keep_private(self, file: RemoteFile, content: Path) -> Path:
        """Give content that was received its name as ours; returns it."""
        return content.replace(self.private(file.oid))

    def release(self, file: RemoteFile) -> None:
        """Remove what is ours of a file, whole or not; what other tools know of stays."""
        for path in (self.private(file.oid), self.unfinished(file.oid)):
            path.unlink(missing_ok=True)

    def set_ref(self, revision: str, commit: str) -> None:
        """What the hub says that a branch or tag is now."""
        if not COMMIT.fullmatch(revision):
            ref = self.folder / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, encoding="utf-8")

    def local_commit(self) -> str | None:
        """The commit that the revision meant when the hub was last asked."""
        revision = self._repo.revision or constants.DEFAULT_REVISION
        if COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def local_files(self, commit: str) -> list[RemoteFile] | None:
        """The needed files of a snapshot, if it is whole; sizes and hashes are what the cache says of itself."""
        folder = self.snapshot(commit)
        try:
            names = [path.name for path in folder.iterdir() if path.is_file()]
            needed = needed_files(names, str(self._repo))
        except (OSError, LocalR1Error):
            return None
        if not _shards(folder) <= set(names):
            return None
        return [_describe(folder / name) for name in sorted(needed)]

    @property
    def lock_path(self) -> Path:
        """Held while a repository is fetched."""
        return self.root / ".locks" / self._name / "localr1.lock"


def _shards(folder: Path) -> set[str]:
    """The names that the indexes promise."""
    promised: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        weight_map = read_json(index).get("weight_map")
        promised |= {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else {index.name + "?"}
    return promised


def _describe(path: Path) -> RemoteFile:
    target = path.resolve()
    return RemoteFile(path.name, target.stat().st_size, target.name if OID.fullmatch(target.name) else "")


def _link(blob: Path, pointer: Path) -> None:
    """A relative symlink as the client makes it; where those are not allowed (Windows) a hard link, else the file."""
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        try:
            pointer.hardlink_to(blob)
        except OSError:
            blob.replace(pointer)


class HashedFiles:
    """Which files were hashed, as they are now: path, size and time of change to the hash that was right."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path = home() / "hashed-files.json"
        self._known: dict[str, Any] = read_json(self._path)

    def knows(self, path: Path, oid: str) -> bool:
        return self._known.get(str(path.resolve())) == self._state(path, oid)

    def add(self, path: Path, oid: str) -> None:
        with self._lock:
            self._known = {known: state for known, state in self._known.items() if Path(known).exists()}
            self._known[str(path.resolve())] = self._state(path, oid)
            write_text(self._path, json.dumps(self._known, indent=1) + "\n")

    @staticmethod
    def _state(path: Path, oid: str) -> list[Any]:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns, oid]


def hash_into(digest: Digest, path: Path) -> Iterator[int]:
    """Feed a file to a hash; yields the bytes read so far."""
    done_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
            done_bytes += len(chunk)
            yield done_bytes


def remember(path: Path, content: bytes) -> None:
    """Write a small file whole, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".new")
        scratch.write_bytes(content)
        scratch.replace(path)
