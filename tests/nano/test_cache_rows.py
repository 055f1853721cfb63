"""The 8-bit cache that latent attention has on the CPU changes less of nano than bfloat16 arithmetic does."""

from pathlib import Path

import pytest

from benchmarks.cache_rows import ARITHMETIC, divergences, held_out, worked_out


def test_eight_bit_rows_cost_less_than_bfloat16_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    windows = worked_out(held_out(4))
    found = divergences(windows, threads=1)
    sixteen, eight, usual = found["bf16 rows"], found["int8 rows"], found[ARITHMETIC]
    assert eight.tokens == sum(map(len, windows)) > 5000
    assert sixteen.mean_kl < eight.mean_kl, "the comparison sees rounded rows"
    assert eight.mean_kl < usual.mean_kl < 1e-2, "half of it, where this was measured"
