"""Says in the program's own words what Typer refuses of a command line.

Owns those words for what does not fit the declared commands, options and arguments. What a value may be is for
`terminal.settings` to say. Invariant: whatever Typer refuses becomes a UsageError with the next thing to do.
"""

from collections.abc import Collection, Sequence

import typer

from localr1.errors import UsageError, meant


def check_text(value: str, what: str) -> None:
    """Refuse what is not text, which arrives as lone surrogates: no tokenizer and no file takes them."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} holds bytes that are not text, at character {error.start}",
            "check the terminal's encoding, or pass the text through a pipe in UTF-8",
        ) from None


def usage_error(refusal: typer.TyperException, commands: Collection[str], words: Sequence[str]) -> UsageError:
    """The refusal of these words, of which one may name one of the commands."""
    name = next((word for word in words if not word.startswith("-")), "")
    asked = f"localr1 {name}" if name in commands else "localr1"
    match refusal:  # Typer names only some of the kinds in public
        case typer.TyperException(option_name=option, possibilities=near):  # type: ignore[misc]
            listed = f"{asked} --help lists the options; words that begin with - go after --"
            return UsageError(f"unknown option {option}", f"did you mean {near[0]}?" if near else listed)
        case typer.BadParameter(param=parameter, message="") if parameter is not None:
            told = (parameter.help or "").rstrip(".")
            return UsageError(f"{asked} needs {parameter.metavar}", f"give {told[:1].lower()}{told[1:]}")
    if name and name not in commands:
        return UsageError(f"unknown command {name}", meant(name, commands, "localr1 --help lists the commands"))
    told = refusal.format_message().rstrip(".").replace("(s)", "s")
    return UsageError(told[:1].lower() + told[1:], f"{asked} --help says what it takes")
