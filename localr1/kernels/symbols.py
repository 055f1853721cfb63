"""What is compiled once, and given names by which everything else calls it: the innermost loops, and attention."""

import ctypes
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import get_num_threads, types
from numba.extending import intrinsic

from localr1.kernels import (
    attention,
    attention_loops,
    byte_attention_loops,
    byte_products,
    few_query_loops,
    intrinsics,
    up_projection_loops,
)
from localr1.kernels.emitter import EMITTERS, I64, SYMBOL_PREFIX, Emitter
from localr1.kernels.features import BITS, BYTE_PRODUCTS
from localr1.kernels.jit import compiled, job_address

LOOPS = (intrinsics, byte_products, attention_loops, byte_attention_loops, few_query_loops, up_projection_loops)
"""Whoever writes loops; importing them fills `EMITTERS`."""
ATTEND_ROWS = "attend_rows"


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def loop_addresses(typing_context: Any) -> Any:
    """The addresses of the innermost loops that this processor can run; their bodies are compiled with the caller."""
    names = present_loops()

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = []
        for name in names:
            emit, arguments = EMITTERS[name]
            kind = ir.FunctionType(ir.VoidType(), [I64] * arguments)
            function = ir.Function(builder.module, kind, f"body_of_{name}")
            body = ir.IRBuilder(function.append_basic_block())
            emit(Emitter(body), *function.args)
            body.ret_void()
            addresses.append(builder.ptrtoint(function, I64))
        return context.make_tuple(builder, signature.return_type, addresses)

    return types.UniTuple(types.int64, len(names))(), codegen


def present_loops() -> list[str]:
    """The names of all loops, without the integer products that the processor does not have; in an order that is the
    same in every process, since addresses come by it from code that another one may have written to the disk."""
    absent = (() if BITS else ("dot_", "tile_", "fixed_")) + (() if BYTE_PRODUCTS else ("rows_", "byte_"))
    return sorted(name for name in EMITTERS if not name.startswith(absent))


@compiled()
def all_loop_addresses():  # type: ignore[no-untyped-def]
    return loop_addresses()


NAMED = ((all_loop_addresses, ()), (attention.attend_job, (types.int64,)))
"""The compiled functions that symbols are made of, and their signatures."""


@cache
def define_placeholders() -> None:
    """Let what calls the symbols be compiled in this process, which must never run it."""
    address = ctypes.cast(ctypes.pythonapi.Py_IncRef, ctypes.c_void_p).value
    for name in (*present_loops(), ATTEND_ROWS):
        llvm.add_symbol(SYMBOL_PREFIX + name, address)


@cache
def define_symbols() -> None:
    """Compile what has names, or load it from disk, before what calls it is compiled or loaded.

    That numba's threads run belongs to it: until they do, a parallel region in code from the disk calls nothing.
    """
    get_num_threads()  # starts them
    for name, address in zip(present_loops(), all_loop_addresses(), strict=True):
        llvm.add_symbol(SYMBOL_PREFIX + name, address)
    llvm.add_symbol(SYMBOL_PREFIX + ATTEND_ROWS, job_address(attention.attend_job, (types.int64,)))
