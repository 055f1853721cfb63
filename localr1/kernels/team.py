"""Threads that go through the phases of one call together, within one parallel region.

Owns the sharing out of a phase's tasks and the waiting for its end. A phase's tasks lie in runs, one for each thread,
which takes those of its own run from the front, then what is left of others' from their ends (`take`): so a thread
reads memory in one stream, and none is idle while there is work. Of small tasks it takes several at once, and fewer
towards the end, so that all threads end together (`take_several`). It tells how many it has done (`finish`), and waits
until all are done (`settle`). It waits only for tasks that a running thread has taken, so a team of which some threads
never come, or come late, still gets to the end. Waiting spins, since phases take microseconds; after a while it sleeps
in short naps, for the thread it waits for may be in need of this very core.
"""

import sys
from typing import Any

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from localr1.kernels.arena import LINE_BYTES
from localr1.kernels.features import BITS
from localr1.kernels.jit import address_of, call_at, clear, compiled, stay_out_of_line, used

MOST_RUNS = 16
"""More threads share these."""

CAME, DONE, RUNS = 0, LINE_BYTES, 2 * LINE_BYTES
PHASE = (2 + MOST_RUNS) * LINE_BYTES
"""Places of a phase's counters, in bytes: threads that came, tasks done, and of each run how many tasks were taken from
its front and, in the upper half, from its end: one addition tells both, so no task is taken twice."""

FRONT, END = 1, 1 << 32

SHARE_BITS = 16
"""Of a run's length, behind the point."""

TEAM_NUMBERS = 7 * PHASE // 8
"""The counters of the job with the most phases."""

PATIENT_SPINS = 2000
"""Pauses, some tens of microseconds, before a waiting thread sleeps."""

NAP_US = 20
"""Of sleep at a time; the system's timer adds some tens."""

I64 = ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def fetch_and_add(typing_context: Any, address: Any, amount: Any) -> Any:
    """Atomically add to the int64 at an address; returns what it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def fetch(typing_context: Any, address: Any) -> Any:
    """Atomically read the int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def pause(typing_context: Any) -> Any:
    """Tell the processor that this is a loop that waits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if BITS:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def nap(typing_context: Any) -> Any:
    """Sleep for a moment. To yield is not enough: Linux then goes on with the same group of processes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        if sys.platform == "win32":
            kind = ir.FunctionType(word, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "SwitchToThread"), [])
        else:
            kind = ir.FunctionType(word, [word])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "usleep"), [word(NAP_US)])
        return context.get_dummy_value()

    return types.void(), codegen


@compiled(inline=True)
def crew_of(team_at, me, threads):  # type: ignore[no-untyped-def]
    """What a thread has to know of its team: where the counters are, its run, and how many runs and threads there are.

    Only numbers: an array in a tuple would be counted at every use.
    """
    runs = min(threads, MOST_RUNS)
    return team_at, me % runs, runs, threads


@compiled(inline=True)
def threads_of(crew):  # type: ignore[no-untyped-def]
    """How many threads there are."""
    return crew[3]


@compiled(inline=True)
def come(crew, phase):  # type: ignore[no-untyped-def]
    """How many threads came to this phase before."""
    return fetch_and_add(crew[0] + PHASE * phase + CAME, 1)


@compiled(inline=True)
def take_from(crew, phase, tasks, run, side, most):  # type: ignore[no-untyped-def]
    """The next tasks of a run, from its front or its end: the first one's number, and how many, which is 0 when none is
    left. At most half of what is left and `most`, but one at least."""
    share = ((tasks << SHARE_BITS) + crew[2] - 1) // crew[2]  # rounded up, so that the last run ends with the tasks
    first, end = run * share >> SHARE_BITS, (run + 1) * share >> SHARE_BITS
    at, wanted = crew[0] + PHASE * phase + RUNS + LINE_BYTES * run, 1
    if most > 1:
        seen = fetch(at)
        wanted = max(1, min(most, (end - first - (seen & (END - 1)) - (seen >> 32)) // 2))
    taken = fetch_and_add(at, wanted * side)
    from_front, from_end = taken & (END - 1), taken >> 32
    count = max(0, min(wanted, end - first - from_front - from_end))  # others may have taken some since then
    return first + from_front if side == FRONT else end - from_end - count, count


@compiled()
def take_of_others(crew, phase, tasks, most):  # type: ignore[no-untyped-def]
    """The next tasks of another's run, as `take_from` says."""
    stay_out_of_line()
    task, count, run, runs = tasks, 0, crew[1], crew[2]
    for _ in range(runs - 1):
        run = run + 1 if run + 1 < runs else 0
        task, count = take_from(crew, phase, tasks, run, END, most)
        if count:
            break
    return task, count


@compiled(inline=True)
def take_several(crew, phase, tasks, most):  # type: ignore[no-untyped-def]
    """The next tasks of a phase for this thread, at most `most` and fewer towards the end: the first one's number, and
    how many; 0 when none is left."""
    task, count = take_from(crew, phase, tasks, crew[1], FRONT, most)
    if count == 0:
        task, count = take_of_others(crew, phase, tasks, most)
    return task, count


@compiled(inline=True)
def take(crew, phase, tasks):  # type: ignore[no-untyped-def]
    """The number of the next task of a phase for this thread; `tasks` when none is left."""
    task, count = take_several(crew, phase, tasks, 1)
    return task if count else tasks


@compiled(inline=True)
def finish(crew, phase, tasks):  # type: ignore[no-untyped-def]
    """So many tasks that this thread has taken are done, and what they wrote may be read after `settle`."""
    fetch_and_add(crew[0] + PHASE * phase + DONE, tasks)


@compiled()
def settle(crew, phase, tasks):  # type: ignore[no-untyped-def]
    """Wait until all tasks of a phase are done; called when none is left to take."""
    at, spins = crew[0] + PHASE * phase + DONE, 0
    while fetch(at) < tasks:
        if spins < PATIENT_SPINS:
            spins += 1
            pause()
        else:
            nap()


@compiled()
def meet(left, entered):  # type: ignore[no-untyped-def]
    """Wait until as many have left as have entered; `left` is read first, so that equal means nobody is inside."""
    spins = 0
    while fetch(left) != fetch(entered):
        if spins < PATIENT_SPINS:
            spins += 1
            pause()
        else:
            nap()


@compiled(parallel=True)
def launch(code, frame, team, threads):  # type: ignore[no-untyped-def]
    """Run a job, the C function at `code`, on every thread of a new team. A job gets the address of `frame` and the
    thread's number.

    All jobs go through this one function, since a parallel region takes long to compile.
    """
    clear(team)
    at = address_of(frame)
    if threads == 1:
        call_at(code, at, 0)
    else:
        for me in prange(threads):
            call_at(code, at, me)
    used(frame)
    used(team)
