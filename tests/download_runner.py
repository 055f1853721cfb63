"""Downloads as processes of their own that can be killed, without paying for the imports each time.

    with Runner(hub, home) as runner:
        run = runner.start("org/name")
        run.kill()
        assert runner.finish("org/name").folder

A server process imports everything once and forks for every run; the run writes its events to a log, a JSON object a
line, and its last line says how it ended.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from tests.loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
LONGEST_S = 120.0


@dataclass
class Run:
    """One download under way."""

    process: subprocess.Popen[str]
    pid: int
    log: Path

    def kill(self, sign: signal.Signals = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, sign)

    def wait(self) -> "Run":
        """Until it has ended, in whatever way."""
        assert self.process.stdout is not None
        json.loads(self.process.stdout.readline())
        return self

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1] if self.lines else {}

    @property
    def folder(self) -> Path | None:
        return Path(self.last["store"]) if "store" in self.last else None

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("event") == kind]


class Runner:
    """Starts downloads, one at a time, on a computer whose caches lie below `home`."""

    def __init__(self, hub: LoopbackHub, home: Path, **environment: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self._log = home.with_name(home.name + "-runs.jsonl")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.download_runner"],
            env=hub.environment(home, OMP_NUM_THREADS="1", **environment),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline()) == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def start(self, model: str, **options: Any) -> Run:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._log.unlink(missing_ok=True)
        command = {"log": str(self._log), "options": {"model": model, **options}}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return Run(self._process, json.loads(self._process.stdout.readline()), self._log)

    def finish(self, model: str, **options: Any) -> Run:
        return self.start(model, **options).wait()


def serve() -> None:
    import torch

    from localr1 import session  # noqa: F401
    from localr1.hub import transfer
    from localr1.weights.quantize import quantize_rows

    torch.set_num_threads(1)
    quantize_rows(torch.ones(1, 1, dtype=torch.bfloat16), "warm")
    transfer.WAITS_S = (0.02, 0.04, 0.08, 0.1, 0.1)
    say("ready")
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(0)
            run(Path(command["log"]), command["options"])
            os._exit(0)
        say(pid)
        deadline_s = time.monotonic() + LONGEST_S
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline_s:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        say("ended")


def run(log: Path, options: dict[str, Any]) -> None:
    from localr1.errors import LocalR1Error
    from localr1.options import DownloadOptions
    from localr1.session import download

    known = {field.name for field in fields(DownloadOptions)}
    assert options.keys() <= known
    with log.open("w") as file:

        def tell(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        try:
            operation = download(DownloadOptions(**options))
            while True:
                event = next(operation)
                tell({"event": type(event).__name__, **asdict(event)})
        except StopIteration as end:
            tell({"store": str(end.value)})
        except LocalR1Error as error:
            tell({"error": type(error).__name__, "message": error.message, "hint": error.hint})
        except KeyboardInterrupt:
            operation.close()
            tell({"error": "KeyboardInterrupt"})
        except BaseException as error:
            tell({"error": "unexpected", "message": repr(error)})


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    serve()
