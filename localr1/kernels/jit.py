"""How this folder's loops are compiled: one decorator for all of them, and the disk cache's state.

Owns the compiler flags. Invariant: not-a-number and infinity keep their meaning (no `nnan`, no `ninf`), so a broken
activation shows up in the output and is not silently turned into a plausible number.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from localr1.kernels.code_files import CodeFiles

F = TypeVar("F", bound=Callable[..., Any])

ONLY_PRANGE = dict.fromkeys(
    ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
) | {"prange": True}
"""Without it numba would wake all threads for every small array expression too."""

FAST_MATH = {"reassoc", "contract", "arcp", "nsz", "afn"}


NOT_COMPILED = (
    "__init__.py",
    "blocks.py",
    "code_files.py",
    "compilation.py",
    "compile_ahead.py",
    "cpu.py",
    "drafting.py",
    "gpu.py",
    "mtp_block.py",
    "reference.py",
    "stacked.py",
    "threads.py",
)


def sources_stamp() -> bytes:
    """A hash of every source file of this folder that compiled code may come from."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in NOT_COMPILED:
            digest.update(path.read_bytes())
    return digest.digest()


SOURCES_STAMP = sources_stamp()


def without_literals(dispatcher: Any) -> Any:
    """Have calls with constants use the version for any number, where numba would compile one for each constant."""
    of_any_types = dispatcher.get_call_template

    def template(args: Any, kws: Any) -> Any:
        return of_any_types(tuple(types.unliteral(arg) for arg in args), kws)

    dispatcher.get_call_template = template
    return dispatcher


def compiled(parallel: bool = False, inline: bool = False) -> Callable[[F], Any]:
    """A decorator: compiled at the first call, cached on disk (beside the code or, where that is read-only, in the
    user's cache folder; nowhere when neither can be written).

    numba drops a cached function when its own file changes; functions here are compiled into each other, so what is
    kept is tied to all files of the folder instead.
    """

    def decorate(function: F) -> Any:
        options: dict[str, Any] = {
            "parallel": ONLY_PRANGE if parallel else False,
            "fastmath": FAST_MATH,
            "nogil": True,
            "error_model": "numpy",
        }
        options["inline"] = "always" if inline else "never"
        try:
            dispatcher = njit(cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache can be written
            return njit(**options)(function)
        with suppress(AttributeError):  # private names of numba's
            cache = dispatcher._cache
            name = f"{Path(inspect.getfile(function)).stem}.{function.__qualname__}.{sys.implementation.cache_tag}"
            cache._cache_file = CodeFiles(Path(cache.cache_path), name, SOURCES_STAMP)
        return without_literals(dispatcher)

    return decorate


def on_disk(dispatcher: Any, signature: tuple[Any, ...]) -> bool:
    """Whether a compiled function need only be loaded; so too if numba does not let us know."""
    try:
        cache = dispatcher._cache
        key = cache._index_key(signature, dispatcher.targetctx.codegen())
        return bool(cache._cache_file.holds(key))
    except AttributeError:
        return True


JOB = (types.int64, types.int64)
"""What a job is given: the address of its frame, and the number of the thread."""


def job_address(job: Any, signature: tuple[Any, ...] = JOB) -> int:
    """The address of a compiled function of int64 numbers (see `team.launch`), as a C function; compiles it first."""
    if signature not in job.overloads:
        job.compile(signature)
    result = job.overloads[signature]
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name))


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def widen(typing_context: Any, value: Any) -> Any:
    """A float32 as it is, or the bits of a bfloat16 (uint16) as the float32 of the same value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if isinstance(signature.args[0], types.Float):
            return args[0]
        wide = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(value), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def float_from_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 whose bits are the int32 given."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def bits_of_float(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as an int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def nearest(typing_context: Any, value: Any) -> Any:
    """A float32 rounded to the nearest int32, ties to even; saturates, and not-a-number gives 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
        rint = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32")
        kind = ir.FunctionType(ir.IntType(32), [ir.FloatType()])
        to_int = cgutils.get_or_insert_function(builder.module, kind, "llvm.fptosi.sat.i32.f32")
        return builder.call(to_int, [builder.call(rint, args)])

    return types.int32(types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def address_of(typing_context: Any, array: Any) -> Any:
    """The address of an array's first element. The array must be `used` later, or numba may free it too early."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def used(typing_context: Any, array: Any) -> Any:
    """Does nothing, but an array whose address was taken lives until here."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def stack_at(typing_context: Any, size: Any) -> Any:
    """The address of so many bytes on the stack, which last until the function returns that calls this."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(builder.alloca(ir.IntType(8), args[0]), ir.IntType(64))

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def int8_at(typing_context: Any, address: Any) -> Any:
    """The int8 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()))

    return types.int8(types.int64), codegen


