"""A conversation's routes are kept beside the models, for the weights they were made with, and go with the model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localr1.errors import UsageError
from localr1.events import Notice, TurnEnd
from localr1.hub import cache
from localr1.hub.catalog import resolve
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from localr1.placement.routes import Routes
from localr1.placement.routing_history import RoutingHistory
from localr1.placement.routing_history import _write as write_history
from localr1.session import Engine, load


def opened(speculate: str = "auto") -> tuple[Engine, list[str]]:
    loading, notices = load("nano", EngineOptions(threads=1, speculate=speculate)), []  # type: ignore[arg-type]
    while True:
        try:
            event = next(loading)
        except StopIteration as end:
            return end.value, notices
        if isinstance(event, Notice):
            notices.append(event.text)


def ask(engine: Engine, question: str) -> TurnEnd:
    conversation = engine.converse(SamplingOptions(temperature=0.0, max_tokens=12), ConversationOptions())
    end = list(conversation.ask(question))[-1]
    assert isinstance(end, TurnEnd)
    return end


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    store = cache.find_store(resolve("nano"))
    assert store is not None
    return cache.routing_file(store.folder)


def test_turns_add_up_over_engines_whatever_guesses_ahead(file: Path) -> None:
    engine, _ = opened()
    end = ask(engine, "What is 12 + 34?")
    assert file.is_file() and engine.routing is not None
    once = engine.routing.history
    assert once.tokens >= end.prompt_tokens + end.generated_tokens - 1
    top_k, layers = once.identity.top_k, engine.config.moe.layers  # type: ignore[union-attr]
    assert once.hotness(layers).sum() == pytest.approx(once.tokens * top_k * len(layers))
    assert once.hotness((engine.config.num_layers,)).sum() > 0

    other, notices = opened("off")
    assert other.routing is not None and not notices
    assert np.allclose(other.routing.history.hotness(), once.hotness())
    ask(other, "What is 12 + 34?")
    assert other.routing.history.tokens > once.tokens
    assert len(other.routing.history.recent()) > len(once.recent())


@pytest.mark.parametrize("speculate", ["off", "mtp"])
def test_forwards_that_decode_are_kept_with_hints(file: Path, speculate: str) -> None:
    engine, _ = opened(speculate)
    end = ask(engine, "What is 12 + 34?")
    again, _ = opened(speculate)
    assert again.routing is not None
    prefill, *decoding = again.routing.history.recent().forwards()
    assert prefill.tokens == end.prompt_tokens and not prefill.hint.any()
    assert len(decoding) > 4 and all(len(one.hint) == 2 * engine.config.hidden for one in decoding)
    assert len({one.hint.tobytes() for one in decoding}) == len(decoding)


def test_what_may_not_be_kept_is_not(file: Path) -> None:
    engine, _ = opened()
    assert engine.routing is not None
    engine.routing.kept = False
    ask(engine, "Hi")
    assert not file.exists() and engine.routing.history.unsaved_tokens


def test_a_damaged_history_is_said_once_and_made_anew(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"noise")
    engine, notices = opened()
    assert [str(file) in text for text in notices] == [True]
    ask(engine, "Hi")
    assert opened()[1] == []


def test_a_history_of_other_weights_is_said_and_not_used(file: Path) -> None:
    engine, _ = opened()
    assert engine.routing is not None
    identity = replace(engine.routing.history.identity, weights="other")
    counts = np.zeros((len(identity.layers), identity.experts))
    write_history(file, RoutingHistory(identity, counts, 9, Routes.of(identity.layers, identity.experts, ())))
    again, notices = opened()
    assert [text for text in notices if "of other weights" in text]
    assert again.routing is not None and again.routing.history.tokens == 0


def test_a_folder_that_cannot_be_written_stops_nobody(file: Path) -> None:
    file.parent.write_text("a file where the folder belongs")
    engine, _ = opened()
    assert ask(engine, "Hi").generated_tokens
    assert file.parent.is_file()


def test_the_history_goes_with_its_model(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org--model" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"source": "org/model", "revision": "a", "files": {}}')
    store, routes = cache.read_store(folder), cache.routing_file(folder)
    assert store is not None and routes != file
    routes.parent.mkdir(exist_ok=True)
    routes.write_bytes(b"routes")
    routes.with_suffix(".lock").write_bytes(b"")
    file.write_bytes(b"nano's")
    cache.remove(store)
    assert list(routes.parent.iterdir()) == [file]


@pytest.mark.parametrize("checksum", ["xxh3_128", "sha256"])
def test_the_same_weights_have_one_name(tmp_path: Path, checksum: str) -> None:
    names = []
    for created, digest in (("1", "x"), ("2", "x"), ("2", "y")):
        files = f'{{"dense.safetensors": {{"{checksum}": "{digest}"}}, "config.json": {{"{checksum}": "{created}"}}}}'
        (tmp_path / "manifest.json").write_text(f'{{"created": "{created}", "files": {files}}}')
        names.append(cache.weights_id(tmp_path))
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("options", [{"ram": "8X"}, {"vram": "8"}, {"vram": "much"}])
def test_amounts_that_are_none_are_refused_by_loading_too(file: Path, options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(options))}"):
        list(load("nano", EngineOptions(threads=1, **options)))  # type: ignore[arg-type]
