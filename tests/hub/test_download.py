"""`session.download` from a loopback hub: fetching and quantizing side by side, and what stopping leaves."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from benchmarks.download_faults import REPO, campaign, fetched_twice, make_checkpoint, store_facts
from localr1.errors import DiskError
from localr1.hub.cache import lock_path, write_text
from localr1.hub.lock import only_one
from tests.download_runner import Run, Runner
from tests.loopback_hub import LoopbackHub

SHARD = "model-0000{}-of-00004.safetensors"


@pytest.fixture(scope="module")
def computer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoopbackHub, Runner, dict[str, str]]]:
    """A hub, a computer, and what the undisturbed store holds."""
    folder = tmp_path_factory.mktemp("download")
    with (
        LoopbackHub({REPO: make_checkpoint(folder / "checkpoint")}) as hub,
        Runner(hub, folder / "computer") as runner,
    ):
        whole = runner.finish(REPO).folder
        assert whole is not None
        yield hub, runner, store_facts(whole)


@pytest.fixture
def hub(computer: tuple[LoopbackHub, Runner, dict[str, str]]) -> Iterator[LoopbackHub]:
    hub = computer[0]
    original = {path: path.read_bytes() for path in hub.repos[REPO].folder.iterdir()}
    hub.faults.clear()
    hub.requests.clear()
    hub.spans.clear()
    hub.sent_bytes = 0
    yield hub
    hub.licence = None
    for path, content in original.items():
        path.write_bytes(content)


@pytest.fixture
def runner(computer: tuple[LoopbackHub, Runner, dict[str, str]], hub: LoopbackHub) -> Runner:
    shutil.rmtree(computer[1].home)
    computer[1].home.mkdir()
    return computer[1]


@pytest.fixture
def reference(computer: tuple[LoopbackHub, Runner, dict[str, str]]) -> dict[str, str]:
    return computer[2]


def ours(runner: Runner) -> list[Path]:
    """What lies in the shared cache that is this program's alone."""
    return sorted((runner.home / "hf").rglob("*.localr1*"))


def cached_shards(runner: Runner) -> list[str]:
    return sorted(path.name for path in (runner.home / "hf").glob("hub/*/snapshots/*/*.safetensors"))


def wait_for(run: Run, kind: str) -> None:
    deadline_s = time.monotonic() + 60
    while not run.events(kind):
        assert time.monotonic() < deadline_s and "error" not in run.last, run.last
        time.sleep(0.01)


def test_a_shard_is_converted_while_the_next_arrives(
    hub: LoopbackHub, runner: Runner, reference: dict[str, str]
) -> None:
    hub.fail(SHARD.format(4), slow_s=0.3, times=9)
    run = runner.finish(REPO)
    assert run.folder is not None and store_facts(run.folder) == reference
    kinds = [line.get("event") for line in run.lines]
    last_fetch = len(kinds) - kinds[::-1].index("FetchProgress")
    converted = [line for line in run.lines[:last_fetch] if line.get("event") == "QuantizeProgress"]
    assert len(converted) > 10


