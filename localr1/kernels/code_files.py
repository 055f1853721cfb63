"""Compiled code on the disk: a file for each function, signature, processor and version of the sources.

Takes the place of numba's own files, an index beside numbered ones. There the index is written first and by whoever
comes last, so of two processes that compile at once, or of one that is stopped in between, it can name another
signature's code or that of older sources, and a file that a power loss cut short ends every later run. Invariants:
what `load` returns was saved whole and for that key; what cannot be read, or cannot be written, is compiled again.
"""

import hashlib
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core.serialize import dumps

DIGEST_BYTES = 32


class CodeFiles:
    """Of one function; with the methods that numba's `Cache` calls of its `_cache_file`."""

    def __init__(self, folder: Path, name: str, stamp: bytes) -> None:
        """`stamp`: of all sources that the code comes from."""
        self._folder, self._name = folder, name
        self._version = hashlib.sha256(stamp + numba.__version__.encode()).hexdigest()[:16]

    def load(self, key: Any) -> Any | None:
        """What was saved with this key, or None."""
        try:
            content = self._path(key).read_bytes()
            digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
            if hashlib.sha256(code).digest() != digest:
                return None
            saved_key, data = pickle.loads(code)
        except Exception:  # of a damaged file, or of one that another program wrote, anything may be said
            return None
        return data if saved_key == key else None

    def save(self, key: Any, data: Any) -> None:
        """Keep `data`, if the disk takes it; what older sources left goes."""
        code, path = dumps((key, data)), self._path(key)
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        with suppress(OSError):
            try:
                scratch.write_bytes(hashlib.sha256(code).digest() + code)
                scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)
            for older in self._folder.glob(f"{self._name}.*"):
                if self._version not in older.name:
                    older.unlink(missing_ok=True)

    def holds(self, key: Any) -> bool:
        """Whether there is a file for this key."""
        return self._path(key).exists()

    def flush(self) -> None:
        """Forget everything."""
        for path in self._folder.glob(f"{self._name}.*"):
            path.unlink(missing_ok=True)

    def _path(self, key: Any) -> Path:
        return self._folder / f"{self._name}.{self._version}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"
