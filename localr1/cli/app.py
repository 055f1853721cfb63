"""The `localr1` command: which commands there are, and the one place where errors become a line and a status.

Does not know what the commands do; nothing heavy is imported before a command runs, so `--help` is instant.
Invariant: a person sees a traceback only after asking for it with --debug.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup

from localr1 import __version__
from localr1.cli import bench, chat, config, doctor, download, models, plan, rm, verify
from localr1.cli.help import MOST_COLUMNS, HelpCommand, HelpGroup
from localr1.cli.parse import Invocation, command
from localr1.cli.start import share_one_heap
from localr1.cli.usage import usage_error
from localr1.errors import DiskError, ExitStatus, LocalR1Error, is_full
from localr1.options import (
    BenchOptions,
    ChatOptions,
    ConfigOptions,
    ConversationOptions,
    DoctorOptions,
    DownloadOptions,
    EngineOptions,
    PlanOptions,
    RemoveOptions,
    SamplingOptions,
    TerminalOptions,
    VerifyOptions,
)
from localr1.terminal.background import is_anything_left_behind
from localr1.terminal.environment import Environment

_HELP = ("--help", "-h")


def main(arguments: Sequence[str] | None = None, environment: Environment | None = None) -> NoReturn:
    """Runs one command line and leaves the process with its status."""
    share_one_heap()
    invocation = Invocation(environment or Environment.current())
    status: int = ExitStatus.ERROR
    try:
        status = _run(invocation, sys.argv[1:] if arguments is None else arguments)
        invocation.environment.stdout.flush()
    except OSError:  # the reader has left, or has no room, which was told
        _discard_stdout()
    if is_anything_left_behind():
        invocation.environment.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _run(invocation: Invocation, arguments: Sequence[str]) -> int:
    environment = invocation.environment
    program = typer.main.get_command(build(environment.width))
    assert isinstance(program, TyperGroup)
    status: object = ExitStatus.OK
    try:
        if (asked := _asked_help(program, arguments)) is not None:
            environment.stdout.write(asked.command.get_help(asked) + "\n")
        else:
            status = program(args=list(arguments), prog_name="localr1", obj=invocation, standalone_mode=False)
        environment.stdout.flush()
    except (SystemExit, KeyboardInterrupt) as leave:
        # Typer hands back the status of a KeyboardInterrupt inside a command.
        status = leave.code if isinstance(leave, SystemExit) else ExitStatus.INTERRUPTED
    except Exception as error:
        if _has_reader_left(error, environment):
            raise
        if invocation.debug:
            traceback.print_exc(file=environment.stderr)
        expected = _expected(error, program, arguments)
        environment.error(expected)
        return expected.status
    if status == ExitStatus.INTERRUPTED:
        environment.status("")
    return status if isinstance(status, int) else ExitStatus.OK


def _asked_help(program: TyperGroup, arguments: Sequence[str]) -> "typer.Context | None":
    """The command whose help is all that is asked for. Parsing would import pydantic for it, a third of the time."""
    if not arguments or arguments[-1] not in _HELP or not all(word in program.commands for word in arguments[:-1]):
        return None
    context = typer.Context(program, info_name="localr1", **program.context_settings)
    if len(arguments) == 1:
        return context
    command = program.commands[arguments[0]]
    return typer.Context(command, parent=context, info_name=command.name) if len(arguments) == 2 else None


def _has_reader_left(error: Exception, environment: Environment) -> bool:
    """Whether nobody reads any more what is written. On Windows that may be an invalid argument, of no file and without
    an error number of Windows' own."""
    if isinstance(error, BrokenPipeError):
        return True
    if sys.platform != "win32" or not isinstance(error, OSError) or environment.stdout.isatty():
        return False
    return error.errno == errno.EINVAL and error.filename is None and getattr(error, "winerror", None) is None


def _expected(error: Exception, program: TyperGroup, arguments: Sequence[str]) -> LocalR1Error:
    """Typer's refusals and the program's own mistakes in the same form as the others."""
    if isinstance(error, LocalR1Error):
        return error
    if isinstance(error, typer.TyperException):
        return usage_error(error, program.commands, arguments)
    if is_full(error):
        return DiskError(f"no room on the disk for {error.filename or 'what is written'}", "free some space on it")
    return LocalR1Error(
        f"unexpected {type(error).__name__}: {error}",
        "this is a mistake in localr1; put --debug before the command to see where it happened, and please report it",
    )


def _discard_stdout() -> None:
    """What is still buffered can go nowhere, so that Python's own flush at exit is quiet too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build(columns: int = 80) -> typer.Typer:
    """The Typer application, whose help suits a window of so many columns."""
    app = typer.Typer(
        cls=HelpGroup,
        help="Chat privately and offline with DeepSeek-R1-family models on this computer.",
        epilog="Start with: localr1 chat. More of a command: localr1 COMMAND --help",
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": list(_HELP),
            "terminal_width": min(columns, MOST_COLUMNS),
        },
    )
    app.callback()(_globals)
    commands: dict[str, Callable[..., None]] = {
        "chat": command(chat.run, ChatOptions, ConversationOptions, TerminalOptions, SamplingOptions, EngineOptions),
        "models": command(models.run),
        "download": command(download.run, DownloadOptions),
        "rm": command(rm.run, RemoveOptions),
        "verify": command(verify.run, VerifyOptions),
        "plan": command(plan.run, PlanOptions, EngineOptions),
        "doctor": command(doctor.run, DoctorOptions),
        "bench": command(bench.run, BenchOptions, EngineOptions),
        "config": command(config.run, ConfigOptions),
    }
    for name, function in commands.items():
        app.command(name, cls=HelpCommand)(function)
    return app


def _show_version(invoked: typer.Context, wanted: bool) -> None:
    if wanted:
        invocation: Invocation = invoked.obj
        print(f"localr1 {__version__}", file=invocation.environment.stdout)
        raise typer.Exit


def _globals(
    invoked: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error happened.")] = False,
) -> None:
    invocation: Invocation = invoked.obj
    invocation.debug = debug
    if invoked.invoked_subcommand is None:
        invocation.environment.stderr.write(invoked.get_help() + "\n")
        raise typer.Exit(ExitStatus.USAGE)
    if invoked.invoked_subcommand != "config":
        values = config.read_config(config.config_file(invocation.environment))
        invoked.default_map = dict.fromkeys(("chat", "bench", "plan", "doctor"), values)
