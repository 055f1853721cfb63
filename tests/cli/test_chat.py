import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from localr1.chat.history import Recorder, listing
from localr1.cli import chat
from localr1.cli.chat import split_words
from localr1.errors import ContextError, NotFoundError, UsageError
from localr1.events import AnswerText, ReasoningText
from localr1.options import ConversationOptions, EngineOptions, SamplingOptions
from tests.terminal.fakes import environment, press_ctrl_c, turn_end


@pytest.mark.parametrize(
    ("words", "model", "question"),
    [
        ([], None, ""),
        (["What is 347 + 85?"], None, "What is 347 + 85?"),
        (["What", "is", "1/2?"], None, "What is 1/2?"),
        (["hello"], None, "hello"),
        (["r1"], "r1", ""),
        (["R1", "hi there"], "R1", "hi there"),
        (["smollm2-135m@main", "hi"], "smollm2-135m@main", "hi"),
        (["some-org/Some-Model", "hi"], "some-org/Some-Model", "hi"),
        (["some-org/model or another?"], None, "some-org/model or another?"),
        (["r1 is what?"], None, "r1 is what?"),
        ([""], None, ""),
        (["moon", "landing", "date?"], None, "moon landing date?"),
        (["12/4"], None, "12/4"),
        (["天" * 200], None, "天" * 200),
        (["天/" * 200], None, "天/" * 200),
        (["12/4=?"], None, "12/4=?"),
        (["天空是蓝的/绿的？"], None, "天空是蓝的/绿的？"),
    ],
)
def test_the_first_word_is_the_model_only_if_it_can_be_one(words, model, question):
    assert split_words(words) == (model, question)


@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
def test_a_folder_that_holds_a_model_is_one(tmp_path, monkeypatch, file):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / file).write_text("{}")
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_words(["mine", "hi"]) == ("mine", "hi")
    assert split_words([str(tmp_path / "mine")]) == (str(tmp_path / "mine"), "")
    assert split_words(["notes", "hi"]) == (None, "notes hi")


@pytest.mark.parametrize(
    ("word", "suggestion"), [("smollm", "smollm2-135m"), ("r1-destill-qwen-7b", "r1-distill-qwen-7b")]
)
def test_a_word_like_a_model_is_a_mistake_with_a_suggestion(word, suggestion):
    with pytest.raises(NotFoundError, match=word) as caught:
        split_words([word, "hi"])
    assert suggestion in caught.value.hint


@pytest.mark.parametrize("word", ["./missing", "/no/such/folder", "a/b/c"])
def test_a_path_that_is_not_there_is_no_question(word):
    with pytest.raises((NotFoundError, UsageError), match=word):
        split_words([word])


@pytest.mark.parametrize(("flags", "kept"), [((), True), (("--no-save",), False)])
def test_routes_are_kept_where_conversations_are(session, localr1_command, flags, kept):
    session.conversation.answers["hi"] = [AnswerText("Hi.")]
    assert localr1_command("chat", *flags, "hi").status == 0
    assert session.routing.kept is kept


def test_one_question_prints_the_answer_alone(session, localr1_command):
    session.conversation.answers["What is 347 + 85?"] = [ReasoningText("carry"), AnswerText("432")]
    outcome = localr1_command("chat", "What is 347 + 85?")
    assert (outcome.status, outcome.out) == (0, "432\n")
    assert "carry\n" in outcome.err and "tokens" in outcome.err
    assert session.calls[0] == ("load", None, EngineOptions())


def test_model_and_options_reach_the_session(session, localr1_command):
    localr1_command("chat", "--temperature", "0", "--system", "Be brief.", "--context", "512", "r1", "hi", "there")
    assert session.calls == [
        ("load", "r1", EngineOptions(context=512)),
        ("converse", SamplingOptions(temperature=0.0), ConversationOptions(system="Be brief.")),
    ]
    assert session.conversation.asked == ["hi there"]


def test_the_argument_comes_first_then_the_piped_text(session, localr1_command):
    localr1_command("chat", "Summarise this", stdin="line 1\nline 2\n")
    assert session.conversation.asked == ["Summarise this\n\nline 1\nline 2"]


def test_piped_text_alone_is_the_question(session, localr1_command):
    assert localr1_command("chat", stdin="hello\n").out == "You said 'hello'.\n"


def test_nothing_to_ask_is_a_usage_error_before_anything_is_loaded(session, localr1_command):
    outcome = localr1_command("chat")
    assert outcome.status == 2
    assert outcome.err.startswith("error: there is nothing to ask\nhint: ")
    assert session.calls == []


def test_a_question_that_is_no_text_is_a_usage_error(session, localr1_command):
    outcome = localr1_command("chat", "caf\udce9 au lait")
    assert outcome.status == 2
    assert "at character 3" in outcome.err


def test_an_unknown_model_costs_no_loading(session, localr1_command):
    outcome = localr1_command("chat", "smollm", "hi")
    assert outcome.status == 3
    assert "hint: did you mean smollm2-135m?" in outcome.err
    assert session.calls == []


