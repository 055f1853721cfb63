"""Who may import whom. The rooms of docs/architecture.md stay apart because this test says so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "localr1"
BASE = {"errors", "events", "options", "quantities"}
ALLOWED = {
    "errors": set(),
    "events": set(),
    "options": set(),
    "quantities": {"errors"},
    "kernels": set(),
    "chat": {"errors"},
    "terminal": {"chat.history"} | BASE,
    "hub": {"__init__"} | BASE,
    "model": {"errors"},
    "weights": {"errors", "events", "quantities", "model.linear", "__init__"},
    "placement": {"kernels", "weights", "errors", "events", "quantities"}
    | {"model.linear", "model.config", "model.mla", "model.rope"},
    "decode": {"model", "errors", "events"},
    "session": {"__init__", "chat", "decode", "hub", "kernels", "model", "placement", "weights"} | BASE,
    "bench": {"session", "decode", "model", "placement", "weights", "hub", "kernels", "chat", "__init__"} | BASE,
    "cli": {"session", "terminal", "bench", "hub", "chat.history", "chat.structure", "__init__"} | BASE,
    "__main__": {"cli"},
    "__init__": set(),
}
FORBIDDEN_LIBRARIES = {
    "terminal": {"torch", "numpy", "numba", "transformers"},
    "cli": {"torch", "numpy", "numba", "transformers"},
    "model": {"rich", "typer", "prompt_toolkit", "huggingface_hub", "bitsandbytes"},
    "kernels": {"rich", "typer", "bitsandbytes"},
    "chat": {"torch", "transformers"},
}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    for module in imports_of(path):
        top, _, rest = module.partition(".")
        assert top not in FORBIDDEN_LIBRARIES.get(room, ()), f"{room} must not import {top}"
        if top != "localr1":
            continue
        target = rest or "__init__"
        inside = target.split(".")[0] == room
        allowed = any(target == one or target.startswith(one + ".") for one in ALLOWED[room])
        prefix_of_allowed = any(one.startswith(target + ".") for one in ALLOWED[room])
        names_the_package = target == "__version__" and "__init__" in ALLOWED[room]
        assert inside or allowed or prefix_of_allowed or names_the_package or target == "__init__", (
            f"{room} imports {module}"
        )


def test_the_rule_can_fail() -> None:
    path = PACKAGE / "session" / "engine.py"
    assert "torch" in set(imports_of(path)) and room_of(path) == "session"
    assert {room_of(path) for path in FILES} <= ALLOWED.keys()
