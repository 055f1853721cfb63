"""The bytes of a file on their way: one thread adds to them, another reads what is there."""

import hashlib
from contextlib import closing
from pathlib import Path

import pytest

from localr1.errors import CorruptError
from localr1.hub.remote import RemoteFile
from localr1.hub.transfer import Unfinished, unfinished

CONTENT = bytes(range(256)) * 8192
FILE = RemoteFile("model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def read(part: Unfinished, start: int, end: int) -> tuple[int | None, bytes]:
    into = bytearray(end - start)
    return part.read(start, memoryview(into)), bytes(into)


def test_what_has_come_can_be_read_and_more_goes_where_it_belongs(tmp_path: Path) -> None:
    with closing(Unfinished(tmp_path / "part", FILE)) as part:
        half = len(CONTENT) // 2 + 3
        part.append(CONTENT[:half])
        assert read(part, 5, half) == (1, CONTENT[5:half])
        assert read(part, half - 1, half + 1)[0] is None
        part.append(CONTENT[half:])
        assert part.is_right and read(part, 0, len(CONTENT)) == (1, CONTENT)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert read(part, 0, 1)[0] is None


def test_a_file_that_is_begun_again_is_another_attempt(tmp_path: Path) -> None:
    with closing(Unfinished(tmp_path / "part", FILE)) as part:
        part.append(b"wrong")
        part.restart()
        assert read(part, 0, 1)[0] is None
        part.append(CONTENT)
        assert part.is_right and read(part, 0, 9) == (2, CONTENT[:9])


def test_a_file_goes_when_it_proves_wrong_and_stays_when_it_is_interrupted(tmp_path: Path) -> None:
    for error, stays in ((KeyboardInterrupt, True), (CorruptError, False)):
        with pytest.raises(error), unfinished(tmp_path / "part", FILE) as part:
            part.append(CONTENT[:9])
            raise error("", "") if error is CorruptError else error
        assert (tmp_path / "part").exists() is stays
