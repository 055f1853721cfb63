"""Runs an operation to its end."""

from collections.abc import Generator
from typing import Any


def result_of(operation: Generator[Any, None, Any]) -> Any:
    """What the generator returns, its events dropped."""
    while True:
        try:
            next(operation)
        except StopIteration as end:
            return end.value
