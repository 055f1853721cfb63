"""A model hub on 127.0.0.1 that the real `huggingface_hub` client talks to, with faults on demand.

    with LoopbackHub({"org/name": folder}) as hub:
        hub.fail("model.safetensors", cut_after_bytes=1000)
        run(..., env=hub.environment(tmp_path))

It serves each folder as a repository of one commit: repository facts, file tree (git sha1 of small files, sha256 of
large ones), HEAD and GET of files with Range. `hub.requests` and `hub.sent_bytes` tell what the client did.
"""

import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

LARGE_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".model"}
CHUNK_BYTES = 64 << 10
SEND_BUFFER_BYTES = 64 << 10
SENDFILE_BYTES = 1 << 20
PACED_S = 0.008
"""Of a limited pace, what is sent at once."""
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<rev>[^/]+))?")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
CDN = re.compile(r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<path>.+)")


@dataclass
class Fault:
    """What goes wrong for GETs of the files that match `pattern`, and how many times before it heals."""

    pattern: str
    times: int = 1
    cut_after_bytes: int | None = None  # close the connection after this many bytes of the answer
    flip_byte: int | None = None  # this byte of the file arrives changed
    status: int | None = None  # answer with this status instead
    retry_after_s: int | None = None
    stall_s: float = 0.0  # wait before the body
    slow_s: float = 0.0  # wait after every 64 KiB
    ignore_range: bool = False  # answer 200 with the whole file
    extra_bytes: int = 0  # announce and send more than the file has
    missing_bytes: int = 0  # announce and send less
    page: str | None = None  # answer 200 with this text, as the sign-in page of a network does


@dataclass
class Repo:
    """A folder as a repository; `commit` changes with its files' names and sizes."""

    folder: Path
    revisions: dict[str, str] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        listing = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in self.files().items()]
        return hashlib.sha1(json.dumps(listing).encode()).hexdigest()

    def files(self) -> dict[str, Path]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in paths}

    def resolve(self, revision: str) -> str | None:
        commit = self.commit
        return commit if revision in ("main", commit) else self.revisions.get(revision)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorized: bool


@dataclass(frozen=True)
class Span:
    """When the body of an answer was being sent."""

    path: str
    start_s: float
    end_s: float


