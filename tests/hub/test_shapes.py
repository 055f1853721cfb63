"""The shapes known by heart are those of the published configs, and cover the catalog."""

import math

import pytest

from localr1.hub.catalog import CATALOG
from localr1.hub.shapes import NOT_VERIFIED, SHAPES
from localr1.model.registry import expected_tensors, parse_config
from tests.model import published

PUBLISHED = {
    "glm-4.7-flash": published.GLM_4_7_FLASH,
    "v2-lite": published.V2_LITE,
    "coder-v2-lite": published.V2_LITE,
    "moonlight": published.MOONLIGHT,
    "r1": published.R1,
    "v3.1": published.R1,
    "r1-distill-qwen-1.5b": published.R1_DISTILL_QWEN_1_5B,
    "r1-distill-qwen-7b": published.R1_DISTILL_QWEN_7B,
    "r1-distill-qwen-14b": published.R1_DISTILL_QWEN_14B,
    "r1-distill-qwen-32b": published.R1_DISTILL_QWEN_32B,
    "r1-distill-llama-8b": published.R1_DISTILL_LLAMA_8B,
    "r1-distill-llama-70b": published.R1_DISTILL_LLAMA_70B,
    "r1-0528-qwen3-8b": published.R1_0528_QWEN3_8B,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_is_the_published_one(name):
    ours, theirs = parse_config(SHAPES[name]), parse_config(PUBLISHED[name])
    assert expected_tensors(ours, True) == expected_tensors(theirs, True)
    for field in ("rope", "attention", "moe", "max_position", "norm_eps", "num_mtp_layers"):
        assert getattr(ours, field) == getattr(theirs, field), field


def test_every_model_of_the_catalog_has_a_shape_of_about_its_size():
    assert set(SHAPES) == set(CATALOG) - {"nano"}
    assert set(SHAPES) >= NOT_VERIFIED
    for name, raw in SHAPES.items():
        config = parse_config(raw)
        assert config.model_type == CATALOG[name].architecture
        parameters = sum(math.prod(spec.shape) for spec in expected_tensors(config).values())
        assert parameters == pytest.approx(CATALOG[name].store_bytes, rel=0.05), name
