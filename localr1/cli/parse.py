"""Makes a Typer command out of option records, so that each option is declared once, in `localr1.options`.

Owns the translation of a record's fields into parameters and of parsed values back into records. Does not know what the
options mean. Invariant: a command receives every record it names, complete and within its declared limits.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from localr1.errors import ExitStatus
from localr1.terminal.environment import Environment
from localr1.terminal.settings import alternatives, choices_of, read_value

_PANELS = {
    "ConversationOptions": "Conversation",
    "TerminalOptions": "Terminal",
    "SamplingOptions": "Sampling",
    "EngineOptions": "Engine",
}


_METAVARS = {int: "N", float: "N", Path: "FILE", str: "TEXT"}


@dataclasses.dataclass
class Invocation:
    """One run of the program: where it reads and writes, and whether errors show their traceback."""

    environment: Environment
    debug: bool = False


def command(run: Callable[..., ExitStatus], *records: type) -> Callable[..., None]:
    """A function that Typer reads as a command with the options of all the records.

    Typer calls it with plain values; it calls `run(environment, *instances)` with one instance of each record and ends
    with the status returned. ValueError when two records have a field of the same name.
    """
    fields = [(record, field) for record in records for field in dataclasses.fields(record)]
    names = [field.name for _, field in fields]
    if len(set(names)) != len(names):
        raise ValueError(f"options declared twice: {sorted(name for name in set(names) if names.count(name) > 1)}")

    def parsed(invoked: typer.Context, **values: Any) -> None:
        invocation: Invocation = invoked.obj
        status = run(invocation.environment, *(_instance(record, values) for record in records))
        if status is not ExitStatus.OK:
            raise typer.Exit(int(status))

    invoked = inspect.Parameter("invoked", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [invoked, *(_parameter(record, field) for record, field in fields)]
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    parsed.__doc__ = run.__doc__
    return parsed


def complete_model(incomplete: str) -> list[str]:
    """What a shell completes a model's name to: those that are here, then the short names."""
    from localr1.errors import LocalR1Error
    from localr1.hub.cache import stores
    from localr1.hub.catalog import CATALOG

    try:
        here = [store.name for store in stores()]
    except LocalR1Error:
        here = []
    return [name for name in dict.fromkeys([*here, *CATALOG]) if name.startswith(incomplete)]


def _parameter(record: type, field: "dataclasses.Field[Any]") -> inspect.Parameter:
    annotation = typing.get_type_hints(record)[field.name]
    if field.metadata.get("argument"):
        # An argument with an empty text as default has no useful default: it must be given.
        default = inspect.Parameter.empty if field.default == "" else field.default
        metavar = field.metadata["metavar"]
        completion = complete_model if metavar == "MODEL" else None
        shown: Any = typer.Argument(
            help=field.metadata["help"], metavar=metavar, show_default=False, autocompletion=completion
        )
    else:
        default = field.default
        flag = field.metadata["flag"] or "--" + field.name.replace("_", "-")
        shown = typer.Option(
            flag,
            help=_told(field),
            metavar=_metavar(field, annotation),
            show_default=False,
            rich_help_panel=_PANELS.get(record.__name__),
            **_reading(record, field, flag),
        )
    if annotation == tuple[str, ...]:
        annotation, default = list[str], []
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, shown]
    )


def _reading(record: type, field: "dataclasses.Field[Any]", flag: str) -> dict[str, Any]:
    """For Typer: a number or a choice is read, and refused, as /set and the settings file have it."""
    kinds = alternatives(typing.get_type_hints(record)[field.name])
    choices = choices_of(kinds)
    if not choices and not kinds & {int, float}:
        return {}
    reading: dict[str, Any] = {"parser": lambda value: read_value(record, field.name, str(value), flag)}
    if choices:
        reading["autocompletion"] = lambda: choices
    return reading


def _metavar(field: "dataclasses.Field[Any]", annotation: Any) -> str | None:
    """What stands after an option for its value; nothing after a switch."""
    if field.metadata["metavar"] is not None:
        return str(field.metadata["metavar"])
    kinds = alternatives(annotation)
    return "|".join(choices_of(kinds)) or next((word for kind, word in _METAVARS.items() if kind in kinds), None)


def _told(field: "dataclasses.Field[Any]") -> str:
    """An option's help with its limits, where it has two, and its default, where it has one."""
    limits, default = field.metadata["limits"], field.default
    facts = [f"{limits['min']:g} to {limits['max']:g}"] if limits.keys() >= {"min", "max"} else []
    if default is not None and not isinstance(default, bool | tuple):
        facts.append(f"default: {default}")
    return f"{field.metadata['help']} [{', '.join(facts)}]" if facts else str(field.metadata["help"])


def _instance(record: type, values: dict[str, Any]) -> Any:
    chosen = {field.name: values[field.name] for field in dataclasses.fields(record)}
    return record(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})
