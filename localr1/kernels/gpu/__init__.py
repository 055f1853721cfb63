"""The GPU kernels' front door: which set of kernels a device gets.

Owns the contract that both sets keep: `fused` (Triton) and `plain` (torch operations). They know torch tensors alone,
all on one device, return new float32 tensors, experts as int64, and write to nothing else but the cache; weights are
int8 rows with one float32 scale a row, straight from the store, but for small ones that stay floats. Nothing waits for
the device. Triton is imported by `choose` only, never with this package, and tried out: being installed is not enough,
since it needs a C compiler and Python's headers on the computer that it runs on.

Shape suffixes: T new tokens, S cached and new tokens, D inputs, O outputs, E experts of a layer, X slots of the slab, K
experts of a token, F feed-forward, H heads, C latent, R rotary, G key-value heads, d head size, W width of a cache row.
"""

import importlib.util
import os
import sys
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

OLDEST = (7, 5)
"""The least compute capability that Triton's kernels are compiled for."""

DEVICE_ERRORS = ("CUDA error", "CUDA driver", "CUBLAS_STATUS", "Triton Error")
"""How those who use the device name what went wrong with it."""


UNEXPLAINED = ("NVML_SUCCESS", "CUDACachingAllocator")
"""What torch's allocator says instead where NVML cannot tell it who has the memory."""
NO_HANDLE = ("CUBLAS_STATUS_NOT_INITIALIZED", "cublasCreate")
"""What cuBLAS says where a thread's first product finds no memory for its handle."""


class Gated(NamedTuple):
    """A gated feed-forward that all tokens go through."""

    weight_M: Tensor
    """[gate F*D | up F*D | down D*F]"""
    scb_S: Tensor
    """[gate F | up F | down D]"""


class Kernels(Protocol):
    """One set of kernels. `start` is the number of committed tokens, or an int64 [1] that holds it on the device."""

    def replayable(self, latent: bool) -> bool:
        """Whether a step whose `start` lies on the device reads no more of the cache than the tokens see."""
        ...

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        ...

    def linear(
        self, x_TD: Tensor, q_OD: Tensor, scb_O: Tensor, bias_O: Tensor | None = None, onto_TO: Tensor | None = None
    ) -> Tensor:
        """x W^T + bias + onto with W = q * scb / 127, [T, O]."""
        ...

    def head_product(self, x_THN: Tensor, weight_HNO: Tensor) -> Tensor:
        """x W, a matrix of a 16- or 32-bit float type for every head, [T, H, O], perhaps a view."""
        ...

    def latent_front(
        self,
        q_THk: Tensor,
        row_TW: Tensor,
        norm_C: Tensor,
        eps: float,
        cos_TR: Tensor,
        sin_TR: Tensor,
        interleaved: bool,
        cache_SW: Tensor,
        start: int | Tensor,
    ) -> Tensor:
        """The last R values of every head's query rotated, [T, H, R]. Writes rows [normed latent C | rotated key R] to
        the cache, which may be of 16 bits, from `start` on.

        A token's tables are cos twice, and -sin then sin. Pairs are neighbours where `interleaved`, else R / 2 apart as
        they always come out.
        """
        ...

    def grouped_front(
        self,
        q_THd: Tensor,
        k_TGd: Tensor,
        v_TGd: Tensor,
        cos_Td: Tensor,
        sin_Td: Tensor,
        interleaved: bool,
        cache_SW: Tensor,
        start: int | Tensor,
    ) -> Tensor:
        """Rotated queries [T, H, d]. Writes rows [rotated keys G*d | values G*d]; as `latent_front`."""
        ...

    def route(
        self,
        x_TD: Tensor,
        weight_ED: Tensor,
        bias_E: Tensor | None,
        top_k: int,
        scale: float,
        softmax: bool,
        normalize: bool,
    ) -> tuple[Tensor, Tensor]:
        """(experts [T, K] int64, weights [T, K]): scores are a softmax or sigmoids of x W^T, `bias` moves choices
        alone, and weights may be made to add up to 1 before they are scaled."""
        ...

    def routed_ffn(
        self,
        x_TD: Tensor,
        slab_XM: Tensor,
        scb_XS: Tensor,
        slot_E: Tensor,
        expert_TK: Tensor,
        weight_TK: Tensor,
        shared: Gated | None = None,
        onto_TD: Tensor | None = None,
    ) -> Tensor:
        """Sum over k of weight * down(silu(gate x) * up x), [T, D], of the experts that have a slot, plus that of the
        `shared` one, as wide as one or several of them, plus `onto`.

        `slot_E` (int32) is each expert's row in the slab, or -1; `slab[slot]` and `scb[slot]` are as in `Gated`. Absent
        experts and negative expert numbers add nothing.
        """
        ...

    def feed_forward(self, x_TD: Tensor, gated: Gated, onto_TD: Tensor | None = None) -> Tensor:
        """down(silu(gate x) * up x) + onto, [T, D]."""
        ...

    def mla_attention(
        self, q_latent_THC: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, start: int | Tensor, scale: float
    ) -> Tensor:
        """Absorbed latent attention, [T, H, C]; a cache row is [latent C | rotary key R]."""
        ...

    def gqa_attention(
        self, q_THd: Tensor, cache_SW: Tensor, kv_heads: int, start: int | Tensor, scale: float
    ) -> Tensor:
        """Grouped-query attention, [T, H, d]; a cache row is [keys G*d | values G*d]."""
        ...


