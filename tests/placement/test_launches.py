"""How many kernels a step of one token launches on a GPU with all experts resident: every launch costs it a microsecond
or two, whatever it computes. Counted on the CPU, where Triton's kernels are only noted and torch's run."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from localr1.decode.cache import RowCache
from localr1.kernels.gpu import has_triton
from localr1.model import registry
from localr1.placement.gpu import GpuOps, GpuWeights
from localr1.placement.slots import ColdExperts, ExpertSlots
from localr1.placement.split import GpuBank
from localr1.session.replay import HeldCache
from tests.placement.test_split import CPU, stored

pytestmark = pytest.mark.skipif(not has_triton(), reason="Triton is not installed (it has no build for this system)")


class Launches(TorchDispatchMode):
    """Notes torch's operations that are more than another view of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = operation(*arguments, **(named or {}))
        schema = operation._schema
        view = schema.returns and schema.returns[0].alias_info is not None and not schema.is_mutable
        if not view and "empty" not in schema.name and "reshape_alias" not in schema.name:
            self.names.append(schema.name)
        return result


@pytest.mark.parametrize(
    ("model_type", "most"), [("deepseek_v2", 15), ("glm4_moe_lite", 15), ("deepseek_v3", 30), ("qwen2", 9)]
)
def test_a_layer_of_a_recorded_step(tmp_path: Path, model_type: str, most: int) -> None:
    from localr1.kernels.gpu import attention, choice, few, front, fused, norm

    model, store = stored(model_type, tmp_path)
    config, kernels, experts = model.config, fused.FusedKernels(), None
    if config.moe is not None:
        cold = ColdExperts(store, config.moe.layers, config.moe.num_experts)
        everyone = [(layer, expert) for layer in cold.layers for expert in range(cold.experts)]
        experts = GpuBank(ExpertSlots(cold, cold.total, CPU, everyone), kernels)
    decoder = registry.build(config, GpuWeights(store, GpuOps(CPU, kernels)), experts)
    held = HeldCache(RowCache(config.num_layers, config.cache_width, 64, torch.bfloat16), CPU)
    x_1D, rotation = torch.zeros(1, config.hidden), decoder.rotary.rows(held.length, 1)
    launches = Launches()
    with ExitStack() as stack:
        for module in (attention, choice, few, front, norm):
            for name, kernel in vars(module).items():
                if type(kernel).__name__ == "JITFunction":
                    noted = mock.MagicMock()
                    noted.__getitem__.return_value = lambda *_, name=name, **__: launches.names.append(name)
                    stack.enter_context(mock.patch.object(module, name, noted))
        decoder.layers[-1](x_1D, rotation, held)  # as before a recording
        launches.names.clear()
        with launches:
            decoder.layers[-1](x_1D, rotation, held)
    assert "linear" in launches.names and "join" in launches.names
    assert len(launches.names) <= most, launches.names
