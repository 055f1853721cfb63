"""What is here in part is listed and freed; a store that changed is found; nothing of other tools is touched."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from localr1.errors import CorruptError, DiskError, LocalR1Error, NotFoundError
from localr1.hub import cache, housekeeping
from localr1.hub.cache import StoredModel
from localr1.hub.lock import only_one
from localr1.hub.source import Snapshot

COMMIT_A, COMMIT_B = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "home"


def make_store(repo_id: str, commit: str, checksum: str = "xxh3_128") -> Path:
    folder = cache.store_folder(Snapshot(Path("/"), repo_id, commit))
    folder.mkdir(parents=True)
    files = {}
    for name in ("dense.safetensors", "config.json"):
        content = (name + commit).encode() * 1000
        (folder / name).write_bytes(content)
        files[name] = {"bytes": len(content), checksum: housekeeping.CHECKSUMS[checksum](content).hexdigest()}
    manifest = {"source": repo_id, "revision": commit, "created": "2026-01-01T00:00:00Z", "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def make_partial(repo_id: str, commit: str, tmp_path: Path) -> list[Path]:
    """An unfinished store, a shard that is ours, one that is on its way, and one that another tool left."""
    folder = cache.store_folder(Snapshot(Path("/"), repo_id, commit)).with_name(commit + ".partial")
    (folder / "store").mkdir(parents=True)
    (folder / "store" / "dense.safetensors").write_bytes(bytes(500))
    blobs = tmp_path / "hf" / f"models--{repo_id.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for name in ("1" * 64 + ".localr1", "2" * 64 + ".localr1.incomplete", "3" * 64, "4" * 64 + ".incomplete"):
        (blobs / name).write_bytes(bytes(100))
    return [folder, *sorted(blobs.glob("*.localr1*"))]


def checked(store: StoredModel) -> None:
    for _ in housekeeping.verify(store):
        pass


def test_what_is_here_in_part_is_listed(tmp_path: Path) -> None:
    paths = make_partial("deepseek-ai/DeepSeek-V2-Lite-Chat", COMMIT_A, tmp_path)
    (part,) = housekeeping.partials()
    assert (part.name, part.revision, part.size_bytes) == ("v2-lite", COMMIT_A, 700)
    assert set(part.paths) == set(paths)
    assert cache.stores() == []


def test_each_revision_that_is_here_in_part_is_one(home: Path, tmp_path: Path) -> None:
    make_partial("org/model", COMMIT_A, tmp_path)
    later, *_ = make_partial("org/model", COMMIT_B, tmp_path)
    (later / "headers").mkdir()
    (later / "headers" / ("1" * 64 + ".header")).write_bytes(b"")
    assert [(part.revision, part.size_bytes) for part in housekeeping.partials()] == [(COMMIT_A, 600), (COMMIT_B, 600)]
    housekeeping.remove(housekeeping.belongings(f"org/model@{COMMIT_B}"))
    (part,) = housekeeping.partials()
    assert part.revision == COMMIT_A and later.parent.is_dir() and not later.exists()


@pytest.mark.parametrize("ending", [".old", ".removed"])
def test_what_a_killed_deletion_left_is_seen_and_freed(home: Path, ending: str) -> None:
    store = make_store("org/model", COMMIT_A)
    store.rename(store.with_name(COMMIT_A + ending))
    (part,) = housekeeping.partials()
    assert (part.name, part.revision) == ("org/model", COMMIT_A) and part.size_bytes > 10_000
    housekeeping.remove(housekeeping.belongings("org/model"))
    assert not store.parent.exists()


def test_a_store_whose_manifest_is_damaged_is_seen_and_freed(home: Path) -> None:
    store = make_store("org/model", COMMIT_A)
    (store / "manifest.json").write_text("{")
    assert housekeeping.damaged() == [store] and cache.stores() == []
    assert [part.name for part in housekeeping.partials()] == ["org/model"]
    housekeeping.remove(housekeeping.belongings("org/model"))
    assert housekeeping.damaged() == [] and not store.parent.exists()


def test_what_is_listed_by_its_folder_is_freed_by_that_name(home: Path) -> None:
    folder = home / "models" / "checkpoint-1234abcd" / COMMIT_A
    folder.mkdir(parents=True)
    (folder / "dense.safetensors").write_bytes(bytes(100))
    (part,) = housekeeping.partials()
    assert part.name == "checkpoint-1234abcd"
    housekeeping.remove(housekeeping.belongings(part.name))
    assert not folder.parent.exists()


@pytest.mark.parametrize("facts", ["7", '{"bytes": "many"}', "{}"])
def test_a_manifest_of_another_form_is_damage(facts: str) -> None:
    store = make_store("org/model", COMMIT_A)
    (store / "manifest.json").write_text(f'{{"source": "org/model", "files": {{"config.json": {facts}}}}}')
    with pytest.raises(CorruptError, match=r"manifest\.json is damaged"):
        checked(cache.stores()[0])


def test_nothing_is_removed_of_a_model_of_which_something_arrives(tmp_path: Path) -> None:
    store = make_store("org/model", COMMIT_A)
    partial, *_ = make_partial("org/model", COMMIT_B, tmp_path)
    with only_one(cache.lock_path(partial.with_suffix("")), "busy"), pytest.raises(LocalR1Error, match="just now"):
        housekeeping.remove(housekeeping.belongings("org/model"))
    assert store.is_dir() and partial.is_dir()


def test_removing_takes_stores_partials_and_traces_and_leaves_the_rest(home: Path, tmp_path: Path) -> None:
    make_store("org/model", COMMIT_A)
    make_partial("org/model", COMMIT_B, tmp_path)
    make_partial("org/other", COMMIT_B, tmp_path)
    kept = make_store("org/kept", COMMIT_A)
    for store in cache.stores():
        cache.set_last_used(store)
    doomed = housekeeping.belongings("org/model")
    assert doomed.size_bytes == doomed.stores[0].size_bytes + 700
    assert housekeeping.remove(doomed) == doomed.size_bytes
    assert [store.folder for store in cache.stores()] == [kept]
    assert [part.source for part in housekeeping.partials()] == ["org/other"]
    assert not (home / "models" / "org--model").exists()
    left = sorted(path.name for path in (tmp_path / "hf" / "models--org--model" / "blobs").iterdir())
    assert left == ["3" * 64, "4" * 64 + ".incomplete"]
    assert "org--model" not in (home / "last-used.json").read_text()
    with pytest.raises(NotFoundError, match="nano is built into localr1"):
        housekeeping.belongings("nano")
    with pytest.raises(NotFoundError, match="org/model is not here"):
        housekeeping.belongings("org/model")


def test_of_a_part_that_lies_elsewhere_the_link_goes(tmp_path: Path) -> None:
    partial, *_ = make_partial("org/model", COMMIT_A, tmp_path)
    partial.symlink_to(partial.rename(tmp_path / "elsewhere"))
    housekeeping.remove(housekeeping.belongings("org/model"))
    assert housekeeping.partials() == [] and (tmp_path / "elsewhere" / "store").is_dir()


def test_one_revision_can_go_alone() -> None:
    make_store("org/model", COMMIT_A)
    kept = make_store("org/model", COMMIT_B)
    housekeeping.remove(housekeeping.belongings("org/model@aaaaaaa"))
    assert [store.folder for store in cache.stores()] == [kept]


def test_what_is_being_written_does_not_go(tmp_path: Path) -> None:
    folder = make_partial("org/model", COMMIT_A, tmp_path)[0]
    with only_one(cache.lock_path(folder.with_suffix("")), ""), pytest.raises(LocalR1Error, match="just now"):
        housekeeping.remove(housekeeping.belongings("org/model"))
    assert folder.exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lock = only_one(tmp_path / "file" / "models" / "x.lock", "busy")
    with pytest.raises(DiskError, match=r"cannot write .*file/models") as caught, lock:
        raise AssertionError("there is no such lock")
    assert "LOCALR1_HOME" in caught.value.hint


@pytest.mark.parametrize("checksum", ["xxh3_128", "sha256"])
def test_a_whole_store_is_right_and_every_change_is_found(checksum: str) -> None:
    folder = make_store("org/model", COMMIT_A, checksum)
    (store,) = cache.stores()
    checked(store)
    content = bytearray((folder / "dense.safetensors").read_bytes())
    content[123] ^= 1
    (folder / "dense.safetensors").write_bytes(content)
    with pytest.raises(CorruptError, match=r"dense\.safetensors has changed") as caught:
        checked(store)
    assert "download org/model --force" in caught.value.hint
    (folder / "dense.safetensors").unlink()
    with pytest.raises(CorruptError, match="is gone"):
        checked(store)


def test_a_store_that_says_no_checksum_is_not_right() -> None:
    make_store("org/model", COMMIT_A, "sha256")
    (store,) = cache.stores()
    manifest = store.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256"', '"md5"'))
    with pytest.raises(CorruptError, match="has changed"):
        checked(store)


def test_all_stores_are_checked_even_when_one_is_wrong() -> None:
    wrong, right = make_store("org/a", COMMIT_A), make_store("org/b", COMMIT_A)
    (wrong / "config.json").write_text("{}")
    operation = housekeeping.verify_all(cache.stores())
    try:
        while True:
            next(operation)
    except StopIteration as end:
        assert set(end.value) == {str(wrong)}
    assert right.exists()


def test_when_a_model_was_used_is_remembered_for_each() -> None:
    make_store("org/a", COMMIT_A)
    make_store("org/b", COMMIT_A)
    first, second = cache.stores()
    cache.set_last_used(first)
    assert cache.used(first)[:2] == "20" and cache.used(second) == ""
    cache.set_last_used(second)
    assert cache.used(first) and cache.used(second)
