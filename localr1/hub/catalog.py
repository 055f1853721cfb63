"""The models this program has a short name for, and what a user's word for a model means.

Owns the table of facts and `resolve`. Knows nothing of the network; looks at the disk only to see whether a folder
exists. Invariant: a short name always means its catalog entry, even beside a folder of the same name (write `./name`).
"""

import difflib
import re
from importlib import resources
from pathlib import Path

from localr1.errors import NotFoundError, UsageError
from localr1.hub.source import CatalogEntry, HubRepo, LocalFolder, Snapshot, Source

__all__ = ["CATALOG", "CatalogEntry", "HubRepo", "LocalFolder", "Snapshot", "Source", "resolve"]

MIT, SEE = "MIT", "see repository"
HUB_ADDRESSES = ("https://huggingface.co/", "https://hf.co/", "hf.co/", "huggingface.co/")
REPO_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
EXPECTED = "use a short name (see `localr1 models`), org/repo[@revision], or a folder such as ./my-model"


def _entry(
    name: str,
    repo_id: str | None,
    architecture: str,
    licence: str,
    gigabytes: tuple[float, float, float],
    sampling: tuple[float, float] | None,
    description: str,
) -> CatalogEntry:
    download_bytes, store_bytes, ram_bytes = (int(size * 1e9) for size in gigabytes)
    temperature, top_p = sampling or (None, None)
    return CatalogEntry(
        name, repo_id, architecture, licence, download_bytes, store_bytes, ram_bytes, temperature, top_p, description
    )


R1 = (0.6, 0.95)

# name, repository, architecture, licence, GB of (download, 8-bit store, RAM to hold it all), (temperature, top_p)
_ENTRIES = (
    _entry("nano", None, "deepseek_v3", MIT, (0, 0.01, 1), None, "a tiny model that comes with the program"),
    _entry(
        "smollm2-135m",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llama",
        "Apache-2.0",
        (0.27, 0.14, 1),
        None,
        "135 M parameters: small talk, and a quick check that everything works",
    ),
    _entry(
        "glm-4.7-flash",
        "zai-org/GLM-4.7-Flash",
        "glm4_moe_lite",
        MIT,
        (62.5, 30, 34),
        (1.0, 0.95),
        "30 B, 3 B active: the strongest that fits a gaming PC",
    ),
    _entry(
        "v2-lite",
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        "deepseek_v2",
        "DeepSeek License",
        (31.4, 15.7, 20),
        None,
        "16 B, 2.4 B active: chat",
    ),
    _entry(
        "coder-v2-lite",
        "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct",
        "deepseek_v2",
        "DeepSeek License",
        (31.4, 15.7, 20),
        None,
        "16 B, 2.4 B active: programming",
    ),
    _entry(
        "moonlight",
        "moonshotai/Moonlight-16B-A3B-Instruct",
        "deepseek_v3",
        SEE,
        (31.9, 16, 20),
        None,
        "16 B, 3 B active: chat",
    ),
    _entry(
        "gigachat3.1-10b",
        "ai-sage/GigaChat3.1-10B-A1.8B-bf16",
        "deepseek_v3",
        SEE,
        (21.4, 10.6, 14),
        None,
        "10 B, 1.8 B active: Russian and English chat",
    ),
    _entry(
        "r1",
        "deepseek-ai/DeepSeek-R1",
        "deepseek_v3",
        MIT,
        (688.6, 671, 690),
        R1,
        "671 B, 37 B active: the first R1; far beyond RAM it reads from disk",
    ),
    _entry(
        "r1-0528",
        "deepseek-ai/DeepSeek-R1-0528",
        "deepseek_v3",
        MIT,
        (688.6, 671, 690),
        R1,
        "671 B, 37 B active: R1 of May 2025",
    ),
    _entry(
        "v3",
        "deepseek-ai/DeepSeek-V3",
        "deepseek_v3",
        SEE,
        (688.6, 671, 690),
        None,
        "671 B, 37 B active: chat without thoughts",
    ),
    _entry(
        "v3-0324",
        "deepseek-ai/DeepSeek-V3-0324",
        "deepseek_v3",
        SEE,
        (688.6, 671, 690),
        None,
        "671 B, 37 B active: V3 of March 2025",
    ),
    _entry(
        "v3.1",
        "deepseek-ai/DeepSeek-V3.1",
        "deepseek_v3",
        SEE,
        (688.6, 671, 690),
        None,
        "671 B, 37 B active: thinks or not, as asked",
    ),
    _entry(
        "r1-distill-qwen-1.5b",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "qwen2",
        MIT,
        (3.6, 1.8, 4),
        R1,
        "1.8 B: the smallest that reasons",
    ),
    _entry(
        "r1-distill-qwen-7b",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "qwen2",
        MIT,
        (15.2, 7.6, 11),
        R1,
        "7.6 B: reasoning on a laptop",
    ),
    _entry(
        "r1-distill-qwen-14b",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
        "qwen2",
        MIT,
        (29.5, 14.8, 18),
        R1,
        "14.8 B: reasoning",
    ),
    _entry(
        "r1-distill-qwen-32b",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        "qwen2",
        MIT,
        (65.5, 33, 37),
        R1,
        "32.8 B: reasoning, slow without a large GPU",
    ),
    _entry(
        "r1-distill-llama-8b",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "llama",
        "MIT, base Llama 3.1",
        (16.1, 8, 12),
        R1,
        "8 B: reasoning on a laptop",
    ),
    _entry(
        "r1-distill-llama-70b",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
        "llama",
        "MIT, base Llama 3.3",
        (141.1, 71, 75),
        R1,
        "70.6 B: reasoning, slow without a large GPU",
    ),
    _entry(
        "r1-0528-qwen3-8b",
        "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        "qwen3",
        MIT,
        (16.4, 8.2, 12),
        R1,
        "8.2 B: reasoning distilled from R1-0528",
    ),
)

