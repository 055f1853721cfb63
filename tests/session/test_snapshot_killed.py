"""A process that is killed while it keeps a conversation's cache leaves nothing that is taken for whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localr1.errors import CorruptError
from localr1.session import snapshot
from tests import tiny
from tests.session.test_snapshot import held, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

KILLED = """
import os, signal, sys
from pathlib import Path
from localr1.session import snapshot
from localr1.weights.file_writer import FileWriter
from tests import tiny
from tests.session.test_snapshot import held, run

path, after = Path(sys.argv[1]), int(sys.argv[2])
write, written = FileWriter.write, 0

def write_and_die(self, name, tensor):
    global written
    if written == after:
        os.kill(os.getpid(), signal.SIGKILL)
    written += 1
    return write(self, name, tensor)

FileWriter.write = write_and_die
if after < 0:  # all is written, and not yet in its place
    Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
ours = held()
run(ours.cache, ours.speculation, tiny.tokens(24).tolist())
snapshot.save(path, ours, 1.0)
"""


def killed(path: Path, after: int) -> None:
    """A process that keeps a longer conversation at `path` and is killed after so many tensors, -1 after all."""
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path), str(after)], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def test_a_kill_while_the_cache_is_written_leaves_what_was_kept_before(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.with_suffix(".jsonl").touch()
    killed(path, 3)
    assert not path.exists()  # nothing was kept before: all will be read again
    (unfinished,) = tmp_path.glob("*.unfinished")
    unfinished.replace(path)
    theirs = held()
    with pytest.raises(CorruptError):
        snapshot.load(path, theirs)  # even under the name of a whole one
    assert theirs.cache.length == 0

    ours, prompt = held(), tiny.tokens(20).tolist()
    run(ours.cache, ours.speculation, prompt)
    assert snapshot.save(path, ours, 1.0) == ours.cache.length
    before = path.read_bytes()
    killed(path, -1)
    assert path.read_bytes() == before
    snapshot.load(path, theirs)
    assert list(theirs.cache.tokens)[:20] == prompt

    for each in tmp_path.glob("*.unfinished"):
        os.utime(each, (0, 0))
    assert snapshot.save(path, ours, 1.0)
    assert not list(tmp_path.glob("*.unfinished"))
