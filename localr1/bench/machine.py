"""What figures depend on besides the model: the machine, the versions, and what the process took of it.

Knows nothing of models. Invariant: asking changes nothing and never fails; what cannot be known is None.
"""

import os
import platform
import sys
import time
from importlib import metadata
from typing import Any

import psutil
import torch

from localr1 import __version__
from localr1.placement.probe import processor_name


def machine() -> dict[str, Any]:
    """The machine and the versions that a report records."""
    return {
        "processor": processor_name(),
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": metadata.version("numba"),
        "localr1": __version__,
        "waiting_threads": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_average": _load_average(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _load_average() -> float | None:
    """Programs that wanted a processor in the last minute; far above 0 means that the machine was busy."""
    try:
        return round(psutil.getloadavg()[0], 2)
    except OSError:
        return None


def peak_rss_bytes() -> int:
    """The most RAM this process ever held, mapped weights included."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit_bytes = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
