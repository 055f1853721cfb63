import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localr1 import __version__
from localr1.cli.app import main
from localr1.errors import ContextError, CorruptError, DiskError, NetworkError
from localr1.terminal.environment import Environment
from tests.terminal.fakes import environment, err, out

HEAVY = (
    "torch",
    "numba",
    "huggingface_hub",
    "transformers",
    "prompt_toolkit",
    "numpy",
    "tokenizers",
    "localr1.hub",
    "localr1.chat.history",
)


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\nfrom localr1.cli.app import main\n"
        f"try: main({arguments!r})\n"
        f"finally: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("HEAVY []\n")


def test_version(localr1_command):
    outcome = localr1_command("--version")
    assert (outcome.status, outcome.out) == (0, f"localr1 {__version__}\n")


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("cht hello", "unknown command cht", "did you mean chat?"),
        ("dow", "unknown command dow", "did you mean download?"),
        ("do", "unknown command do", "did you mean download or doctor?"),
        ("xyz", "unknown command xyz", "localr1 --help lists the commands"),
        ("nonsense", "unknown command nonsense", "localr1 --help lists the commands"),
        ("--vrsion", "unknown option --vrsion", "did you mean --version?"),
        ("chat --topp 1", "unknown option --topp", "did you mean --top-p?"),
        ("chat -x", "unknown option -x", "localr1 chat --help lists the options; words that begin with - go after --"),
        ("chat --seed", "option '--seed' requires an argument", "localr1 chat --help says what it takes"),
        ("chat --plain=3", "option '--plain' does not take a value", "localr1 chat --help says what it takes"),
        ("chat --top-p 2 hi", "--top-p cannot be 2", "it is at least 0 and at most 1"),
        ("chat --threads two", "--threads cannot be 'two'", "it is a whole number, at least 1"),
        ("chat --keys vim hi", "--keys cannot be 'vim'", "it is one of: emacs, vi"),
        ("rm", "localr1 rm needs MODEL", "give a model that is here, whole or in part (see `localr1 models`)"),
        ("verify a b c", "got unexpected extra arguments (b c)", "localr1 verify --help says what it takes"),
    ],
)
def test_what_typer_refuses_is_told_as_every_error_is(line, message, hint, localr1_command, capfd):
    outcome = localr1_command(*line.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == f"error: {message}\nhint: {hint}\n"
    assert capfd.readouterr() == ("", "")


def test_a_refusal_fits_a_narrow_window(monkeypatch):
    monkeypatch.setattr(Environment, "width", 40)
    shown = environment(tty="oe")
    with pytest.raises(SystemExit):
        main(["download"], shown)
    assert err(shown).startswith("\x1b[31merror:\x1b[0m localr1 download needs MODEL\n")
    assert max(len(line) for line in err(shown).replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()) <= 40


@pytest.mark.parametrize("arguments", [[], ["--debug"]])
def test_no_command_at_all_shows_the_help_on_stderr(arguments, localr1_command):
    outcome = localr1_command(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == localr1_command("--help").out


@pytest.mark.parametrize("error", [NetworkError, DiskError, CorruptError, ContextError])
def test_an_error_is_its_line_its_hint_and_its_status(error, session, localr1_command):
    session.error = error("it is broken: 3 of 4", "mend it")
    outcome = localr1_command("chat", "hi there")
    assert outcome.status == error.status
    assert outcome.out == ""
    assert outcome.err == "error: it is broken: 3 of 4\nhint: mend it\n"


def test_a_mistake_of_the_program_is_one_line_too(session, localr1_command):
    session.error = ZeroDivisionError("by zero")
    outcome = localr1_command("chat", "hi there")
    assert outcome.status == 1
    assert outcome.err.startswith("error: unexpected ZeroDivisionError: by zero\nhint: ")
    assert "--debug" in outcome.err
    assert "Traceback" not in outcome.err


def test_debug_shows_the_traceback_and_keeps_the_status(session, localr1_command):
    session.error = NetworkError("offline")
    outcome = localr1_command("--debug", "chat", "hi there")
    assert outcome.status == NetworkError.status
    assert "Traceback" in outcome.err and "in load" in outcome.err
    assert outcome.err.endswith("error: offline\n")


def test_ctrl_c_is_status_130_and_a_line_end(session, localr1_command):
    session.error = KeyboardInterrupt()
    outcome = localr1_command("download", "smollm2-135m")
    assert outcome.status == 130
    assert outcome.err.endswith("\n\n") or outcome.err == "\n"
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("words", "found"),
    [("localr1 ch", "chat"), ("localr1 chat --thoug", "--thoughts"), ("localr1 chat --thoughts f", "fold")],
)
def test_a_shell_completes_commands_options_and_choices(words, found):
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_LOCALR1_COMPLETE": "complete_bash"}
    script = "import sys; sys.argv = ['localr1']; from localr1.cli.app import main; main()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | asked)
    assert result.stdout.split() == [found]


@pytest.mark.parametrize("columns", [100, 80, 40])
@pytest.mark.parametrize("name", ["", "chat", "bench", "config", "download"])
def test_help_fits_the_window_and_names_no_types(name, columns, monkeypatch):
    monkeypatch.setattr(Environment, "width", columns)
    shown = environment(tty="oe")
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"], shown)
    lines = out(shown).splitlines()
    assert [line for line in lines if len(line) > columns and not line.startswith("  localr1 ")] == []
    assert "<" not in out(shown).replace("< notes.txt", "")


def test_help_says_what_an_option_takes_within_which_limits_and_what_it_is_without(localr1_command):
    shown = localr1_command("chat", "--help").out
    for line in (
        "  --vram SIZE                 GPU memory to use",
        "  --think / --no-think        Whether to think",
        "  --plain / --no-plain  ",
        "  --json-schema FILE          Hold",
        "the model's own). [0 to 5]",
        "  --keys emacs|vi            How the line is edited. [default: emacs]",
    ):
        assert line in shown


def test_the_usage_line_has_brackets_around_what_may_be_left_out_and_nothing_around_the_rest(localr1_command):
    assert localr1_command("rm", "--help").out.startswith("Usage: localr1 rm [OPTIONS] MODEL\n")
    assert localr1_command("verify", "--help").out.startswith("Usage: localr1 verify [OPTIONS] [MODEL]\n")


def test_a_reader_that_leaves_early_is_no_error():
    script = (
        "import sys, types, localr1\nsys.path.insert(0, '.')\n"
        "from localr1.cli.app import main\nfrom tests.cli.conftest import FakeSession\n"
        "from localr1.events import AnswerText\n"
        "fake = FakeSession(); fake.conversation.answers['hi there'] = [AnswerText('word ' * 1000)] * 1000\n"
        "sys.modules['localr1.session'] = localr1.session = fake\n"
        "main(['chat', 'hi there'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.read(4) == "word"
    process.stdout.close()
    assert "Traceback" not in (stderr := process.stderr.read()) and "BrokenPipe" not in stderr
    assert process.wait() == 1


class WindowsError(OSError):
    """One that Windows itself numbered."""

    winerror = 87


@pytest.mark.parametrize(
    ("error", "platform", "tty", "left"),
    [
        (OSError(errno.EINVAL, "Invalid argument"), "win32", "", True),
        (OSError(errno.EINVAL, "Invalid argument"), "win32", "o", False),
        (OSError(errno.EINVAL, "Invalid argument", "a?.txt"), "win32", "", False),
        (OSError(errno.EINVAL, "Invalid argument"), "linux", "", False),
        (WindowsError(errno.EINVAL, "The parameter is incorrect"), "win32", "", False),
    ],
)
def test_a_reader_that_leaves_is_told_by_an_invalid_argument_on_windows(
    error, platform, tty, left, session, localr1_command, monkeypatch
):
    discarded = []
    monkeypatch.setattr("localr1.cli.app._discard_stdout", lambda: discarded.append(True))
    monkeypatch.setattr("sys.platform", platform)
    session.error = error
    outcome = localr1_command("chat", "hi there", tty=tty)
    assert outcome.status == 1 and bool(discarded) == left
    assert ("mistake in localr1" not in outcome.err) == left


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that has no room")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["config", "path"]])
def test_a_full_disk_is_said_to_be_full(arguments, unbuffered):
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "localr1", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert result.returncode == DiskError.status
    assert result.stderr == "error: no room on the disk for what is written\nhint: free some space on it\n"


@pytest.mark.parametrize("columns", ["100", "40"])
@pytest.mark.parametrize("arguments", [["--help"], ["chat", "-h"], ["bench", "--help"]])
def test_help_by_the_short_way_is_the_help_that_parsing_gives(arguments, columns):
    script = (
        "import sys, typer\nfrom localr1.cli import app\n"
        f"if sys.argv[1] == 'parsed': app._asked_help = lambda *_: None\n"
        f"try: app.main({arguments!r})\n"
        "finally: print('pydantic' in sys.modules, file=sys.stderr)"
    )
    variables = os.environ | {"COLUMNS": columns, "TERMINAL_WIDTH": columns}
    ways = [
        subprocess.run([sys.executable, "-c", script, way], capture_output=True, text=True, env=variables)
        for way in ("short", "parsed")
    ]
    assert ways[0].stderr == "False\n"
    assert ways[0].stdout == ways[1].stdout and "Usage" in ways[0].stdout and ways[0].returncode == 0
