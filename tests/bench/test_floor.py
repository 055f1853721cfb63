"""What decoding's floor is measured by: reading as many bytes as a token needs, from all of the weights in turn."""

from itertools import islice

import torch

from localr1.bench import floor


def test_samples_go_through_all_weights_in_turn_a_tokens_bytes_at_a_time() -> None:
    runs = [torch.arange(5, dtype=torch.int8), torch.arange(5, 8, dtype=torch.int8)]
    samples = [torch.cat(stretches).tolist() for stretches in islice(floor._endless(runs, 4), 4)]
    assert samples == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert [len(stretches) for stretches in islice(floor._endless(runs, 4), 2)] == [1, 2]


def test_a_sample_is_no_shorter_than_a_token_and_no_longer_than_the_most(monkeypatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(floor.cpu, "read", lambda numbers: read.append(numbers.size))
    runs = [torch.zeros(3000, dtype=torch.int8), torch.zeros(1000, dtype=torch.int8)]
    for active_bytes, wanted in ((2500, 2500), (10_000, 3500)):
        monkeypatch.setattr(floor, "SAMPLE_BYTES", 3500)
        ceilings = floor.Ceilings(runs, active_bytes)
        read.clear()
        assert ceilings._read() == wanted == sum(read)
