"""Each way a download fails is one error of its kind, with the values and what to do."""

import errno
import ssl
from pathlib import Path

import pytest

from localr1.errors import AccessError, DiskError, NetworkError
from localr1.hub.catalog import HubRepo
from localr1.hub.failures import explain, may_pass
from localr1.hub.remote import needed_files
from tests.hub.conftest import REPO, SHARDS, Client
from tests.loopback_hub import LoopbackHub


def assert_error(client: Client, kind: str, *words: str, model: str = REPO, **environment: str) -> None:
    last = client.fetch(model, **environment).last
    assert last.get("error") == kind, last
    text = f"{last['message']} | {last['hint']}"
    assert all(word in text for word in words), text
    assert last["hint"]
    assert "\n" not in last["message"]


def test_unknown_repository(client: Client) -> None:
    assert_error(client, "NotFoundError", "org/nothing", "spelling", "hf auth login", model="org/nothing")


def test_unknown_revision(client: Client) -> None:
    assert_error(client, "NotFoundError", REPO, "'v9'", model=f"{REPO}@v9")


def test_gated_without_a_token(hub: LoopbackHub, client: Client) -> None:
    hub.gated.add(REPO)
    assert_error(client, "AccessError", "gated", f"/{REPO}", "hf auth login")


def test_gated_and_not_yet_approved(hub: LoopbackHub, client: Client) -> None:
    hub.gated.add(REPO)
    assert_error(client, "AccessError", "gated", "approval", HF_TOKEN="hf_waiting")


def test_gated_and_approved(hub: LoopbackHub, client: Client) -> None:
    hub.gated.add(REPO)
    hub.allowed_tokens.add("hf_good")
    assert (client.fetch(HF_TOKEN="hf_good").folder / SHARDS[0]).exists()


def test_invalid_token(hub: LoopbackHub, client: Client) -> None:
    hub.valid_tokens = {"hf_good"}
    assert_error(client, "AccessError", "token", "401", "hf auth login", HF_TOKEN="hf_bad")


def test_offline_with_nothing_here(hub: LoopbackHub, client: Client) -> None:
    assert_error(client, "NetworkError", REPO, "HF_HUB_OFFLINE", HF_HUB_OFFLINE="1")
    assert hub.requests == []


def test_connection_refused(client: Client) -> None:
    assert_error(client, "NetworkError", "http://127.0.0.1:9", "HF_ENDPOINT", HF_ENDPOINT="http://127.0.0.1:9")


def test_endpoint_that_is_no_address(client: Client) -> None:
    assert_error(client, "NetworkError", "HF_ENDPOINT", HF_ENDPOINT="hub.example")


def test_server_error(hub: LoopbackHub, client: Client) -> None:
    hub.fail("api:info", status=500, times=9)
    assert_error(client, "NetworkError", "500")


@pytest.mark.parametrize("page", ["<html>Welcome to the hotel</html>", "{}", '{"id": "org/tiny"}'])
def test_answer_of_something_that_is_no_hub(hub: LoopbackHub, client: Client, page: str) -> None:
    hub.fail("api:info", page=page)
    assert_error(client, "NetworkError", hub.endpoint, "HF_ENDPOINT")


def test_rate_limit(hub: LoopbackHub, client: Client) -> None:
    hub.fail("api:info", status=429, times=9)
    assert_error(client, "NetworkError", "429", "wait")


