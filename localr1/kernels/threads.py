"""How many threads the kernels use, and that they and torch's share one pool.

Owns the OpenMP runtime's unity: two copies of it in one process would each keep a spinning pool. Invariant: a kernel
never uses more threads than `set_threads` allowed; the default is one a physical core that this process may run on.
"""

import os
import sys

import numba
import psutil

SHORT_SPIN = "2000"


def physical_cores() -> int:
    """Physical cores that this process may run on; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else psutil.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def unify_openmp() -> None:
    """Load numba's OpenMP layer, so that a torch imported afterwards uses the same runtime.

    Call it before the first `import torch`; later it is harmless and too late. Without an OpenMP runtime on the machine
    numba chooses another layer by itself. Threads sleep while they wait for each other, unless the user said otherwise:
    where other programs want the cores too, threads that spin instead were a hundred times slower. GNU's runtime may
    let them spin for some tens of microseconds first, which is about what waking one costs.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", SHORT_SPIN)
    try:
        import numba.np.ufunc.omppool
    except ImportError:
        return
    numba.config.THREADING_LAYER = "omp"


def set_threads(count: int | None = None) -> int:
    """Use `count` threads from now on (all physical cores when None); returns the number in force."""
    wanted = physical_cores() if count is None else count
    numba.set_num_threads(max(1, min(wanted, numba.config.NUMBA_NUM_THREADS)))
    return threads()


def threads() -> int:
    """The number of threads in force."""
    return int(numba.get_num_threads())