class LoopbackHub:
    """Serves until closed. `gated` repositories give files only to `allowed_tokens`; anyone else is told why not."""

    def __init__(self, repos: dict[str, Path], *, redirect: bool = False) -> None:
        self.repos = {repo_id: Repo(Path(folder)) for repo_id, folder in repos.items()}
        self.redirect = redirect
        self.gated: set[str] = set()
        self.allowed_tokens: set[str] = set()
        self.valid_tokens: set[str] | None = None
        self.extra_entries: list[dict[str, Any]] = []  # added to every tree as they are
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.spans: list[Span] = []
        self.licence: str | None = None
        self.send_buffer_bytes = SEND_BUFFER_BYTES  # of each connection
        self.pace_bytes_per_s = 0.0  # what all answers together may have; 0 is no limit
        self._paced_until_s = 0.0
        self.sent_bytes = 0
        self._lock = threading.Lock()
        self._hashes: dict[tuple[Path, int, int], tuple[str, str]] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """This process's environment, but with this hub, an own cache and home below `home`, and no proxy or token."""
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
        kept = {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home / "hf"), "LOCALR1_HOME": str(home / "localr1")}
        return {**kept, **own, **changes}

    def fail(self, pattern: str, **what: Any) -> Fault:
        """The next `times` GETs of files that match `pattern` go wrong in this way."""
        fault = Fault(pattern, **what)
        with self._lock:
            self.faults.append(fault)
        return fault

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fnmatch(path, fault.pattern):
                    fault.times -= 1
                    return fault
        return None

    def gets(self, pattern: str = "*") -> list[Request]:
        """The GETs of files that match `pattern`, in order."""
        matches = [(request, RESOLVE.fullmatch(request.path)) for request in self.requests if request.method == "GET"]
        return [request for request, match in matches if match and fnmatch(unquote(match["path"]), pattern)]

    def hashes(self, path: Path) -> tuple[str, str]:
        """(git blob sha1, sha256) of a file."""
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._hashes:
            git, plain = hashlib.sha1(b"blob %d\0" % stat.st_size), hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    git.update(chunk)
                    plain.update(chunk)
            self._hashes[key] = (git.hexdigest(), plain.hexdigest())
        return self._hashes[key]

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def count(self, sent: int) -> None:
        with self._lock:
            self.sent_bytes += sent

    def pace(self, sent: int) -> None:
        """Sleep so that all answers together keep to the pace."""
        if self.pace_bytes_per_s:
            with self._lock:
                now_s = time.monotonic()
                self._paced_until_s = max(self._paced_until_s, now_s - 0.1) + sent / self.pace_bytes_per_s
                wait_s = self._paced_until_s - now_s
            time.sleep(max(0.0, wait_s))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that were killed are what this server is for."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Little is under way, so that `sent_bytes` is about what the client received, however it is starved."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.hub.send_buffer_bytes)
        super().setup()

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.note(Request(self.command, path, self.headers.get("Range"), "Authorization" in self.headers))
        try:
            if match := API.fullmatch(path):
                self._api(**match.groupdict())
            elif match := RESOLVE.fullmatch(path):
                self._file(match["repo"], unquote(match["rev"]), unquote(match["path"]))
            elif match := CDN.fullmatch(path):
                repo = self.hub.repos[match["repo"]]
                self._send_file(repo.files()[unquote(match["path"])], unquote(match["path"]), repo.commit)
            else:
                self._error(404, "NotFound", f"no route {path}")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip() or None

    def _repo(self, repo_id: str, revision: str) -> tuple[Repo, str] | None:
        token, valid = self._token(), self.hub.valid_tokens
        if token is not None and valid is not None and token not in valid:
            self._error(401, None, "Invalid credentials in Authorization header")
        elif repo_id not in self.hub.repos:
            self._error(404 if token else 401, "RepoNotFound", "Repository not found")
        elif (commit := self.hub.repos[repo_id].resolve(revision)) is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return self.hub.repos[repo_id], commit
        return None

    def _api(self, repo: str, what: str | None, rev: str | None) -> None:
        found = self._repo(repo, unquote(rev or "main"))
        fault = self.hub.take_fault(f"api:{what or 'info'}")
        if fault is not None and fault.page is not None:
            body = fault.page.encode()
            self._send(200, {"Content-Type": "text/html", "Content-Length": str(len(body))}, body)
        elif fault is not None and fault.status is not None:
            self._error(fault.status, None, "fault", retry_after_s=fault.retry_after_s)
        elif found is not None:
            served, commit = found
            self._json(self._tree(served) if what == "tree" else self._facts(repo, served, commit))

    def _facts(self, repo_id: str, repo: Repo, commit: str) -> dict[str, Any]:
        gated = "manual" if repo_id in self.hub.gated else False
        siblings = [{"rfilename": name} for name in repo.files()]
        return {
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit,
            "private": False,
            "gated": gated,
            "siblings": siblings,
            "tags": [f"license:{self.hub.licence}"] if self.hub.licence else [],
        }

    def _tree(self, repo: Repo) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for name, path in repo.files().items():
            size, (git, sha256) = path.stat().st_size, self.hub.hashes(path)
            entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": git}
            if path.suffix in LARGE_SUFFIXES:
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
            entries.append(entry)
        return entries + self.hub.extra_entries

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        found = self._repo(repo_id, revision)
        if found is None:
            return
        repo, commit = found
        if repo_id in self.hub.gated and self._token() not in self.hub.allowed_tokens:
            message = f"Access to model {repo_id} is restricted. You must have access to it and be authenticated."
            self._error(403 if self._token() else 401, "GatedRepo", message)
        elif name not in repo.files():
            self._error(404, "EntryNotFound", "Entry not found")
        elif self.hub.redirect and Path(name).suffix in LARGE_SUFFIXES:
            self._redirect(repo_id, repo.files()[name], name, commit)
        else:
            self._send_file(repo.files()[name], name, commit)

    def _redirect(self, repo_id: str, path: Path, name: str, commit: str) -> None:
        """Large files lie on another host, as on the real hub; `localhost` is another host than 127.0.0.1."""
        elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
        headers = {**self._file_headers(path, commit), "Location": f"{elsewhere}/cdn/{repo_id}/{name}"}
        self._send(302, {**headers, "Content-Length": "0"})

    def _file_headers(self, path: Path, commit: str) -> dict[str, str]:
        git, sha256 = self.hub.hashes(path)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{git}"'}
        if path.suffix in LARGE_SUFFIXES:
            headers |= {
                "ETag": f'"{sha256}"',
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(path.stat().st_size),
            }
        return headers

    def _send_file(self, path: Path, name: str, commit: str) -> None:
        fault = (self.hub.take_fault(name) if self.command == "GET" else None) or Fault(name)
        if fault.status is not None:
            self._error(fault.status, None, "fault", retry_after_s=fault.retry_after_s)
            return
        size = path.stat().st_size
        start, end = self._range(size, fault)
        if start >= size > 0:
            self._send(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        headers = self._file_headers(path, commit)
        length = end - start + fault.extra_bytes - fault.missing_bytes
        partial = start > 0 or end < size
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._send(206 if partial else 200, {**headers, "Content-Length": str(length)})
        if self.command == "GET":
            start_s = time.monotonic()
            time.sleep(fault.stall_s)
            try:
                self._send_body(path, start, length, fault)
            finally:
                self.hub.spans.append(Span(name, start_s, time.monotonic()))

    def _range(self, size: int, fault: Fault) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None or fault.ignore_range:
            return 0, size
        return int(match[1]), min(int(match[2]) + 1, size) if match[2] else size

    def _send_body(self, path: Path, start: int, length: int, fault: Fault) -> None:
        sent = 0
        with path.open("rb") as file:
            if fault == Fault(fault.pattern) and hasattr(os, "sendfile"):
                self._send_untouched(file.fileno(), start, length)
                return
            file.seek(start)
            while sent < length:
                want = min(CHUNK_BYTES, length - sent)
                if fault.cut_after_bytes is not None:
                    want = min(want, fault.cut_after_bytes - sent)
                if want <= 0:
                    self.close_connection = True
                    return
                chunk = bytearray(file.read(want).ljust(want, b"\0"))
                if fault.flip_byte is not None and start + sent <= fault.flip_byte < start + sent + want:
                    chunk[fault.flip_byte - start - sent] ^= 0xFF
                self.wfile.write(chunk)
                self.hub.count(len(chunk))
                sent += len(chunk)
                time.sleep(fault.slow_s)
                self.hub.pace(len(chunk))

    def _send_untouched(self, descriptor: int, start: int, length: int) -> None:
        """Without a fault the system copies from file to socket, so that the hub leaves the processor to the client."""
        end, pace = start + length, self.hub.pace_bytes_per_s
        most = min(SENDFILE_BYTES, max(CHUNK_BYTES, int(pace * PACED_S))) if pace else SENDFILE_BYTES
        self.wfile.flush()
        while start < end:
            sent = os.sendfile(self.connection.fileno(), descriptor, start, min(end - start, most))
            if not sent:
                raise ConnectionResetError("the file ended early")
            self.hub.count(sent)
            start += sent
            self.hub.pace(sent)

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self._send(200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    def _error(self, status: int, code: str | None, message: str, retry_after_s: int | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        headers = {"X-Error-Message": message, "Content-Type": "application/json", "Content-Length": str(len(body))}
        if code is not None:
            headers["X-Error-Code"] = code
        if retry_after_s is not None:
            headers["Retry-After"] = str(retry_after_s)
        self._send(status, headers, body)

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
