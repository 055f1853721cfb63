"""Data-parallel training on one machine: one single-threaded process a core, gradients summed once a step.

On a small CPU this beats one process with several threads: there is one point of waiting a step in place of thousands.
The first process is rank 0 and starts the others, which wait for it whenever it is stopped.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# Large blocks stay with the process and sit on huge pages; otherwise a fifth of the time goes into page faults.
_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "300000000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "20000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True)
class Workers:
    rank: int
    world: int

    def sum(self, x: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def from_first(self, x: Tensor) -> Tensor:
        if self.world > 1:
            dist.broadcast(x, 0)
        return x


def start(world: int, module: str = "tools.nano.train") -> Workers:
    """Called by every process of `python -m module`. Rank 0 starts itself again with the allocator's settings, then
    starts the others."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("NANO_RANK", "0"))
    if "NANO_MEETING" not in os.environ:
        meeting = tempfile.mktemp(prefix="nano-")
        environment = {**os.environ, **_ALLOCATOR, "NANO_MEETING": meeting, "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)
    if rank == 0:
        for other in range(1, world):
            environment = {**os.environ, "NANO_RANK": str(other)}
            subprocess.Popen([sys.executable, "-m", module, *sys.argv[1:]], env=environment)
    if world > 1:
        dist.init_process_group(
            "gloo", f"file://{os.environ['NANO_MEETING']}", timeout=timedelta(days=30), rank=rank, world_size=world
        )
    return Workers(rank, world)
