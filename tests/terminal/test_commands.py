import json
import os

import pytest

from localr1.chat.history import Recorder, latest, read
from localr1.errors import ContextError, DiskError, LocalR1Error, NotFoundError, UsageError
from localr1.events import AnswerText, ReasoningText
from localr1.options import SamplingOptions
from localr1.terminal.commands import COMMANDS, arguments_of
from localr1.terminal.repl import Host, Repl, Settings
from localr1.terminal.talk import Talk
from tests.terminal.fakes import FakeConversation, environment, err, out

CODE = "Do:\n```sh\nls\n```\nor\n```\npwd\n```"


@pytest.fixture
def repl(tmp_path) -> Repl:
    conversation = FakeConversation({"code": [ReasoningText("Let me\nsee."), AnswerText(CODE)]})
    host = Host("nano", lambda: ["nano", "other"], folder=tmp_path / "talks")
    shown = environment(tty="ioe", NO_COLOR="1", TERM="dumb")
    return Repl(shown, Talk(conversation, Recorder(host.folder, "nano", None)), Settings(), host)


def do(repl: Repl, line: str) -> bool:
    return repl._take(line)


def test_help_names_every_command(repl):
    do(repl, "/help")
    assert all(f"/{name}" in err(repl.environment) for name in COMMANDS)


@pytest.mark.parametrize(("platform", "key"), [("linux", "Alt-Enter"), ("win32", "Esc, Enter or Alt-Enter")])
def test_help_names_the_keys_that_a_terminal_here_lets_through(repl, monkeypatch, platform, key):
    repl.environment = environment(tty="ioe", NO_COLOR="1")
    monkeypatch.setattr("sys.platform", platform)
    do(repl, "/help")
    assert f"\n  {key:<26} Start another line" in err(repl.environment)


@pytest.mark.parametrize(
    ("variables", "editors", "listed"),
    [({"EDITOR": "vim"}, [], True), ({"VISUAL": "vim"}, [], True), ({}, [__file__], True), ({"EDITOR": ""}, [], False)],
)
def test_help_names_the_editors_key_where_there_is_an_editor(repl, monkeypatch, variables, editors, listed):
    repl.environment = environment(tty="ioe", NO_COLOR="1", **variables)
    monkeypatch.setattr("localr1.terminal.commands.EDITORS", editors, raising=False)
    do(repl, "/help")
    assert ("Ctrl-X Ctrl-E" in err(repl.environment)) == listed and "Ctrl-R" in err(repl.environment)


@pytest.mark.parametrize("line", ["/help retry", "/help /RETRY"])
def test_help_of_one_command_is_its_line(repl, line):
    do(repl, line)
    assert err(repl.environment) == "  /retry Answer the last message again.\n"
    with pytest.raises(UsageError, match="unknown command /retri"):
        do(repl, "/help retri")


@pytest.mark.parametrize("line", ["/", "/?"])
def test_the_words_of_other_programs_ask_for_help(repl, line):
    assert not do(repl, line)
    assert "/retry" in err(repl.environment)


@pytest.mark.parametrize("line", ["/quit", "/bye", "/q", "/EXIT"])
def test_the_words_of_other_programs_leave(repl, line):
    assert do(repl, line)
    assert not do(repl, f"/usr{line}")
    assert repl.talk.conversation.asked == [f"/usr{line}"]


def test_retry_asks_the_last_message_again_and_keeps_one_turn(repl):
    do(repl, "hello")
    do(repl, "/retry")
    assert repl.talk.conversation.asked == ["hello", "hello"]
    assert [turn.question for turn in repl.talk.turns] == ["hello"]
    assert len(read(repl.talk.recorder.path).turns) == 1


def test_a_retry_that_is_refused_leaves_the_turn_as_it_was(repl):
    do(repl, "first")
    do(repl, "hello")
    repl.talk.conversation.answers["hello"] = ContextError("it no longer fits")
    with pytest.raises(ContextError):
        do(repl, "/retry")
    assert [(turn.question, turn.answer) for turn in repl.talk.turns] == [
        ("first", "You said 'first'."),
        ("hello", "You said 'hello'."),
    ]
    assert [question for question, _ in repl.talk.conversation.history] == ["first", "hello"]
    saved = read(repl.talk.recorder.path).turns
    assert [(turn.question, turn.answer, turn.reason) for turn in saved] == [
        ("first", "You said 'first'.", "end"),
        ("hello", "You said 'hello'.", "end"),
    ]


