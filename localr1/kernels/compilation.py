"""Which compiled functions there are, and their compilation ahead of the first use.

Owns the one signature each kernel is compiled for: read-only inputs (a mapped file is read-only; writable arrays fit
too), so that no call ever compiles a second version in the middle of an answer. Compiling everything takes some tens
of seconds once; numba keeps the result on disk, and loading it from there takes about a second.
"""

import ctypes
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
from localr1.kernels.features import BITS
from localr1.kernels.jit import JOB, job_address, on_disk


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
    kernel = KERNELS[name]
    symbols.define_symbols()
    code = None if kernel.job is None else job_address(kernel.job)
    if signature_of(kernel) not in kernel.function.overloads:
        kernel.function.compile(signature_of(kernel))
        kernel.function.disable_compile()  # or every mix of read-only and writable arrays would compile its own version
    return kernel.function if code is None else partial(kernel.function, code)


def run_job(name: str, frame: Any) -> None:
    """Run a kernel's job once on this thread, with a frame."""
    job = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(job_address(KERNELS[name].job))
    job(frame.ctypes.data, 0)


def compile_all(names: Collection[str] = tuple(KERNELS)) -> Iterator[str]:
    """Compile the named kernels (all by default), yielding each one's name before its turn."""
    for name in names:
        if not is_compiled(name):
            yield name
            compile_kernel(name)


def cache_is_cold(names: Collection[str] = tuple(KERNELS)) -> bool:
    """Whether the disk does not hold all of the named kernels compiled, so that `compile_all` will take long."""
    for name in names:
        kernel = KERNELS[name]
        function, signature = (kernel.function, kernel.signature) if kernel.job is None else (kernel.job, JOB)
        if signature not in function.overloads and not on_disk(function, signature):
            return True
    return False


def fused(attention_kernel: str, mtp: bool = False) -> tuple[str, ...]:
    """The kernels of fused steps with this attention; none where the processor has no integer vector path."""
    if not BITS:
        return ()
    block = attention_kernel.replace("attention", "block")
    return (block, "feed_forward_block", "head_block", "stack", *(("mtp_front",) if mtp else ()))
