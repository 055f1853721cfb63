"""Where stores live, which is found, and that removing one removes only that."""

import json
import os
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from localr1.errors import AccessError, DiskError, NotFoundError
from localr1.hub import cache
from localr1.hub.catalog import HubRepo, LocalFolder, Snapshot
from localr1.hub.hub_cache import hub_cache_folder

COMMIT_A, COMMIT_B = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make_store(folder: Path, source: str, revision: str, created: str = "2026-01-01T00:00:00Z") -> Path:
    folder.mkdir(parents=True)
    (folder / "dense.safetensors").write_bytes(bytes(1000))
    manifest = {"source": source, "revision": revision, "created": created, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def hub_store(repo_id: str, commit: str, created: str = "2026-01-01T00:00:00Z") -> Path:
    return make_store(cache.store_folder(Snapshot(Path("/"), repo_id, commit)), repo_id, commit, created)


def test_home_follows_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.home() == home
    monkeypatch.delenv("LOCALR1_HOME")
    assert cache.home().name == "localr1"


def test_store_folder_names_repository_and_commit(home: Path) -> None:
    folder = cache.store_folder(Snapshot(Path("/x"), "org/model", COMMIT_A))
    assert folder == home / "models" / "org--model" / COMMIT_A


def test_folder_with_other_content_is_another_store(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"1")
    source = LocalFolder(checkpoint)
    first = cache.store_folder(source)
    assert first == cache.store_folder(source)
    (checkpoint / "notes.txt").write_text("does not matter")
    assert first == cache.store_folder(source)
    (checkpoint / "model.safetensors").write_bytes(b"22")
    assert first != cache.store_folder(source)
    assert first.parent == cache.store_folder(source).parent


def test_nothing_is_there_at_first() -> None:
    assert cache.stores() == []
    assert cache.last_used() is None
    assert cache.find_store(HubRepo("org/model")) is None


def test_stores_are_listed_with_what_to_type() -> None:
    hub_store("deepseek-ai/DeepSeek-V2-Lite-Chat", COMMIT_A)
    hub_store("org/model", COMMIT_B)
    assert [(store.name, store.revision) for store in cache.stores()] == [
        ("org/model", COMMIT_B),
        ("v2-lite", COMMIT_A),
    ]
    assert all(store.size_bytes > 1000 for store in cache.stores())


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"source": 3, "files": {}}', '{"source": "org/model"}', "\x00"])
def test_folder_without_a_readable_manifest_is_no_store(manifest: str) -> None:
    (hub_store("org/model", COMMIT_A) / "manifest.json").write_text(manifest)
    assert cache.stores() == []
    assert cache.find_store(HubRepo("org/model")) is None


@pytest.mark.parametrize("ending", [".partial", ".old", ".removed"])
def test_unfinished_folder_is_no_store(ending: str) -> None:
    folder = hub_store("org/model", COMMIT_A)
    folder.rename(folder.with_name(COMMIT_A + ending))
    assert cache.stores() == []


def test_newest_store_is_found_unless_a_revision_is_named() -> None:
    old = hub_store("org/model", COMMIT_A, "2026-01-01T00:00:00Z")
    new = hub_store("org/model", COMMIT_B, "2026-02-01T00:00:00Z")

    def found(revision: str | None) -> Path | None:
        store = cache.find_store(HubRepo("org/model", revision))
        return store.folder if store else None

    assert found(None) == new
    assert found(COMMIT_A) == old
    assert found("aaaaaaa") == old
    assert found("main") is None
    cache.record_revision(HubRepo("org/model", "release/v1"), COMMIT_A)
    assert found("release/v1") == old
    assert [store.folder for store in cache.stores()] == [new, old]


