"""What is kept of a conversation's cache: the same words with it as without, and nothing of another's."""

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from localr1.decode.cache import RowCache
from localr1.decode.generate import Finished, Token, generate
from localr1.decode.sampling import Sampler, Sampling
from localr1.decode.speculate import FixedDepth, Speculation
from localr1.errors import CorruptError, DiskError, UnsupportedError
from localr1.events import TurnEnd, result_of
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from localr1.session import Conversation, Engine, snapshot
from localr1.session.engine import load
from tests import tiny
from tests.decode.test_speculate import MODELS, mtp_drafter

QUESTIONS = ("What is 347 + 85?", "And 12 + 30?")
FAMILY = "deepseek_v3"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALR1_HOME", str(tmp_path_factory.mktemp("home")))
        return replace(result_of(load("nano", EngineOptions(threads=1))), routing=None)


def converse(engine: Engine, **options: Any) -> Conversation:
    engine = replace(engine, options=EngineOptions(threads=1, **options))
    return engine.converse(SamplingOptions(temperature=0), ConversationOptions())


def ask(conversation: Conversation, text: str) -> tuple[str, TurnEnd]:
    *_, end = conversation.ask(text)
    assert isinstance(end, TurnEnd)
    return conversation.transcript.messages[-1].content, end


def said(conversation: Conversation) -> list[tuple[str, str]]:
    contents = [message.content for message in conversation.transcript.turns]
    return list(zip(contents[::2], contents[1::2], strict=True))


def test_what_the_disk_refuses_is_told_as_such(engine: Engine, tmp_path: Path) -> None:
    conversation = converse(engine)
    ask(conversation, QUESTIONS[0])
    for path in (tmp_path / "gone" / "kept.safetensors", tmp_path / "folder.safetensors"):
        (tmp_path / "folder.safetensors").mkdir(exist_ok=True)
        with pytest.raises(DiskError, match="cannot be kept"):
            snapshot.save(path, conversation._held(), 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


@pytest.mark.parametrize(
    "options",
    [{}, {"speculate": "off"}, {"speculate": "lookup"}, {"speculate": "mtp", "draft_tokens": 2}, {"kv": "bf16"}],
    ids=str,
)
def test_a_conversation_goes_on_with_its_cache_as_if_it_had_never_been_left(
    engine: Engine, tmp_path: Path, options: dict[str, Any]
) -> None:
    first = converse(engine, **options)
    ask(first, QUESTIONS[0])
    kept = first.keep(tmp_path / "a.safetensors")
    assert kept > 40
    answer, end = ask(first, QUESTIONS[1])

    resumed = converse(engine, **options)
    resumed.resume(said(first)[:1])
    spared, of = resumed.recall(tmp_path / "a.safetensors")
    with_cache, resumed_end = ask(resumed, QUESTIONS[1])
    assert (with_cache, resumed_end.generated_tokens) == (answer, end.generated_tokens)
    assert 0 < end.cached_tokens - 1 <= resumed_end.cached_tokens <= end.cached_tokens <= spared < of

    anew = converse(engine, **options)
    anew.resume(said(first)[:1])
    without_cache, anew_end = ask(anew, QUESTIONS[1])
    assert (without_cache, anew_end.cached_tokens) == (answer, 0)


def test_another_setting_or_a_damaged_file_is_refused_and_all_is_read_again(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    first = converse(engine)
    ask(first, QUESTIONS[0])
    assert first.keep(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name == "nt"
    other = converse(engine, kv="bf16")
    other.resume(said(first))
    with pytest.raises(UnsupportedError, match="another model, version or other settings"):
        other.recall(path)
    assert ask(other, QUESTIONS[1])[1].cached_tokens == 0

    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:5000], whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:], b"{}" * 99):
        path.write_bytes(damaged)
        again = converse(engine)
        again.resume(said(first))
        with pytest.raises((CorruptError, UnsupportedError)):
            again.recall(path)
        assert again._cache.length == 0
    assert ask(again, QUESTIONS[1]) is not None


def run(cache: RowCache, speculation: Speculation, prompt: list[int]) -> tuple[list[int], Finished]:
    sampler = Sampler(Sampling(temperature=0))
    items = list(
        generate(MODELS[FAMILY][0], cache, prompt, sampler, stop_ids=(), max_tokens=9, speculation=speculation)
    )
    assert isinstance(items[-1], Finished)
    return [item.id for item in items if isinstance(item, Token)], items[-1]


def held(capacity: int = 80, **made_with: object) -> snapshot.Held:
    drafter = mtp_drafter(FAMILY)
    cache = RowCache(3, MODELS[FAMILY][0].config.cache_width, capacity, torch.float32)
    return snapshot.Held(cache, Speculation(drafter, FixedDepth(2)), made_with)


def test_float32_rows_and_those_of_the_drafter_come_back_bit_for_bit(tmp_path: Path) -> None:
    path, prompt = tmp_path / "a.safetensors", tiny.tokens(20).tolist()
    ours = held()
    tokens, _ = run(ours.cache, ours.speculation, prompt)
    assert snapshot.save(path, ours, 1.0) == ours.cache.length
    theirs = held()
    snapshot.load(path, theirs)
    length = theirs.cache.length
    assert ours.cache.length - 1 <= length and list(theirs.cache.tokens) == list(ours.cache.tokens[:length])
    assert torch.equal(theirs.cache.snapshot(length), ours.cache.snapshot(length))
    longer = [*prompt, *tokens, 5, 6]
    (one, first), (two, second) = (run(each.cache, each.speculation, longer) for each in (ours, theirs))
    assert one == two and first.cached_tokens - 1 <= second.cached_tokens <= first.cached_tokens


def test_a_smaller_context_takes_the_beginning(tmp_path: Path) -> None:
    ours, theirs = held(), held(capacity=16)
    run(ours.cache, ours.speculation, tiny.tokens(20).tolist())
    snapshot.save(tmp_path / "a.safetensors", ours, 1.0)
    snapshot.load(tmp_path / "a.safetensors", theirs)
    assert 14 <= theirs.cache.length <= 16


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = held()
    run(ours.cache, ours.speculation, tiny.tokens(20).tolist())
    assert snapshot.save(tmp_path / "a.safetensors", ours, 1e-9) == 0  # reading again is faster than any disk
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(snapshot, "MOST_BYTES", 10 * ours.cache.token_nbytes)
    monkeypatch.setattr(snapshot, "MOST_BYTES_IN_ALL", 4 * 10 * ours.cache.token_nbytes)
    for age, name in enumerate("abcdef"):
        (tmp_path / f"{name}.jsonl").touch()
        assert snapshot.save(tmp_path / f"{name}.safetensors", ours, 1.0) == 10
        os.utime(tmp_path / f"{name}.safetensors", (age, age))
    (tmp_path / "f.jsonl").unlink()
    (tmp_path / "x.1.unfinished").touch()
    os.utime(tmp_path / "x.1.unfinished", (0, 0))
    assert snapshot.save(tmp_path / "e.safetensors", ours, 1.0) == 10
    assert {path.name for path in tmp_path.glob("*.[su]*")} <= {"c.safetensors", "d.safetensors", "e.safetensors"}
    assert (tmp_path / "e.safetensors").exists()