def test_an_error_of_the_only_turn_is_the_status(session, localr1_command):
    session.conversation.answers["hi there"] = ContextError("too long")
    assert localr1_command("chat", "hi there").status == 9


def test_ctrl_c_in_the_only_turn_keeps_what_came_and_is_status_130(session, localr1_command):
    session.conversation.answers["count up"] = [AnswerText("1 "), AnswerText("2 ")]

    def interrupt(piece: int) -> None:
        if piece == 1:
            press_ctrl_c()
            while not session.conversation.stops:
                time.sleep(0.001)

    session.conversation.before_piece = interrupt
    outcome = localr1_command("chat", "count up")
    assert (outcome.status, outcome.out) == (130, "1 \n")
    assert "interrupted" in outcome.err


@pytest.mark.parametrize("word", ["nosuchmodel-7b", "mystery-1.5b", "other-135M"])
def test_a_name_with_a_models_size_is_never_a_question(word):
    with pytest.raises(NotFoundError, match="no model called"):
        split_words([word, "hi"])


@pytest.mark.parametrize("word", ["covid-19", "7b", "plan-b", "mp3-10bit"])
def test_other_words_with_dashes_and_digits_are_a_question(word):
    assert split_words([word, "explained"]) == (None, f"{word} explained")


@pytest.mark.parametrize(("reason", "status", "hint"), [("max_tokens", 1, "--max-tokens"), ("context", 9, "--context")])
@pytest.mark.parametrize("json", [[], ["--json"]])
def test_an_answer_cut_before_it_had_its_form_is_an_error(
    reason, status, hint, json, session, localr1_command, tmp_path, monkeypatch
):
    (tmp_path / "sum.json").write_text('{"type": "object"}')
    monkeypatch.setattr(session.conversation, "ask", lambda text: iter([AnswerText('{"a'), turn_end(reason=reason)]))
    outcome = localr1_command("chat", "--json-schema", str(tmp_path / "sum.json"), *json, "Who?")
    assert (outcome.status, hint in outcome.err) == (status, True) and '{"a' in outcome.out.replace("\\", "")
    assert localr1_command("chat", "Who?").status == (9 if reason == "context" else 0), "--max-tokens was asked for"


def test_no_command_is_named_where_none_can_be_typed(session, localr1_command):
    session.conversation.answers["hi there"] = [ReasoningText("Hm."), AnswerText("Hi.")]
    outcome = localr1_command("chat", "hi there", tty="ioe")
    assert "thought for" in outcome.out and "/thoughts" not in outcome.out


def talked(folder: Path, question: str) -> str:
    """The ID of a conversation in which this was asked."""
    recorder = Recorder(folder, "nano", None)
    recorder.question(question)
    recorder.end("end", 1)
    recorder.close()
    return recorder.id


def test_a_question_that_goes_on_says_with_what_and_a_wrong_id_changes_nothing(session, localr1_command, tmp_path):
    name = talked(tmp_path / "home" / "conversations", "first")
    wrong = localr1_command("chat", "--resume", "1234", "What is 9 + 4?")
    assert wrong.status == 3 and "no saved conversation 1234" in wrong.err and session.calls == []
    assert f"Going on with {name}: first" in localr1_command("chat", "--resume", "And", "then?").err
    assert f"Going on with {name}: first" in localr1_command("chat", "--resume", name, "What is 9 + 4?").err
    assert localr1_command("chat", "--resume", name[0], "shorter", "version").status == 0
    (saved,) = listing(tmp_path / "home" / "conversations")
    asked = ["first", "And then?", "What is 9 + 4?", f"{name[0]} shorter version"]
    assert [turn.question for turn in saved.turns] == asked


def test_the_list_cuts_wide_characters_where_the_window_ends(localr1_command, tmp_path):
    talked(tmp_path / "home" / "conversations", "天空是蓝的" * 10)
    (line, *_) = localr1_command("chat", "--list", tty="o").out.splitlines()
    assert "天空" in line and cell_len(line) < 80


def test_a_blank_question_is_none(session, localr1_command):
    assert localr1_command("chat", "   ", stdin=" \n").status == 2
    assert session.calls == []


def test_a_model_that_the_settings_do_not_fit_is_not_the_one_in_use(tmp_path, monkeypatch):
    engines = {name: SimpleNamespace(name=name, routing=None) for name in ("nano", "smollm2-135m")}
    made_way = []

    def load(name, options, instead_of):
        made_way.append(instead_of.name)
        return iter([engines[name]])

    def converse(background, engine, settings):
        if engine.name != "nano":
            raise UsageError(f"{engine.name} leaves no choice about thinking")

    monkeypatch.setattr(chat, "load", load)
    monkeypatch.setattr(chat, "follow", lambda environment, operation: next(operation))
    monkeypatch.setattr(chat, "_converse", converse)
    background = SimpleNamespace(run=lambda operation: operation, tell=None)
    host = chat._host(environment(), background, engines["nano"], EngineOptions(), tmp_path)
    with pytest.raises(UsageError):
        host.open_model("smollm2-135m", None)
    assert host.open_model("nano", None)[0] == "nano" and made_way == ["nano", "nano"]
