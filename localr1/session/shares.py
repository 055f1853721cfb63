"""GPU memory for engines that are loaded at once: an equal part each.

Owns the sharing out. An engine by itself takes most of what is free, so the first of several would starve the others.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from localr1.errors import UsageError
from localr1.options import EngineOptions
from localr1.quantities import bytes_text, parse_size
from localr1.session import gpu
from localr1.session.outlook import given_vram_bytes


def shared_out(settings: Sequence[EngineOptions]) -> tuple[tuple[EngineOptions, ...], int]:
    """The settings, and the part in bytes that each of them got which may use the GPU and names no amount of its
    memory: of what is free beside the reserve, what the others name is theirs. 0 where fewer than two use the GPU.

    Raises UsageError when what is named is not free.
    """
    on_gpu = [one for one in settings if gpu.usable_device(one) is not None]
    if len(on_gpu) < 2:
        return tuple(settings), 0
    torch.cuda.empty_cache()
    free_bytes = given_vram_bytes(torch.cuda.mem_get_info()[0])
    named = [parse_size(one.vram, "--vram") for one in on_gpu if one.vram is not None]
    if sum(named) > free_bytes:
        raise UsageError(
            f"settings that are loaded at once name {bytes_text(sum(named))} of GPU memory, "
            f"{bytes_text(free_bytes)} may be used",
            "name less, or measure each by itself: localr1 bench --json A.json, then localr1 bench diff A.json B.json",
        )
    part_bytes = (free_bytes - sum(named)) // max(1, len(on_gpu) - len(named))
    shared = [replace(one, vram=f"{part_bytes}B") if one in on_gpu and one.vram is None else one for one in settings]
    return tuple(shared), part_bytes if len(named) < len(on_gpu) else 0
