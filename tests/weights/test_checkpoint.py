"""A checkpoint folder is taken only when it is what its config implies, and one tensor at a time."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from localr1.errors import CorruptError, LocalR1Error, NotFoundError, UnsupportedError
from localr1.model.linear import TensorSpec
from localr1.weights.checkpoint import INDEX, Checkpoint
from localr1.weights.fp8 import dequantize_blocks

EXPECTED = {"a.weight": TensorSpec((4, 6), "int8"), "norm.weight": TensorSpec((6,), "float")}


def tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.randn(4, 6), "norm.weight": torch.ones(6)}


def nothing_ignored(_name: str) -> bool:
    return False


def check(folder: Path, expected: dict[str, TensorSpec] = EXPECTED, block: tuple[int, int] | None = None) -> None:
    Checkpoint(folder).check(expected, nothing_ignored, block)


def test_one_file_streams_what_was_saved(tmp_path: Path) -> None:
    saved = tensors()
    save_file(saved, tmp_path / "model.safetensors")
    check(tmp_path)
    streamed = dict(Checkpoint(tmp_path).stream(EXPECTED, None))
    assert streamed.keys() == saved.keys() and all(torch.equal(streamed[name], saved[name]) for name in saved)


def shard(folder: Path, weight_map: dict[str, str]) -> None:
    saved = tensors()
    for file in set(weight_map.values()):
        if Path(file).name == file:
            save_file({name: saved[name] for name, at in weight_map.items() if at == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_behind_an_index(tmp_path: Path) -> None:
    shard(tmp_path, {"a.weight": "m-1.safetensors", "norm.weight": "m-2.safetensors"})
    check(tmp_path)
    assert {name for name, _ in Checkpoint(tmp_path).stream(EXPECTED, None)} == set(EXPECTED)


@pytest.mark.parametrize(
    "file", ["../evil.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.safetensors", "x.bin"]
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, file: str) -> None:
    shard(tmp_path, {"a.weight": file, "norm.weight": "m-2.safetensors"})
    with pytest.raises(CorruptError, match="outside the folder"):
        Checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path, {"a.weight": "m-1.safetensors", "norm.weight": "m-2.safetensors"})
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"1 of 2 files.*m-2\.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["[]", "{", "[" * 100_000, '{"weight_map": 3}', '{"weight_map": {"a": 3}}'], ids=len)
def test_a_broken_index_is_corrupt(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(CorruptError):
        Checkpoint(tmp_path)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin.*can run code"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_weights_is_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError):
        Checkpoint(tmp_path / name)


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    shard(tmp_path, {"a.weight": "m-1.safetensors", "norm.weight": "m-2.safetensors"})
    save_file(tensors(), tmp_path / "m-2.safetensors")
    with pytest.raises(CorruptError, match=r"a\.weight is in both"):
        Checkpoint(tmp_path)


WRONG = {
    "missing": (lambda t: t.pop("norm.weight"), CorruptError, r"1 tensors are missing.*norm\.weight"),
    "left over": (lambda t: t.update(x=torch.ones(2)), CorruptError, "belong to nothing.*x"),
    "shape": (lambda t: t.update({"norm.weight": torch.ones(7)}), CorruptError, r"\[7\].*implies \[6\]"),
    "integers": (lambda t: t.update({"norm.weight": torch.ones(6, dtype=torch.int32)}), UnsupportedError, "int32"),
    "8 bits already": (lambda t: t.update({"a.weight": torch.ones(4, 6, dtype=torch.int8)}), UnsupportedError, "int8"),
    "fp8 without block size": (
        lambda t: t.update({"a.weight": torch.ones(4, 6).to(torch.float8_e4m3fn)}),
        CorruptError,
        "no block size",
    ),
}


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.replace(" ", "-"))
def test_what_does_not_fit_the_config_is_refused(tmp_path: Path, case: str) -> None:
    change, kind, words = WRONG[case]
    saved = tensors()
    change(saved)
    save_file(saved, tmp_path / "model.safetensors")
    with pytest.raises(kind, match=words) as caught:
        check(tmp_path)
    assert isinstance(caught.value, LocalR1Error) and caught.value.hint


def test_known_extras_are_left_alone(tmp_path: Path) -> None:
    save_file(tensors() | {"extra": torch.ones(1)}, tmp_path / "model.safetensors")
    Checkpoint(tmp_path).check(EXPECTED, lambda name: name == "extra", None)


def test_fp8_blocks_come_out_in_float(tmp_path: Path) -> None:
    weight, scale = torch.randn(4, 6).to(torch.float8_e4m3fn), torch.rand(2, 2) + 0.5
    save_file(tensors() | {"a.weight": weight, "a.weight_scale_inv": scale}, tmp_path / "model.safetensors")
    check(tmp_path, block=(3, 4))
    streamed = dict(Checkpoint(tmp_path).stream(EXPECTED, (3, 4)))
    assert torch.equal(streamed["a.weight"], dequantize_blocks(weight, scale, (3, 4)))
    with pytest.raises(CorruptError, match=r"blocks of \[2, 4\] need \[2, 2\]|shape"):
        check(tmp_path, block=(1, 4))


def test_fused_experts_are_one_matrix_an_expert(tmp_path: Path) -> None:
    prefix = "model.layers.1.mlp.experts"
    gate_up, down = torch.randn(3, 8, 5), torch.randn(3, 5, 4)
    save_file({f"{prefix}.gate_up_proj": gate_up, f"{prefix}.down_proj": down}, tmp_path / "model.safetensors")
    shapes = {"gate_proj": (4, 5), "up_proj": (4, 5), "down_proj": (5, 4)}
    expected = {
        f"{prefix}.{expert}.{name}.weight": TensorSpec(shape, "int8")
        for expert in range(3)
        for name, shape in shapes.items()
    }
    check(tmp_path, expected)
    checkpoint = Checkpoint(tmp_path)
    for expert in range(3):
        assert torch.equal(checkpoint.tensor(f"{prefix}.{expert}.gate_proj.weight"), gate_up[expert, :4])
        assert torch.equal(checkpoint.tensor(f"{prefix}.{expert}.up_proj.weight"), gate_up[expert, 4:])
        assert torch.equal(checkpoint.tensor(f"{prefix}.{expert}.down_proj.weight"), down[expert])
    assert len(list(checkpoint.stream(expected, None))) == 9


def test_fused_fp8_experts_keep_their_scales(tmp_path: Path) -> None:
    prefix = "model.layers.1.mlp.experts"
    weight, scale = torch.randn(2, 8, 6).to(torch.float8_e4m3fn), torch.rand(2, 4, 2) + 0.5
    save_file(
        {f"{prefix}.gate_up_proj": weight, f"{prefix}.gate_up_proj_scale_inv": scale}, tmp_path / "model.safetensors"
    )
    expected = {f"{prefix}.{e}.{p}_proj.weight": TensorSpec((4, 6), "int8") for e in range(2) for p in ("gate", "up")}
    check(tmp_path, expected, block=(2, 3))
    found = Checkpoint(tmp_path).tensor(f"{prefix}.1.up_proj.weight", (2, 3))
    assert torch.equal(found, dequantize_blocks(weight[1, 4:], scale[1, 2:], (2, 3)))


FP8 = torch.ones(4, 6).to(torch.float8_e4m3fn)
HARD_FP8 = {
    "exponents for scales": ({"a.weight": FP8, "a.weight_scale_inv": torch.ones(2, 2, dtype=torch.uint8)}, "uint8"),
    "a vector": ({"norm.weight": FP8[0], "norm.weight_scale_inv": torch.ones(2)}, r"norm\.weight.*\[6\]"),
}


@pytest.mark.parametrize("case", HARD_FP8, ids=lambda case: case.replace(" ", "-"))
def test_fp8_of_another_kind_is_refused(tmp_path: Path, case: str) -> None:
    changes, words = HARD_FP8[case]
    save_file(tensors() | changes, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match=words):
        check(tmp_path, block=(3, 4))


def test_fused_fp8_experts_whose_halves_share_blocks_are_refused(tmp_path: Path) -> None:
    """Of 5 and 5 rows in blocks of 3 the second block is both halves', though there are two blocks for each."""
    prefix = "model.layers.1.mlp.experts"
    weight, scale = torch.randn(2, 10, 6).to(torch.float8_e4m3fn), torch.rand(2, 4, 2)
    save_file(
        {f"{prefix}.gate_up_proj": weight, f"{prefix}.gate_up_proj_scale_inv": scale}, tmp_path / "model.safetensors"
    )
    expected = {f"{prefix}.{e}.{p}_proj.weight": TensorSpec((5, 6), "int8") for e in range(2) for p in ("gate", "up")}
    with pytest.raises(UnsupportedError, match=r"gate_proj.*shares FP8 blocks of \[3, 3\]"):
        check(tmp_path, expected, block=(3, 3))
