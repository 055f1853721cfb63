"""Stand-in layers are run for real, and are of the kinds and sizes that they say."""

import pytest

from localr1.bench import stand_ins
from localr1.events import result_of
from localr1.model.registry import parse_config
from localr1.options import EngineOptions


def test_each_kind_comes_smallest_first() -> None:
    configs = [parse_config(raw) for raw in stand_ins.STAND_INS]
    kinds = ["latent" if config.moe else "grouped" for config in configs]
    assert kinds == ["latent"] * 3 + ["grouped"] * 3
    widths = [config.hidden for config in configs]
    assert widths[:3] == sorted(widths[:3]) and widths[3:] == sorted(widths[3:])


def test_small_ones_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "STAND_INS", (stand_ins.STAND_INS[0], stand_ins.STAND_INS[3]))
    # what a user asks for a model is not for all stand-ins to have
    latent, grouped = result_of(stand_ins.measure_layers(EngineOptions(threads=1, kv="int8")))
    assert (latent.kind, grouped.kind) == ("latent", "grouped")
    assert grouped.read_bytes == pytest.approx(192 * (2 * 192 + 2 * 64) + 3 * 192 * 512, rel=0.05)
    for layer in (latent, grouped):
        assert 0 < layer.decode_s < layer.prefill_s
        assert layer.flops > 2 * 512 * layer.read_bytes