def test_a_shard_is_converted_as_it_comes(
    hub: LoopbackHub, runner: Runner, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.loopback_hub.CHUNK_BYTES", 16 << 10)
    hub.fail(SHARD.format(4), slow_s=0.1, times=9)
    run = runner.finish(REPO)
    assert run.folder is not None and store_facts(run.folder) == reference
    whole = [
        number
        for number, line in enumerate(run.lines)
        if line.get("event") == "FetchProgress"
        and line["done_bytes"] == line["total_bytes"]
        and "00004" in line["file"]
    ]
    tensors = json.loads((hub.repos[REPO].folder / "model.safetensors.index.json").read_text())["weight_map"]
    early = [line["tensor"] for line in run.lines[: whole[0]] if line.get("event") == "QuantizeProgress"]
    assert any(tensors[name] == SHARD.format(4) for name in early if name)


def test_a_shard_that_proves_wrong_is_converted_again(
    hub: LoopbackHub, runner: Runner, reference: dict[str, str]
) -> None:
    size = (hub.repos[REPO].folder / SHARD.format(2)).stat().st_size
    hub.fail(SHARD.format(2), flip_byte=size // 3, slow_s=0.2, times=3)  # two are for its header
    run = runner.finish(REPO)
    assert run.folder is not None and store_facts(run.folder) == reference
    assert any("does not match its hash" in line["text"] for line in run.events("Notice"))


def test_the_source_goes_as_it_is_converted_and_two_shards_are_the_most(hub: LoopbackHub, runner: Runner) -> None:
    hub.fail("*.safetensors", slow_s=0.05, times=99)
    largest = max(path.stat().st_size for path in hub.repos[REPO].folder.glob("*.safetensors"))
    run, most_bytes = runner.start(REPO), 0
    while not {"store", "error"} & run.last.keys():
        sizes = []
        for path in ours(runner):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        most_bytes = max(most_bytes, sum(sizes))
        time.sleep(0.005)
    assert run.wait().folder is not None
    assert 0 < most_bytes <= 2.2 * largest  # two shards, and the heads of the others
    assert ours(runner) == [] and cached_shards(runner) == []


def test_keep_source_leaves_the_files_for_every_tool(
    hub: LoopbackHub, runner: Runner, reference: dict[str, str]
) -> None:
    run = runner.finish(REPO, keep_source=True)
    assert run.folder is not None and store_facts(run.folder) == reference
    assert cached_shards(runner) == [SHARD.format(number) for number in range(1, 5)]
    assert ours(runner) == []
    hub.requests.clear()
    assert runner.finish(REPO, force=True).folder is not None
    assert hub.gets("*.safetensors") == []
    assert len(cached_shards(runner)) == 4  # what was there for everyone stays


def test_keep_source_of_what_is_here_says_that_it_was_not_kept(hub: LoopbackHub, runner: Runner) -> None:
    not_kept = "its 16-bit files were not kept; add --force to fetch them"

    def said(model: str, **options: bool) -> list[str]:
        return [line["text"] for line in runner.finish(model, **options).events("Notice")]

    runner.finish(REPO)
    assert not_kept not in said(REPO)
    for model in (REPO, f"{REPO}@main"):
        assert said(model, keep_source=True)[-1] == not_kept and cached_shards(runner) == []
    assert not_kept not in said(REPO, keep_source=True, force=True) and len(cached_shards(runner)) == 4
    assert not_kept not in said(REPO, keep_source=True)
    shutil.rmtree(runner.home / "hf")
    assert said(REPO, keep_source=True)[-1] == not_kept


def test_what_another_process_is_at_for_an_earlier_commit_is_left_to_it(
    hub: LoopbackHub, runner: Runner, reference: dict[str, str]
) -> None:
    fault = hub.fail("*.safetensors", slow_s=0.1, times=99)
    run = runner.start(REPO)
    wait_for(run, "QuantizeProgress")
    run.kill()
    run.wait()
    fault.times = 0
    begun = next((runner.home / "localr1").glob("models/*/*.partial"))
    readme = hub.repos[REPO].folder / "README.md"
    readme.write_text("a typo is mended")
    try:
        with only_one(lock_path(begun.with_suffix("")), "at it"):
            other = runner.finish(REPO)
    finally:
        readme.unlink()
    assert other.folder is not None and store_facts(other.folder) == reference
    assert begun.is_dir()


def test_ctrl_c_is_clean_and_costs_nothing(hub: LoopbackHub, runner: Runner, reference: dict[str, str]) -> None:
    """Not even when a commit comes in between that leaves the weights as they are."""
    total_bytes = sum(path.stat().st_size for path in hub.repos[REPO].folder.iterdir())
    fault = hub.fail("*.safetensors", slow_s=0.1, times=99)
    run = runner.start(REPO)
    wait_for(run, "QuantizeProgress")
    run.kill(signal.SIGINT)
    assert run.wait().last == {"error": "KeyboardInterrupt"}
    assert not list((runner.home / "localr1").glob("models/*/*/manifest.json"))
    fault.times = 0
    readme = hub.repos[REPO].folder / "README.md"
    readme.write_text("a typo is mended")
    try:
        again = runner.finish(REPO)
    finally:
        readme.unlink()
    assert again.folder is not None and store_facts(again.folder) == reference
    assert again.events("QuantizeProgress")[0]["done_tensors"] >= 1
    assert not [path for path in again.folder.parent.iterdir() if path.name.endswith(".partial")]
    in_flight_bytes = 2 * (64 << 10) + 2 * (128 << 10)
    assert hub.sent_bytes <= total_bytes + in_flight_bytes


def test_the_plan_comes_first_and_a_dry_run_fetches_nothing(hub: LoopbackHub, runner: Runner) -> None:
    hub.licence = "mit"
    hub.gated.add(REPO)
    try:
        run = runner.finish(REPO, dry_run=True)
    finally:
        hub.gated.clear()
    plan = run.lines[0]
    files = list(hub.repos[REPO].folder.iterdir())
    assert plan["event"] == "DownloadPlan"
    assert (plan["files"], plan["licence"], plan["gated"]) == (len(files), "mit", "manual")
    assert plan["fetch_bytes"] == plan["total_bytes"] == sum(path.stat().st_size for path in files)
    assert plan["disks"][0]["free_bytes"] > plan["disks"][0]["needed_bytes"] > plan["store_bytes"] > 0
    assert hub.gets() == []
    assert [path for path in runner.home.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def new_commit(hub: LoopbackHub) -> None:
    config = hub.repos[REPO].folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": "a new commit"}))


def test_a_newer_version_is_noticed_and_replaces_the_old_when_whole(hub: LoopbackHub, runner: Runner) -> None:
    old = runner.finish(REPO).folder
    assert old is not None
    new_commit(hub)
    hub.fail(SHARD.format(3), slow_s=1.0, times=9)
    killed = runner.start(REPO)
    wait_for(killed, "QuantizeProgress")
    killed.kill()
    killed.wait()
    assert "newer version" in killed.events("Notice")[0]["text"]
    assert store_facts(old)  # still whole, still there
    hub.faults.clear()
    run = runner.finish(REPO)
    assert run.folder not in (None, old) and not old.exists()
    assert "old version" in run.events("Notice")[-1]["text"]
    assert "already here" in runner.finish(REPO).events("Notice")[-1]["text"]


def test_a_version_with_the_same_files_fetches_nothing(hub: LoopbackHub, runner: Runner) -> None:
    old = runner.finish(REPO).folder
    readme = hub.repos[REPO].folder / "README.md"
    readme.write_text("a typo is mended")
    try:
        sent_bytes = hub.sent_bytes
        run = runner.finish(REPO)
        assert run.folder == old and "the same files" in run.events("Notice")[-1]["text"]
        assert hub.sent_bytes == sent_bytes
        pinned = runner.finish(f"{REPO}@{hub.repos[REPO].commit}")
        assert pinned.folder == old
    finally:
        readme.unlink()


def test_a_version_asked_for_by_name_is_kept(hub: LoopbackHub, runner: Runner) -> None:
    commit = hub.repos[REPO].commit
    old = runner.finish(f"{REPO}@{commit}").folder
    assert old is not None
    new_commit(hub)
    assert runner.finish(f"{REPO}@{commit}").folder == old
    new = runner.finish(REPO).folder
    assert new is not None and new != old and old.exists()


def test_a_silent_hub_does_not_keep_what_is_here(hub: LoopbackHub, runner: Runner) -> None:
    old = runner.finish(REPO).folder
    hub.fail("api:info", status=500, times=9)
    new_commit(hub)
    run = runner.finish(REPO)
    assert run.folder == old and "already here" in run.events("Notice")[0]["text"]


def test_a_header_that_arrives_wrong_is_asked_for_again(
    hub: LoopbackHub, runner: Runner, reference: dict[str, str]
) -> None:
    hub.fail(SHARD.format(2), flip_byte=3, times=2)
    run = runner.finish(REPO)
    assert run.folder is not None and store_facts(run.folder) == reference


def test_a_wrong_header_that_looks_right_is_found_when_the_shard_is_whole(
    hub: LoopbackHub, runner: Runner, reference: dict[str, str]
) -> None:
    scratch = runner.home / "localr1" / "models" / "org--tiny" / f"{hub.repos[REPO].commit}.partial" / "headers"
    scratch.mkdir(parents=True)
    content = (hub.repos[REPO].folder / SHARD.format(1)).read_bytes()
    head = content[: 8 + int.from_bytes(content[:8], "little")]
    names = sorted(name for name in json.loads(head[8:]) if name.endswith("k_proj.weight"))
    other = head.replace(names[0].encode(), b"@").replace(b"q_proj", b"k_proj", 1).replace(b"@", names[0].encode())
    assert other != head
    swapped = names[0].replace("k_proj", "q_proj").encode()
    wrong = head.replace(swapped, b"@" * len(swapped)).replace(names[0].encode(), swapped)
    wrong = wrong.replace(b"@" * len(swapped), names[0].encode())
    oid = hub.hashes(hub.repos[REPO].folder / SHARD.format(1))[1]
    (scratch / f"{oid}.header").write_bytes(wrong)
    assert runner.finish(REPO).last["error"] == "HeaderError"
    run = runner.finish(REPO)
    assert run.folder is not None and store_facts(run.folder) == reference


def test_files_of_one_content_share_their_bytes(hub: LoopbackHub, runner: Runner) -> None:
    shutil.copyfile(hub.repos[REPO].folder / SHARD.format(1), hub.repos[REPO].folder / "model-copy-of-1.safetensors")
    try:
        last = runner.finish(REPO).last
    finally:
        (hub.repos[REPO].folder / "model-copy-of-1.safetensors").unlink()
    assert last["error"] == "CorruptError" and "is in both" in last["message"]


def test_a_few_random_kills(tmp_path: Path) -> None:
    """The long campaign is `benchmarks/download_faults.py`."""
    outcome = campaign(tmp_path / "campaign", kills=6, seed=int(os.environ.get("TEST_SEED", "1")))
    assert outcome.wrong == []
    assert outcome.kills >= 6


def test_one_cut_costs_less_than_a_hundredth(tmp_path: Path) -> None:
    shares = fetched_twice(tmp_path, cuts=2)
    assert -0.01 < min(shares) <= max(shares) <= 0.01


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 80 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=80m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_is_told_and_gone_on_with(tmp_path: Path, small_disk: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", hidden=256)
    ballast = small_disk / "ballast"
    with LoopbackHub({REPO: checkpoint}) as hub, Runner(hub, small_disk / "computer") as runner:
        ballast.write_bytes(bytes(20 << 20))
        before = runner.finish(REPO).last
        assert before["error"] == "DiskError" and "free" in before["hint"] and hub.gets() == []
        ballast.unlink()
        hub.fail("*.safetensors", slow_s=0.03, times=99)
        run = runner.start(REPO)
        wait_for(run, "FetchProgress")
        deadline_s = time.monotonic() + 30
        while shutil.disk_usage(small_disk).free and time.monotonic() < deadline_s and "error" not in run.last:
            fill(ballast)
            time.sleep(0.01)
        run.wait()
        assert run.last.get("error") == "DiskError", run.last
        assert any(word in run.last["message"] for word in ("is full", "no room", "needs")), run.last
        assert "B more" in run.last["hint"] or "free some space" in run.last["hint"]
        ballast.unlink()
        hub.faults.clear()
        whole = runner.finish(REPO).folder
        assert whole is not None and store_facts(whole)


def test_a_full_disk_is_named_by_the_small_files_too(small_disk: Path) -> None:
    fill(small_disk / "ballast")
    with pytest.raises(DiskError, match=r"no room on the disk for .*hashed-files\.json") as refused:
        write_text(small_disk / "hashed-files.json", "{}" * 5000)
    assert "free some space" in refused.value.hint
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def fill(ballast: Path) -> None:
    """Take all the room there is."""
    with ballast.open("ab") as file:
        try:
            while True:
                file.write(bytes(64 << 10))
                file.flush()
        except OSError:
            return


def test_shards_come_two_at_a_time(hub: LoopbackHub, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.loopback_hub.CHUNK_BYTES", 8 << 10)
    hub.fail("*.safetensors", slow_s=0.06, times=99)
    assert runner.finish(REPO).folder is not None
    spans = [span for span in hub.spans if fnmatch(span.path, "*.safetensors") and span.end_s - span.start_s > 0.15]
    assert max(sum(one.start_s <= two.start_s < one.end_s for one in spans) for two in spans) == 2
