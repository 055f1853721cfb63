"""A safetensors file that is still on its way: what is here of its tensors, read into memory.

Owns the buffers that they are read into. Does not know where the bytes come from. Invariant: all that one
`ArrivingFile` gives was read of one attempt at the file, `attempt`; whether that proves right is told elsewhere.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch


class Prefix(Protocol):
    """The first bytes of a file, which grow, and now and then are begun again."""

    done_bytes: int
    attempt: int

    def read(self, start: int, into: memoryview) -> int | None:
        """Fill `into` from byte `start`; returns the attempt that it is of, None if it is not here."""
        ...


class NotHereError(Exception):
    """Bytes that have not come, or not of this attempt."""


class ArrivingFile:
    """One attempt at a file. What was read stays what it is until the next of its dtype is."""

    def __init__(self, prefix: Prefix, buffers: dict[torch.dtype, torch.Tensor]) -> None:
        """`buffers` are used and enlarged; hand them to the next file, too, when no tensor of this one is in use."""
        self._prefix, self._buffers = prefix, buffers
        self.attempt = prefix.attempt

    def view(self, start: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """The bytes from `start` as a tensor. Raises NotHereError."""
        count = math.prod(shape)
        if dtype not in self._buffers or self._buffers[dtype].numel() < count:
            self._buffers[dtype] = torch.empty(count, dtype=dtype)
        tensor = self._buffers[dtype][:count]
        if self._prefix.read(start, tensor.view(torch.uint8).numpy().data) != self.attempt:
            raise NotHereError
        return tensor.view(tuple(shape))
