"""The innermost loops of latent attention's up-projections: float32 rows times bfloat16 weights, into the latent and
out of it.

Owns the instructions and nothing of memory (see `emitter`). A vector of bfloat16 pairs gives its even and its odd
numbers with one instruction each, so latents lie apart: of each CHUNK, LANES even numbers and then LANES odd ones.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from localr1.kernels.emitter import F32, I32, I64, SECOND_LEVEL, Emitter, returning_nothing
from localr1.kernels.features import CHUNK, LANES

PANEL = 4
"""Chunks of a latent that are summed up at once."""

RAISED = 4
"""Weight rows out of the latent that are taken at once, so that the latent is loaded that much less often."""

INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)


def load_apart(e: Emitter, address: Any) -> tuple[Any, Any]:
    """The even and the odd numbers of a chunk of bfloat16."""
    pairs = e.load(INTS, address, 2)
    even = e.b.shl(pairs, ir.Constant(INTS, [16] * LANES))
    odd = e.b.and_(pairs, ir.Constant(INTS, [0xFFFF0000] * LANES))
    return e.b.bitcast(even, FLOATS), e.b.bitcast(odd, FLOATS)


def make_into_latent(chunks: int) -> Any:
    """`into_latent(weights, row_bytes, rows, queries, latent, ahead)`: latent += query . weights for `rows` weight rows
    and `chunks` chunks of the latent, which lies apart. Meanwhile what lies `ahead` bytes further is asked for."""

    def emit(e: Emitter, weights: Any, row_bytes: Any, rows: Any, queries: Any, latent: Any, ahead: Any) -> None:
        totals = [e.variables(FLOATS, 2) for _ in range(chunks)]
        with cgutils.for_range_slice(e.b, I64(0), rows, I64(1)) as (n, _):
            row, query = e.at(weights, e.b.mul(n, row_bytes)), e.load(F32, e.at(queries, e.b.mul(n, I64(4))), 4)
            x = e.broadcast(query, LANES)
            for c, both in enumerate(totals):
                place = e.at(row, c * CHUNK * 2)
                e.prefetch(e.at(place, ahead), SECOND_LEVEL)
                for total, y in zip(both, load_apart(e, place), strict=True):
                    e.b.store(e.fma(e.b.load(total), x, y), total)
        for c, both in enumerate(totals):
            for half, total in enumerate(both):
                cell = e.at(latent, (2 * c + half) * LANES * 4)
                e.store(e.b.fadd(e.load(FLOATS, cell, 4), e.b.load(total)), cell, 4)

    return returning_nothing(emit, 6, f"into_latent_{chunks}")


def make_out_of_latent(taken: int) -> Any:
    """`out_of_latent(weights, row_bytes, chunks, latent, out, ahead)`: the `taken` weight rows times a latent of whole
    chunks that lies apart. Meanwhile what lies `ahead` bytes further is asked for."""

    def emit(e: Emitter, weights: Any, row_bytes: Any, chunks: Any, latent: Any, out: Any, ahead: Any) -> None:
        totals = [e.variables(FLOATS, 2) for _ in range(taken)]
        row_at = [e.at(weights, e.b.mul(row_bytes, I64(r))) for r in range(taken)]
        with cgutils.for_range_slice(e.b, I64(0), chunks, I64(1)) as (c, _):
            offset = e.b.mul(c, I64(CHUNK * 2))
            cell = e.at(latent, e.b.mul(c, I64(CHUNK * 4)))
            x = [e.load(FLOATS, e.at(cell, half * LANES * 4), 4) for half in range(2)]
            for row, both in zip(row_at, totals, strict=True):
                place = e.at(row, offset)
                e.prefetch(e.at(place, ahead), SECOND_LEVEL)
                for total, half, y in zip(both, x, load_apart(e, place), strict=True):
                    e.b.store(e.fma(e.b.load(total), half, y), total)
        for r, both in enumerate(totals):
            total = e.b.fadd(*(e.b.load(half) for half in both))
            e.store(e.sum_lanes(total), e.at(out, 4 * r), 4)

    return returning_nothing(emit, 6, f"out_of_latent_{taken}")


into_latent_panel, into_latent_one = make_into_latent(PANEL), make_into_latent(1)
out_of_latent_some, out_of_latent_one = make_out_of_latent(RAISED), make_out_of_latent(1)
