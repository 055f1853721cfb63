"""Kernels compiled by several processes at once, for the disk, where this one would compile one after another.

Owns those processes: `python -m localr1.kernels.compile_ahead` reads names, a line each, and repeats each when it is
compiled. Invariants: they only spare time, since whoever loads a kernel compiles it if it is not on the disk; and they
end with whoever began them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

MOST_PROCESSES = 4
"""Of 300 MB each. More would wait for the longest one."""
NEWS_S = 1.0


def compile_ahead(groups: Sequence[Sequence[str]], processors: int) -> Iterator[tuple[str, int]]:
    """Have the named kernels compiled to the disk, those of a group by the same process; ends when all are, or when the
    processes have ended.

    Yields a name that is not compiled yet and how many are: at first, whenever that changes, and every `NEWS_S`.
    """
    waiting: SimpleQueue[Sequence[str]] = SimpleQueue()
    ended: SimpleQueue[str | None] = SimpleQueue()
    for names in groups:
        waiting.put(names)
    left = [name for names in groups for name in names]
    total = len(left)
    with ExitStack() as stack:
        working = 0
        for _ in range(min(processors, len(groups), MOST_PROCESSES)):
            with suppress(OSError):  # the system begins no more of them
                process = stack.enter_context(_process())
                thread = Thread(target=_hand_out, args=(waiting, process, ended), daemon=True)
                thread.start()
                stack.callback(thread.join)
                stack.callback(process.kill)
                working += 1
        while left and working:
            yield left[0], total - len(left)
            with suppress(Empty):
                name = ended.get(timeout=NEWS_S)
                if name is None:
                    working -= 1
                else:
                    left.remove(name)


def _hand_out(
    waiting: "SimpleQueue[Sequence[str]]", process: "subprocess.Popen[bytes]", ended: "SimpleQueue[str | None]"
) -> None:
    """Give a process one group after another, and tell what it has compiled; None when it compiles no more."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(Empty, OSError):
        while True:
            for name in waiting.get_nowait():
                line = name.encode() + b"\n"
                process.stdin.write(line)
                if process.stdout.readline() != line:
                    raise OSError(f"the process ended while it compiled {name}")
                ended.put(name)
    ended.put(None)


def _process() -> "subprocess.Popen[bytes]":
    """It finds this package wherever its own Python would look for one."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    command, pipe = [sys.executable, "-P", "-m", "localr1.kernels.compile_ahead"], subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment)


def main() -> None:
    from localr1.kernels import compilation

    wanted: SimpleQueue[str] = SimpleQueue()
    Thread(target=_read, args=(wanted,), daemon=True).start()
    while True:
        name = wanted.get()
        compilation.compile_to_disk(name)
        sys.stdout.buffer.write(name.encode() + b"\n")  # the same line end on every system
        sys.stdout.buffer.flush()


def _read(wanted: SimpleQueue[str]) -> None:
    """End with whoever writes the names, whatever is being compiled."""
    for line in sys.stdin:
        wanted.put(line.strip())
    os._exit(0)


if __name__ == "__main__":
    main()
