"""Which file may begin to arrive, where what has arrived stays on the disk until it is converted.

Owns the two rules; knows no network. Invariant: of files that are not let go of, there are at most as many bytes as
SHARDS_AT_ONCE of the largest have, unless nothing else could go on.
"""

from collections.abc import Mapping

from localr1.hub.remote import RemoteFile

SHARDS_AT_ONCE = 2
APART_BYTES = 256 << 20
APART_SHARE = 2
"""How far a file has come, at most, before the next one begins: were two whole at once, nothing would arrive while they
are converted."""


class Turns:
    def __init__(self, largest_bytes: int | None = None) -> None:
        """With the size of the largest file; None: all may begin."""
        self._limit_bytes = None if largest_bytes is None else SHARDS_AT_ONCE * largest_bytes
        self._held: dict[str, RemoteFile] = {}

    def take(self, file: RemoteFile, done_bytes: Mapping[str, int], idle: bool) -> bool:
        """Whether `file` may begin now, and if so, count it; `done_bytes` of each have come, `idle`: nothing comes."""
        if self._limit_bytes is not None and self._held and not idle:
            newest = next(reversed(self._held.values()))
            apart_bytes = min(APART_BYTES, newest.size_bytes // APART_SHARE)
            held_bytes = sum(held.size_bytes for held in self._held.values())
            if held_bytes + file.size_bytes > self._limit_bytes or done_bytes[newest.path] < apart_bytes:
                return False
        self._held[file.path] = file
        return True

    def end(self, name: str) -> RemoteFile | None:
        """A file is let go of; it is returned if it had begun."""
        return self._held.pop(name, None)
