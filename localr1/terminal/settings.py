"""Reads an option's value from text, within the limits that `localr1.options` declares.

Owns the words for it: on and off for switches, `default` for what is left to the model. Used by /set, by the settings
file and, for numbers and choices, by the command line.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from localr1.errors import UsageError
from localr1.options import SIZE
from localr1.quantities import parse_size

_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
_UNSET = ("default", "none", "auto")


def read_value(record: type, name: str, text: str, called: str = "") -> Any:
    """The value that `text` means for the record's option `name`. UsageError, saying what is allowed, for others.

    `called` is the name that a person gave it, if that is another.
    """
    field = next(field for field in dataclasses.fields(record) if field.name == name)
    kinds = alternatives(typing.get_type_hints(record)[name])
    choices, name = choices_of(kinds), called or name
    if choices:
        if text in choices:
            return text
        raise UsageError(f"{name} cannot be {text!r}", f"it is one of: {', '.join(choices)}")
    if type(None) in kinds and text.lower() in _UNSET:
        return None
    if bool in kinds:
        if text.lower() in _SWITCH:
            return _SWITCH[text.lower()]
        raise UsageError(
            f"{name} cannot be {text!r}", "it is on, off or auto" if type(None) in kinds else "it is on or off"
        )
    if field.metadata.get("metavar") == SIZE:
        parse_size(text, name)
    return _number_or_text(name, text, kinds, field.metadata.get("limits", {}))


def _number_or_text(name: str, text: str, kinds: set[Any], limits: dict[str, float]) -> Any:
    for kind in (int, float):
        if kind in kinds:
            try:
                value = kind(text)
            except ValueError:
                what = "a whole number" if kind is int else "a number"
                raise UsageError(
                    f"{name} cannot be {text!r}", f"it is {what}{',' if limits else ''}{_range_text(limits)}"
                ) from None
            if not limits.get("min", float("-inf")) <= value <= limits.get("max", float("inf")):
                raise UsageError(f"{name} cannot be {text}", f"it is{_range_text(limits)}")
            return value
    return Path(text) if Path in kinds else text


def _range_text(limits: dict[str, float]) -> str:
    parts = [f"at least {limits['min']:g}"] if "min" in limits else []
    if "max" in limits:
        parts.append(f"at most {limits['max']:g}")
    return (" " + " and ".join(parts)) if parts else ""


def choices_of(kinds: set[Any]) -> list[str]:
    """The words among the alternatives."""
    return [word for kind in kinds if typing.get_origin(kind) is typing.Literal for word in typing.get_args(kind)]


def alternatives(annotation: Any) -> set[Any]:
    """The alternatives of `int | None`, or the one type that it is."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set(typing.get_args(annotation))
    return {annotation}
