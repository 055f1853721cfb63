"""`download`'s questions, `rm` and `verify`, as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from xxhash import xxh3_128

from localr1.events import DiskNeed, DownloadPlan, FetchProgress

GB = 1_000_000_000


@pytest.fixture
def big(session, tmp_path, monkeypatch):
    """A download of 30 GB, as far as its plan goes."""
    fetched = []
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "dense.safetensors").write_bytes(b"x" * 2500)

    def download(options):
        disks = (DiskNeed("/data", 25 * GB, 70 * GB),)
        yield DownloadPlan("org/model", "a" * 40, 6, 30 * GB, 30 * GB, 15 * GB, disks, "mit", "", False)
        if not options.dry_run:
            fetched.append(options.model)
            yield FetchProgress("a", 5, 5, 5, 5)
        return tmp_path / "store"

    monkeypatch.setattr(session, "download", download)
    return fetched


@pytest.mark.parametrize(("answer", "status", "count"), [("y\n", 0, 1), ("n\n", 1, 0), ("", 1, 0)])
def test_a_large_download_asks_on_a_terminal(big, localr1_command, answer, status, count):
    outcome = localr1_command("download", "org/model", stdin=answer, tty="ie")
    assert (outcome.status, len(big)) == (status, count)
    assert "Fetch 30.0 GB? [y/N]" in outcome.err and "Licence: mit" in outcome.err
    assert ("Nothing was fetched." in outcome.err) == (not count)


@pytest.mark.parametrize(("arguments", "tty"), [(["--yes"], "ie"), ([], ""), ([], "e"), (["--json"], "ie")])
def test_it_does_not_ask_when_told_or_when_nobody_is_there(big, localr1_command, arguments, tty):
    outcome = localr1_command("download", "org/model", *arguments, tty=tty)
    assert outcome.status == 0 and len(big) == 1
    assert "[y/N]" not in outcome.err


def test_a_dry_run_tells_and_leaves(big, localr1_command):
    outcome = localr1_command("download", "org/model", "--dry-run", tty="ie")
    assert outcome.status == 0 and big == []
    assert "30.0 GB to fetch" in outcome.err and "[y/N]" not in outcome.err and "Ready" not in outcome.err


def test_json_ends_with_where_the_store_is(big, localr1_command):
    records = [json.loads(line) for line in localr1_command("download", "org/model", "--json").out.splitlines()]
    assert [record["event"] for record in records][-3:] == ["DownloadPlan", "FetchProgress", "Ready"]
    assert records[-1]["bytes"] == 2500


def test_a_typo_is_told_before_anything_slow_is_imported():
    code = (
        "import sys\nfrom localr1.cli.app import main\n"
        "try: main(['download', 'smolm2'])\n"
        "except SystemExit as left: print(left.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False"]
    assert "smollm2-135m" in done.stderr


def make_store(home: Path, repo_id: str = "org/model", commit: str = "a" * 40) -> Path:
    folder = home / "models" / repo_id.replace("/", "--") / commit
    folder.mkdir(parents=True)
    (folder / "dense.safetensors").write_bytes(b"x" * 2000)
    files = {"dense.safetensors": {"bytes": 2000, "xxh3_128": xxh3_128(b"x" * 2000).hexdigest()}}
    manifest = {"source": repo_id, "revision": commit, "created": "2026-01-02T03:04:05Z", "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "home"


def test_rm_asks_and_frees(home, localr1_command):
    folder = make_store(home)
    assert localr1_command("rm", "org/model", stdin="n\n", tty="ie").status == 1
    assert folder.exists()
    outcome = localr1_command("rm", "org/model", stdin="y\n", tty="ie")
    assert outcome.status == 0 and "Freed 2." in outcome.err
    assert not folder.exists()


def test_rm_of_what_is_unfinished_leaves_the_model(home, localr1_command):
    store = make_store(home)
    assert localr1_command("rm", "org/model", "--partial", "--yes").status == 3
    partial = store.with_name(store.name + ".partial")
    (partial / "store").mkdir(parents=True)
    (partial / "store" / "dense.safetensors").write_bytes(bytes(500))
    told = " ".join(localr1_command("models").out.split())
    assert "`localr1 download org/model --force` goes on" in told and "`localr1 rm org/model --partial`" in told
    assert "Freed 500 B" in localr1_command("rm", "org/model", "--partial", "--yes").err
    assert store.is_dir() and not partial.exists()


def test_verify_tells_of_a_store_that_cannot_be_read(home, localr1_command):
    (make_store(home) / "manifest.json").write_text("{")
    outcome = localr1_command("verify")
    assert outcome.status == 7 and "manifest.json" in outcome.err
    assert "org/model" in localr1_command("models").out


def test_rm_takes_the_models_conversations_unless_told_to_leave_them(home, localr1_command):
    folder = home / "conversations"
    for name, model in (("mine", "org/model"), ("other", "nano")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text(json.dumps({"kind": "conversation", "model": model}) + "\n")
        (folder / f"{name}.safetensors").write_bytes(b"\x00\xff its cache")
    make_store(home)
    localr1_command("rm", "org/model", "--yes", "--keep-conversations")
    assert len(list(folder.iterdir())) == 4
    make_store(home)
    outcome = localr1_command("rm", "org/model", "--yes")
    assert "1 conversation" in outcome.err
    assert sorted(path.name for path in folder.iterdir()) == ["other.jsonl", "other.safetensors"]


def test_rm_leaves_a_conversation_that_moved_on_to_another_model_or_came_from_one(home, localr1_command):
    folder = home / "conversations"
    folder.mkdir(parents=True)
    for name, begun, then in (
        ("left", "org/model", "nano"),
        ("came", "nano", "org/model"),
        ("stayed", "org/model", ""),
    ):
        moved = json.dumps({"kind": "model", "name": then}) + "\n" if then else '{"kind": "us'
        line = json.dumps({"kind": "conversation", "model": begun}) + "\n"
        (folder / f"{name}.jsonl").write_text(line + moved)
    make_store(home)
    assert "1 conversation" in localr1_command("rm", "org/model", "--yes").err
    assert sorted(path.stem for path in folder.iterdir()) == ["came", "left"]


def test_rm_never_deletes_unasked(home, localr1_command):
    folder = make_store(home)
    outcome = localr1_command("rm", "org/model")
    assert outcome.status == 2 and "--yes" in outcome.err
    assert folder.exists()
    assert localr1_command("rm", "org/model", "--yes").status == 0
    assert not folder.exists()
    assert localr1_command("rm", "org/model", "--yes").status == 3


def test_verify_says_which_is_whole_and_which_is_not(home, localr1_command):
    make_store(home)
    harmed = make_store(home, "org/other")
    assert localr1_command("verify").status == 0
    (harmed / "dense.safetensors").write_bytes(b"y" * 2000)
    outcome = localr1_command("verify")
    assert outcome.status == 7
    assert "org/model aaaaaaaaaaaa: whole" in outcome.err
    assert "error:" in outcome.err and "org/other --force" in outcome.err
    assert localr1_command("verify", "org/model").status == 0
    assert localr1_command("verify", "org/nothing").status == 3


def test_models_shows_revision_use_and_what_is_partial(home, localr1_command):
    make_store(home)
    partial = home / "models" / "org--half" / ("b" * 40 + ".partial")
    (partial / "store").mkdir(parents=True)
    (partial / "store" / "dense.safetensors").write_bytes(b"x" * 3000)
    lines = localr1_command("models").out.splitlines()
    (whole,) = [line for line in lines if "org/model" in line]
    (half,) = [line for line in lines if "org/half" in line]
    assert all(word in whole for word in ("aaaaaaaaaaaa", "not used yet", "complete"))
    assert all(word in half for word in ("3.0 kB", "bbbbbbbbbbbb", "partial", "localr1 rm org/half"))


@pytest.mark.parametrize(("tty", "told"), [("oe", True), ("e", False)])
def test_models_says_what_is_next_where_the_list_is_seen(home, localr1_command, tty, told):
    assert ("Next: localr1 download" in localr1_command("models", tty=tty).err) == told
