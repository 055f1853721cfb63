"""Rotary position embedding: the frequencies, the tables, the rotation.

Owns the angles of every position. Knows no attention. A table row depends on its position alone, never on how far the
table has grown. Letters beyond the folder's legend: P rotary pairs (R / 2). A rotated pair's two values lie P apart.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.model.config import Llama3Scaling, RopeConfig, RopeLayout, YarnScaling
from localr1.model.linear import Position

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]
"""A rotation's two tables [T, R]."""


class Rotation(NamedTuple):
    """Of T consecutive positions, [T, 1, R] each: cos twice, and -sin then sin; YaRN's factor is multiplied in."""

    cos_T1R: Tensor
    sin_T1R: Tensor
    arrays: Arrays | None = None
    """The same memory as arrays [T, R], where it is RAM."""


class RotaryTable:
    """Rotations of positions 0, 1, ... on a device; computed up to the largest position asked for, doubling."""

    def __init__(self, config: RopeConfig, device: torch.device | str = "cpu") -> None:
        self._device = device
        self._frequency_P = frequencies(config)
        self._factor = config.scaling.cos_sin_factor if isinstance(config.scaling, YarnScaling) else 1.0
        self._table = self._compute(256)

    def rows(self, start: Position, count: int) -> Rotation:
        """The rotations of positions `start` to `start + count - 1`; views of the table where `start` is a number.

        Where it is on the device the table does not grow: ask for the last position there will be first.
        """
        if isinstance(start, Tensor):
            position_T = start + torch.arange(count, device=self._device)
            return Rotation(self._table.cos_T1R[position_T], self._table.sin_T1R[position_T])
        end = self._grow(start + count)
        arrays = self.arrays(start, count) if self._table.arrays else None
        return Rotation(self._table.cos_T1R[start:end], self._table.sin_T1R[start:end], arrays)

    def arrays(self, start: Position, count: int) -> Arrays:
        """What `rows` has as arrays, alone, which takes a third of the time. For a table in RAM and a plain number."""
        assert isinstance(start, int) and self._table.arrays is not None, "rotations of another device"
        end = self._grow(start + count)
        cos_TR, sin_TR = self._table.arrays
        return cos_TR[start:end], sin_TR[start:end]

    def _grow(self, end: int) -> int:
        """Have positions up to `end`, and give it back."""
        length = len(self._table.cos_T1R) if self._table.arrays is None else len(self._table.arrays[0])
        if end > length:
            self._table = self._compute(max(end, 2 * length))
        return end

    def _compute(self, length: int) -> Rotation:
        angle_T1P = torch.arange(length, dtype=torch.float32)[:, None, None] * self._frequency_P
        cos_T1P, sin_T1P = angle_T1P.cos() * self._factor, angle_T1P.sin() * self._factor
        cos_T1R, sin_T1R = torch.cat((cos_T1P, cos_T1P), dim=-1), torch.cat((-sin_T1P, sin_T1P), dim=-1)
        cos_T1R, sin_T1R = cos_T1R.to(self._device), sin_T1R.to(self._device)
        in_ram = cos_T1R.device.type == "cpu"
        return Rotation(cos_T1R, sin_T1R, (cos_T1R[:, 0].numpy(), sin_T1R[:, 0].numpy()) if in_ram else None)


def rotate(x_THR: Tensor, rotation: Rotation, layout: RopeLayout) -> Tensor:
    """Rotate the last axis.

    Pairs come out in the half layout whichever way they went in: queries and keys are permuted alike, so their dot
    products do not change.
    """
    if layout == "interleaved":
        first_THP, second_THP = x_THR[..., 0::2], x_THR[..., 1::2]
        x_THR = torch.cat((first_THP, second_THP), dim=-1)
    else:
        pairs = x_THR.shape[-1] // 2
        first_THP, second_THP = x_THR[..., :pairs], x_THR[..., pairs:]
    swapped_THR = torch.cat((second_THP, first_THP), dim=-1)
    return torch.addcmul(x_THR * rotation.cos_T1R, swapped_THR, rotation.sin_T1R)


def frequencies(config: RopeConfig) -> Tensor:
    """Radians a position for each pair, [P] float32."""
    plain_P = 1.0 / config.theta ** (torch.arange(0, config.dim, 2, dtype=torch.float32) / config.dim)
    if isinstance(config.scaling, YarnScaling):
        return _yarn(plain_P, config, config.scaling)
    if isinstance(config.scaling, Llama3Scaling):
        return _llama3(plain_P, config.scaling)
    return plain_P


def _yarn(plain_P: Tensor, config: RopeConfig, yarn: YarnScaling) -> Tensor:
    """Blend of kept and interpolated frequencies (YaRN, section 3.2), the ramp given in rotary dimensions."""

    def dimension(rotations: float) -> float:
        """The dimension whose pair turns this often over the original context."""
        turns = yarn.original_max_position / (rotations * 2 * math.pi)
        return config.dim * math.log(turns) / (2 * math.log(config.theta))

    low = max(math.floor(dimension(yarn.beta_fast)), 0)
    high = min(math.ceil(dimension(yarn.beta_slow)), config.dim - 1)
    span = high - low if high != low else 0.001
    interpolated_P = ((torch.arange(len(plain_P), dtype=torch.float32) - low) / span).clamp(0.0, 1.0)
    return plain_P / yarn.factor * interpolated_P + plain_P * (1.0 - interpolated_P)


def _llama3(plain_P: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Divide long wavelengths by the factor, keep short ones, blend in between (Llama 3.1's release)."""
    turns_P = scaling.original_max_position * plain_P / (2 * math.pi)
    kept_P = (turns_P - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_P = kept_P.clamp(0.0, 1.0)
    return plain_P / scaling.factor * (1.0 - kept_P) + plain_P * kept_P