@pytest.mark.parametrize("forgotten", [1, 2])
def test_undo_tells_anew_what_was_forgotten(repl, forgotten):
    do(repl, "one")
    do(repl, "two")
    del repl.talk.conversation.history[:forgotten]  # as a context that slides does
    do(repl, "/undo")
    assert repl.talk.conversation.history == [("one", "You said 'one'.")]


def test_edit_offers_the_last_message_and_undo_takes_it_back(repl):
    do(repl, "one")
    do(repl, "two")
    do(repl, "/edit")
    assert repl.beginning == "two"
    do(repl, "/undo")
    assert repl.talk.turns == [] and latest_turns(repl) == []
    with pytest.raises(UsageError, match="nothing was said"):
        do(repl, "/undo")


def test_a_choice_that_the_model_does_not_leave_is_not_kept(repl, monkeypatch):
    def refuse(sampling, options):
        raise UsageError("no choice")

    monkeypatch.setattr(repl.talk.conversation, "configure", refuse)
    with pytest.raises(UsageError, match="no choice"):
        do(repl, "/think off")
    assert repl.settings.conversation.think is None


def latest_turns(repl: Repl) -> list[str]:
    return [turn.question for turn in read(repl.talk.recorder.path).turns]


def test_continue_adds_to_the_last_answer(repl):
    stop_after_a_piece(repl, "count", "One")
    do(repl, "/continue")
    assert repl.talk.last.answer == "One and so on."
    assert read(repl.talk.recorder.path).turns[-1].answer == repl.talk.last.answer


def stop_after_a_piece(repl: Repl, question: str, piece: str) -> None:
    conversation = repl.talk.conversation
    conversation.answers[question] = [AnswerText(piece), AnswerText(" never said")]
    conversation.before_piece = lambda number: conversation.stop() if number else None
    do(repl, question)
    conversation.before_piece = lambda number: None


@pytest.mark.parametrize("way", ["as it was said", "after /undo", "as it was loaded", "by another model"])
def test_an_answer_that_is_complete_is_not_added_to(repl, way):
    do(repl, "hello")
    if way == "after /undo":
        stop_after_a_piece(repl, "count", "One")
        do(repl, "/undo")
    elif way == "as it was loaded":
        do(repl, f"/load {repl.talk.recorder.id}")
    elif way == "by another model":
        repl.host.open_model = lambda name, settings: (name, FakeConversation())
        do(repl, "/model other")
    with pytest.raises(UsageError, match="complete") as caught:
        do(repl, "/continue")
    assert "in your own words" in caught.value.hint
    assert [turn.answer for turn in repl.talk.turns] == ["You said 'hello'."]


@pytest.mark.parametrize("line", ["/clear", "/load"])
def test_the_figures_are_those_of_this_conversation(repl, line):
    do(repl, "hello")
    do(repl, "/stats")
    assert "turns     1\n" in err(repl.environment)
    do(repl, line if line == "/clear" else f"/load {repl.talk.recorder.id}")
    with pytest.raises(UsageError, match="no figures"):
        do(repl, "/stats")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("/undo", "context 10/4,096"),
        ("/edit", "context 10/4,096"),
        ("/retry", "context 41/4,096"),
        ("/system Be brief.", "context 20/4,096"),
        ("/model other", "context 20/4,096"),
        ("/load", "context 20/4,096"),
        ("/clear", None),
    ],
)
def test_the_bar_tells_what_the_conversation_takes_once_it_is_changed(repl, line, shown):
    repl.host.open_model = lambda name, settings: (name, FakeConversation())
    do(repl, "hello")
    do(repl, "again")
    assert "context 41/4,096" in repl.bar()
    do(repl, f"/load {repl.talk.recorder.id}" if line == "/load" else line)
    assert shown in repl.bar() if shown else "context" not in repl.bar()


def test_an_answer_that_holds_nothing_yet_is_not_copied(repl):
    repl.talk.conversation.answers["long"] = [ReasoningText("hm")]
    do(repl, "long")
    with pytest.raises(UsageError, match="holds nothing yet"):
        do(repl, "/copy")


