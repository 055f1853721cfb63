"""Fetch all files of a model, as a program of its own, since the hub client reads its environment when imported.

    python -m tests.hub.run_fetch MODEL

Prints one JSON object a line: every event, then `{"snapshot": ...}` or `{"error": kind, ...}`. With TEST_NO_LINKS set,
this process can make neither symbolic nor hard links; TEST_CONNECTIONS bounds the files fetched at once.
"""

import json
import os
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from localr1.errors import LocalR1Error
from localr1.events import Event
from localr1.hub.catalog import resolve
from localr1.hub.download import Download
from localr1.hub.lookup import look_up, talking_to_hub
from localr1.hub.room import require
from localr1.hub.source import HubRepo, Snapshot

NO_STORE = 1 << 62
"""More than any store takes, so that no room for one is asked for."""


def fetch(repo: HubRepo, connections: int) -> Generator[Event, None, Snapshot]:
    """The files of `repo` in the Hugging Face cache; without a hub, the snapshot that is there in full."""
    with talking_to_hub(repo):
        found = yield from look_up(repo)
        if isinstance(found, Snapshot):
            return found
        with closing(Download(repo, found, connections=connections)) as download:
            for disk in download.plan(Path.home(), reserved_bytes=NO_STORE).disks:
                require(disk, str(repo))
            yield from download.small_files()
            download.start([file.path for file in found.shards])
            while not download.finished:
                yield from download.news(wait=True)
            download.publish()
            return download.snapshot


def refuse(*_: object) -> None:
    raise PermissionError("a required privilege is not held by the client")


def main() -> None:
    if os.environ.get("TEST_NO_LINKS"):
        Path.symlink_to = Path.hardlink_to = refuse
    try:
        source = resolve(sys.argv[1])
        assert isinstance(source, HubRepo)
        operation = fetch(source, connections=int(os.environ.get("TEST_CONNECTIONS", "4")))
        while True:
            event = next(operation)
            print(json.dumps({"event": type(event).__name__, **asdict(event)}), flush=True)
    except StopIteration as end:
        print(json.dumps({"snapshot": str(end.value.folder), "commit": end.value.commit}))
    except LocalR1Error as error:
        print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))
    except KeyboardInterrupt:
        print(json.dumps({"error": "KeyboardInterrupt"}))


if __name__ == "__main__":
    main()
