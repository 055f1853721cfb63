"""Several jobs, one after another, within one parallel region: the layers of a model without a return to Python.

Owns the gates between jobs. Jobs share one arena and take turns with two sets of team counters, so a thread may begin a
job only when no other is still inside the one before. A thread that comes late finds a job closed and leaves it out; so
a team of which some threads never come still gets to the end.
"""

from localr1.kernels.arena import LINE_BYTES, int64s_at
from localr1.kernels.jit import address_of, call_at, clear, compiled, used
from localr1.kernels.team import TEAM_NUMBERS, fetch, fetch_and_add, launch, meet

JOBS, CODES, FRAMES, GATES, TEAMS, FRAME = range(6)
"""Places in a frame: how many jobs; the addresses of each one's code and of its frame; the gates; two teams."""

ENTERED, LEFT, CLOSED = 0, 8, 16
"""Places in a gate, a cache line, in bytes."""

GATE_NUMBERS = LINE_BYTES // 8


@compiled()
def run_stack(code, frame, team, gates, teams, threads):  # type: ignore[no-untyped-def]
    """Open the gates and run the jobs of a frame that is told already."""
    clear(gates)
    clear(teams)
    frame[GATES], frame[TEAMS] = address_of(gates), address_of(teams)
    launch(code, frame, team, threads)
    used(gates)
    used(teams)


@compiled()
def stack_job(frame_at, me):  # type: ignore[no-untyped-def]
    """A thread's share of all jobs."""
    frame = int64s_at(frame_at, FRAME)
    jobs = frame[JOBS]
    codes, frames = int64s_at(frame[CODES], jobs), int64s_at(frame[FRAMES], jobs)
    teams = int64s_at(frame[TEAMS], 2 * TEAM_NUMBERS)
    for job in range(jobs):
        gate = frame[GATES] + job * LINE_BYTES
        fetch_and_add(gate + ENTERED, 1)
        if fetch(gate + CLOSED) == 0:
            call_at(codes[job], frames[job], me)
            if fetch_and_add(gate + CLOSED, 1) == 0:  # nobody uses the other team's counters any more, or yet
                other = (job + 1) % 2 * TEAM_NUMBERS
                clear(teams[other : other + TEAM_NUMBERS])
        fetch_and_add(gate + LEFT, 1)
        meet(gate + LEFT, gate + ENTERED)
