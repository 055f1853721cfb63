"""Reading config.json: both spellings, what is refused and in which words."""

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from localr1.errors import CorruptError, LocalR1Error, NotFoundError, UnsupportedError
from localr1.model.config import Llama3Scaling, YarnScaling
from localr1.model.registry import expected_tensors, ignorable, parse_config, read_config
from tests.model import published

FP8 = published.R1["quantization_config"]


def without(raw, *keys):
    return {key: value for key, value in raw.items() if key not in keys}


def as_transformers_writes(raw):
    """The same config in the spelling of transformers 5."""
    scaling = dict(raw.get("rope_scaling") or {})
    kind = scaling.pop("type", scaling.pop("rope_type", "default"))
    rope = scaling | {"rope_type": kind, "rope_theta": raw["rope_theta"]}
    kept = without(raw, "rope_scaling", "rope_theta", "torch_dtype", "scoring_func", "num_nextn_predict_layers")
    mtp = {"num_mtp_layers": raw["num_nextn_predict_layers"]} if "num_nextn_predict_layers" in raw else {}
    return kept | mtp | {"rope_parameters": rope, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    "name", ["R1", "V2_LITE", "MOONLIGHT", "GLM_4_7_FLASH", "R1_DISTILL_LLAMA_8B", "R1_0528_QWEN3_8B"]
)
def test_both_spellings_give_the_same_config(name):
    raw = getattr(published, name)
    assert parse_config(as_transformers_writes(raw)) == parse_config(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": published.R1["rope_scaling"] | {"rope_type": "yarn", "rope_theta": 10000.0}},
        {"rope_parameters": {}},
        {"rope_parameters": published.R1["rope_scaling"], "rope_scaling": {}},
        {"rope_scaling": published.R1["rope_scaling"] | {"rope_type": None, "rope_theta": None}},
        {"original_max_position_embeddings": 4096},
    ],
    ids=["both, alike", "an empty one", "another empty one", "null among them", "said twice"],
)
def test_rotary_settings_said_twice_or_left_empty(changes):
    assert parse_config(published.R1 | changes) == parse_config(published.R1)


def test_what_a_config_leaves_out_is_what_transformers_takes():
    """Of what shows in no tensor's shape."""
    keys = ("n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob")
    assert parse_config(without(published.R1, *keys)) == parse_config(published.R1)
    assert parse_config(without(published.GLM_4_7_FLASH, *keys)) == parse_config(published.GLM_4_7_FLASH)
    ungrouped = parse_config(published.R1 | {"n_group": None, "topk_group": None}).moe
    assert (ungrouped.num_groups, ungrouped.top_k_groups) == (1, 1)


def test_r1():
    config = parse_config(published.R1)
    assert (config.num_layers, config.cache_layers, config.cache_width) == (61, 61, 576)
    assert config.weight_block_size == (128, 128)
    assert config.num_mtp_layers == 1
    assert config.max_position == 163840
    assert (config.bos_token_id, config.eos_token_ids) == (0, (1,))
    assert config.moe.layers == tuple(range(3, 61))
    assert (config.moe.num_groups, config.moe.top_k_groups, config.moe.top_k) == (8, 4, 8)
    assert isinstance(config.rope.scaling, YarnScaling)
    assert config.rope.scaling.cos_sin_factor == 1.0
    assert config.rope.scaling.score_factor == pytest.approx(1.3688879454 * 1.3688879454)


def test_dense_distills():
    llama, qwen = parse_config(published.R1_DISTILL_LLAMA_8B), parse_config(published.R1_DISTILL_QWEN_7B)
    assert llama.cache_width == 2 * 8 * 128
    assert llama.rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert llama.moe is None
    assert (qwen.attention.qkv_bias, qwen.attention.o_bias, qwen.rope.scaling) == (True, False, None)
    eight = parse_config(published.R1_0528_QWEN3_8B)
    assert eight.rope.scaling.cos_sin_factor == pytest.approx(1.0)


def test_glm_has_three_ids_that_end_a_sequence():
    assert parse_config(published.GLM_4_7_FLASH).eos_token_ids == (154820, 154827, 154829)


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        parse_config(published.R1).vocab = 1