def test_stats_tell_what_the_conversation_takes_after_a_turn_was_taken_back(repl):
    do(repl, "hello")
    do(repl, "again")
    do(repl, "/undo")
    do(repl, "/stats")
    assert "turns     1\n" in err(repl.environment)
    assert "context   10 of 4,096 tokens\n" in err(repl.environment)


def test_set_changes_what_the_conversation_uses(repl):
    do(repl, "/set temperature 0.5")
    do(repl, "/set top-k 7")
    do(repl, "/think off")
    sampling, options = repl.talk.conversation.configured[-1]
    assert sampling == SamplingOptions(temperature=0.5, top_k=7) and options.think is False
    assert "temperature from now on: 0.5" in err(repl.environment)
    do(repl, "/set temperature default")
    assert repl.talk.conversation.configured[-1][0].temperature is None
    assert "temperature from now on: 0.6, the model's own" in err(repl.environment)
    do(repl, "/set")
    assert "top_k          7\n" in err(repl.environment) and "max_tokens     no limit\n" in err(repl.environment)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/set temperature 9", "cannot be 9"),
        ("/set temperature warm", "cannot be 'warm'"),
        ("/set temperatur 1", "no setting temperatur"),
        ("/set seed", "needs a value"),
        ("/think maybe", "on, off or auto"),
        ("/thoughts loud", "one of: show, fold, hide"),
        ("/copy 1", "nothing was said"),
        ("/stats", "no figures"),
        ("/retry", "nothing was said"),
        ("/read", "needs a file"),
        ("/read /no/such/file", "no file"),
        ("/export talk.txt", ".md or .json"),
        ("/export talk.md", "nothing was said"),
        ("/load zzzz", "no saved conversation"),
        ("/model other", "cannot be changed"),
        ("/undo 2", "takes nothing"),
    ],
)
def test_what_cannot_be_done_says_so_and_changes_nothing(repl, line, complaint):
    with pytest.raises(LocalR1Error) as caught:
        do(repl, line)
    assert complaint in f"{caught.value.message} {caught.value.hint}"
    assert repl.talk.conversation.configured == [] and repl.talk.turns == []


def test_thoughts_are_shown_again_and_the_mode_can_change(repl):
    do(repl, "code")
    before = err(repl.environment)
    do(repl, "/thoughts")
    assert err(repl.environment).removeprefix(before) == "Let me\nsee.\n"
    do(repl, "/thoughts hide")
    assert repl.settings.terminal.thoughts == "hide"


def test_copy_takes_the_answer_or_a_piece_of_code(repl, monkeypatch):
    copied = []
    monkeypatch.setattr("localr1.terminal.archive.copy_text", lambda shown, text: copied.append(text) or "by magic")
    do(repl, "code")
    for line in ("/copy", "/copy 1", "/copy 2"):
        do(repl, line)
    assert copied == [CODE, "ls", "pwd"]
    with pytest.raises(UsageError, match="no piece of code 3"):
        do(repl, "/copy 3")


def test_read_puts_a_file_into_the_next_message_and_says_what_it_cut(repl, tmp_path):
    file = tmp_path / "my notes.txt"
    file.write_text("<think> ```x```\n" + "y" * 300_000)
    do(repl, f"/read {file}")
    assert "only the first 200,000 of its 300,016 bytes" in err(repl.environment)
    do(repl, "What?")
    asked = repl.talk.conversation.asked[-1]
    assert asked.startswith("my notes.txt:\n````\n<think> ```x```\n") and asked.endswith("y\n````\n\nWhat?")
    assert len(asked) < 200_100
    do(repl, f'/read "{file}" Why?')
    assert repl.talk.conversation.asked[-1].endswith("Why?")


def test_read_refuses_what_is_no_text(repl, tmp_path):
    (tmp_path / "image").write_bytes(b"\x89PNG\0\0")
    for name in (tmp_path, tmp_path / "image", "/dev/zero"):
        with pytest.raises(LocalR1Error):
            do(repl, f"/read {name}")
    assert repl.attachments == []


