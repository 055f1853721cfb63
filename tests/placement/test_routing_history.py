"""Histories add up over conversations and processes, and a bad file is as good as none."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from localr1.errors import CorruptError
from localr1.placement import routing_history
from localr1.placement.hints import Foretold, Hints, hint_width
from localr1.placement.routes import Routes
from localr1.placement.routing_history import (
    HALF_LIFE_TOKENS,
    KEPT_VALUES,
    PENDING_CALLS,
    CountingBank,
    Identity,
    RoutingHistory,
    load,
)

WHO = Identity("abc", (1, 4), 6, 2)


def token(history: RoutingHistory, *pairs: tuple[int, int]) -> None:
    for layer, pair in zip(WHO.layers, pairs, strict=True):
        history.observe(layer, np.array([pair]))


def talked(seed: int, tokens: int) -> RoutingHistory:
    history, random = RoutingHistory.empty(WHO), np.random.default_rng(seed)
    for _ in range(tokens):
        token(history, *(tuple(random.permutation(6)[:2]) for _ in WHO.layers))
    return history


def test_a_bank_is_counted_and_gives_what_it_gave() -> None:
    class Bank:
        def run(self, layer, hidden_TD, expert_TK, weight_TK, beside=None):
            return hidden_TD * layer if beside is None else hidden_TD * layer + beside(hidden_TD)

    history = RoutingHistory.empty(WHO)
    bank = CountingBank(Bank(), history)
    hidden_TD = torch.ones(3, 5)
    with torch.inference_mode():
        expert_TK = torch.tensor([[0, 5], [0, 1], [2, 0]])
        assert torch.equal(bank.run(4, hidden_TD, expert_TK, None), hidden_TD * 4)
        assert torch.equal(bank.run(4, hidden_TD, expert_TK, None, lambda x: -x), hidden_TD * 3)
    assert history.hotness().tolist() == [[0] * 6, [6, 2, 2, 0, 0, 2]]


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    history, path = talked(0, 40), tmp_path / "deep" / "routing.npz"
    hotness, routes = history.hotness(), history.recent()
    history.save(path)
    assert history.unsaved_tokens == 0
    read = load(path, WHO)
    assert read is not None and read.tokens == 40
    assert read.hotness() == pytest.approx(hotness)
    assert np.array_equal(read.recent().chosen, routes.chosen) and len(read.recent()) == 80
    assert [path.name for path in path.parent.iterdir()] == ["routing.npz"]


def test_processes_add_up_whatever_their_order(tmp_path: Path) -> None:
    one, two = talked(1, 300), talked(2, 200)
    path, seen = tmp_path / "routing.npz", one.hotness() + two.hotness()
    one.save(path)
    two.save(path)
    token(one, (0, 1), (2, 3))
    one.save(path)
    read = load(path, WHO)
    assert read is not None and read.tokens == 501
    assert read.hotness().sum() == pytest.approx(seen.sum() + 4, rel=0.02)
    assert len(read.recent()) == 1002


def test_old_choices_fade_by_half(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    first = RoutingHistory.empty(WHO)
    token(first, (0, 1), (0, 1))
    first.save(path)
    later = RoutingHistory.empty(WHO)
    for layer in WHO.layers:
        later.observe(layer, np.full((HALF_LIFE_TOKENS, 2), 5))
    later.save(path)
    read = load(path, WHO)
    assert read is not None
    assert read.hotness()[:, 0].tolist() == [0.5, 0.5]


def test_routes_are_kept_small_and_whole(tmp_path: Path) -> None:
    path, history = tmp_path / "routing.npz", RoutingHistory.empty(WHO)
    for _ in range(3):
        for layer in WHO.layers:
            history.observe(layer, np.zeros((60_000, 2), np.int64))
        history.save(path)
    kept = history.recent()
    assert kept.chosen.size <= KEPT_VALUES
    assert kept.rows.tolist() == [0, 1] * (len(kept) // 2) and len(kept) >= 4


def test_another_models_history_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    talked(0, 5).save(path)
    assert load(path, Identity("other", WHO.layers, 6, 2)) is None
    assert load(tmp_path / "none.npz", WHO) is None
    other = RoutingHistory.empty(Identity("other", WHO.layers, 6, 2))
    other.save(path)
    assert load(path, WHO) is None


def harmed(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    kind = seed % 3
    if kind == 0:
        path.write_bytes(content[: random.integers(0, len(content))])
    elif kind == 1:
        for place in random.integers(0, len(content), 8):
            content[place] ^= int(random.integers(1, 256))
        path.write_bytes(content)
    else:
        path.write_bytes(random.bytes(int(random.integers(0, 300))))


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_file_is_never_more_than_none(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "routing.npz"
    talked(0, 50).save(path)
    harmed(path, seed)
    try:
        read = load(path, WHO)
    except CorruptError as error:
        assert str(path) in error.message
    else:
        assert read is None or read.hotness().shape == (2, 6)
    talked(3, 7).save(path)
    again = load(path, WHO)
    assert again is not None and again.tokens >= 7


def test_a_contradictory_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    history = talked(0, 5)
    history.routes = Routes(
        WHO.layers,
        6,
        np.array([0], np.uint16),
        np.array([1], np.uint16),
        np.full((1, 2), 9, "u2"),
        np.zeros((1, 0), np.int8),
    )
    history.save(path)
    with pytest.raises(CorruptError, match="contradicts itself"):
        load(path, WHO)


def test_forwards_are_cut_at_the_first_layer() -> None:
    calls = [
        (0, np.array([[1, 2], [2, 3]])),
        (1, np.array([[0, 5], [0, 4]])),
        (0, np.array([[4, 4]])),
        (1, np.array([[1, 0]])),
    ]
    first, second = Routes.of(WHO.layers, 6, calls).forwards()
    assert (first.tokens, sorted(first.distinct.tolist())) == (2, [1, 2, 3, 6, 10, 11])
    assert (second.tokens, second.chosen.tolist()) == (1, [4, 4, 7, 6])


def test_calls_that_no_router_made_are_left_out():
    history = RoutingHistory.empty(WHO)
    history.observe(WHO.layers[0], np.arange(WHO.experts)[None])
    history.observe(WHO.layers[0], np.array([[3, 1], [-1, -1]]))  # of a row that is not a number
    assert history.unsaved_tokens == 0 and not history.hotness().any()


EMBEDDED = torch.from_numpy(np.random.default_rng(3).standard_normal((40, 5), np.float32))
HINTED = Identity("abc", (1, 4), 6, 2, hint_width(5))
HINTS = Hints(lambda token_T: EMBEDDED[token_T], 5)


def foretold(at: int) -> Foretold:
    return Foretold([at % 40, at % 7], EMBEDDED[at % 11])


def hinted(forwards: int, odd_only: bool = False) -> RoutingHistory:
    """Of forwards whose tokens follow from their number, told before every one, or every second."""
    history = RoutingHistory.empty(HINTED)
    history.hints = HINTS
    for at in range(forwards):
        if at % 2 or not odd_only:
            history.foretell(foretold(at))
        token(history, (at % 6, 5 - at % 5), (0, 1))
    return history


def test_every_forward_has_the_hint_that_was_told_before_it() -> None:
    count = PENDING_CALLS + 3  # of two calls each, so that batches are cut between
    for odd_only in (False, True):
        forwards = list(hinted(count, odd_only).recent().forwards())
        assert len(forwards) == count
        wanted = HINTS([foretold(at) for at in range(count)])
        for at, forward in enumerate(forwards):
            told = wanted[at] if at % 2 or not odd_only else np.zeros_like(wanted[at])
            assert np.array_equal(forward.hint, told)


def test_hints_are_kept_with_their_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "routing.npz"
    monkeypatch.setattr(routing_history, "KEPT_HINT_BYTES", 70 * HINTED.hint)
    for _ in range(2):
        hinted(50).save(path)
    assert os.name == "nt" or path.stat().st_mode & 0o077 == 0
    read = load(path, HINTED)
    assert read is not None
    kept = read.recent()
    assert len(kept) == 140 and np.array_equal(kept.hints, HINTS([foretold(at % 50) for at in range(30, 100)]))
    main = kept.of_layers((1,)).newest(20)
    assert [forward.hint.tolist() for forward in main.forwards()] == kept.hints[-10:].tolist()


def test_a_file_without_hints_of_this_size_is_read_without_them(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    talked(0, 30).save(path)
    read = load(path, HINTED)
    assert read is not None and len(read.recent()) == 60
    read.hints = HINTS
    read.foretell(foretold(2))
    token(read, (0, 1), (2, 3))
    hints = read.recent().hints
    assert not hints[:30].any() and np.array_equal(hints[30:], HINTS([foretold(2)]))


def test_without_an_embedding_or_a_place_nothing_is_foretold() -> None:
    for identity, hints in ((WHO, HINTS), (HINTED, None)):
        history = RoutingHistory.empty(identity)
        history.hints = hints
        history.foretell(foretold(3))
        token(history, (0, 1), (2, 3))
        assert history.recent().hints.shape == (1, identity.hint) and not history.recent().hints.any()