def test_stalled_server_times_out(hub: LoopbackHub, client: Client) -> None:
    hub.fail("config.json", stall_s=3, times=1)
    outcome = client.fetch(HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert any("nothing came for too long; trying again" in notice for notice in outcome.notices())
    assert (outcome.folder / "config.json").exists()


def test_a_server_that_stalls_in_the_middle_is_asked_for_the_rest(hub: LoopbackHub, client: Client) -> None:
    hub.fail(SHARDS[0], slow_s=3, times=1)
    outcome = client.fetch(HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert any(f"{SHARDS[0]}: nothing came for too long; trying again" in notice for notice in outcome.notices())
    first, rest = hub.gets(SHARDS[0])
    assert first.range is None and rest.range is not None and rest.range != "bytes=0-"


def test_wrong_bytes_twice_are_refused_and_removed(hub: LoopbackHub, client: Client) -> None:
    hub.fail(SHARDS[0], flip_byte=1_234_567, times=2)
    assert_error(client, "CorruptError", SHARDS[0], "hash")
    assert not client.unfinished_of(SHARDS[0]).exists()
    assert not list(client.cache.glob(f"snapshots/*/{SHARDS[0]}"))
    assert not (client.cache / "refs").exists()
    assert len(hub.gets(SHARDS[0])) == 2


def test_wrong_bytes_once_are_fetched_again(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    hub.fail(SHARDS[0], flip_byte=1_234_567)
    folder = client.fetch().folder
    assert (folder / SHARDS[0]).read_bytes() == (checkpoint / SHARDS[0]).read_bytes()


def test_wrong_bytes_of_a_small_file_are_refused(hub: LoopbackHub, client: Client) -> None:
    hub.fail("tokenizer.json", flip_byte=3, times=2)
    assert_error(client, "CorruptError", "tokenizer.json")


def test_more_bytes_than_promised_are_refused(hub: LoopbackHub, client: Client) -> None:
    hub.fail(SHARDS[0], extra_bytes=7, times=9)
    assert_error(client, "CorruptError", SHARDS[0], "1500000")
    assert not client.unfinished_of(SHARDS[0]).exists()


def test_file_that_vanished_after_the_listing(hub: LoopbackHub, client: Client) -> None:
    hub.extra_entries.append({"type": "file", "path": "tokenizer_config.json", "size": 5, "oid": "0" * 40})
    assert_error(client, "NotFoundError", "tokenizer_config.json")


def test_too_small_a_disk_is_found_before_the_first_byte(hub: LoopbackHub, client: Client) -> None:
    lfs = {"oid": "0" * 64, "size": 10**16, "pointerSize": 134}
    name = "model-00003-of-00003.safetensors"
    hub.extra_entries.append({"type": "file", "path": name, "size": 10**16, "oid": "0" * 40, "lfs": lfs})
    assert_error(client, "DiskError", "10000.0 TB", "free", "HF_HOME")
    assert hub.gets() == []


def test_pickle_checkpoint_is_refused_by_name(hub: LoopbackHub, client: Client, checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    assert_error(client, "UnsupportedError", "consolidated.bin", "model-00001-of-00002.bin", "safetensors")
    assert hub.gets() == []


def test_cache_folder_that_cannot_be_made(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    assert_error(client, "DiskError", "a-file", HF_HOME=str(tmp_path / "a-file"))


def test_paths_that_leave_the_folder_are_never_fetched(hub: LoopbackHub, client: Client) -> None:
    for path in ("../evil.safetensors", "/etc/evil.safetensors", "..\\evil.safetensors", ".hidden.safetensors"):
        hub.extra_entries.append({"type": "file", "path": path, "size": 5, "oid": "0" * 40})
    assert "snapshot" in client.fetch().last
    assert not any("evil" in request.path for request in hub.requests)


@pytest.mark.parametrize(
    ("error", "kind", "word"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/blob"), DiskError, "/disk/blob"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/blob"), AccessError, "/root/blob"),
        (OSError(errno.EROFS, "Read-only file system", "/mnt/blob"), AccessError, "/mnt/blob"),
        (OSError(errno.EIO, "Input/output error", "/disk/blob"), DiskError, "Input/output"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), NetworkError, "broke"),
        (TimeoutError("slow"), NetworkError, "in time"),
        (ssl.SSLCertVerificationError("self-signed certificate"), NetworkError, "certificate"),
    ],
)
def test_system_failures(error: Exception, kind: type[Exception], word: str) -> None:
    explained = explain(error, HubRepo(REPO))
    assert type(explained) is kind
    assert word in f"{explained} {explained.hint}"


def test_a_fault_of_the_program_is_not_explained_away() -> None:
    assert explain(TypeError("bug"), HubRepo(REPO)) is None


def test_what_may_pass_by_itself() -> None:
    assert may_pass(ConnectionResetError())
    assert not may_pass(ssl.SSLCertVerificationError("self-signed certificate"))
    assert not may_pass(OSError(errno.ENOSPC, "full"))


@pytest.mark.parametrize("index", [True, False])
def test_of_shards_with_an_index_and_one_whole_file_the_shards_are_taken(index: bool) -> None:
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    names = {"config.json", *shards, *(["model.safetensors.index.json"] if index else [])}
    assert needed_files([*names, "model.safetensors"], "x") == (names if index else names | {"model.safetensors"})


def test_other_safetensors_are_taken_when_the_usual_names_are_missing() -> None:
    assert needed_files(["config.json", "weights.safetensors", "tokenizer.py"], "x") == {
        "config.json",
        "weights.safetensors",
    }