REFUSED = {
    "activation": (published.R1, {"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "'silu'"]),
    "rope type": (published.R1, {"rope_scaling": {"type": "dynamic"}}, ["type", "'dynamic'", "'yarn'", "'llama3'"]),
    "partial rotation": (published.GLM_4_7_FLASH, {"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
    "scoring": (published.R1, {"scoring_func": "softmax"}, ["scoring_func", "'softmax'", "'sigmoid'"]),
    "top-k method": (published.R1, {"topk_method": "greedy"}, ["topk_method", "'greedy'", "'noaux_tc'"]),
    "V2 scoring": (published.V2_LITE, {"scoring_func": "sigmoid"}, ["scoring_func", "'sigmoid'", "'softmax'"]),
    "V2 top-k method": (published.V2_LITE, {"topk_method": "noaux_tc"}, ["topk_method", "'group_limited_greedy'"]),
    "V2 normalised": (published.V2_LITE, {"norm_topk_prob": True}, ["norm_topk_prob", "True", "False"]),
    "sparse every second layer": (published.R1, {"moe_layer_freq": 2}, ["moe_layer_freq", "2"]),
    "quantization": (published.R1, {"quantization_config": {"quant_method": "gptq"}}, ["quant_method", "'gptq'"]),
    "quantization of old": (published.R1, {"quantization_config": {"load_in_8bit": True}}, ["quant_method", "'fp8'"]),
    "FP8 by tensors": (
        published.R1,
        {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}},
        ["weight_block_size", "None", "[128, 128]"],
    ),
    "FP8 format": (published.R1, {"quantization_config": FP8 | {"fmt": "e5m2"}}, ["fmt", "'e5m2'", "'e4m3'"]),
    "sliding window": (published.R1_DISTILL_QWEN_7B, {"use_sliding_window": True}, ["use_sliding_window", "True"]),
    "a sliding layer": (published.R1_DISTILL_QWEN_7B, {"layer_types": ["sliding_attention"]}, ["layer_types"]),
    "feed-forward biases": (published.R1_DISTILL_LLAMA_8B, {"mlp_bias": True}, ["mlp_bias", "True"]),
    "too few experts in the groups kept": (published.R1, {"topk_group": 1, "n_group": 64}, ["8 of 256", "1 of 64"]),
    "groups that do not divide": (published.R1, {"n_group": 7}, ["256", "4 of 7"]),
    "a layer of another kind": (published.GLM_4_7_FLASH, {"mlp_layer_types": ["mamba"] * 47}, ["'mamba'", "'sparse'"]),
    "yarn without whole dimensions": (
        published.R1,
        {"rope_scaling": published.R1["rope_scaling"] | {"truncate": False}},
        ["trun"],
    ),
    "two rotary settings": (
        published.R1_0528_QWEN3_8B,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000}},
        ["rope_parameters", "rope_scaling", "'default'", "'yarn'", "differ"],
    ),
    "two original contexts": (
        published.R1_0528_QWEN3_8B,
        {"original_max_position_embeddings": 4096},
        ["original_max_position_embeddings = 4096", "32768"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_values_are_named_with_what_works(case):
    raw, changes, words = REFUSED[case]
    with pytest.raises(UnsupportedError) as caught:
        parse_config(raw | changes)
    assert all(word in caught.value.message for word in words)
    assert caught.value.hint


def test_an_unknown_architecture_is_refused_with_the_list_that_works():
    with pytest.raises(UnsupportedError, match="'mamba2'") as caught:
        parse_config({"model_type": "mamba2"})
    for name in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "llama", "qwen2", "qwen3"):
        assert name in caught.value.message


CORRUPT = {
    "no layers": (without(published.R1, "num_hidden_layers"), "num_hidden_layers"),
    "no model_type": (without(published.R1, "model_type"), "model_type"),
    "no latent rank": (without(published.R1, "kv_lora_rank"), "kv_lora_rank"),
    "text for a number": (published.R1 | {"hidden_size": "7168"}, "hidden_size = '7168'"),
    "true for a number": (published.R1 | {"hidden_size": True}, "hidden_size = True"),
    "zero heads": (published.R1_DISTILL_LLAMA_8B | {"num_attention_heads": 0}, "num_attention_heads = 0"),
    "negative eps": (published.R1 | {"rms_norm_eps": -1e-6}, "rms_norm_eps = -1e-06"),
    "infinite theta": (published.R1 | {"rope_theta": float("inf")}, "rope_theta = inf"),
    "text for a flag": (published.R1 | {"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
    "text for an id": (published.R1 | {"eos_token_id": ["</s>"]}, "eos_token_id"),
    "a list for a record": (published.R1 | {"rope_scaling": [1]}, "rope_scaling = [1]"),
    "yarn without a factor": (published.R1 | {"rope_scaling": {"type": "yarn"}}, "'factor'"),
    "yarn with text": (published.R1 | {"rope_scaling": {"type": "yarn", "factor": 4, "mscale": "a"}}, "mscale = 'a'"),
    "blocks of one number": (published.R1 | {"quantization_config": FP8 | {"weight_block_size": 128}}, "128"),
    "kinds for other layers": (published.GLM_4_7_FLASH | {"mlp_layer_types": ["dense"]}, "47 values"),
    "kinds that are no list": (published.R1_DISTILL_QWEN_7B | {"layer_types": 3}, "layer_types = 3"),
    "heads that do not divide": (published.R1_DISTILL_LLAMA_8B | {"num_key_value_heads": 5}, "num_key_value_heads = 5"),
    "theta of 1": (published.R1 | {"rope_theta": 1}, "rope_theta = 1, expected a number above 1"),
    "a blend of no width": (
        published.R1_DISTILL_LLAMA_8B
        | {"rope_scaling": published.R1_DISTILL_LLAMA_8B["rope_scaling"] | {"high_freq_factor": 1.0}},
        "high_freq_factor = 1.0",
    ),
    "odd rotary width": (published.R1 | {"qk_rope_head_dim": 63}, "63"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_missing_and_ill_typed_values_are_named(case):
    raw, words = CORRUPT[case]
    with pytest.raises(CorruptError) as caught:
        parse_config(raw)
    assert words in caught.value.message
    assert caught.value.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@given(st.data())
def test_any_value_is_accepted_or_refused_in_words(data):
    """Whatever stands in one field, reading ends in a config or in one of our errors."""
    raw = dict(data.draw(st.sampled_from([published.R1, published.V2_LITE, published.R1_DISTILL_LLAMA_8B])))
    inner = data.draw(st.sampled_from(["", "rope_scaling", "quantization_config"]))
    if isinstance(raw.get(inner), dict):
        raw[inner] = raw[inner] | {data.draw(st.sampled_from(sorted(raw[inner]))): data.draw(JSON)}
    else:
        raw[data.draw(st.sampled_from([*sorted(raw), "mlp_layer_types", "head_dim", "mlp_bias"]))] = data.draw(JSON)
    assume(not isinstance(raw["num_hidden_layers"], int) or raw["num_hidden_layers"] < 1000)
    try:
        config = parse_config(raw)
    except LocalR1Error as error:
        assert error.message and error.hint
    else:
        assert config.cache_width > 0


def test_known_extras():
    config = parse_config(published.R1)
    assert ignorable(config, "model.layers.61.embed_tokens.weight")
    assert ignorable(config, "model.layers.61.shared_head.head.weight")
    assert ignorable(config, "model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not ignorable(config, "model.layers.62.enorm.weight")
    assert not ignorable(config, "model.layers.60.mlp.experts.256.up_proj.weight")
    assert not ignorable(config, "lm_head.weight")
    assert ignorable(parse_config(published.R1 | {"tie_word_embeddings": True}), "lm_head.weight")


def test_a_tied_model_has_no_head_of_its_own():
    tied = expected_tensors(parse_config(published.R1_DISTILL_QWEN_7B | {"tie_word_embeddings": True}))
    assert "lm_head.weight" not in tied
    assert tied["model.embed_tokens.weight"].storage == "int8"


def test_storage():
    specs = expected_tensors(parse_config(published.R1), mtp=True)
    floats = {name for name, spec in specs.items() if spec.storage == "float"}
    for part in ("norm.weight", "gate.weight", "e_score_correction_bias", "kv_b_proj", "eh_proj"):
        assert any(part in name for name in floats)
        assert not any(part in name for name in specs if name not in floats)
    assert all(len(spec.shape) == 2 for spec in specs.values() if spec.storage == "int8")


def test_generation_config_adds_ids_that_end_a_sequence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published.R1_0528_QWEN3_8B))
    assert read_config(tmp_path).eos_token_ids == (151645,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [151643, 151645]}))
    assert read_config(tmp_path).eos_token_ids == (151645, 151643)


def test_a_folder_without_config_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00", "[" * 100_000])
def test_a_config_that_is_no_object_is_corrupt(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CorruptError, match=r"config\.json"):
        read_config(tmp_path)
