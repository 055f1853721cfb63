"""How a phase's tasks are shared out, thread by thread as a test lets them go."""

import random

import numpy as np
import pytest

from localr1.kernels.team import MOST_RUNS, TEAM_NUMBERS, crew_of, take

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


def test_threads_in_step_read_in_one_stream_each() -> None:
    assert taken(2, 8, [0, 1] * 5) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_thread_without_work_helps_another_from_the_end() -> None:
    assert taken(2, 8, [0] * 6 + [1] * 3) == [[0, 1, 2, 3, 7, 6], [4, 5]]


def test_a_thread_alone_does_all() -> None:
    assert taken(3, 9, [1] * 10) == [[], [3, 4, 5, 8, 7, 6, 2, 1, 0], []]
