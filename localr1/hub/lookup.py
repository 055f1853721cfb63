"""What the hub has of a model, asked with care: in time, alone, and with an answer also when there is no hub.

Owns the conversation with the hub before the first file, and who may hold it. Fetches no file. Invariant: what is told
of a snapshot without the hub was verified against the hashes under which it was stored.
"""

import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from threading import Thread

from huggingface_hub import is_offline_mode
from huggingface_hub.errors import OfflineModeIsEnabled

from localr1.errors import CorruptError, NetworkError
from localr1.events import Event, FetchProgress, Notice
from localr1.hub.cache import COMMIT_PREFIX
from localr1.hub.failures import explain
from localr1.hub.hub_cache import HashedFiles, HubCache, hash_into
from localr1.hub.lock import only_one
from localr1.hub.remote import Listing, list_files, newest_commit
from localr1.hub.source import HubRepo, Snapshot

CHECK_TIMEOUT_S = 3.0


@contextmanager
def talking_to_hub(repo: HubRepo) -> Iterator[None]:
    """Be the only process that fetches `repo`; the client's failures come out as LocalR1Error."""
    try:
        with (
            _quiet_client(),
            only_one(HubCache(repo).lock_path, f"another process is downloading {repo.repo_id}"),
        ):
            yield
    except Exception as error:
        failure = explain(error, repo)
        if failure is None or failure is error:
            raise
        raise failure from error


def look_up(repo: HubRepo) -> Generator[Event, None, Listing | Snapshot]:
    """What the hub has of `repo`; without a hub, the snapshot that is here in full, verified."""
    try:
        if is_offline_mode():
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        return list_files(repo)
    except Exception as error:
        return (yield from _without_hub(repo, HubCache(repo), error))


def newer_commit(repo: HubRepo, commit: str) -> str | None:
    """The commit that `repo` is by now, if the hub says within some seconds that it is no longer `commit`."""
    named = repo.revision is not None and bool(COMMIT_PREFIX.fullmatch(repo.revision))
    if is_offline_mode() or (named and commit.startswith(str(repo.revision))):
        return None
    answers: list[str] = []

    def ask() -> None:
        try:
            answers.append(newest_commit(repo, CHECK_TIMEOUT_S))
        except Exception:
            return  # no answer is an answer here: what is on the disk will do

    with _quiet_client():
        thread = Thread(target=ask, daemon=True)
        thread.start()
        thread.join(CHECK_TIMEOUT_S + 1)
    return next((answer for answer in answers if answer != commit), None)


def _without_hub(repo: HubRepo, cache: HubCache, error: Exception) -> Generator[Event, None, Snapshot]:
    """The snapshot that is here in full, if only the network is missing; otherwise the error."""
    failure = explain(error, repo)
    commit = cache.local_commit()
    files = cache.local_files(commit) if commit else None
    if not isinstance(failure, NetworkError) or commit is None or files is None:
        raise error
    if not is_offline_mode():
        yield Notice(f"{failure.message}; using {repo} as it was when last fetched ({commit[:12]})")
    total_bytes, done_bytes, hashed = sum(file.size_bytes for file in files), 0, HashedFiles()
    for file in files:
        content = cache.find(file, commit)
        if content is not None and file.oid and not hashed.knows(content, file.oid):
            digest = file.new_digest()
            for read_bytes in hash_into(digest, content):
                yield FetchProgress(file.path, read_bytes, file.size_bytes, done_bytes + read_bytes, total_bytes)
            if digest.hexdigest() != file.oid:
                cache.discard(file, commit)
                hint = "it was removed; go online and download the model again"
                raise CorruptError(f"{content} does not match its hash {file.oid}", hint)
        done_bytes += file.size_bytes
    return Snapshot(cache.snapshot(commit), repo.repo_id, commit)


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Keep the client's log lines off the terminal: what matters comes as events and errors."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