CATALOG: dict[str, CatalogEntry] = {entry.name: entry for entry in _ENTRIES}


def resolve(text: str) -> Source:
    """What `text` means: a short name, `org/repo[@revision]` (or its web address), or a folder that exists.

    Anything that starts like a path (`./`, `../`, `/`, `~`, `C:\\`) is one. Raises UsageError if it can be none of
    these, NotFoundError for a folder or short name that does not exist.
    """
    text = text.strip()
    if not text:
        raise UsageError("no model was named", EXPECTED)
    if _is_path(text):
        return _folder(text)
    name, at, revision = _split_address(text).partition("@")
    if at and not _is_revision(revision):
        raise UsageError(f"{revision!r} is not a revision (in {text!r})", "give a branch, tag or commit after the @")
    entry = CATALOG.get(name.lower())
    if entry is not None:
        return _known(entry, revision or None)
    if not at and Path(text).is_dir():
        return LocalFolder(Path(text).resolve())
    parts = name.rstrip("/").split("/")
    if len(parts) == 1 and _is_repo_part(name):
        raise _unknown(text)
    if len(parts) != 2 or not all(_is_repo_part(part) for part in parts):
        raise UsageError(f"{text!r} is no model name, no org/repo and no folder here", EXPECTED)
    repo_id = "/".join(parts)
    entry = next((known for known in _ENTRIES if known.repo_id == repo_id), None)
    return HubRepo(repo_id, revision or None, entry)


def _is_path(text: str) -> bool:
    return (
        text in (".", "..", "~")
        or text.startswith(("./", "../", "/", "~/", ".\\", "..\\", "~\\", "\\\\"))
        or bool(WINDOWS_DRIVE.match(text))
    )


def _folder(text: str) -> LocalFolder:
    path = Path(text).expanduser()
    if path.is_dir():
        return LocalFolder(path.resolve())
    if path.exists():
        raise UsageError(f"{text} is a file", f"give the folder that holds the checkpoint: {path.parent}")
    raise NotFoundError(
        f"there is no folder {text}", "check the path, or leave out the leading ./ for a hub repository"
    )


def _split_address(text: str) -> str:
    """`org/repo@revision` of a web address such as `https://huggingface.co/org/repo/tree/main`; other text as it is."""
    for address in HUB_ADDRESSES:
        if text.lower().startswith(address):
            repo, _, revision = text[len(address) :].rstrip("/").partition("/tree/")
            return f"{repo}@{revision}" if revision else repo
    return text


def _is_repo_part(part: str) -> bool:
    return bool(REPO_PART.fullmatch(part)) and ".." not in part and "--" not in part


def _is_revision(text: str) -> bool:
    return bool(REVISION.fullmatch(text)) and ".." not in text and not text.endswith("/")


def _known(entry: CatalogEntry, revision: str | None) -> Source:
    if entry.repo_id is not None:
        return HubRepo(entry.repo_id, revision, entry)
    if revision is not None:
        raise UsageError(f"{entry.name} comes with the program and has no revision {revision!r}", f"say {entry.name}")
    folder = Path(str(resources.files("localr1"))) / entry.name
    if not folder.is_dir():
        raise NotFoundError(f"this installation lacks its built-in model ({folder})", "install localr1 again")
    return LocalFolder(folder, entry)


def _unknown(text: str) -> NotFoundError:
    near = difflib.get_close_matches(text.lower(), CATALOG, n=3, cutoff=0.6)
    near += [name for name in CATALOG if name not in near and name.startswith(text.lower())][: 3 - len(near)]
    hint = f"did you mean {' or '.join(near)}?" if near else EXPECTED
    return NotFoundError(f"there is no model called {text!r}", hint)