def device_failed(error: BaseException) -> bool:
    """Whether the device or its driver failed, whoever says it: torch, its libraries or Triton."""
    kind = getattr(torch, "AcceleratorError", None)
    return (kind is not None and isinstance(error, kind)) or any(name in str(error) for name in DEVICE_ERRORS)


def out_of_memory(error: BaseException) -> bool:
    """Whether the device failed for want of memory.

    Only torch's allocator has an error of its own for that, most of the time. The driver, as it loads a kernel or makes
    a graph, and cuBLAS say it in words.
    """
    said_in_words = any(all(part in str(error) for part in words) for words in (UNEXPLAINED, NO_HANDLE))
    if said_in_words or isinstance(error, torch.OutOfMemoryError):
        return True
    return device_failed(error) and any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))


def triton_failed(error: BaseException) -> bool:
    """Whether it is an error of Triton's own: a kernel that does not compile, or needs more than the device has."""
    return any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__)


def built_for(capability: tuple[int, int]) -> bool:
    """Whether this torch has code for devices of a compute capability.

    Code for one runs on every newer one of the same major version; PTX (`compute_`) is compiled for any newer one.
    """
    architectures = [(kind, divmod(int(number), 10)) for kind, number in map(_parts, torch.cuda.get_arch_list())]
    return not architectures or any(
        least <= capability and (kind == "compute" or least[0] == capability[0]) for kind, least in architectures
    )


def _parts(architecture: str) -> tuple[str, str]:
    """("sm", "90") of "sm_90a"."""
    kind, _, number = architecture.partition("_")
    return kind, number.rstrip("abcdefghijklmnopqrstuvwxyz")


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def choose(device: torch.device) -> Kernels:
    """Triton's kernels where they run, else torch operations, which say why.

    They run on a CUDA device, which is no older than OLDEST, and under TRITON_INTERPRET=1 on the CPU. Raises what
    `out_of_memory` knows, and what torch says of a device that fails, since then nothing runs on it.
    """
    from localr1.kernels.gpu import plain

    if device.type == "cuda" and not has_triton():
        package = "triton-windows" if sys.platform == "win32" else "triton"
        return plain.PlainKernels(f"Triton is missing (pip install {package})")
    if device.type == "cuda":
        try:
            return _tried(device)
        except Exception as error:  # Triton, the compilers that it calls and their launchers raise errors of many kinds
            if out_of_memory(error) or isinstance(error, getattr(torch, "AcceleratorError", ())):
                raise
            lines = str(error).splitlines() or [type(error).__name__]
            why = "Triton cannot compile a kernel here, often for want of a C compiler"
            return plain.PlainKernels(f"{why}: {lines[0]}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        from localr1.kernels.gpu import fused

        return fused.FusedKernels(torch.float16, splits=4)  # numpy, which interprets, has no bfloat16
    return plain.PlainKernels()


def _tried(device: torch.device) -> Kernels:
    """Triton's kernels, if they give what torch operations give. Raises whatever Triton does."""
    from localr1.kernels.gpu import fused, plain, trial

    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    kernels = fused.FusedKernels(torch.bfloat16 if modern else torch.float16, tensor_cores=modern)
    wrong = trial.differing(kernels, plain.PlainKernels(), device)
    return plain.PlainKernels(f"Triton's {wrong} gives wrong numbers on this GPU") if wrong else kernels
