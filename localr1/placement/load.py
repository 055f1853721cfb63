"""How busy other programs keep this computer while something is measured.

Knows nothing of what is measured. Invariant: asking changes nothing and takes no time worth mentioning.
"""

import time

import psutil

BUSY_SHARE = 0.2
"""Of the processors' time taken by other programs: above it, measured speeds say little."""


class OtherPrograms:
    """How much of the processors other programs took since this was made."""

    def __init__(self) -> None:
        self._begin = self._now()

    def share(self) -> float:
        """Between 0 and 1."""
        (busy_s, all_s, own_s), (busy_began_s, all_began_s, own_began_s) = self._now(), self._begin
        others_s = (busy_s - busy_began_s) - (own_s - own_began_s)
        return min(max(others_s / max(all_s - all_began_s, 1e-9), 0.0), 1.0)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of all processors' work, of all their time, and of this process's work."""
        times, own = psutil.cpu_times(), time.process_time()
        all_s = sum(getattr(times, name) for name in times._fields if not name.startswith("guest"))
        return all_s - times.idle - getattr(times, "iowait", 0.0), all_s, own
