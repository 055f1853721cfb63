"""Files and folders that are there in whole after a power loss, or not at all.

Owns the order of writing, syncing and renaming. Knows nothing of what is written.
"""

import os
import shutil
import time
from pathlib import Path

from localr1.errors import is_held

WAITS_S = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Between tries to rename what another program looks at."""


def write_safely(path: Path, content: bytes) -> None:
    """A small file that would survive a power loss once its folder does."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replaced_folder(folder: Path) -> Path:
    """Where what was at `folder` lies for the moment in which another takes its place."""
    return folder.with_name(folder.name + ".old")


def replace_folder(whole: Path, folder: Path) -> None:
    """Put a whole folder in the place of an old one, if there is one, which stays where that fails. Raises OSError."""
    old = replaced_folder(folder)
    _forget(old)
    _keep_names(whole)
    if folder.exists():
        _rename(folder, old)
    try:
        _rename(whole, folder)
    except OSError:
        if old.exists():
            _rename(old, folder)
        raise
    _keep_names(folder.parent)
    _forget(old)


def _forget(folder: Path) -> None:
    """Remove a folder that nobody needs any more; of one that lies elsewhere, the link to it."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: Path, name: Path) -> None:
    """Rename a folder, of whose files a scanner may just be looking at one: Windows refuses that."""
    for pause_s in WAITS_S:
        try:
            folder.rename(name)
            return
        except OSError as error:
            if not is_held(error):
                raise
            time.sleep(pause_s)
    folder.rename(name)


def _keep_names(folder: Path) -> None:
    """Return once the names in a folder would survive a power loss, where the system can tell."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
