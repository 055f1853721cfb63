"""The GPU kernels compiled for cards that are not here, exactly as they would be launched, and what they need of them.

Records launches on tensors without memory, so a changed block size is compiled changed. Triton's own compiler makes
the machine code; `cuobjdump`, which comes with Triton, reads registers and spills from it.

    python -m tests.kernels.gpu_targets    prints the table
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from localr1.kernels.gpu import Gated, attention, choice, few, front, fused, many, norm

TARGETS = (75, 80, 86, 89, 90, 120)
SHARED_LIMIT_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Shared memory that one block may have (CUDA C++ programming guide, technical specifications)."""
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
HOT = {"linear", "product", "gate_up", "down", "mla", "gqa"}
"""What decode spends its time in."""
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its arguments in order, and its options (num_warps, num_stages)."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one target."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


class Recorder:
    """Stands in for a kernel and notes how it is launched."""

    def __init__(self, name: str, kernel: Any, launches: list[Launch]) -> None:
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid: Any) -> Any:
        def launch(*positional: Any, **named: Any) -> None:
            options = {key: named.pop(key) for key in ("num_warps", "num_stages") if key in named}
            arguments = dict(zip(self.kernel.arg_names, positional, strict=False)) | named
            self.launches.append(Launch(self.name, self.kernel, arguments, options))

        return launch


def launches(capability: int) -> list[Launch]:
    """Every kernel as V2-Lite launches it on such a card, of routed and of shared experts, GLM-4.7-Flash's attention,
    and a dense model's."""
    seen: list[Launch] = []
    kernels = fused.FusedKernels(tensor_cores=capability >= 80)
    with (
        mock.patch.multiple(few, **recorders(few, ("linear", "product", "gate_up", "down"), seen)),
        mock.patch.multiple(choice, **recorders(choice, ("choose",), seen)),
        mock.patch.multiple(front, **recorders(front, ("latent", "grouped"), seen)),
    ):
        for rows in (1, 4):
            kernels.linear(meta(rows, 2048), meta(3072, 2048, dtype=torch.int8), meta(3072))
            kernels.linear(meta(rows, 2048), meta(2048, 2048, dtype=torch.int8), meta(2048), None, meta(rows, 2048))
        for rows in (1, 4):
            kernels.linear(meta(rows, 3584), meta(512, 3584, dtype=torch.int8), meta(512), meta(512))
        up_HOC = meta(16, 256, 512, dtype=torch.bfloat16 if capability >= 80 else torch.float16)
        kernels.head_product(meta(1, 16, 192)[..., :128], up_HOC[:, :128])
        kernels.head_product(meta(1, 16, 512), up_HOC[:, 128:].transpose(1, 2))
        start, half = meta(1, dtype=torch.int64), torch.bfloat16
        latents, turns = meta(4096, 576, dtype=half), (meta(1, 64), meta(1, 64))
        kernels.latent_front(meta(1, 16, 192), meta(1, 576), meta(512), 1e-6, *turns, True, latents, start)
        groups = meta(1, 28, 128), meta(1, 4, 128), meta(1, 4, 128)
        kernels.grouped_front(*groups, meta(1, 128), meta(1, 128), False, meta(4096, 1024, dtype=half), 4095)
        kernels.route(meta(1, 2048), meta(64, 2048), None, 6, 1.0, True, False)
        kernels.route(meta(4, 2048), meta(256, 2048), meta(256), 8, 2.5, False, True)
        shared = Gated(meta(3 * 2816 * 2048, dtype=torch.int8), meta(2 * 2816 + 2048))
        kernels.routed_ffn(*routed(1), shared, meta(1, 2048))
        kernels.routed_ffn(*routed(1))
        kernels.feed_forward(meta(1, 2048), shared, meta(1, 2048))
    with mock.patch.multiple(many, **recorders(many, ("gate_up", "down"), seen, "many.")):
        if kernels.tensor_cores:
            kernels.routed_ffn(*routed(512))
            kernels.feed_forward(meta(64, 2048), shared)
    with mock.patch.multiple(attention, **recorders(attention, ("mla", "gqa", "join"), seen)):
        for heads in (16, 20):
            cache = meta(4096, 576, dtype=torch.bfloat16)
            kernels.mla_attention(meta(1, heads, 512), meta(1, heads, 64), cache, meta(1, dtype=torch.int64), 1.0)
        kernels.gqa_attention(meta(1, 28, 128), meta(4096, 1024, dtype=torch.bfloat16), 4, 4095, 1.0)
    with mock.patch.multiple(norm, **recorders(norm, ("rms_norm",), seen)):
        kernels.rms_norm(meta(1, 2048), meta(2048), 1e-6)
    return list({(one.name, str(signature(one))): one for one in seen}.values())


def recorders(module: Any, names: tuple[str, ...], seen: list[Launch], prefix: str = "") -> dict[str, Recorder]:
    return {name: Recorder(prefix + name, getattr(module, name), seen) for name in names}


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def routed(tokens: int, hidden: int = 2048, ff: int = 1408, experts: int = 64, top_k: int = 6) -> list[torch.Tensor]:
    return [
        meta(tokens, hidden),
        meta(40, 3 * ff * hidden, dtype=torch.int8),
        meta(40, 2 * ff + hidden),
        meta(experts, dtype=torch.int32),
        meta(tokens, top_k, dtype=torch.int64),
        meta(tokens, top_k),
    ]


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Types, constants and divisibility, by the rules that Triton applies to a call."""
    constants = {launch.kernel.arg_names[p.num] for p in launch.kernel.params if p.is_constexpr}
    types: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    hints: dict[tuple[int], list[list[Any]]] = {}
    for index, (name, value) in enumerate(launch.arguments.items()):
        if name in constants or (type(value) is int and value == 1):
            types[name], fixed[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[name] = TYPES[value.dtype]
            hints[(index,)] = [["tt.divisibility", 16]]
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                hints[(index,)] = [["tt.divisibility", 16]]
    return types, fixed, hints


def resources(launch: Launch, capability: int) -> Resources:
    """Compile for a target and read what the code takes."""
    target = GPUTarget("cuda", capability, 32)
    source = ASTSource(launch.kernel, *signature(launch))
    compiled = triton.compile(source, target=target, options=dict(launch.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    use = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return Resources(use["REG"], use["STACK"] + use["LOCAL"], compiled.metadata.shared)


def table() -> Iterator[tuple[str, int, Resources]]:
    """Every kernel on every target."""
    for capability in TARGETS:
        for launch in launches(capability):
            yield launch.name, capability, resources(launch, capability)


if __name__ == "__main__":
    for name, capability, used in table():
        print(
            f"{name:14} sm_{capability:<4} {used.registers:4} registers {used.spilled_bytes:5} bytes spilled"
            f" {used.shared_bytes:7,} bytes shared"
        )
