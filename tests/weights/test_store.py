"""The store holds the quantized checkpoint, whole or not at all, laid out so that experts are one array."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from xxhash import xxh3_128

from localr1.errors import CorruptError, DiskError, NotFoundError
from localr1.events import QuantizeProgress
from localr1.model.linear import TensorSpec
from localr1.weights import conversion as conversion_module
from localr1.weights import durable
from localr1.weights.checkpoint import Checkpoint
from localr1.weights.conversion import write_store
from localr1.weights.journal import Digests, Journal
from localr1.weights.quantize import quantize_rows
from localr1.weights.store import MANIFEST, Origin, Store

EXPERTS, HIDDEN, FF = 11, 5, 3
PREFIXES = [f"model.layers.2.mlp.experts.{expert}" for expert in range(EXPERTS)]


def expected() -> dict[str, TensorSpec]:
    specs = {
        "model.norm.weight": TensorSpec((HIDDEN,), "float"),
        "model.layers.2.mlp.gate.weight": TensorSpec((EXPERTS, HIDDEN), "float"),
        "lm_head.weight": TensorSpec((9, HIDDEN), "int8"),
    }
    for prefix in [*PREFIXES, "model.layers.0.mlp"]:
        specs[f"{prefix}.down_proj.weight"] = TensorSpec((HIDDEN, FF), "int8")
        specs[f"{prefix}.gate_proj.weight"] = TensorSpec((FF, HIDDEN), "int8")
        specs[f"{prefix}.up_proj.weight"] = TensorSpec((FF, HIDDEN), "int8")
    return specs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(spec.shape, generator=generator) for name, spec in expected().items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.bfloat16)
    tensors["model.layers.2.mlp.gate.weight"] = tensors["model.layers.2.mlp.gate.weight"].to(torch.float16)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def writing(source: Path, target: Path) -> Iterator[Any]:
    return write_store(
        target,
        Checkpoint(source),
        expected(),
        block=None,
        origin=Origin("org/name", "abc"),
        extras={"config.json": b"{}"},
    )


@pytest.fixture
def written(source: Path, tmp_path: Path) -> Path:
    target = tmp_path / "stores" / "one"
    events = [event for event in writing(source, target) if isinstance(event, QuantizeProgress)]
    assert events[-1].done_tensors == events[-1].total_tensors == len(expected())
    assert events[-1].done_bytes == events[-1].total_bytes
    return target


def test_every_tensor_is_the_quantized_one(source: Path, written: Path) -> None:
    checkpoint, store = Checkpoint(source), Store(written)
    for name, spec in expected().items():
        tensor = checkpoint.tensor(name)
        if spec.storage == "int8":
            rows, found = quantize_rows(tensor, name), store.int8_rows(name.removesuffix(".weight"))
            assert torch.equal(rows.weight, found.weight) and torch.equal(rows.scb, found.scb)
        else:
            assert torch.equal(store.tensor(name).float(), tensor.float())
    assert store.parameters == sum(tensor.numel() for _, tensor in checkpoint.stream(expected(), None))


def test_bfloat16_stays_and_float16_widens(written: Path) -> None:
    store = Store(written)
    assert store.tensor("model.norm.weight").dtype == torch.bfloat16
    assert store.tensor("model.layers.2.mlp.gate.weight").dtype == torch.float32


def test_the_experts_of_a_layer_are_one_array_in_order(written: Path) -> None:
    store = Store(written)
    rows = store.feed_forwards(PREFIXES)
    assert rows.weight.shape == (EXPERTS, 3 * FF * HIDDEN) and rows.scb.shape == (EXPERTS, 2 * FF + HIDDEN)
    for expert, prefix in enumerate(PREFIXES):
        gate, up, down = (store.int8_rows(f"{prefix}.{name}_proj") for name in ("gate", "up", "down"))
        assert torch.equal(
            rows.weight[expert], torch.cat([gate.weight.flatten(), up.weight.flatten(), down.weight.flatten()])
        )
        assert torch.equal(rows.scb[expert], torch.cat([gate.scb, up.scb, down.scb]))
    assert store.feed_forwards(["model.layers.0.mlp"]).weight.shape == (1, 3 * FF * HIDDEN)


def test_it_is_mapped_and_floats_are_aligned(written: Path) -> None:
    store = Store(written)
    one, two = store.feed_forwards(PREFIXES).weight, store.int8_rows(f"{PREFIXES[0]}.gate_proj").weight
    assert one.data_ptr() == two.data_ptr()
    assert store.feed_forwards(PREFIXES).scb.data_ptr() % 64 == 0


def test_any_reader_can_open_it(written: Path) -> None:
    loaded = load_file(written / "experts-002.safetensors")
    assert loaded[f"{PREFIXES[3]}.gate_proj.weight"].dtype == torch.int8
    assert loaded[f"{PREFIXES[3]}.gate_proj.SCB"].shape == (FF,)


def test_the_manifest_has_the_source_and_true_hashes(written: Path) -> None:
    manifest = json.loads((written / MANIFEST).read_text())
    assert (manifest["source"], manifest["revision"]) == ("org/name", "abc")
    assert set(manifest["files"]) == {"config.json", "dense.safetensors", "experts-002.safetensors"}
    for name, facts in manifest["files"].items():
        assert facts["xxh3_128"] == xxh3_128((written / name).read_bytes()).hexdigest()


def test_a_store_of_before_with_sha256_in_its_manifest_opens(source: Path, written: Path) -> None:
    manifest = json.loads((written / MANIFEST).read_text())
    for name, facts in manifest["files"].items():
        del facts["xxh3_128"]
        facts["sha256"] = hashlib.sha256((written / name).read_bytes()).hexdigest()
    (written / MANIFEST).write_text(json.dumps(manifest))
    assert torch.equal(Store(written).tensor("model.norm.weight"), Checkpoint(source).tensor("model.norm.weight"))


def test_two_conversions_are_byte_identical(source: Path, written: Path, tmp_path: Path) -> None:
    list(writing(source, tmp_path / "stores" / "two"))
    for name in ("dense.safetensors", "experts-002.safetensors"):
        assert (written / name).read_bytes() == (tmp_path / "stores" / "two" / name).read_bytes()


@pytest.mark.parametrize("harm", ["truncated", "gone"])
def test_a_store_that_lost_something_is_not_opened(written: Path, harm: str) -> None:
    path = written / "experts-002.safetensors"
    path.write_bytes(path.read_bytes()[:-1]) if harm == "truncated" else path.unlink()
    with pytest.raises(CorruptError, match="experts-002") as caught:
        Store(written)
    assert "download" in caught.value.hint


@pytest.mark.parametrize("facts", [None, {}, {"bytes": "12"}, {"cytes": 12}], ids=str)
def test_a_manifest_that_was_damaged_is_told_as_that(written: Path, facts: object) -> None:
    manifest = json.loads((written / MANIFEST).read_text())
    manifest["files"]["dense.safetensors"] = facts
    (written / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorruptError, match=r"manifest\.json is damaged at 'dense\.safetensors'"):
        Store(written)


def test_a_name_that_was_damaged_is_missed(written: Path) -> None:
    path, name = written / "experts-002.safetensors", f"{PREFIXES[0]}.gate_proj.SCB".encode()
    path.write_bytes(path.read_bytes().replace(name, name.replace(b"gate", b"hate")))
    with pytest.raises(CorruptError, match=r"has no .*gate_proj\.SCB"):
        Store(written).feed_forwards(PREFIXES)


def test_a_folder_without_manifest_is_no_store(source: Path) -> None:
    with pytest.raises(NotFoundError):
        Store(source)


def facts(store: Path) -> dict[str, Any]:
    """What must be the same however a store was made."""
    manifest = json.loads((store / MANIFEST).read_text())
    assert {path.name for path in store.iterdir()} == {*manifest["files"], MANIFEST}
    for name, said in manifest["files"].items():
        assert said["xxh3_128"] == xxh3_128((store / name).read_bytes()).hexdigest()
    return manifest["files"]


@pytest.mark.parametrize("stop_after", [1, 7, 20])
def test_what_is_left_in_the_middle_is_no_store_and_gone_on_with(
    source: Path, written: Path, tmp_path: Path, stop_after: int
) -> None:
    target = tmp_path / "others" / "one"
    events = writing(source, target)
    for _ in range(stop_after):
        next(events)
    events.close()
    assert [path.name for path in (tmp_path / "others").iterdir()] == ["one.partial"]
    again = [event for event in writing(source, target) if isinstance(event, QuantizeProgress)]
    assert again[0].done_tensors == stop_after
    assert facts(target) == facts(written)
    assert [path.name for path in (tmp_path / "others").iterdir()] == ["one"]


def interrupted(source: Path, target: Path, after: int = 20) -> Path:
    events = writing(source, target)
    for _ in range(after):
        next(events)
    events.close()
    return target.with_name(target.name + ".partial")


def damage_a_tensor(partial: Path) -> None:
    path = partial / "store" / "experts-002.safetensors"
    data = bytearray(path.read_bytes())
    data[-200:] = bytes(200)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_the_journal(partial: Path) -> None:
    text = (partial / "journal.jsonl").read_text()
    (partial / "journal.jsonl").write_text(text[:-15])


def promise_too_much(partial: Path) -> None:
    """A journal that lists tensors that were never written, as after a power loss that kept the journal alone."""
    names = [name for name, spec in expected().items() if spec.storage == "int8"]
    lines = [json.dumps({"tensor": name, "xxh3_128": {name: "1" * 32, name[:-6] + "SCB": "1" * 32}}) for name in names]
    with (partial / "journal.jsonl").open("a") as journal:
        journal.write("\n".join(lines) + "\n")


def note_crcs(partial: Path) -> None:
    """A journal of an earlier version."""
    lines = [json.loads(line) for line in (partial / "journal.jsonl").read_text().splitlines()]
    old = [{"tensor": line["tensor"], "crc": dict.fromkeys(line["xxh3_128"], 1)} for line in lines[1:]]
    (partial / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [lines[0], *old]))


def change_the_revision(partial: Path) -> None:
    text = (partial / "journal.jsonl").read_text()
    (partial / "journal.jsonl").write_text(text.replace('"abc"', '"another"'))


def truncate_the_store(partial: Path) -> None:
    with (partial / "store" / "dense.safetensors").open("r+b") as file:
        file.truncate(100)


def strew_garbage(partial: Path) -> None:
    (partial / "journal.jsonl").write_bytes(b"\xff\x00garbage")
    (partial / "store" / "stray").write_text("x")


HARMS = [
    damage_a_tensor,
    cut_the_journal,
    promise_too_much,
    note_crcs,
    change_the_revision,
    truncate_the_store,
    strew_garbage,
]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_what_an_earlier_run_left_is_believed_only_where_it_is_right(
    source: Path, written: Path, tmp_path: Path, harm: Any
) -> None:
    target = tmp_path / "others" / "one"
    harm(interrupted(source, target))
    list(writing(source, target))
    assert facts(target) == facts(written)


class Scanner:
    """As Windows has it while another program looks at a file: its folder cannot be renamed, the first `times`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.times, self.rename = times, Path.rename
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setattr(durable, "WAITS_S", (0.0, 0.0))
        monkeypatch.setattr(Path, "rename", lambda path, name: self.try_to(path, name))

    def try_to(self, path: Path, name: Path) -> Path:
        if path.name == "new" and self.times:
            self.times -= 1
            raise PermissionError(13, "Access is denied")
        return self.rename(path, name)


