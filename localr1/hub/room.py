"""Whether what is to come fits on the disks.

Owns the sums by disk and the words when there is too little. Knows nothing of downloads.
"""

import shutil
from pathlib import Path

from localr1.errors import DiskError, existing_folder
from localr1.events import DiskNeed
from localr1.quantities import bytes_text

SPARE_BYTES = 64 << 20


def by_disk(needs: list[tuple[Path, int]]) -> tuple[DiskNeed, ...]:
    """What each disk must have room for; folders of one disk are added up."""
    disks: dict[int, DiskNeed] = {}
    for folder, needed_bytes in needs:
        existing = existing_folder(folder)
        device = existing.stat().st_dev
        before = disks[device].needed_bytes if device in disks else 0
        disks[device] = DiskNeed(str(existing), before + needed_bytes, shutil.disk_usage(existing).free)
    return tuple(disks.values())


def require(disk: DiskNeed, what: str) -> None:
    """Raise DiskError, saying how much is missing, when a disk has not the room that is needed."""
    missing_bytes = disk.needed_bytes + SPARE_BYTES - disk.free_bytes
    if disk.needed_bytes > 0 and missing_bytes > 0:
        raise DiskError(
            f"{what} needs {bytes_text(disk.needed_bytes)}, {disk.folder} has {bytes_text(disk.free_bytes)} free",
            f"free {bytes_text(missing_bytes)} more, or set HF_HOME and LOCALR1_HOME to larger disks",
        )
