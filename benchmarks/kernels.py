"""How near the CPU kernels come to the machine's ceilings, measured in one run.

For each model's shapes and each number of token rows, a call of the kernel, a plain streaming read of as many bytes
and an fp32 matrix product take turns; so a machine that is busy with other things slows all three alike. Kernel and
read follow the product in turn, since it leaves its result in the caches to be written back. One-row kernels are judged
by the read, prefill by the product. Weights are distinct and cycled through a pool of at least 1 GiB, so they come from
RAM.

    python -m benchmarks.kernels [--models v2-lite,r1] [--rows 1,2,512] [--seconds 1.5] [--json FILE]

Columns: the time of a call; bytes a second as a share of the read (the quick tenth of all samples of each, and the
median of the shares of neighbouring samples); useful operations a second as a share of the matrix product, likewise.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from localr1.kernels import threads

threads.unify_openmp()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from localr1.kernels import compilation, cpu, features  # noqa: E402


@dataclass(frozen=True)
class Shape:
    """What of a model the kernels see: widths, experts of a token, and its attention (heads, and latent or groups)."""

    hidden: int
    expert_ff: int
    top_k: int
    heads: int
    latent: int = 0
    rope: int = 0
    kv_heads: int = 0
    head_size: int = 0


MODELS = {
    "v2-lite": Shape(2048, 1408, 6, 16, latent=512, rope=64),
    "r1": Shape(7168, 2048, 8, 128, latent=512, rope=64),
    "glm-4.7-flash": Shape(2048, 1536, 4, 20, latent=512, rope=64),
    "smollm2": Shape(576, 1536, 1, 9, kv_heads=3, head_size=64),
    "nano": Shape(192, 96, 2, 6, latent=48, rope=16),
}
CONTEXT_ROWS = 4096
PREFILL_EXPERTS = 64
LEAST_SAMPLES = 5


@dataclass(frozen=True)
class Measured:
    model: str
    kernel: str
    rows: int
    call_ms: float
    read_share: float
    read_share_neighbours: float
    gemm_share: float
    gemm_share_neighbours: float
    read_gb_per_s: float
    gemm_gflop_per_s: float


def disturbed(result: Measured, results: list[Measured]) -> bool:
    """Whether the processor was busy with something else: the matrix product ran below 0.8 of its best in the run."""
    return result.gemm_gflop_per_s < 0.8 * max(other.gemm_gflop_per_s for other in results)


def quick(values: list[float]) -> float:
    """The tenth of the samples that other programs disturbed least."""
    return float(np.quantile(values, 0.1))


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class Bench:
    """A pool of random weights, a place in it that moves on with every call, and the two ceilings."""

    def __init__(self, pool_bytes: int, seconds: float) -> None:
        rng = np.random.default_rng(0)
        self.pool = rng.integers(-127, 128, pool_bytes, np.int8)
        self.seconds = seconds
        self.at = 0
        cpu.read(self.pool)
        self.left, self.right = torch.randn(512, 2048), torch.randn(2048, 1024)
        self.results: list[Measured] = []

    def take(self, size: int) -> np.ndarray:
        """The next `size` bytes of the pool."""
        if self.at + size > self.pool.size:
            self.at = 0
        self.at += size
        return self.pool[self.at - size : self.at]

    def measure(self, model: str, kernel: str, rows: int, step: Callable[[], tuple[int, float]]) -> None:
        """`step` runs the kernel once and returns (bytes of weights or cache it had to read, operations it did)."""
        moved, operations = step()
        times, reads, gemms = [], [], []

        def take_kernel() -> None:
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)

        def take_read() -> None:
            ahead = self.take(min(max(moved, 1 << 22), self.pool.size // 4))
            reads.append(seconds(lambda: cpu.read(ahead)) / ahead.size)

        start = time.perf_counter()
        while len(times) < LEAST_SAMPLES or time.perf_counter() - start < self.seconds:
            gemms.append(seconds(lambda: self.left @ self.right) / (2 * 512 * 2048 * 1024))
            for take in (take_kernel, take_read) if len(gemms) % 2 else (take_read, take_kernel):
                take()
        call, read, gemm = quick(times), quick(reads), quick(gemms)
        result = Measured(
            model, kernel, rows, call * 1e3,
            read * moved / call,
            float(np.median([r * moved / t for t, r in zip(times, reads, strict=True)])),
            gemm * operations / call,
            float(np.median([g * operations / t for t, g in zip(times, gemms, strict=True)])),
            1e-9 / read, 1e-9 / gemm,
        )  # fmt: skip
        self.results.append(result)
        of_read = f"{result.read_share:5.2f} ({result.read_share_neighbours:4.2f}) of {result.read_gb_per_s:5.1f} GB/s"
        of_gemm = (
            f"{result.gemm_share:5.2f} ({result.gemm_share_neighbours:4.2f}) of {result.gemm_gflop_per_s:4.0f} GFLOP/s"
        )
        label = f"{model:14} {kernel:24} {rows:4} rows {result.call_ms:9.3f} ms"
        print(f"{label}   read {of_read}   gemm {of_gemm}", flush=True)

    def routed_ffn(self, model: str, shape: Shape, rows: int) -> None:
        D, F, K = shape.hidden, shape.expert_ff, shape.top_k
        size = 3 * D * F
        few = rows <= 8
        E = min(self.pool.size // size, K if few else max(K, PREFILL_EXPERTS if K > 1 else 1))
        rng = np.random.default_rng(1)
        x = rng.standard_normal((rows, D), np.float32)
        scb, weight = np.full((E, 2 * F + D), 0.02, np.float32), np.full((rows, K), 1 / K, np.float32)
        out = np.empty_like(x)
        same = np.tile(np.arange(K), (rows, 1))
        drawn = np.stack([rng.permutation(E)[:K] for _ in range(rows)])
        expert = same if few else drawn

        def step() -> tuple[int, float]:
            experts = self.take(E * size).reshape(E, size)
            cpu.routed_ffn(x, experts, scb, expert, weight, out)
            return len(np.unique(expert)) * size, 2.0 * rows * K * size

        self.measure(model, f"routed_ffn {K} x {F}x{D}", rows, step)

    def linear(self, model: str, shape: Shape, rows: int) -> None:
        D, outputs = shape.hidden, 2 * shape.hidden
        rng = np.random.default_rng(1)
        x, out = rng.standard_normal((rows, D), np.float32), np.empty((rows, outputs), np.float32)
        scb = np.full(outputs, 0.02, np.float32)

        def step() -> tuple[int, float]:
            cpu.linear(x, self.take(D * outputs).reshape(outputs, D), scb, out)
            return D * outputs, 2.0 * rows * D * outputs

        self.measure(model, f"linear {outputs}x{D}", rows, step)

    def attention(self, model: str, shape: Shape, rows: int) -> None:
        rng = np.random.default_rng(1)
        T, H, S = rows, shape.heads, CONTEXT_ROWS
        width = shape.latent + shape.rope if shape.latent else 2 * shape.kv_heads * shape.head_size
        caches = [
            (rng.standard_normal((S, width), np.float32).view(np.uint32) >> 16).astype(np.uint16) for _ in range(8)
        ]
        turn = iter(range(1 << 60))
        if shape.latent:
            q, r = (rng.standard_normal((T, H, n), np.float32) for n in (shape.latent, shape.rope))
            out = np.empty_like(q)

            def step() -> tuple[int, float]:
                cpu.mla_attention(q, r, caches[next(turn) % 8], S - T, 0.05, out)
                return S * width * 2, 2.0 * T * H * S * (width + shape.latent)

        else:
            q = rng.standard_normal((T, H, shape.head_size), np.float32)
            out = np.empty_like(q)

            def step() -> tuple[int, float]:
                cpu.gqa_attention(q, caches[next(turn) % 8], shape.kv_heads, S - T, 0.1, out)
                return S * width * 2, 4.0 * T * H * S * shape.head_size

        self.measure(model, f"{'mla' if shape.latent else 'gqa'} {S} x {width} bf16", rows, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rows", default="1,2,4,8,64,512")
    parser.add_argument("--kernels", default="routed_ffn,linear,attention")
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each case")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--pool-mib", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    used = threads.set_threads(options.threads)
    torch.set_num_threads(used)
    for stage in compilation.compile_all():
        print(stage.what, file=sys.stderr)
    bench = Bench(options.pool_mib << 20, options.seconds)
    print(
        f"{used} threads, {features.BITS}-bit vectors, pool {options.pool_mib} MiB; in brackets: neighbouring samples"
    )
    for model in options.models.split(","):
        for rows in map(int, options.rows.split(",")):
            for kernel in options.kernels.split(","):
                if kernel != "attention" or rows <= 8:
                    getattr(bench, kernel)(model, MODELS[model], rows)
    results = [asdict(result) | {"disturbed": disturbed(result, bench.results)} for result in bench.results]
    print(
        f"{sum(r['disturbed'] for r in results)} of {len(results)} rows were disturbed by other programs: ignore them"
    )
    if options.json:
        processor = platform.processor() or platform.machine()
        machine = {"processor": processor, "threads": used, "vector_bits": features.BITS}
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