@pytest.mark.parametrize("times", [0, 2, 9])
def test_a_folder_that_is_looked_at_replaces_another_or_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    for name in ("new", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    Scanner(monkeypatch, times)
    with pytest.raises(PermissionError) if times > 2 else nullcontext():
        durable.replace_folder(tmp_path / "new", tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["there" if times > 2 else "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == (["new", "there"] if times > 2 else ["there"])


def test_a_link_to_a_folder_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    for name in ("new", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "there").symlink_to(tmp_path / "elsewhere")
    durable.replace_folder(tmp_path / "new", tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "there"]
    assert (tmp_path / "elsewhere" / "elsewhere").exists()


def test_nothing_is_deleted_that_is_still_open(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows would refuse it."""
    journals: list[Journal] = []
    were_open: list[bool] = []

    class Watched(Journal):
        def start(self, done: Mapping[str, Digests]) -> None:
            super().start(done)
            journals.append(self)

    rmtree = shutil.rmtree

    def delete(path: Path, **how: bool) -> None:
        were_open.extend(journal.is_open for journal in journals)
        rmtree(path, **how)

    monkeypatch.setattr(conversion_module, "Journal", Watched)
    monkeypatch.setattr(conversion_module.shutil, "rmtree", delete)
    list(writing(source, tmp_path / "one"))
    assert were_open[-1] is False and {path.name for path in tmp_path.iterdir()} == {"source", "one"}


def test_a_files_room_is_reserved_where_lengthening_it_would_write_it(
    source: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(os, "truncate", None)
    monkeypatch.setattr(sys, "platform", "win32")
    list(writing(source, tmp_path / "again"))
    assert facts(tmp_path / "again") == facts(written)


def test_a_failed_second_conversion_keeps_the_first(source: Path, written: Path) -> None:
    events = writing(source, written)
    next(events)
    events.close()
    facts(written)


def test_no_room_is_said_with_the_numbers_before_any_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DiskError, match=r"needs [\d.]+ kB, .* has 1\.0 kB free") as caught:
        next(writing(source, tmp_path / "stores" / "one"))
    assert "more" in caught.value.hint and not (tmp_path / "stores").exists()


def test_a_disk_that_fills_up_half_way_leaves_no_store(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(conversion_module.FileWriter):
        def write(self, name: str, tensor: torch.Tensor) -> None:
            if name.startswith("lm_head"):
                raise OSError(28, "No space left on device")
            super().write(name, tensor)

    monkeypatch.setattr(conversion_module, "FileWriter", Full)
    with pytest.raises(DiskError, match="no room"):
        list(writing(source, tmp_path / "stores" / "one"))
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["one.partial"]