def viewing(element: Any, dimensions: int = 1, writable: bool = True) -> Any:
    """An intrinsic `view(address, *shape)`: the numbers at an address as an array that owns nothing."""
    kind = types.Array(element, dimensions, "C", readonly=not writable)

    def typed(typing_context: Any, address: Any, *shape: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = context.make_array(kind)(context, builder)
            item_bytes = context.get_constant(types.intp, element.bitwidth // 8)
            strides = [item_bytes]
            for length in reversed(args[2:]):
                strides.insert(0, builder.mul(strides[0], length))
            data = builder.inttoptr(args[0], context.get_data_type(element).as_pointer())
            populate_array(array, data, args[1:], strides, item_bytes, None)
            return array._getvalue()

        return kind(*[types.int64] * (1 + dimensions)), codegen

    lengths = ", ".join(f"n{i}" for i in range(dimensions))
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def view(typing_context, address, {lengths}):\n    return typed(typing_context, address, {lengths})", scope)
    return intrinsic(scope["view"])


floats_at = viewing(types.float32, writable=False)
words_at = viewing(types.uint16, writable=False)


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def call_at(typing_context: Any, code: Any, first: Any, second: Any) -> Any:
    """Call the C function at an address with two int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 2)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *JOB), codegen


@compiled(inline=True)
def exp(x):  # type: ignore[no-untyped-def]
    """e^x of a float32 to 2e-7 relative: plain arithmetic, so that loops over it become vector code. Below -87 it is
    0."""
    clamped = np.float32(-87.0) if x < np.float32(-87.0) else x
    clamped = np.float32(88.0) if clamped > np.float32(88.0) else clamped
    whole = nearest(clamped * np.float32(1.44269504))
    rest = clamped - np.float32(whole) * np.float32(0.693359375)
    rest += np.float32(whole) * np.float32(2.12194440e-4)
    power = np.float32(1.0 / 5040.0)
    power = power * rest + np.float32(1.0 / 720.0)
    power = power * rest + np.float32(1.0 / 120.0)
    power = power * rest + np.float32(1.0 / 24.0)
    power = power * rest + np.float32(1.0 / 6.0)
    power = power * rest + np.float32(0.5)
    power = power * rest + np.float32(1.0)
    power = power * rest + np.float32(1.0)
    result = power * float_from_bits(np.int32((whole + np.int32(127)) << np.int32(23)))
    return np.float32(0.0) if x < np.float32(-87.0) else result


@compiled(inline=True)
def copy_numbers(source, place):  # type: ignore[no-untyped-def]
    """What `place[:] = source` does of arrays that do not overlap, as vector code: numba's goes number by number."""
    for i in range(place.size):
        place[i] = source[i]


@compiled(inline=True)
def clear(numbers):  # type: ignore[no-untyped-def]
    """What `numbers[:] = 0` does, as vector code."""
    for i in range(numbers.size):
        numbers[i] = 0


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def stay_out_of_line(typing_context: Any) -> Any:
    """Called in a function's body: LLVM compiles that function once and not into each of its callers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen
