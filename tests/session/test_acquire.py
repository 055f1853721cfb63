"""Checkpoints of every kind become stores that hold what they should, or nothing."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import localr1
from localr1.errors import AccessError, CorruptError, LocalR1Error, NotFoundError, UnsupportedError
from localr1.events import Notice, QuantizeProgress
from localr1.hub import cache as hub_cache
from localr1.model import registry
from localr1.options import DownloadOptions, EngineOptions
from localr1.session import convert, download, load
from localr1.weights.quantize import dequantize_rows, quantize_rows
from localr1.weights.store import Origin, Store
from tests import tiny

NANO = Path(localr1.__file__).parent / "nano"
BLOCK = (8, 6)


def source_of(model: tiny.Tiny, folder: Path, **options: object) -> Path:
    """A folder as the hub would give it."""
    tiny.save(model, folder, **options)  # type: ignore[arg-type]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(NANO / name, folder / name)
    return folder


def converted(source: Path, tmp_path: Path) -> Store:
    for _ in convert(source, tmp_path / "stores" / "one", Origin("t", "0")):
        pass
    return Store(tmp_path / "stores" / "one")


def holds(store: Store, model: tiny.Tiny, dtype: torch.dtype = torch.float32) -> None:
    """Every matrix of the store is the model's, quantized from `dtype`."""
    for name, spec in registry.expected_tensors(model.config).items():
        tensor = model.state[name].to(dtype)
        if spec.storage == "int8":
            assert torch.equal(
                dequantize_rows(store.int8_rows(name.removesuffix(".weight"))),
                dequantize_rows(quantize_rows(tensor, name)),
            ), name
        else:
            assert torch.equal(store.tensor(name).float(), tensor.float()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shards", [1, 3])
def test_dtypes_and_shards(tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    model = tiny.make("deepseek_v3")
    store = converted(source_of(model, tmp_path / "source", dtype=dtype, shards=shards), tmp_path)
    holds(store, model, dtype)
    assert registry.read_config(store.folder) == model.config
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(store.manifest["files"])


def test_a_dry_run_checks_a_folder_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path / "home"))
    source = source_of(tiny.make("llama"), tmp_path / "source")
    said = [event.text for event in download(DownloadOptions(str(source), dry_run=True)) if isinstance(event, Notice)]
    assert len(said) == 1 and "can be quantized" in said[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(LocalR1Error, match="empty"):
        list(download(DownloadOptions(str(tmp_path / "empty"), dry_run=True)))
    assert not (tmp_path / "home").exists()


def test_a_folder_whose_files_change_leaves_nothing_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path / "home"))
    source = source_of(tiny.make("llama"), tmp_path / "source")
    stopped = download(DownloadOptions(str(source)))
    next(event for event in stopped if isinstance(event, QuantizeProgress))
    stopped.close()
    begun = list((tmp_path / "home").glob("models/*/*.partial"))
    os.utime(source / "model.safetensors", (1, 1))
    events = download(DownloadOptions(str(source)))
    next(event for event in events if isinstance(event, QuantizeProgress))
    assert [path.exists() for path in begun] == [False]
    os.utime(source / "model.safetensors", (2, 2))
    with pytest.raises(CorruptError, match="changed while it was converted"):
        list(events)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_the_float_checkpoint_of_a_folder_is_the_one_that_was_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path / "home"))
    source = source_of(tiny.make("llama"), tmp_path / "source")
    list(download(DownloadOptions(str(source))))
    (store,) = hub_cache.stores()
    exact = EngineOptions(dtype="float32", context=64)
    assert list(load(str(store.folder), exact))
    os.utime(source / "model.safetensors", (1, 1))
    with pytest.raises(NotFoundError, match=r"no longer what .* was made of"):
        list(load(str(store.folder), exact))


def test_fused_experts(tmp_path: Path) -> None:
    model = tiny.make("deepseek_v3")
    source = source_of(model, tmp_path / "source")
    fused = model.reference.state_dict()
    assert any(name.endswith("experts.gate_up_proj") for name in fused)
    save_file({name: tensor.contiguous() for name, tensor in fused.items()}, source / "model.safetensors")
    holds(converted(source, tmp_path), model)


def test_fp8_with_ragged_blocks(tmp_path: Path) -> None:
    model = tiny.make("deepseek_v3")
    source = source_of(model, tmp_path / "source")
    tensors, wanted = {}, {}
    for name, tensor in model.state.items():
        quantized = name.endswith("_proj.weight") or "kv_a_proj_with_mqa" in name or "kv_b_proj" in name
        if not quantized:
            tensors[name] = wanted[name] = tensor
            continue
        fp8, scale, exact = to_fp8(tensor)
        tensors |= {name: fp8, name + "_scale_inv": scale}
        wanted[name] = exact.bfloat16().float() if "kv_b_proj" in name else exact
    save_file(tensors, source / "model.safetensors")
    config = model.raw | {
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK)}
    }
    (source / "config.json").write_text(json.dumps(config))
    holds(converted(source, tmp_path), tiny.Tiny(None, model.raw, wanted))


def to_fp8(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FP8, scales, and what they stand for, one block at a time: independent of the code under test."""
    rows, columns = tensor.shape
    scale = torch.empty(-(-rows // BLOCK[0]), -(-columns // BLOCK[1]))
    fp8, exact = torch.empty(rows, columns, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * BLOCK[0], (i + 1) * BLOCK[0]), slice(j * BLOCK[1], (j + 1) * BLOCK[1]))
            scale[i, j] = tensor[at].abs().max() / 448
            fp8[at] = (tensor[at] / scale[i, j]).to(torch.float8_e4m3fn)
            exact[at] = fp8[at].float() * scale[i, j]
    return fp8, scale, exact


def test_an_mtp_layer_is_taken_where_there_is_one_and_not_missed_where_there_is_none(tmp_path: Path) -> None:
    model = tiny.with_mtp("deepseek_v3")
    store = converted(source_of(model, tmp_path / "source"), tmp_path)
    assert registry.has_mtp(model.config, store)
    without = tiny.Tiny(None, model.raw, {n: t for n, t in model.state.items() if ".layers.3." not in n})
    bare = converted(source_of(without, tmp_path / "bare"), tmp_path / "bare")
    assert not registry.has_mtp(model.config, bare)


def harm_config(**changes: object) -> Callable[[Path], None]:
    def harm(source: Path) -> None:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | changes))

    return harm


def truncate(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, source / "model.safetensors")


def put_a_folder_for(name: str) -> Callable[[Path], None]:
    """What nobody can read, not even root."""

    def harm(source: Path) -> None:
        (source / name).unlink(missing_ok=True)
        (source / name).mkdir()

    return harm


def poison(name: str, number: float) -> Callable[[Path], None]:
    def harm(source: Path) -> None:
        tensors = load_file(source / "model.safetensors")
        tensors[name][3] = number
        save_file(tensors, source / "model.safetensors")

    return harm


HARMS: dict[str, tuple[Callable[[Path], None], type[LocalR1Error], str]] = {
    "no config": (lambda source: (source / "config.json").unlink(), NotFoundError, r"config\.json"),
    "no tokenizer": (lambda source: (source / "tokenizer.json").unlink(), NotFoundError, "tokenizer"),
    "no template": (
        lambda source: (source / "tokenizer_config.json").write_text("{}"),
        UnsupportedError,
        "no chat template",
    ),
    "broken tokenizer": (lambda source: (source / "tokenizer.json").write_text("{"), CorruptError, "tokenizer"),
    "config not json": (lambda source: (source / "config.json").write_text("{"), CorruptError, "JSON"),
    "config not readable": (put_a_folder_for("config.json"), AccessError, r"config\.json cannot be read"),
    "index not readable": (
        put_a_folder_for("model.safetensors.index.json"),
        AccessError,
        r"index\.json cannot be read",
    ),
    "unknown architecture": (harm_config(model_type="mamba9"), UnsupportedError, "mamba9.*llama"),
    "unsupported activation": (harm_config(hidden_act="relu"), UnsupportedError, "relu"),
    "other size": (harm_config(hidden_size=64), CorruptError, r"shape.*implies"),
    "fewer layers": (harm_config(num_hidden_layers=2), CorruptError, "belong to nothing"),
    "truncated weights": (truncate, CorruptError, "truncated"),
    "missing tensor": (drop_tensor, CorruptError, r"model\.norm\.weight"),
    "not a number": (poison("lm_head.weight", math.nan), CorruptError, r"lm_head\.weight.*not finite.*row 3"),
    "infinite norm": (poison("model.norm.weight", math.inf), CorruptError, r"model\.norm\.weight.*not finite"),
}


@pytest.mark.parametrize("case", HARMS, ids=lambda case: case.replace(" ", "-"))
def test_bad_input_is_one_line_with_a_hint_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    harm, kind, words = HARMS[case]
    source = source_of(tiny.make("llama"), tmp_path / "source")
    harm(source)
    with pytest.raises(kind, match=words) as caught:
        converted(source, tmp_path)
    assert caught.value.hint and "\n" not in caught.value.message
    assert not list((tmp_path / "stores").glob("*")) if (tmp_path / "stores").exists() else True
