"""What a user's word for a model means."""

import subprocess
import sys
from pathlib import Path

import pytest

from localr1.errors import NotFoundError, UsageError
from localr1.hub.catalog import CATALOG, HubRepo, LocalFolder, resolve


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_short_name(here: Path) -> None:
    source = resolve("R1-Distill-Qwen-7B")
    assert source == HubRepo("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None, CATALOG["r1-distill-qwen-7b"])


def test_short_name_with_revision(here: Path) -> None:
    source = resolve("v2-lite@abc123")
    assert isinstance(source, HubRepo)
    assert (source.repo_id, source.revision) == ("deepseek-ai/DeepSeek-V2-Lite-Chat", "abc123")


def test_short_name_wins_over_a_folder_beside_it(here: Path) -> None:
    (here / "r1").mkdir()
    assert isinstance(resolve("r1"), HubRepo)
    assert resolve("./r1") == LocalFolder(here / "r1")


@pytest.mark.parametrize(
    ("text", "repo_id", "revision"),
    [
        ("org/model", "org/model", None),
        ("org/My.Model_v2-7B@refs/pr/3", "org/My.Model_v2-7B", "refs/pr/3"),
        ("  org/model@main ", "org/model", "main"),
        ("org/model/", "org/model", None),
        ("https://huggingface.co/org/model", "org/model", None),
        ("https://huggingface.co/org/model/tree/v1.0", "org/model", "v1.0"),
        ("hf.co/org/model/", "org/model", None),
    ],
)
def test_repository(here: Path, text: str, repo_id: str, revision: str | None) -> None:
    assert resolve(text) == HubRepo(repo_id, revision)


def test_repository_of_the_catalog_brings_its_entry(here: Path) -> None:
    source = resolve("zai-org/GLM-4.7-Flash")
    assert isinstance(source, HubRepo)
    assert source.entry is CATALOG["glm-4.7-flash"]


def test_folders(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "org" / "model").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    expected = LocalFolder(here / "org" / "model")
    for text in ("org/model", "./org/model", str(here / "org" / "model"), "~/org/model"):
        assert resolve(text) == expected, text
    assert resolve(".") == LocalFolder(here)


@pytest.mark.parametrize("text", ["./nothing", "../nothing", "/no/such/folder", "~/nothing-at-all"])
def test_missing_folder(here: Path, text: str) -> None:
    with pytest.raises(NotFoundError) as failure:
        resolve(text)
    assert text in failure.value.message


def test_a_file_is_not_a_folder(here: Path) -> None:
    (here / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError) as failure:
        resolve("./model.safetensors")
    assert "is a file" in failure.value.message


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("r1-distill-qwen7b", "r1-distill-qwen-7b"),
        ("glm", "glm-4.7-flash"),
        ("smollm", "smollm2-135m"),
        ("V31", "v3.1"),
    ],
)
def test_near_miss_is_told_what_was_meant(here: Path, text: str, near: str) -> None:
    with pytest.raises(NotFoundError) as failure:
        resolve(text)
    assert repr(text) in failure.value.message
    assert near in failure.value.hint


def test_unknown_name_is_told_the_forms(here: Path) -> None:
    with pytest.raises(NotFoundError) as failure:
        resolve("qqqqqqqqq")
    assert "org/repo" in failure.value.hint


@pytest.mark.parametrize(
    "text",
    [
        *("", "   ", "a/b/c", "org/", "org/mo del", "org/..", "-org/model", "org/model@", "org/m@../x", "r1@"),
        *("nano@main", "org/model@a b", "org/" + "m" * 120, "org/a--b", "https://huggingface.co/", "what is this?"),
    ],
)
def test_malformed(here: Path, text: str) -> None:
    with pytest.raises(UsageError) as failure:
        resolve(text)
    assert failure.value.hint


def test_table_is_consistent() -> None:
    for name, entry in CATALOG.items():
        assert name == entry.name == name.lower()
        assert entry.store_bytes < entry.ram_bytes
        assert entry.description and entry.licence
        if entry.repo_id is not None:
            assert resolve(entry.repo_id) == resolve(name)
            assert entry.store_bytes <= entry.download_bytes
        assert (entry.temperature is None) == (entry.top_p is None)


def test_names_and_stores_are_known_without_the_hub_client() -> None:
    code = (
        "import sys, localr1.hub.catalog, localr1.hub.cache; print(*{'huggingface_hub', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
