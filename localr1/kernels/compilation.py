"""Which compiled functions there are, and their compilation ahead of the first use.

Owns the one signature each kernel is compiled for: read-only inputs (a mapped file is read-only; writable arrays fit
too), so that no call ever compiles a second version in the middle of an answer. Compiling everything takes a core about
two minutes once; numba keeps the result on disk, and loading it from there takes about a second. So other processes
compile (see `compile_ahead`), on as many cores as there are, and this one loads.
"""

import ctypes
import sys
from collections.abc import Collection, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

from numba import types

from localr1.kernels import (
    attention,
    attention_block,
    ceiling,
    embedding,
    feed_forward_block,
    ffn,
    gqa_block,
    head_block,
    linear,
    mla_block,
    mtp_front,
    norm,
    plain,
    stack,
    symbols,
)
from localr1.kernels.compile_ahead import compile_ahead
from localr1.kernels.features import BITS
from localr1.kernels.jit import JOB, job_address, on_disk
from localr1.kernels.threads import physical_cores


def array(element: Any, dimensions: int, writable: bool = False) -> Any:
    """The type of a C-contiguous array."""
    return types.Array(element, dimensions, "C", readonly=not writable)


F32, F64, I8, I64, U16 = types.float32, types.float64, types.int8, types.int64, types.uint16

LINEAR = (array(F32, 2), array(I8, 2), array(F32, 1), array(F32, 2, True), I64)
ROUTED_FFN = (array(F32, 2), array(I8, 2), array(F32, 2), array(I64, 2), array(F32, 2), array(F32, 2, True), I64)
MLA_ATTENTION = (array(F32, 3), array(F32, 3), array(U16, 2), I64, I64, F64, array(F32, 3, True), I64)
GQA_ATTENTION = (array(F32, 3), array(U16, 2), I64, I64, I64, F64, array(F32, 3, True), I64)
RMS_NORM = (array(F32, 2), array(F32, 1), F64, array(F32, 2, True))
EMBED = (array(I8, 2), array(F32, 1), array(I64, 1), array(F32, 2, True))
READ = (array(I8, 1), I64)
FRAME = (array(I64, 1, True), array(I64, 1, True), array(F32, 2, True))
ATTENTION_BLOCK = (*FRAME, array(F32, 2), array(F32, 2), array(U16, 2, True), I64, I64, I64)
FEED_FORWARD_BLOCK = (*FRAME, array(I64, 2, True), I64)
HEAD_BLOCK = (*FRAME, array(F32, 2, True), array(F32, 2, True), array(I64, 1, True), array(F32, 1, True), I64)
MTP_FRONT = (array(I64, 1, True), array(I64, 1, True), array(I64, 1), array(F32, 2), array(F32, 2, True), I64)
STACK = (array(I64, 1, True), array(I64, 1, True), array(I64, 1, True), array(I64, 1, True), I64)


class Kernel(NamedTuple):
    """A function to compile for one signature; where there is a job, its address comes before the other arguments."""

    function: Any
    signature: tuple[Any, ...]
    job: Any = None


PLAIN = {
    "linear": Kernel(plain.linear, LINEAR),
    "routed_ffn": Kernel(plain.routed_ffn, ROUTED_FFN),
}
VECTOR = {
    "linear": Kernel(linear.linear, LINEAR, linear.linear_job),
    "routed_ffn": Kernel(ffn.routed_ffn, ROUTED_FFN, ffn.routed_ffn_job),
    "mla_block": Kernel(attention_block.run_attention, ATTENTION_BLOCK, mla_block.mla_job),
    "gqa_block": Kernel(attention_block.run_attention, ATTENTION_BLOCK, gqa_block.gqa_job),
    "feed_forward_block": Kernel(
        feed_forward_block.run_feed_forward, FEED_FORWARD_BLOCK, feed_forward_block.feed_forward_job
    ),
    "stack": Kernel(stack.run_stack, STACK, stack.stack_job),
    "head_block": Kernel(head_block.run_head, HEAD_BLOCK, head_block.head_job),
    "mtp_front": Kernel(mtp_front.run_mtp_front, MTP_FRONT, mtp_front.mtp_front_job),
}
KERNELS: dict[str, Kernel] = (VECTOR if BITS else PLAIN) | {
    "mla_attention": Kernel(attention.mla_attention, MLA_ATTENTION),
    "gqa_attention": Kernel(attention.gqa_attention, GQA_ATTENTION),
    "rms_norm": Kernel(norm.rms_norm, RMS_NORM),
    "embed": Kernel(embedding.embed, EMBED),
    "read": Kernel(ceiling.read, READ),
}


