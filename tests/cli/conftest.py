"""Runs command lines in this process, with streams in memory and a session that needs no model."""

import dataclasses
import sys
import types
from collections.abc import Callable

import pytest

import localr1
from localr1.cli.app import main
from localr1.events import FetchProgress, LoadProgress, Notice
from tests.terminal.fakes import FakeConversation, environment, err, out


@dataclasses.dataclass
class Outcome:
    status: int
    out: str
    err: str


class FakeSession(types.ModuleType):
    """Stands in for `localr1.session`; keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__("localr1.session")
        self.conversation = FakeConversation()
        self.error: BaseException | None = None
        self.store = None
        self.calls: list[tuple] = []
        self.routing = types.SimpleNamespace(kept=None)

    def download(self, options):
        self.calls.append(("download", options))
        yield FetchProgress("model.safetensors", 5, 5, 5, 5)
        if self.error:
            raise self.error
        yield Notice(f"{options.model} is already here")
        return self.store

    def load(self, model, engine, instead_of=None):
        self.calls.append(("load", model, engine))
        yield LoadProgress("opening")
        if self.error:
            raise self.error
        return types.SimpleNamespace(
            name="nano", context_limit=4096, converse=self.converse, routing=self.routing, foretold=None
        )

    def expectation(self, model, engine, placed):
        return f"{model} in RAM; about 20 tokens/s expected"

    def gpu_bytes(self):
        return None

    def converse(self, sampling, options):
        self.calls.append(("converse", sampling, options))
        return self.conversation


@pytest.fixture
def session(monkeypatch) -> FakeSession:
    fake = FakeSession()
    monkeypatch.setitem(sys.modules, "localr1.session", fake)
    monkeypatch.setattr(localr1, "session", fake, raising=False)
    return fake


@pytest.fixture
def localr1_command(tmp_path, monkeypatch) -> Callable[..., Outcome]:
    """`localr1_command("chat", "hi", stdin="", tty="")` -> Outcome, with an empty LOCALR1_HOME."""
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: str, stdin: str = "", tty: str = "") -> Outcome:
        shown = environment(stdin, tty=tty)
        with pytest.raises(SystemExit) as left:
            main(arguments, shown)
        return Outcome(left.value.code, out(shown), err(shown))

    return run