def test_export_writes_markdown_and_json_and_replaces_nothing(repl, tmp_path):
    do(repl, "hello")
    do(repl, f"/export {tmp_path / 'talk.md'}")
    assert (tmp_path / "talk.md").read_text() == "# hello\n\n*nano*\n\n> hello\n\nYou said 'hello'.\n"
    do(repl, f"/export {tmp_path / 'talk.json'}")
    assert json.loads((tmp_path / "talk.json").read_text())["turns"][0]["question"] == "hello"
    with pytest.raises(UsageError, match="there already"):
        do(repl, f"/export {tmp_path / 'talk.md'}")


def test_an_export_that_fails_leaves_no_file_in_the_way(repl, tmp_path, monkeypatch):
    do(repl, "hello")
    path = tmp_path / "talk.md"

    def full(self, *_, **__):
        self.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space"):
        patch.setattr(type(path), "write_text", full)
        do(repl, f"/export {path}")
    do(repl, f"/export {path}")
    assert path.read_text().startswith("# hello")


def test_a_saved_conversation_is_listed_searched_and_loaded(repl):
    do(repl, "about pears")
    first = repl.talk.recorder.id
    do(repl, "/clear")
    assert repl.talk.turns == [] and first in err(repl.environment)
    do(repl, "about figs")
    assert repl.talk.recorder.id != first
    os.utime(repl.talk.recorder.path, (1, 1))  # files may be written within one tick of the disk's clock
    do(repl, "/history PEARS")
    assert f"{first}  20" in err(repl.environment)
    do(repl, f"/load {first}")
    assert repl.talk.conversation.history == [("about pears", "You said 'about pears'.")]
    do(repl, "more")
    assert latest(repl.host.folder).id == first


def test_nothing_is_saved_until_it_is_asked_for(repl):
    repl.talk.recorder = None
    do(repl, "hello")
    assert not repl.host.folder.exists()
    do(repl, "/save")
    assert latest(repl.host.folder).turns[0].answer == "You said 'hello'."


def test_a_conversation_that_cannot_be_saved_goes_on_and_is_saved_later(repl):
    repl.host.folder.write_text("not a folder")
    do(repl, "hello")
    do(repl, "again")
    assert [turn.answer for turn in repl.talk.turns] == ["You said 'hello'.", "You said 'again'."]
    assert err(repl.environment).count("cannot save the conversation") == 1
    with pytest.raises(DiskError):
        do(repl, "/save")
    repl.host.folder.unlink()
    do(repl, "/save")
    assert [turn.question for turn in latest(repl.host.folder).turns] == ["hello", "again"]


@pytest.mark.parametrize(("line", "asked"), [("/retry", ["one", "two", "two"]), ("/undo", ["one", "two"])])
def test_what_cannot_be_recorded_is_done_and_told(repl, line, asked):
    do(repl, "one")
    do(repl, "two")
    with repl.talk.recorder.path.open("a") as other:
        other.write("{}\n")
    do(repl, line)
    assert repl.talk.conversation.asked == asked and len(repl.talk.turns) == len(asked) - 1
    assert "another localr1 goes on" in repl.talk.untold


