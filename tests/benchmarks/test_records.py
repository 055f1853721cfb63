"""A record is written where it is asked for, so that a trial never replaces one."""

import ast
from pathlib import Path

import pytest

COMMANDS = [path for path in Path("benchmarks").absolute().glob("*.py") if 'add_argument("--json"' in path.read_text()]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_no_benchmark_writes_unasked(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    (asks,) = [call for call in calls if call.args and getattr(call.args[0], "value", "") == "--json"]
    assert [keyword.arg for keyword in asks.keywords if keyword.arg == "default"] == []
