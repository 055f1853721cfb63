"""What is wrong is named with its cure, and rates are remembered for the very hardware only."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from localr1.cli import doctor
from localr1.errors import DiskError
from localr1.events import Progress, result_of
from localr1.hub.room import by_disk
from localr1.kernels.jit import SOURCES_STAMP
from localr1.placement import hardware, probe
from localr1.placement.diagnosis import diagnose, to_record
from localr1.placement.hardware import MOST_PROBES, Facts, Rates, glance, read_rates, survey
from localr1.placement.probe import LEAST_STREAM_BYTES, ROUGH_GPU, System, disk_rate, parse_driver
from localr1.weights.conversion import check_room
from tests.placement.computers import CARD, FACTS, GB, GPU_RATES, RATES, WITH_GPU, Computer


def test_a_healthy_computer_has_nothing_wrong_with_or_without_a_gpu() -> None:
    assert diagnose(FACTS) == diagnose(WITH_GPU) == ()


IDLE = replace(WITH_GPU, gpu=None)
WRONGS: dict[str, tuple[Facts, str, str]] = {
    "torch without CUDA": (replace(IDLE, torch_cuda=None), "built without CUDA, so Some Card stays idle", "CUDA build"),
    "driver too old": (
        replace(IDLE, driver="535.1"),
        "needs driver 580, 535.1 is installed",
        "update the NVIDIA driver",
    ),
    "driver broken": (IDLE, "driver 581.2 disagree", "update the NVIDIA driver"),
    "no Triton": (replace(WITH_GPU, triton=None), "Triton is missing", "pip install triton"),
    "no Triton on Windows": (replace(WITH_GPU, triton=None, system="Windows"), "missing", "pip install triton-windows"),
    "no compiler": (replace(WITH_GPU, triton_lacks="a C compiler"), "needs a C compiler, so the GPU runs plain", "gcc"),
    "old card": (replace(WITH_GPU, gpu=replace(CARD, capability=(6, 1))), "capability 6.1, .* need 7.5", "--vram 0"),
    "new card": (
        replace(WITH_GPU, gpu=replace(CARD, built_for=False)),
        "has no code for .* capability 8",
        "newer CUDA",
    ),
    "card in use": (replace(WITH_GPU, gpu=replace(CARD, free_bytes=5 * GB)), "hold 7.0 GB of GPU memory", "close"),
    "little RAM": (replace(FACTS, ram_bytes=4 * GB, ram_free_bytes=GB), "4.0 GB of RAM is little", "smallest models"),
    "RAM in use": (replace(FACTS, ram_free_bytes=2 * GB), "2.0 GB of 32.0 GB RAM are free", "close other programs"),
    "swap in use": (replace(FACTS, swap_used_bytes=2 * GB), "2.0 GB of swap", "close other programs"),
    "no vectors": (replace(FACTS, vector_bits=0), "AVX2", "nothing to install"),
    "full disk": (replace(FACTS, disk_free_bytes=GB), "1.0 GB are free on the disk of /home/me", "LOCALR1_HOME"),
}


@pytest.mark.parametrize("case", WRONGS)
def test_what_is_wrong_is_said_with_its_cure(case: str) -> None:
    facts, what, mend = WRONGS[case]
    (finding,) = diagnose(facts)
    assert re.search(what, finding.what), finding
    assert mend in finding.mend


def test_the_worst_comes_first() -> None:
    both = replace(IDLE, torch_cuda=None, swap_used_bytes=2 * GB, disk_free_bytes=0)
    assert [finding.weight for finding in diagnose(both)] == ["wrong", "mind", "mind"]


def test_rates_are_measured_once_and_again_when_asked_or_when_the_hardware_changes(tmp_path: Path) -> None:
    computer, cache = Computer(), tmp_path / "home" / "hardware.json"
    first = result_of(survey(computer, cache))
    assert result_of(survey(computer, cache)) == first and computer.measured == 1
    result_of(survey(computer, cache, fresh=True))
    assert computer.measured == 2
    busier = Computer(replace(FACTS, ram_free_bytes=GB, disk_free_bytes=GB, swap_used_bytes=GB))
    assert result_of(survey(busier, cache)).facts.ram_free_bytes == GB and busier.measured == 0
    other = Computer(WITH_GPU)
    assert result_of(survey(other, cache)).rates.gpu == GPU_RATES and other.measured == 1
    assert read_rates(cache, FACTS) is None
    assert read_rates(cache, WITH_GPU) == replace(RATES, gpu=GPU_RATES)


def test_rates_of_a_busy_computer_are_measured_again_a_few_times_and_the_best_kept(tmp_path: Path) -> None:
    class Busy(Computer):
        def rates(self, facts: Facts) -> Progress[Rates]:
            rates = yield from super().rates(facts)
            slow = replace(rates, read_bytes_per_s=1e9 * self.measured, gemm_flops=1e12 / self.measured)
            return replace(slow, others_share=0.5 + 0.1 * self.measured)

    computer, cache = Busy(WITH_GPU), tmp_path / "hardware.json"
    for _ in range(MOST_PROBES + 2):
        found = result_of(survey(computer, cache))
    assert computer.measured == MOST_PROBES
    assert (found.rates.read_bytes_per_s, found.rates.gemm_flops) == (1e9 * MOST_PROBES, 1e12)
    (finding,) = diagnose(found.facts, found.rates)
    assert "60 % of the processors" in finding.what and "--fresh" in finding.mend


def test_rates_of_a_busy_computer_give_way_to_those_of_a_quiet_one(tmp_path: Path) -> None:
    computer, cache = Computer(), tmp_path / "hardware.json"
    hardware._write(cache, FACTS, replace(RATES, others_share=0.9, read_bytes_per_s=3e8))
    assert result_of(survey(computer, cache)).rates.read_bytes_per_s == RATES.read_bytes_per_s
    result_of(survey(computer, cache))
    assert computer.measured == 1 and not diagnose(FACTS, result_of(survey(computer, cache)).rates)


def test_a_gpu_too_full_to_be_measured_is_guessed_and_the_guess_is_not_kept(tmp_path: Path) -> None:
    class Full(Computer):
        def rates(self, facts: Facts) -> Progress[Rates]:
            return replace((yield from super().rates(facts)), gpu=ROUGH_GPU, rough=True)

    full, cache = Full(WITH_GPU), tmp_path / "hardware.json"
    found = result_of(survey(full, cache))
    assert found.rates.gpu == ROUGH_GPU and not cache.exists()
    assert ("  speed", "not measured: too little of its memory is free") in list(doctor.rows(found))
    (finding,) = diagnose(found.facts, found.rates)
    assert "guess" in finding.what and "localr1 doctor" in finding.mend
    hardware._write(cache, WITH_GPU, replace(RATES, gpu=GPU_RATES, others_share=0.9))
    assert result_of(survey(full, cache)).rates.gpu == GPU_RATES and full.measured == 2  # the busy computer's are kept
    result_of(survey(Computer(WITH_GPU), cache))
    assert read_rates(cache, WITH_GPU) == replace(RATES, gpu=GPU_RATES, probes=2)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("of the allocator"), RuntimeError("CUDA error: out of memory")]
)
def test_a_gpu_without_room_is_not_measured(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_size: int, **_kind: object) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2 * LEAST_STREAM_BYTES, 8 * GB))
    assert probe._gpu_rates() is None  # a quarter of that would lie in its caches
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (GB, 8 * GB))
    monkeypatch.setattr(torch, "ones", fails)
    assert probe._gpu_rates() is None


def test_another_version_of_the_program_or_its_kernels_measures_anew(tmp_path: Path) -> None:
    cache = tmp_path / "hardware.json"
    result_of(survey(Computer(replace(FACTS, program="1.0, kernels aa")), cache))
    newer = Computer(replace(FACTS, program="1.0, kernels ab"))
    result_of(survey(newer, cache))
    assert newer.measured == 1
    assert SOURCES_STAMP.hex()[:12] in System(tmp_path, "1.0").facts().program


@pytest.mark.parametrize("harm", ["", "{", "[]", '{"key": 1}', "null"])
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, harm: str) -> None:
    computer, cache = Computer(), tmp_path / "hardware.json"
    cache.write_text(harm)
    result_of(survey(computer, cache))
    assert computer.measured == 1 and read_rates(cache, FACTS) == RATES


@pytest.mark.parametrize("change", [{"read_bytes_per_s": 0}, {"row_bytes_per_s": "fast"}, {"layers": []}, {"new": 1}])
def test_senseless_rates_are_not_believed(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = tmp_path / "hardware.json"
    result_of(survey(Computer(), cache))
    record = json.loads(cache.read_text())
    record["rates"] |= change
    cache.write_text(json.dumps(record))
    assert read_rates(cache, FACTS) is None


def test_a_glance_measures_little_and_keeps_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "hardware.json"
    assert glance(Computer(), cache).rates.rough
    assert not cache.exists()
    result_of(survey(Computer(), cache))
    assert not glance(Computer(), cache).rates.rough


def test_where_nothing_can_be_kept_it_is_measured_each_time(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    computer = Computer()
    for _ in range(2):
        result_of(survey(computer, tmp_path / "home" / "hardware.json"))
    assert computer.measured == 2


def test_the_record_is_json(tmp_path: Path) -> None:
    record = json.loads(json.dumps(to_record(result_of(survey(Computer(WITH_GPU), tmp_path / "hardware.json")))))
    assert record["gpu"]["name"] == "Some Card" and record["rates"]["gpu"]["read_bytes_per_s"] == 500e9
    assert record["findings"] == []


def test_this_very_computer_can_be_looked_at(tmp_path: Path) -> None:
    system = System(tmp_path / "not" / "there")
    facts = system.facts()
    assert facts.ram_bytes > facts.ram_free_bytes > 0 and facts.physical_cores >= 1
    assert facts.disk_folder == str(tmp_path) and facts.processor
    rough = system.rough_rates(facts)
    assert 1e8 < rough.read_bytes_per_s < 1e13
    assert json.dumps(to_record(glance(system, tmp_path / "none.json")))


def test_a_computer_that_does_not_tell_of_its_swap_has_none_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("PdhAddEnglishCounterW failed. Performance counters may be disabled.")

    monkeypatch.setattr(psutil, "swap_memory", fails)
    assert System(tmp_path).facts().swap_used_bytes == 0


def test_a_disk_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    for look in (System(tmp_path).facts, lambda: check_room(tmp_path, 1), lambda: by_disk([(tmp_path, 1)])):
        with pytest.raises(DiskError, match="is not there"):
            look()


def test_a_gpu_that_the_kernels_are_not_made_for_is_neither_measured_nor_guessed(tmp_path: Path) -> None:
    old, system = replace(WITH_GPU, gpu=replace(CARD, capability=(6, 1))), System(tmp_path)
    assert system.rough_rates(old).gpu is None and system.rough_rates(WITH_GPU).gpu is not None

    def stages(facts: Facts) -> int:
        return next(event.total for event in system.rates(facts) if event.stage == "measuring RAM")

    assert stages(WITH_GPU) == stages(old) + 1


def test_what_this_program_holds_of_a_gpu_is_free_to_be_placed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(name="Some Card", major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * GB, 12 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 * GB)
    facts = System(tmp_path).facts()
    assert facts.gpu == replace(CARD, free_bytes=11 * GB)
    assert not any("other programs" in finding.what for finding in diagnose(replace(WITH_GPU, gpu=facts.gpu)))


def test_a_gpu_that_has_no_memory_left_to_be_asked_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(device: int) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: CARD)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    assert System(tmp_path).facts().gpu is None


def test_the_drivers_words() -> None:
    assert parse_driver("550.54.15, NVIDIA GeForce RTX 4070\n550.54.15, NVIDIA T4\n") == (
        "550.54.15",
        ("NVIDIA GeForce RTX 4070", "NVIDIA T4"),
    )
    assert parse_driver("") == parse_driver("No devices were found\n") == (None, ())


def test_the_disk_is_measured_or_not_and_left_clean(tmp_path: Path) -> None:
    rate = disk_rate(tmp_path)
    assert rate is None or rate > 1e6
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert disk_rate(tmp_path / "file") is None


def test_what_triton_needs_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.platform, "system", lambda: "Linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert probe.triton_lacks() == "a C compiler"
    compiler = tmp_path / "clang"
    compiler.touch(0o755)
    monkeypatch.setattr(probe.sysconfig, "get_path", lambda name: str(tmp_path))
    assert probe.triton_lacks() == "Python's headers"
    (tmp_path / "Python.h").touch()
    assert probe.triton_lacks() == ""
    monkeypatch.setattr(probe.platform, "system", lambda: "Windows")
    monkeypatch.setenv("PATH", "")
    assert probe.triton_lacks() == ""
