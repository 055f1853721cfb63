"""For all tests: one torch thread, since tiny models spend more time waking threads than computing; and with `-n`, who
runs what."""

import os
import signal
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

FIRST = ("kernels/test_features.py", "bench/test_claims.py")
"""They compile kernels of their own, which takes minutes once."""


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("numprocesses", None):  # or each of the processes would compile all kernels
        from localr1.kernels import compilation

        for _ in compilation.fill_disk():
            pass
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.split("::")[0].endswith(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A process takes one file after another, in our order: fixtures are often a file's own, and costly."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
