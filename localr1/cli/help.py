"""What `--help` says, as plain text.

Owns how a command, its arguments and its options are set out; what is said of each comes with it. In a narrow window
that stands below an option instead of beside it. Invariant: only examples, which are there to be copied, may be longer
than a line.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

MOST_COLUMNS = 100
_NARROW = 60
_NAMES_COLUMNS = 26
"""Longer names have what is said of them on the next line."""


class HelpCommand(TyperCommand):
    """A command with this help."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What must be given stands bare; in braces, as Typer has it, it would look like one of several."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _write_text(self.help or "", formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self.get_params(ctx), formatter)


class HelpGroup(TyperGroup):
    """The program with this help: its commands, then its options."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _write_text(self.help or "", formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        told = [(name, " ".join(_paragraphs(command.help or "")[0].split())) for name, command in self.commands.items()]
        _write_section("Commands", told, formatter)
        _write_parameters(self.get_params(ctx), formatter)


def _paragraphs(text: str) -> list[str]:
    return inspect.cleandoc(text).split("\n\n")


def _write_text(text: str, formatter: Any) -> None:
    """Paragraphs are wrapped; a list is one of examples, a line each."""
    for paragraph in _paragraphs(text):
        formatter.write_paragraph()
        if paragraph.startswith("- "):
            lines = (line.removeprefix("- ").replace("`", "") for line in paragraph.split("\n"))
            formatter.write("".join(f"  {line}\n" for line in lines))
        else:
            formatter.write_text(paragraph)


def _write_parameters(parameters: Iterable[Any], formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        title = "Arguments" if parameter.param_type_name == "argument" else parameter.rich_help_panel or "Options"
        sections.setdefault(title, []).append((_names(parameter), parameter.help or ""))
    for title, rows in sections.items():
        _write_section(title, rows, formatter)


def _names(parameter: Any) -> str:
    """`MODEL`; `-h, --help`; `--save / --no-save`; `--threads N`."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    names = " / ".join(", ".join(sorted(each, key=len)) for each in (parameter.opts, parameter.secondary_opts) if each)
    return f"{names} {parameter.metavar}" if parameter.metavar else names


def _write_section(title: str, rows: list[tuple[str, str]], formatter: Any) -> None:
    with formatter.section(title):
        formatter.write_dl(rows, col_max=_NAMES_COLUMNS if formatter.width >= _NARROW else 2)
