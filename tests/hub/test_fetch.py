"""`Download` through the real client against a loopback hub: what arrives, what is reused, what survives."""

import json
import os
import signal
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.hub.conftest import NEEDED, REPO, SHARDS, Client
from tests.loopback_hub import LoopbackHub


def assert_same_files(fetched: Path, original: Path) -> None:
    assert {path.name for path in fetched.iterdir()} == NEEDED
    for name in NEEDED:
        assert (fetched / name).read_bytes() == (original / name).read_bytes(), name


def test_brings_the_needed_files_and_no_others(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    outcome = client.fetch()
    assert_same_files(outcome.folder, checkpoint)
    assert outcome.last["commit"] == hub.repos[REPO].commit
    assert len(hub.gets()) == len(NEEDED)
    assert client.unfinished() == []


def test_progress_adds_up(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    hub.fail(SHARDS[0], slow_s=0.06)
    progress = client.fetch().progress()
    total = sum((checkpoint / name).stat().st_size for name in NEEDED)
    done = [event["done_bytes"] for event in progress]
    assert done == sorted(done)
    assert done[-1] == total
    assert {event["total_bytes"] for event in progress} == {total}
    assert all(event["file_done_bytes"] <= event["file_total_bytes"] for event in progress)
    assert len([event for event in progress if event["file"] == SHARDS[0]]) > 3


def most_at_once(hub: LoopbackHub, pattern: str) -> int:
    """How many answers with files of this pattern were being sent at one time."""
    spans = [span for span in hub.spans if fnmatch(span.path, pattern)]
    return max(sum(other.start_s <= span.start_s < other.end_s for other in spans) for span in spans)


@pytest.mark.parametrize("connections", [1, 3])
def test_files_come_side_by_side_within_the_connections(
    hub: LoopbackHub, client: Client, checkpoint: Path, connections: int
) -> None:
    for number in range(5):
        (checkpoint / f"tokenizer-{number}.json").write_text("{}" * 50_000)
    hub.fail("*.json", slow_s=0.1 * connections, times=99)
    assert client.fetch(TEST_CONNECTIONS=str(connections)).folder
    assert most_at_once(hub, "*.json") == connections


def test_second_call_fetches_nothing(hub: LoopbackHub, client: Client) -> None:
    first = client.fetch()
    before = len(hub.gets())
    second = client.fetch()
    assert second.folder == first.folder
    assert len(hub.gets()) == before


def test_shares_the_cache_with_the_stock_client(hub: LoopbackHub, client: Client) -> None:
    ours = client.fetch().folder
    code = (
        f"from huggingface_hub import snapshot_download as s; print(s({REPO!r}, allow_patterns=['*.json', 'model-*']))"
    )
    before = len(hub.gets())
    assert Path(client.stock(code)) == ours
    assert len(hub.gets()) == before


def test_reuses_what_the_stock_client_cached(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    code = f"from huggingface_hub import hf_hub_download as d; print(d({REPO!r}, {SHARDS[1]!r}))"
    assert Path(client.stock(code)).name == SHARDS[1]
    assert_same_files(client.fetch().folder, checkpoint)
    assert len(hub.gets(SHARDS[0])) == len(hub.gets(SHARDS[1])) == 1


def test_damaged_cached_file_is_fetched_again(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    folder = client.fetch().folder
    blob = (folder / SHARDS[0]).resolve()
    content = bytearray(blob.read_bytes())
    content[700_000] ^= 1
    blob.write_bytes(content)
    outcome = client.fetch()
    assert any("damaged" in notice for notice in outcome.notices())
    assert_same_files(outcome.folder, checkpoint)
    assert len(hub.gets(SHARDS[0])) == 2


def test_new_commit_fetches_only_what_changed(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    old = client.fetch().folder
    (checkpoint / "config.json").write_text('{"name": "changed", "by": "a new commit"}')
    new = client.fetch().folder
    assert new != old
    assert_same_files(new, checkpoint)
    assert len(hub.gets(SHARDS[0])) == 1
    assert json.loads((old / "config.json").read_text()) == {"name": "config.json"}


def test_cache_behind_a_link_to_another_disk(client: Client, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "deeper" / "disk").mkdir(parents=True)
    client.home.mkdir()
    (client.home / "hf").symlink_to(tmp_path / "deeper" / "disk")
    client.fetch()
    (checkpoint / "config.json").write_text('{"name": "changed, and longer"}')
    assert_same_files(client.fetch().folder, checkpoint)


def test_computer_without_symlinks(client: Client, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows without developer mode: the files lie in the snapshot itself, whole."""
    monkeypatch.setenv("TEST_NO_LINKS", "1")
    folder = client.fetch().folder
    assert_same_files(folder, checkpoint)
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert client.fetch().folder == folder
    assert client.fetch(HF_HUB_OFFLINE="1").folder == folder


def test_revision_is_pinned(hub: LoopbackHub, client: Client) -> None:
    commit = hub.repos[REPO].commit
    hub.repos[REPO].revisions["v1.0"] = commit
    assert client.fetch(f"{REPO}@v1.0").last["commit"] == commit
    assert (client.cache / "refs" / "v1.0").read_text() == commit
    assert client.fetch(f"{REPO}@{commit}").last["commit"] == commit


def test_offline_uses_what_is_here(hub: LoopbackHub, client: Client) -> None:
    folder = client.fetch().folder
    asked = len(hub.requests)
    outcome = client.fetch(HF_HUB_OFFLINE="1")
    assert outcome.folder == folder
    assert outcome.notices() == []
    assert len(hub.requests) == asked


def test_unreachable_hub_falls_back_with_a_notice(client: Client) -> None:
    folder = client.fetch().folder
    outcome = client.fetch(HF_ENDPOINT="http://127.0.0.1:9")
    assert outcome.folder == folder
    assert "cannot reach" in outcome.notices()[0]


def test_partial_snapshot_is_not_taken_as_whole_offline(client: Client) -> None:
    folder = client.fetch().folder
    (folder / SHARDS[1]).unlink()
    outcome = client.fetch(HF_HUB_OFFLINE="1")
    assert outcome.last["error"] == "NetworkError"
    assert "HF_HUB_OFFLINE" in outcome.last["message"]


def test_damaged_snapshot_is_refused_offline(client: Client) -> None:
    folder = client.fetch().folder
    blob = (folder / SHARDS[1]).resolve()
    blob.write_bytes(bytes(blob.stat().st_size))
    assert client.fetch(HF_HUB_OFFLINE="1").last["error"] == "CorruptError"
    assert not blob.exists()


def wait_for_bytes(client: Client, wanted: int) -> None:
    for _ in range(600):
        part = client.unfinished_of(SHARDS[0])
        if part.exists() and part.stat().st_size >= wanted and len(client.unfinished()) == 1:
            return
        time.sleep(0.05)
    raise AssertionError("the download did not start")


def interrupt(hub: LoopbackHub, client: Client, sign: signal.Signals) -> str:
    fault = hub.fail(SHARDS[0], slow_s=0.3)
    process = client.start()
    try:
        wait_for_bytes(client, 200_000)
        process.send_signal(sign)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert fault.times == 0
    return output


def test_ctrl_c_leaves_nothing_whole_and_the_next_run_continues(
    hub: LoopbackHub, client: Client, checkpoint: Path
) -> None:
    output = interrupt(hub, client, signal.SIGINT)
    assert json.loads(output.splitlines()[-1]) == {"error": "KeyboardInterrupt"}
    (unfinished,) = client.unfinished()
    kept = unfinished.read_bytes()
    assert 200_000 <= len(kept) < 1_500_000
    assert (checkpoint / SHARDS[0]).read_bytes().startswith(kept)
    assert not list(client.cache.glob(f"snapshots/*/{SHARDS[0]}"))
    assert_same_files(client.fetch().folder, checkpoint)
    assert hub.gets(SHARDS[0])[-1].range == f"bytes={len(kept)}-"


def test_kill_is_survived(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    interrupt(hub, client, signal.SIGKILL)
    assert_same_files(client.fetch().folder, checkpoint)
    assert hub.gets(SHARDS[0])[-1].range is not None


def test_cut_connection_is_resumed_in_the_same_run(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    hub.fail(SHARDS[0], cut_after_bytes=1_000_000)
    outcome = client.fetch()
    assert_same_files(outcome.folder, checkpoint)
    assert any("trying again" in notice for notice in outcome.notices())
    second = hub.gets(SHARDS[0])[1].range
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 500_000


def test_server_that_ignores_range_starts_the_file_over(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    hub.fail(SHARDS[0], cut_after_bytes=1_000_000)
    hub.fail(SHARDS[0], ignore_range=True)
    assert_same_files(client.fetch().folder, checkpoint)
    assert len(hub.gets(SHARDS[0])) == 2


def test_garbage_in_an_unfinished_file_is_fetched_again(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    interrupt(hub, client, signal.SIGKILL)
    (unfinished,) = client.unfinished()
    unfinished.write_bytes(os.urandom(unfinished.stat().st_size))
    outcome = client.fetch()
    assert_same_files(outcome.folder, checkpoint)
    assert any("does not match its hash" in notice for notice in outcome.notices())


def test_unfinished_file_longer_than_the_file_is_started_over(
    hub: LoopbackHub, client: Client, checkpoint: Path
) -> None:
    interrupt(hub, client, signal.SIGKILL)
    (unfinished,) = client.unfinished()
    unfinished.write_bytes(bytes(2_000_000))
    assert_same_files(client.fetch().folder, checkpoint)
    assert hub.gets(SHARDS[0])[-1].range is None


def test_busy_server_is_asked_again(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    hub.fail("config.json", status=429, retry_after_s=0)
    hub.fail(SHARDS[1], status=503, retry_after_s=0)
    outcome = client.fetch()
    assert_same_files(outcome.folder, checkpoint)
    assert [notice.split(";")[0] for notice in outcome.notices()] == [
        "config.json: the hub answered with status 429",
        f"{SHARDS[1]}: the hub answered with status 503",
    ]


def test_short_answer_is_completed(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    hub.fail(SHARDS[0], missing_bytes=1000)
    assert_same_files(client.fetch().folder, checkpoint)
    assert hub.gets(SHARDS[0])[1].range == "bytes=1499000-"


def test_large_files_on_another_host_get_no_token(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    hub.redirect = True
    assert_same_files(client.fetch(HF_TOKEN="hf_secret").folder, checkpoint)
    elsewhere = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert len(elsewhere) == len(SHARDS)
    assert not any(request.authorized for request in elsewhere)
    assert all(request.authorized for request in hub.gets())


def test_only_one_process_fetches_a_model(hub: LoopbackHub, client: Client) -> None:
    hub.fail(SHARDS[0], slow_s=2.0)
    first = client.start()
    try:
        wait_for_bytes(client, 1)
        second = client.fetch()
    finally:
        first.kill()
        first.communicate()
    assert second.last["error"] == "LocalR1Error"
    assert "another process" in second.last["message"]
