"""The bytes of a file on their way: one thread adds to them, another reads what is there."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h11
import pytest

from localr1.errors import CorruptError
from localr1.hub.remote import RemoteFile
from localr1.hub.transfer import RECEIVE_BYTES, Unfinished, receive, unfinished

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


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT with its length, or in pieces of which each has its own."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/whole":
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(CONTENT), 100_000):
                piece = CONTENT[start : start + 100_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{served.server_address[1]}"
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes at a time went through the client's parser."""
    sizes: list[int] = []
    original = h11.Connection.receive_data

    def count(self: h11.Connection, data: bytes) -> None:
        sizes.append(len(data))
        original(self, data)

    monkeypatch.setattr(h11.Connection, "receive_data", count)
    return sizes


def test_a_long_answer_comes_off_the_connection(tmp_path: Path, server: str, parsed: list[int]) -> None:
    with closing(Unfinished(tmp_path / "part", FILE)) as part:
        assert list(receive(part, f"{server}/whole", {}, FILE, durable=True))[-1] == len(CONTENT)
        assert part.is_right and sum(parsed) <= RECEIVE_BYTES + 1000 < len(CONTENT)


def test_one_in_pieces_goes_through_the_parser(tmp_path: Path, server: str, parsed: list[int]) -> None:
    with closing(Unfinished(tmp_path / "part", FILE)) as part:
        list(receive(part, f"{server}/pieces", {}, FILE, durable=True))
        assert part.is_right and sum(parsed) > len(CONTENT)


def test_what_comes_wrong_off_the_connection_is_fetched_through_the_parser(
    tmp_path: Path, server: str, parsed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be if the parser began to hold back what it has read."""
    monkeypatch.setattr("localr1.hub.transfer._body", lambda response, timeout_s: iter([bytes(len(CONTENT))]))
    with closing(Unfinished(tmp_path / "part", FILE)) as part:
        news = list(receive(part, f"{server}/whole", {}, FILE, durable=True))
        assert part.is_right and sum(parsed) > len(CONTENT)
    assert any("does not match its hash" in getattr(each, "text", "") for each in news)