SYMBOLS = "inner loops"
"""What all others call by name (see `symbols`), where kernels are named."""
TOGETHER = (
    (SYMBOLS, "linear", "head_block", "mtp_front"),
    ("routed_ffn", "feed_forward_block"),
    ("mla_block", "gqa_block"),
    ("mla_attention", "gqa_attention", "stack", "rms_norm", "embed", "read"),
)
"""Who compiles one of these needs less time for the next. Each takes about as long, but the last, which is shorter."""


def signature_of(kernel: Kernel) -> tuple[Any, ...]:
    """With the job's address."""
    return kernel.signature if kernel.job is None else (I64, *kernel.signature)


def is_compiled(name: str) -> bool:
    """Whether this process can call the kernel without compiling or loading it first."""
    kernel = KERNELS[name]
    job = kernel.job is None or JOB in kernel.job.overloads
    return job and signature_of(kernel) in kernel.function.overloads


@cache
def compile_kernel(name: str) -> Any:
    """Compile one kernel, or load it from disk; returns it."""
    symbols.define_symbols()
    return _compiled(KERNELS[name])


def _compiled(kernel: Kernel) -> Any:
    code = None if kernel.job is None else job_address(kernel.job)
    if signature_of(kernel) not in kernel.function.overloads:
        kernel.function.compile(signature_of(kernel))
        kernel.function.disable_compile()  # or every mix of read-only and writable arrays would compile its own version
    return kernel.function if code is None else partial(kernel.function, code)


def run_job(name: str, frame: Any) -> None:
    """Run a kernel's job once on this thread, with a frame."""
    job = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(job_address(KERNELS[name].job))
    job(frame.ctypes.data, 0)


def compile_to_disk(name: str) -> None:
    """Compile one kernel, or SYMBOLS, in a process that never runs it."""
    symbols.define_placeholders()
    if name != SYMBOLS:
        _compiled(KERNELS[name])
        return
    for function, signature in symbols.NAMED:
        function.compile(signature)


class Stage(NamedTuple):
    """What `compile_all` is about to do."""

    what: str
    done: int
    total: int


def compile_all(names: Collection[str] = tuple(KERNELS)) -> Iterator[Stage]:
    """Load the named kernels (all by default), compiling those that the disk lacks."""
    yield from fill_disk(names)
    for done, name in enumerate(names):
        if not is_compiled(name):
            yield Stage(_compiling(name) if is_cold(name) else f"loading {name}", done, len(names))
            compile_kernel(name)


def fill_disk(names: Collection[str] = tuple(KERNELS)) -> Iterator[Stage]:
    """Where there are several cores, have several processes compile what the disk lacks."""
    lacking = [[name for name in group if (name in names or name == SYMBOLS) and is_cold(name)] for group in TOGETHER]
    groups, total = [group for group in lacking if group], sum(map(len, lacking))
    if len(groups) > 1 and physical_cores() > 1 and sys.executable and not getattr(sys, "frozen", False):
        for name, done in compile_ahead(groups, physical_cores()):
            yield Stage(_compiling(name), done, total)


def _compiling(name: str) -> str:
    return f"compiling {name} (first time only)"


def is_cold(name: str) -> bool:
    """Whether neither this process nor the disk holds the kernel, or SYMBOLS, compiled."""
    if name == SYMBOLS:
        needed: Collection[tuple[Any, tuple[Any, ...]]] = symbols.NAMED
    else:
        kernel = KERNELS[name]
        needed = ((kernel.function, kernel.signature) if kernel.job is None else (kernel.job, JOB),)
    return any(
        signature not in function.overloads and not on_disk(function, signature) for function, signature in needed
    )


def fused(attention_kernel: str, mtp: bool = False) -> tuple[str, ...]:
    """The kernels of fused steps with this attention; none where the processor has no integer vector path."""
    if not BITS:
        return ()
    block = attention_kernel.replace("attention", "block")
    return (block, "feed_forward_block", "head_block", "stack", *(("mtp_front",) if mtp else ()))
