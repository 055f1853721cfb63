"""What was written to a store, made safe by a thread of its own while more is converted.

Owns the order of things: on the disk, read back, and only then in the journal. Knows nothing of sources. Invariant:
what is `safe` would survive a power loss, and was read back as it was written.
"""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from localr1.errors import DiskError
from localr1.weights.file_writer import FileWriter
from localr1.weights.journal import Digests, Journal

BEHIND = 8
"""Batches that may wait; whoever writes faster than the disk waits then, too."""

Written = Mapping[str, Digests]
"""Tensors, and what was written for each."""


class Safekeeping:
    def __init__(self, writer_of: Mapping[str, FileWriter], journal: Journal) -> None:
        self._writer_of, self._journal = writer_of, journal
        self._thread = ThreadPoolExecutor(1, "store")
        self._batches: deque[tuple[Future[None], dict[str, Digests]]] = deque()

    def __len__(self) -> int:
        """Batches that `safe` has not told of."""
        return len(self._batches)

    def keep(self, written: Written, known: Written) -> None:
        """Begin to make safe what was `written`, and then to note what is `known` to be right, of this or earlier."""
        batch = dict(known)
        self._batches.append((self._thread.submit(self._keep, dict(written), batch), batch))

    def safe(self, behind: int = BEHIND) -> list[str]:
        """The tensors that were noted since the last call; waits while more than `behind` batches are left. Raises
        DiskError, OSError."""
        names: list[str] = []
        while self._batches and (len(self._batches) > behind or self._batches[0][0].done()):
            self._batches[0][0].result()
            names += self._batches.popleft()[1]
        return names

    def close(self) -> dict[str, Digests]:
        """Return when nothing is under way, with what is known to be right and was not noted."""
        self._thread.shutdown(cancel_futures=True)
        cancelled = [batch for future, batch in self._batches if future.cancelled()]
        return {name: digests for batch in cancelled for name, digests in batch.items()}

    def _keep(self, written: Written, known: Written) -> None:
        parts = {part: digest for digests in written.values() for part, digest in digests.items()}
        writers = {self._writer_of[part] for part in parts}
        for writer in writers:
            writer.sync()
        for writer in writers:
            for part in [name for name in writer.names if name in parts]:
                if not writer.written(part, parts[part]):
                    raise DiskError(f"{writer.path} does not hold what was written to it ({part})", "check the disk")
        self._journal.add(known, durable=True)