def test_the_default_branch_is_meant_where_no_revision_is_named() -> None:
    meant = hub_store("org/model", COMMIT_A, "2026-01-01T00:00:00Z")
    named = hub_store("org/model", COMMIT_B, "2026-02-01T00:00:00Z")
    cache.record_revision(HubRepo("org/model", "v1"), COMMIT_B)
    assert cache.superseded(HubRepo("org/model", "v1"), named) == []  # nobody knows what the default branch means
    cache.record_revision(HubRepo("org/model"), COMMIT_A)
    found = cache.find_store(HubRepo("org/model"))
    assert found is not None and found.folder == meant
    assert cache.superseded(HubRepo("org/model", "v1"), named) == []
    cache.record_revision(HubRepo("org/model"), COMMIT_B)
    assert [store.folder for store in cache.superseded(HubRepo("org/model"), named)] == [meant]


def test_a_home_of_no_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_HOME", "~nobody-of-that-name/x")
    with pytest.raises(NotFoundError, match="nobody-of-that-name"):
        cache.home()


def test_store_of_a_folder_is_found_until_the_folder_changes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"1")
    source = LocalFolder(checkpoint)
    folder = make_store(cache.store_folder(source), str(checkpoint), "")
    store = cache.find_store(source)
    assert store is not None
    assert (store.folder, store.name) == (folder, str(checkpoint))
    os.utime(checkpoint / "model.safetensors", ns=(1, 1))
    assert cache.find_store(source) is None


def test_a_folder_that_is_gone_is_still_meant_while_its_store_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who deletes the 16-bit files to free the disk keeps the 8-bit ones."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    made = make_store(cache.store_folder(LocalFolder(folder)), str(folder), "b" * 40)
    (folder / "config.json").unlink()
    folder.rmdir()
    for text in ("./mine", str(folder), f"{folder}/", "mine"):
        found = cache.find_store(cache.source_of(text))
        assert found is not None and found.folder == made
    with pytest.raises(NotFoundError, match="no folder"):
        cache.source_of("./other")


def test_the_hubs_cache_in_the_home_of_no_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~nosuch/hub")
    with pytest.raises(NotFoundError, match="HF_HUB_CACHE is ~nosuch/hub"):
        hub_cache_folder()


def test_what_windows_does_not_let_go_of_is_told_to_be_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_store("org/name", COMMIT_A)
    (store,) = cache.stores()

    def refuse(*of: object) -> None:
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(AccessError) as caught:
        cache.remove(store)
    assert "chat" in caught.value.hint and store.folder.is_dir()


def test_a_store_can_be_named_by_its_own_folder(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "elsewhere", "org/model", COMMIT_A)
    store = cache.find_store(LocalFolder(folder))
    assert store is not None
    assert store.folder == folder


def test_last_used_is_remembered_while_it_exists() -> None:
    hub_store("org/model", COMMIT_A)
    (store,) = cache.stores()
    cache.set_last_used(store)
    assert cache.last_used() == store
    cache.remove(store)
    assert cache.last_used() is None


def test_remove_frees_one_store_and_keeps_the_other(home: Path) -> None:
    hub_store("org/model", COMMIT_A)
    kept = hub_store("org/model", COMMIT_B)
    doomed = next(store for store in cache.stores() if store.revision == COMMIT_A)
    assert cache.remove(doomed) == doomed.size_bytes > 1000
    assert [store.folder for store in cache.stores()] == [kept]
    with pytest.raises(NotFoundError):
        cache.remove(doomed)
    cache.remove(cache.stores()[0])
    cache.forget_slug(kept.parent)
    assert list((home / "models").iterdir()) == []


def test_remove_refuses_what_is_not_below_home(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "models" / "org--model" / COMMIT_A, "org/model", COMMIT_A)
    store = cache.find_store(LocalFolder(folder))
    assert store is not None
    with pytest.raises(AccessError) as failure:
        cache.remove(store)
    assert str(folder) in failure.value.message
    assert folder.is_dir()


def test_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_store("org/model", COMMIT_A)
    (store,) = cache.stores()
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path / "a-file"))
    with pytest.raises(DiskError) as failure:
        cache.set_last_used(store)
    assert "a-file" in failure.value.message
    assert "LOCALR1_HOME" in failure.value.hint
