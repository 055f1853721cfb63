"""When the next shard may begin, as those before it come and go."""

from localr1.hub.remote import RemoteFile
from localr1.hub.turns import APART_BYTES, Turns


def shard(number: int, size_bytes: int = 1000) -> RemoteFile:
    return RemoteFile(f"{number}.safetensors", size_bytes, f"{number:064}")


def test_the_second_begins_when_the_first_is_half_here_and_the_third_when_one_is_gone() -> None:
    turns, done = Turns(1000), {f"{number}.safetensors": 0 for number in range(4)}
    assert turns.take(shard(0), done, idle=False)
    done["0.safetensors"] = 499
    assert not turns.take(shard(1), done, idle=False)
    done["0.safetensors"] = 500
    assert turns.take(shard(1), done, idle=False)
    done["0.safetensors"] = done["1.safetensors"] = 1000
    assert not turns.take(shard(2), done, idle=False), "two of the largest are on the disk"
    assert turns.end("0.safetensors") == shard(0) and turns.end("0.safetensors") is None
    assert turns.take(shard(2), done, idle=False)


def test_of_a_large_shard_a_part_is_enough() -> None:
    size_bytes = 100 * APART_BYTES
    turns, done = Turns(size_bytes), {"0.safetensors": APART_BYTES}
    assert turns.take(shard(0, size_bytes), done, idle=False) and turns.take(shard(1, size_bytes), done, idle=False)


def test_where_nothing_else_can_go_on_the_next_begins() -> None:
    turns, done = Turns(1000), {f"{number}.safetensors": 0 for number in range(4)}
    assert all(turns.take(shard(number), done, idle=True) for number in range(4))


def test_without_a_limit_all_may_begin() -> None:
    assert all(Turns().take(shard(number), {}, idle=False) for number in range(4))
