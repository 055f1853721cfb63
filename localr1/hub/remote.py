"""What a repository of the hub holds, and which of its files a model needs.

Owns the listing of one commit and the choice of files. Fetches no file and writes nothing. Invariant: every
`RemoteFile.path` is a plain file name, so it cannot leave the folder it is put in.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from json import JSONDecodeError
from typing import Protocol

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo, RepoFile

from localr1 import __version__
from localr1.errors import NetworkError, UnsupportedError
from localr1.hub.source import HubRepo

API_TIMEOUT_S = 30.0
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "chat_template*",
    "tiktoken.model",
    "*.safetensors.index.json",
)
SINGLE, INDEX, SHARDS = "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MOST_NAMED_FILES = 4


class Digest(Protocol):
    """A running hash."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit. `oid` is the sha256 of a large file, and the git blob's sha1 of a small one."""

    path: str
    size_bytes: int
    oid: str

    @property
    def is_shard(self) -> bool:
        return self.path.endswith(".safetensors")

    def new_digest(self) -> Digest:
        """An empty hash that gives `oid` once it has seen the whole file."""
        return new_digest(self.oid, self.size_bytes)


@dataclass(frozen=True)
class Listing:
    """The files of one commit that the model needs, small ones first, and what the hub says of the model.

    `parameters` counts the numbers in the weights, 0 where the hub does not say; `gated` is empty, "auto" or "manual".
    """

    commit: str
    files: tuple[RemoteFile, ...]
    licence: str = ""
    gated: str = ""
    parameters: int = 0

    @property
    def shards(self) -> tuple[RemoteFile, ...]:
        return tuple(file for file in self.files if file.is_shard)

    @property
    def small(self) -> tuple[RemoteFile, ...]:
        return tuple(file for file in self.files if not file.is_shard)


def new_digest(oid: str, size_bytes: int) -> Digest:
    """The hash that made `oid`: 64 hex digits are sha256, 40 are git's sha1 of "blob SIZE\\0" and the bytes."""
    if len(oid) == hashlib.sha256().digest_size * 2:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)


def list_files(repo: HubRepo) -> Listing:
    """Ask the hub for a revision's commit and the needed files. Raises the client's errors and UnsupportedError."""
    api = _api()
    with _answer_of(api):
        info = _info(api, repo, API_TIMEOUT_S)
        tree = api.list_repo_tree(repo.repo_id, recursive=True, revision=info.sha)
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    needed = needed_files((entry.path for entry in entries), str(repo))
    files = [
        RemoteFile(entry.path, entry.lfs.size, entry.lfs.sha256)
        if entry.lfs
        else RemoteFile(entry.path, entry.size, entry.blob_id)
        for entry in entries
        if entry.path in needed
    ]
    files.sort(key=lambda file: (file.is_shard, file.path))
    counts = info.safetensors.parameters if info.safetensors else {}
    return Listing(str(info.sha), tuple(files), _licence(info, repo), str(info.gated or ""), sum(counts.values()))


def newest_commit(repo: HubRepo, timeout_s: float) -> str:
    """The commit that the revision is now. Raises the client's errors."""
    api = _api()
    with _answer_of(api):
        return str(_info(api, repo, timeout_s).sha)


def _api() -> HfApi:
    return HfApi(library_name="localr1", library_version=__version__)


def _info(api: HfApi, repo: HubRepo, timeout_s: float) -> ModelInfo:
    info = api.model_info(repo.repo_id, revision=repo.revision, timeout=timeout_s)
    if not info.sha:
        raise NetworkError(f"{api.endpoint} does not say which commit {repo} is", "check HF_ENDPOINT")
    return info


@contextmanager
def _answer_of(api: HfApi) -> Iterator[None]:
    try:
        yield
    except (JSONDecodeError, KeyError, TypeError) as error:
        hint = "check HF_ENDPOINT, and whether this network wants you to sign in first"
        raise NetworkError(f"the answer of {api.endpoint} is not a model hub's", hint) from error


def _licence(info: ModelInfo, repo: HubRepo) -> str:
    tags = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    return tags[0] if tags else repo.entry.licence if repo.entry else ""


def needed_files(paths: Iterable[str], model: str) -> set[str]:
    """The top-level files to fetch: configuration, tokenizer and safetensors.

    Where the usual shard names exist, other safetensors (copies in another layout) are left out; where there are shards
    with an index and one whole file, the shards are taken, as they are of a folder. Raises UnsupportedError, naming the
    files, when the weights are pickles, GGUF or absent: pickles can run code when read.
    """
    names = [path for path in paths if "/" not in path and "\\" not in path and not path.startswith(".")]
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise _no_weights(names, model)
    if "config.json" not in names:
        raise UnsupportedError(f"{model} has no config.json", "choose a repository with a whole transformers model")
    shards = [name for name in weights if fnmatch(name, SHARDS)]
    single = [SINGLE] if SINGLE in weights and not (shards and INDEX in names) else []
    small = [name for name in names if any(fnmatch(name, pattern) for pattern in SMALL_FILES)]
    return {*([*shards, *single] or weights), *small}


def _no_weights(names: list[str], model: str) -> UnsupportedError:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return UnsupportedError(
            f"{model} has its weights only as pickles, which can run code: {_name(pickles)}",
            "choose a repository with .safetensors files, or convert these on a machine you can lose",
        )
    quantized = [name for name in names if name.endswith(".gguf")]
    if quantized:
        return UnsupportedError(
            f"{model} has only GGUF files: {_name(quantized)}",
            "choose the original repository, with .safetensors files; this program quantizes by itself",
        )
    return UnsupportedError(f"{model} has no .safetensors files", "choose a repository that holds a model's weights")


def _name(names: list[str]) -> str:
    more = len(names) - MOST_NAMED_FILES
    return ", ".join(names[:MOST_NAMED_FILES]) + (f" and {more} more" if more > 0 else "")
