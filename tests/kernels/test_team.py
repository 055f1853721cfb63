"""How a phase's tasks are shared out, thread by thread as a test lets them go."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import njit

from localr1.kernels.team import MOST_RUNS, TEAM_NUMBERS, crew_of, take, take_several

PHASE = 3


def taken(threads: int, tasks: int, turns: list[int]) -> list[list[int]]:
    """The tasks of each thread, in the order in which it took them, when threads take turns."""
    counters = np.zeros(TEAM_NUMBERS, np.int64)
    crews = [crew_of(counters.ctypes.data, me, threads) for me in range(threads)]
    found: list[list[int]] = [[] for _ in range(threads)]
    for me in turns:
        if (task := take(crews[me], PHASE, tasks)) < tasks:
            found[me].append(task)
    return found


@pytest.mark.parametrize("threads", [1, 2, 3, MOST_RUNS, MOST_RUNS + 3])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 64, 1000])
def test_every_task_is_taken_once(threads: int, tasks: int) -> None:
    noise = random.Random(threads + tasks)
    turns = [me for me in range(threads) for _ in range(tasks + 2)]
    noise.shuffle(turns)
    assert sorted(task for mine in taken(threads, tasks, turns) for task in mine) == list(range(tasks))


def taken_several(threads: int, tasks: int, most: int, turns: list[int]) -> list[list[range]]:
    """As `taken`, up to `most` at a time."""
    counters = np.zeros(TEAM_NUMBERS, np.int64)
    crews = [crew_of(counters.ctypes.data, me, threads) for me in range(threads)]
    found: list[list[range]] = [[] for _ in range(threads)]
    for me in turns:
        first, count = take_several(crews[me], PHASE, tasks, most)
        if count:
            found[me].append(range(first, first + count))
    return found


@pytest.mark.parametrize("threads", [1, 2, 3, MOST_RUNS, MOST_RUNS + 3])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 64, 1000])
@pytest.mark.parametrize("most", [2, 8, 2000])
def test_every_task_is_taken_once_several_at_a_time(threads: int, tasks: int, most: int) -> None:
    noise = random.Random(threads + tasks + most)
    turns = [me for me in range(threads) for _ in range(tasks + 2)]
    noise.shuffle(turns)
    runs = [run for mine in taken_several(threads, tasks, most, turns) for run in mine]
    assert sorted(task for run in runs for task in run) == list(range(tasks))
    assert all(len(run) <= most for run in runs)


@njit(nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def take_all(crew, tasks, most, times):  # type: ignore[no-untyped-def]
    """A thread's share of a phase; counts how often each task was taken."""
    task, count = take_several(crew, PHASE, tasks, most)
    while count:
        times[task : task + count] += 1
        task, count = take_several(crew, PHASE, tasks, most)


def test_threads_that_take_at_once_never_take_the_same() -> None:
    """What a thread saw may no longer be so when it takes."""
    threads, tasks = 4, 4_000_000
    counters = np.zeros(TEAM_NUMBERS, np.int64)
    times = np.zeros((threads, tasks), np.int8)
    crew = crew_of(counters.ctypes.data, 0, 2)  # all from the front of one run, then from the end of another
    take_all(crew, 0, 2, times[0])  # compiles it
    counters[:] = 0
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda me: take_all(crew, tasks, 2, times[me]), range(threads)))
    assert (times.sum(axis=0) == 1).all()


def test_a_thread_takes_fewer_towards_the_end() -> None:
    own = [range(8), range(8, 14), range(14, 17), range(17, 18), range(18, 19), range(19, 20)]
    others = [range(32, 40), range(26, 32), range(23, 26), range(22, 23), range(21, 22), range(20, 21)]
    assert taken_several(2, 40, 8, [0] * 20) == [own + others, []]


def test_threads_in_step_read_in_one_stream_each() -> None:
    assert taken(2, 8, [0, 1] * 5) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_thread_without_work_helps_another_from_the_end() -> None:
    assert taken(2, 8, [0] * 6 + [1] * 3) == [[0, 1, 2, 3, 7, 6], [4, 5]]


def test_a_thread_alone_does_all() -> None:
    assert taken(3, 9, [1] * 10) == [[], [3, 4, 5, 8, 7, 6, 2, 1, 0], []]