@pytest.mark.parametrize("line", ["/read notes.txt " + "please " * 60, '/read "notes.txt" Why?'])
def test_a_question_may_be_longer_than_any_files_name(repl, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Pears.")
    do(repl, line)
    assert "notes.txt:\n```\nPears.\n```" in repl.talk.turns[0].question


@pytest.mark.parametrize(
    "line", ["/read ~nobody-of-that-name/x", "/read " + "x" * 300, "/export ~nobody-of-that-name/x.md"]
)
def test_names_that_lead_nowhere_are_an_error_and_no_more(repl, line):
    do(repl, "hello")
    with pytest.raises(LocalR1Error):
        do(repl, line)


def test_a_conversation_that_cannot_be_gone_on_with_is_not_loaded(repl, monkeypatch):
    do(repl, "one")
    first = repl.talk.recorder
    do(repl, "/clear")
    do(repl, "two")
    current = repl.talk.recorder

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as broken:
        broken.setattr("localr1.chat.history._append", refuse)
        with pytest.raises(DiskError, match="cannot write"):
            do(repl, f"/load {first.id}")
    do(repl, "three")
    assert repl.talk.recorder is current and [turn.question for turn in repl.talk.turns] == ["two", "three"]
    assert [turn.question for turn in read(current.path).turns] == ["two", "three"]


def test_what_could_not_be_written_as_an_answer_broke_off_is_told(repl, monkeypatch):
    do(repl, "one")

    def fails(piece):
        with repl.talk.recorder.path.open("a") as other:
            other.write("{}\n")
        if piece:
            raise LocalR1Error("the GPU failed")

    monkeypatch.setattr("localr1.chat.history._FLUSH_S", 60.0)
    repl.talk.conversation.answers["two"] = [AnswerText("a"), AnswerText("b")]
    repl.talk.conversation.before_piece = fails
    with pytest.raises(LocalR1Error, match="GPU"):
        do(repl, "two")
    assert "another localr1 goes on" in repl.talk.untold + err(repl.environment)


def test_a_setting_that_is_refused_is_not_kept(repl, monkeypatch):
    def refuse(sampling, options):
        raise NotFoundError("there is no schema.json")

    do(repl, "/set temperature 0.5")
    monkeypatch.setattr(repl.talk.conversation, "configure", refuse)
    for line in ("/set temperature 0.7", "/system Be brief."):
        with pytest.raises(NotFoundError):
            do(repl, line)
    assert repl.settings.sampling.temperature == 0.5 and repl.settings.conversation.system is None


def test_a_refused_question_leaves_no_trace(repl):
    repl.talk.conversation.answers["long"] = ContextError("full")
    with pytest.raises(ContextError):
        do(repl, "long")
    assert repl.talk.turns == [] and latest_turns(repl) == []


def test_the_model_is_switched_in_place_and_the_conversation_goes_on(repl):
    other = FakeConversation()
    repl.host.open_model = lambda name, settings: (name, other)
    do(repl, "hello")
    do(repl, "/model other")
    assert repl.talk.conversation is other and other.history == [("hello", "You said 'hello'.")]
    do(repl, "again")
    assert read(repl.talk.recorder.path).model == "other"


def test_a_model_that_cannot_be_loaded_leaves_the_one_there_is(repl):
    def fails(name, settings):
        raise UsageError("no such model")

    repl.host.open_model, before = fails, repl.talk.conversation
    with pytest.raises(UsageError):
        do(repl, "/model other")
    assert repl.talk.conversation is before and repl.host.model == "nano"


def test_completion_knows_what_may_follow(repl):
    assert list(arguments_of(repl, "model")) == ["nano", "other"]
    assert "temperature" in arguments_of(repl, "set")
    assert "retry" in arguments_of(repl, "help")
    assert list(arguments_of(repl, "exit")) == []


def test_quoted_lines_are_one_message(tmp_path):
    conversation = FakeConversation()
    shown = environment('"""one\ntwo\n"""\n', tty="ioe", TERM="dumb")
    Repl(shown, Talk(conversation)).run()
    assert conversation.asked == ["one\ntwo"] and "\x1b" not in out(shown)


def test_the_bar_names_model_context_speed_and_memory(repl):
    do(repl, "hello")
    bar = repl.bar()
    assert "nano · context 41/4,096 · 20.0 tokens/s · RAM " in bar
    repl.host.gpu_bytes = lambda: (5_100_000_000, 8_000_000_000)
    assert "GPU 5.1 GB of 8.0 GB · RAM " in repl.bar()


def test_plan_and_bench_are_of_this_model_or_another(repl):
    asked = []
    repl.host.tools = {
        "plan": lambda name: asked.append(("plan", name)),
        "bench": lambda name: asked.append(("bench", name)),
    }
    do(repl, "/plan")
    do(repl, "/bench other")
    assert asked == [("plan", "nano"), ("bench", "other")]
    assert list(arguments_of(repl, "plan")) == ["nano", "other"]
    repl.host.tools = {}
    with pytest.raises(LocalR1Error, match="cannot be done here"):
        do(repl, "/plan")


def test_ctrl_c_while_another_model_loads_keeps_this_one(repl):
    def stopped(name, settings):
        raise KeyboardInterrupt

    repl.host.open_model = stopped
    do(repl, "/model other")
    assert repl.host.model == "nano" and "this is still nano" in err(repl.environment)
