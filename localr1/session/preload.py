"""Loads torch's shared libraries ahead of `import torch`, so that Python's other threads run meanwhile.

Owns nothing but that. An import holds Python's lock while the system maps, links and initializes hundreds of megabytes,
and Ctrl-C is not heard for as long (0.3 s from a warm disk). A foreign call does not hold it. Invariant: where this
does not work nothing changes, since the import then loads what it needs by itself.
"""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

LIBRARIES = ("libtorch_cpu.so", "libtorch_cuda.so")


def preload_torch() -> None:
    """Call it after `unify_openmp` and before the first `import torch`."""
    found = importlib.util.find_spec("torch") if sys.platform == "linux" and "torch" not in sys.modules else None
    if found is None or found.origin is None:
        return
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for name in LIBRARIES:
        library = Path(found.origin).parent / "lib" / name
        if library.exists():
            dlopen(os.fsencode(library), os.RTLD_NOW)
