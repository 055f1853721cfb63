"""How innermost loops are written in LLVM's language, and how compiled code calls them.

Owns the emitter and the list of all loops, and nothing of memory: every loop takes addresses and the caller has made
room. LLVM turns a multiply-add of int16 pairs and the addition to int32 into one `vpdpwssd` where the processor has it.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
SYMBOL_PREFIX = "localr1_"


FIRST_LEVEL, SECOND_LEVEL = 3, 2
"""Into which cache to ask for memory: LLVM's degrees of locality."""


class Emitter:
    """A thin layer over llvmlite's builder: loads and stores of vectors at byte offsets from integer addresses."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def at(self, address: Any, offset: Any = 0) -> Any:
        return self.b.add(address, offset if isinstance(offset, ir.Value) else I64(offset))

    def load(self, kind: Any, address: Any, align: int = 1) -> Any:
        load = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        load.align = align
        return load

    def store(self, value: Any, address: Any, align: int = 1) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = align

    def vector(self, lanes: int, element: Any) -> Any:
        return ir.VectorType(element, lanes)

    def zero(self, kind: Any) -> Any:
        return ir.Constant(kind, None)

    def broadcast(self, scalar: Any, lanes: int) -> Any:
        kind = ir.VectorType(scalar.type, lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), self.zero(ir.VectorType(I32, lanes)))

    def variables(self, kind: Any, count: int) -> list[Any]:
        made = [cgutils.alloca_once(self.b, kind) for _ in range(count)]
        for variable in made:
            self.b.store(self.zero(kind), variable)
        return made

    def call(self, name: str, result: Any, *args: Any) -> Any:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    def multiply_add(self, total: Any, a: Any, b: Any) -> Any:
        """total += a * b over pairs of int16, `total` int32."""
        name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[total.type.count]
        return self.b.add(total, self.call(f"llvm.x86.{name}", total.type, a, b))

    def fma(self, total: Any, a: Any, b: Any) -> Any:
        suffix = f"v{total.type.count}f32"
        return self.call(f"llvm.fma.{suffix}", total.type, a, b, total)

    def sum_lanes(self, value: Any) -> Any:
        kind = ir.FunctionType(F32, [F32, value.type])
        name = f"llvm.vector.reduce.fadd.v{value.type.count}f32"
        function = cgutils.get_or_insert_function(self.b.module, kind, name)
        return self.b.call(function, [F32(0.0), value], fastmath=("reassoc",))

    def prefetch(self, address: Any, near: int = FIRST_LEVEL) -> None:
        pointer = self.b.inttoptr(address, I8.as_pointer())
        void = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        function = cgutils.get_or_insert_function(self.b.module, void, "llvm.prefetch.p0")
        self.b.call(function, [pointer, I32(0), I32(near), I32(1)])


EMITTERS: dict[str, tuple[Callable[..., None], int]] = {}
"""Every innermost loop by its name: who writes its body, and how many int64 arguments it takes."""


def returning_nothing(emit: Callable[..., None], arguments: int, name: str) -> Any:
    """An intrinsic of `arguments` int64 values (addresses, strides in bytes, counts) whose body `emit` writes.

    It is a call of a function that `symbols.define_symbols` makes once: LLVM would otherwise compile the body again
    into every function that calls it, and their callers.
    """
    EMITTERS[name] = emit, arguments
    return calling(name, arguments)


def calling(name: str, arguments: int) -> Any:
    """An intrinsic that calls a function with a name of `symbols.define_symbols`."""

    def typed(typing_context: Any, *args: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = ir.FunctionType(ir.VoidType(), [I64] * arguments)
            builder.call(cgutils.get_or_insert_function(builder.module, kind, SYMBOL_PREFIX + name), values)
            return context.get_dummy_value()

        return types.void(*[types.int64] * arguments), codegen

    names = ", ".join(f"a{i}" for i in range(arguments))
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def {name}(typing_context, {names}):\n    return typed(typing_context, {names})", scope)
    return intrinsic(scope[name])
