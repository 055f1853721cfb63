"""The scripts of the editing benchmark: what lookup finds in them, without a model."""

import torch

from benchmarks.editing import scripts
from localr1.decode.draft import LookupDrafter


def tokens_a_step(prompt: list[int], answer: list[int], depth: int) -> float:
    drafter, at, steps = LookupDrafter(), 0, 0
    drafter.observe(prompt, torch.zeros(len(prompt), 1))
    while at < len(answer):
        guesses = drafter.draft(answer[at], depth) if drafter.kind(answer[at]) is not None else []
        following = answer[at + 1 : at + 1 + len(guesses)]
        right = next((i for i, (a, b) in enumerate(zip(guesses, following, strict=False)) if a != b), len(following))
        drafter.observe(answer[at : at + 1 + right], torch.zeros(1 + right, 1))
        at, steps = at + 1 + right, steps + 1
    return len(answer) / steps


def test_an_edited_passage_is_guessed_and_another_is_not() -> None:
    found = scripts(102_400)
    assert all(0 <= token < 102_400 for prompt, answer in found.values() for token in prompt + answer)
    prompt, answer = found["editing"]
    assert answer != prompt[-len(answer) :], "something was edited"
    assert tokens_a_step(*found["editing"], depth=7) > 4
    assert tokens_a_step(*found["prose"], depth=7) < 1.3
