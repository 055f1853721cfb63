"""How a model is opened: what ends its answers, and what need not keep it from being opened."""

from dataclasses import replace
from pathlib import Path

import pytest

import localr1
from localr1.chat.template import ChatTemplate
from localr1.chat.tokenizer import Tokenizer
from localr1.errors import AccessError
from localr1.events import result_of
from localr1.hub import cache
from localr1.model import registry
from localr1.options import EngineOptions
from localr1.session import load
from localr1.session.engine import _stop_ids

NANO = Path(localr1.__file__).parent / "nano"
OPTIONS = EngineOptions(threads=1, vram="0", context=64)


def test_the_tokenizers_own_end_ends_an_answer_where_the_configs_are_silent() -> None:
    config = registry.read_config(NANO)
    tokenizer, template = Tokenizer.open(NANO), ChatTemplate.open(NANO)
    silent = replace(config, eos_token_ids=())
    assert (
        _stop_ids(silent, tokenizer, template) == _stop_ids(config, tokenizer, template) == config.eos_token_ids != ()
    )
    other = replace(config, eos_token_ids=(7,))
    assert _stop_ids(other, tokenizer, template) == (7, *config.eos_token_ids)
    assert _stop_ids(silent, tokenizer, ChatTemplate("", {"eos_token": "<no such token>"})) == ()


def test_a_home_that_cannot_be_written_keeps_nobody_from_talking(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(store: object) -> None:
        raise AccessError("cannot write last-used.json")

    monkeypatch.setattr(cache, "set_last_used", fails)
    assert result_of(load("nano", OPTIONS)).name == "nano"
