import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from localr1 import options as option_records
from localr1.cli.app import build
from localr1.cli.parse import Invocation, command, complete_model
from localr1.errors import ExitStatus, UsageError
from localr1.options import (
    BenchOptions,
    ChatOptions,
    ConversationOptions,
    DownloadOptions,
    EngineOptions,
    SamplingOptions,
    argument,
    option,
)
from tests.terminal.fakes import environment


def parse(arguments: list[str], *records: type):
    """What `run` receives for the arguments, or the exit status and words of the refusal."""
    received = []

    def run(shown, *instances):
        received.extend(instances)
        return ExitStatus.OK

    app = typer.Typer()
    app.command()(command(run, *records))
    result = CliRunner().invoke(app, arguments, obj=Invocation(environment()))
    if isinstance(refusal := result.exception, UsageError):
        return refusal.status, f"{refusal.message} {refusal.hint}"
    return received if result.exit_code == 0 else (result.exit_code, result.output)


def test_no_options_are_the_records_own_defaults():
    records = (ChatOptions, ConversationOptions, SamplingOptions, EngineOptions)
    assert parse([], *records) == [record() for record in records]
    assert parse([], BenchOptions) == [BenchOptions()]


def test_every_option_reaches_its_record():
    given = (
        "--temperature 0.5 --top-p 0.9 --top-k 40 --min-p 0.05 --seed 7 --max-tokens 99 --threads 2 --system be-brief"
        " --no-think --think-budget 9 --context-policy slide"
    )
    chat, conversation, sampling, engine = parse(
        [*given.split(), "nano", "two", "words"], ChatOptions, ConversationOptions, SamplingOptions, EngineOptions
    )
    assert chat == ChatOptions("nano", ("two", "words"))
    assert conversation == ConversationOptions("be-brief", False, 9, "slide")
    assert sampling == SamplingOptions(0.5, 0.9, 40, 0.05, 7, 99)
    assert engine == EngineOptions(threads=2)


def test_flags_and_files():
    assert parse(["r1", "--force", "--quiet"], DownloadOptions) == [DownloadOptions("r1", True, True)]
    assert parse(["--json", "a/b.json"], BenchOptions) == [BenchOptions(json=Path("a/b.json"))]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--temperature", "5.1"], "--temperature"),
        (["--temperature", "-0.1"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--top-p", "inf"], "--top-p"),
        (["--top-k", "-1"], "--top-k"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--max-tokens", "many"], "--max-tokens"),
        (["--seed", "1.5"], "--seed"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_values_beyond_the_limits_are_usage_errors(arguments, complaint):
    status, output = parse(arguments, SamplingOptions)
    assert status == 2
    assert complaint in output


def test_the_limits_themselves_are_allowed():
    assert parse(["--temperature", "0", "--top-p", "1"], SamplingOptions) == [SamplingOptions(0.0, 1.0)]


def test_an_unknown_dtype_is_refused_with_the_known_ones():
    status, output = parse(["--dtype", "int4"], EngineOptions)
    assert status == 2
    assert "int8" in output and "float32" in output


def test_an_argument_without_a_default_must_be_given():
    status, output = parse([], DownloadOptions)
    assert status == 2
    assert "MODEL" in output


def test_flags_can_be_renamed():
    @dataclasses.dataclass(frozen=True)
    class Renamed:
        length: int = option(3, "How long.", flag="--len", min=1)
        what: str | None = argument(None, "What.", "WHAT")

    assert parse(["--len", "4", "x"], Renamed) == [Renamed(4, "x")]


def test_one_option_in_two_records_is_a_mistake():
    @dataclasses.dataclass(frozen=True)
    class Other:
        seed: int = option(1, "Again.")

    with pytest.raises(ValueError, match=r"declared twice: \['seed'\]"):
        command(lambda *records: ExitStatus.OK, SamplingOptions, Other)


def test_every_declared_option_is_on_some_command():
    declared = {
        field.name
        for record in vars(option_records).values()
        if dataclasses.is_dataclass(record)
        for field in dataclasses.fields(record)
    }
    commands = typer.main.get_command(build()).commands.values()
    assert declared <= {parameter.name for each in commands for parameter in each.params}


def test_a_shell_completes_models_that_are_here_and_short_names(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALR1_HOME", str(tmp_path))
    store = tmp_path / "models" / "org--mine" / "1234567"
    store.mkdir(parents=True)
    (store / "manifest.json").write_text('{"source": "org/mine", "files": {}}')
    assert complete_model("org") == ["org/mine"]
    assert complete_model("r1-distill-qwen-1") == ["r1-distill-qwen-1.5b", "r1-distill-qwen-14b"]
    assert {"nano", "org/mine", "v2-lite"} <= set(complete_model("")) and complete_model("no-such") == []


def test_the_shell_is_given_the_models():
    """As the script that `--install-completion` writes asks for them."""
    asked = {"_LOCALR1_COMPLETE": "complete_bash", "COMP_WORDS": "localr1 bench nan", "COMP_CWORD": "2"}
    code = "from localr1.__main__ import main; import sys; sys.argv[0] = 'localr1'; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked)
    assert result.stdout.split() == ["nano"]
