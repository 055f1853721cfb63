"""`localr1 config`: settings that every run begins with.

Owns the settings file, TOML with one `name = value` a line. Invariants: the command line wins over the file, the file
over the defaults; a name or value that is not known is refused, by name, before anything else happens.
"""

import dataclasses
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from localr1.cli.usage import check_text
from localr1.errors import AccessError, DiskError, ExitStatus, UsageError, expanded, meant
from localr1.options import ConfigOptions, ConversationOptions, EngineOptions, SamplingOptions, TerminalOptions
from localr1.terminal.environment import Environment
from localr1.terminal.settings import read_value

RECORDS = (ConversationOptions, TerminalOptions, SamplingOptions, EngineOptions)
SETTINGS: dict[str, type] = {field.name: record for record in RECORDS for field in dataclasses.fields(record)}


def run(environment: Environment, options: ConfigOptions) -> ExitStatus:
    """Show or change the settings that every run begins with.

    The command line wins over these, these over the defaults. The file may also be edited by hand.

    - `localr1 config`
    - `localr1 config set temperature 0.6`
    - `localr1 config set temperature default`
    - `localr1 config get temperature`
    """
    path = config_file(environment)
    actions: dict[str, tuple[Callable[..., None], int, str]] = {
        "show": (_show, 0, ""),
        "get": (_get, 1, " temperature"),
        "set": (_set, 2, " temperature 0.6"),
        "path": (_path, 0, ""),
    }
    if options.action not in actions:
        raise UsageError(f"there is no `localr1 config {options.action}`", f"there are: {', '.join(actions)}")
    action, count, example = actions[options.action]
    words = options.words
    if action is _set and len(words) > count:
        words = (words[0], " ".join(words[1:]))
    if len(words) != count:
        raise UsageError(
            f"`localr1 config {options.action}` takes {('nothing', 'a name', 'a name and a value')[count]} after it",
            f"for example: localr1 config {options.action}{example}",
        )
    action(environment, path, *words)
    return ExitStatus.OK


def config_file(environment: Environment) -> Path:
    """LOCALR1_HOME/config.toml, else `config.toml` in the platform's place for settings. Raises NotFoundError for a
    home of no user."""
    chosen = environment.variables.get("LOCALR1_HOME")
    folder = expanded(chosen, "LOCALR1_HOME") if chosen else platformdirs.user_config_path("localr1", appauthor=False)
    return folder / "config.toml"


def read_config(path: Path, leave_out: str = "") -> dict[str, Any]:
    """The file's settings, checked; {} where there is none. UsageError names what is wrong and where.

    What stands there of the setting `leave_out` does not matter.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        home = isinstance(error, NotADirectoryError)
        hint = "set LOCALR1_HOME to a folder of yours" if home else "mend or delete that file"
        raise UsageError(f"cannot read {path}: {error}", hint) from error
    checked = {}
    values.pop(leave_out, None)
    for name, value in values.items():
        record = _record_of(name, path)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        try:
            checked[name] = read_value(record, name, text)
        except UsageError as error:
            raise UsageError(f"{path}: {error.message}", error.hint) from None
    return checked


def _record_of(name: str, path: Path | None = None) -> type:
    if name in SETTINGS:
        return SETTINGS[name]
    where = f"{path}: " if path else ""
    raise UsageError(
        f"{where}there is no setting {name}", meant(name, SETTINGS, f"there are: {', '.join(sorted(SETTINGS))}")
    )


def _show(environment: Environment, path: Path) -> None:
    values = read_config(path)
    for name in SETTINGS:
        if name in values:
            environment.stdout.write(_line(name, values[name]))
    if not values:
        environment.status("Nothing is set. For example: localr1 config set temperature 0.6", "dim")
    if environment.stdout.isatty():
        environment.status(f"Not set: {', '.join(name for name in SETTINGS if name not in values)}", "dim")


def _get(environment: Environment, path: Path, name: str) -> None:
    name = name.replace("-", "_")
    record = _record_of(name)
    default = next(field.default for field in dataclasses.fields(record) if field.name == name)
    value = read_config(path).get(name, default)
    environment.stdout.write(f"{'default' if value is None else _text(value)}\n")


def _set(environment: Environment, path: Path, name: str, text: str) -> None:
    name = name.replace("-", "_")
    record = _record_of(name)
    check_text(text, f"the value of {name}")
    values = read_config(path, leave_out=name)
    default = next(field.default for field in dataclasses.fields(record) if field.name == name)
    value = default if text == "default" else read_value(record, name, text)
    if isinstance(value, Path):
        value = value.expanduser().absolute()  # it will be read from other folders
    if value != default:
        values[name] = value
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(_line(each, values[each]) for each in SETTINGS if each in values), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        kind = AccessError if isinstance(error, PermissionError) else DiskError
        raise kind(f"cannot write {path}: {error.strerror}", "see whether the folder may be written") from error
    environment.status(f"{name} is {'the default' if value == default else _text(value)}, in {path}", "dim")


def _path(environment: Environment, path: Path) -> None:
    environment.stdout.write(f"{path}\n")


def _line(name: str, value: Any) -> str:
    # Strings of JSON are strings of TOML too, once the one character that TOML does not take raw is escaped; but TOML
    # takes no surrogate pairs, which JSON would write for characters beyond 16 bits.
    quoted = isinstance(value, str | Path)
    shown = json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F") if quoted else _text(value)
    return f"{name} = {shown}\n"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
