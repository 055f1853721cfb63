from types import SimpleNamespace

import pytest

from localr1.cli import doctor
from localr1.cli.config import SETTINGS, config_file, read_config
from localr1.errors import ExitStatus, NotFoundError, UsageError
from localr1.options import EngineOptions, SamplingOptions


@pytest.fixture
def settings(localr1_command, monkeypatch, tmp_path):
    """Runs `localr1 ...` with LOCALR1_HOME in the environment that commands are given, too."""
    file = tmp_path / "home" / "config.toml"
    monkeypatch.setattr("localr1.cli.config.config_file", lambda environment: file)
    return file


def test_what_is_set_is_shown_got_and_taken_away(settings, localr1_command):
    assert localr1_command("config", "set", "temperature", "0.5").status == 0
    assert localr1_command("config", "set", "system", 'Say "no" \\ often', "\u00e9").status == 0
    assert localr1_command("config", "set", "think", "off").status == 0
    assert (
        localr1_command("config").out == 'system = "Say \\"no\\" \\\\ often \u00e9"\nthink = false\ntemperature = 0.5\n'
    )
    assert localr1_command("config", "get", "system").out == 'Say "no" \\ often \u00e9\n'
    assert localr1_command("config", "get", "top-k").out == "default\n"
    assert localr1_command("config", "set", "temperature", "default").status == 0
    assert "temperature" not in localr1_command("config").out
    assert localr1_command("config", "path").out == f"{settings}\n"


@pytest.mark.parametrize("text", ["Be nice \U0001f600", "\x7f \x85 \u2028", '"""', "tab\tand\nline"])
def test_any_text_is_kept_as_it_is(settings, localr1_command, text):
    assert localr1_command("config", "set", "system", text).status == 0
    assert read_config(settings) == {"system": text}
    assert localr1_command("config", "get", "system").out == f"{text}\n"


def test_what_is_no_text_is_refused_before_anything_is_written(settings, localr1_command):
    outcome = localr1_command("config", "set", "system", "bad \udcff byte")
    assert outcome.status == 2 and "not text, at character 4" in outcome.err and not settings.exists()


def test_a_file_that_an_editor_marked_as_utf_8_is_read(settings, localr1_command):
    settings.parent.mkdir()
    settings.write_text("top_k = 7\n", encoding="utf-8-sig")
    assert read_config(settings) == {"top_k": 7}


def test_a_home_of_no_user_is_told():
    with pytest.raises(NotFoundError, match="LOCALR1_HOME is ~nosuch/x"):
        config_file(SimpleNamespace(variables={"LOCALR1_HOME": "~nosuch/x"}))


def test_a_file_is_kept_by_its_whole_name(settings, localr1_command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert localr1_command("config", "set", "json_schema", 'a "form".json').status == 0
    assert read_config(settings)["json_schema"] == tmp_path / 'a "form".json'
    assert localr1_command("config", "set", "json_schema", "default").status == 0
    assert read_config(settings) == {}


def test_a_wrong_value_can_be_replaced(settings, localr1_command):
    settings.parent.mkdir()
    settings.write_text('temperature = "hot"\ntop_k = 7\n')
    assert localr1_command("config", "set", "top_k", "8").status == 2, "another's value is still wrong"
    assert localr1_command("config", "set", "temperature", "default").status == 0
    assert read_config(settings) == {"top_k": 7}


@pytest.mark.parametrize("name", ["vram", "ram"])
def test_an_amount_of_memory_is_refused_as_its_option_would_be(settings, localr1_command, name):
    outcome = localr1_command("config", "set", name, "8")
    assert outcome.status == 2 and not settings.exists()
    assert outcome.err == f"error: {name} '8' has no unit\nhint: did you mean {name} 8GiB?\n"
    assert localr1_command("config", "set", name, "8GiB").status == 0
    settings.write_text(f"{name} = 8\n")
    assert f"{settings}: {name} '8' has no unit" in localr1_command("config").err


def test_the_file_is_what_runs_begin_with_and_the_command_line_wins(settings, session, localr1_command):
    for name, value in (("temperature", "0.5"), ("top_k", "7"), ("threads", "2")):
        localr1_command("config", "set", name, value)
    localr1_command("chat", "--temperature", "0", "hi there")
    assert session.calls[0] == ("load", None, EngineOptions(threads=2))
    assert session.calls[1][1] == SamplingOptions(temperature=0.0, top_k=7)


def test_threads_are_measured_that_others_use(settings, localr1_command, monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "run", lambda environment, options: asked.append(options.threads) or ExitStatus.OK)
    localr1_command("config", "set", "threads", "2")
    localr1_command("config", "set", "temperature", "0.5")
    assert localr1_command("doctor").status == 0 and asked == [2]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("temprature = 1", "no setting temprature"),
        ("temperature = 9", "temperature cannot be 9"),
        ('thoughts = "loud"', "thoughts cannot be 'loud'"),
        ("threads = many", "cannot read"),
        ('threads = "many"', "threads cannot be 'many'"),
    ],
)
def test_what_is_not_known_is_refused_by_name_before_anything_is_loaded(
    settings, session, localr1_command, text, complaint
):
    settings.parent.mkdir()
    settings.write_text(text)
    outcome = localr1_command("chat", "hi there")
    assert outcome.status == 2
    assert complaint in outcome.err and str(settings) in outcome.err
    assert session.calls == []


@pytest.mark.parametrize(
    "words", [("set", "colour", "red"), ("set", "temperature"), ("get",), ("mend",), ("set", "seed", "1.5")]
)
def test_wrong_usage_is_status_2(settings, localr1_command, words):
    outcome = localr1_command("config", *words)
    assert outcome.status == 2 and outcome.err.startswith("error: ")
    assert not settings.exists()


@pytest.mark.parametrize(
    "words, what, example",
    [
        (("get",), "`localr1 config get` takes a name after it", "localr1 config get temperature"),
        (("set", "seed"), "`localr1 config set` takes a name and a value after it", "localr1 config set temperature"),
        (("path", "seed"), "`localr1 config path` takes nothing after it", "localr1 config path"),
    ],
)
def test_too_few_or_too_many_words_are_told_with_an_example_of_that_action(
    settings, localr1_command, words, what, example
):
    outcome = localr1_command("config", *words)
    assert what in outcome.err and f"for example: {example}" in outcome.err


def test_no_file_is_no_settings(tmp_path):
    assert read_config(tmp_path / "none.toml") == {}
    with pytest.raises(UsageError):
        read_config(tmp_path)


def test_every_option_of_a_conversation_is_a_setting():
    assert {"temperature", "system", "thoughts", "plain", "keys", "save", "threads", "context"} <= SETTINGS.keys()


def test_a_home_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as caught:
        read_config(tmp_path / "file" / "config.toml")
    assert "LOCALR1_HOME" in caught.value.hint
