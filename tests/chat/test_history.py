import os
import stat
import sys
from pathlib import Path

import pytest

from localr1.chat import history
from localr1.chat.history import Recorder, find, latest, listing, read
from localr1.errors import CorruptError, DiskError, NotFoundError


def say(recorder: Recorder, question: str, answer: str, thought: str = "") -> None:
    recorder.question(question)
    if thought:
        recorder.piece("thought", thought)
    recorder.piece("answer", answer)
    recorder.end("end", 3)


def turns(saved) -> list[tuple[str, str, str]]:
    return [(turn.question, turn.thought, turn.answer) for turn in saved.turns]


def test_what_was_said_is_read_back(tmp_path):
    recorder = Recorder(tmp_path / "talks", "nano", "Be brief.")
    assert not list(tmp_path.iterdir()), "nothing was said, so nothing is there"
    say(recorder, "2 + 2?", "Four\n👍", "hm\u2028m")
    say(recorder, "Again?", "No.")
    recorder.close()
    saved = latest(tmp_path / "talks")
    assert (saved.id, saved.model, saved.system, saved.title) == (recorder.id, "nano", "Be brief.", "2 + 2?")
    assert turns(saved) == [("2 + 2?", "hm\u2028m", "Four\n👍"), ("Again?", "", "No.")]
    assert (saved.turns[0].reason, saved.turns[0].tokens) == ("end", 3)


@pytest.mark.skipif(sys.platform == "win32", reason="modes are Unix's")
def test_files_are_for_their_owner(tmp_path):
    recorder = Recorder(tmp_path / "talks", "nano", None)
    recorder.question("secret")
    assert stat.S_IMODE(recorder.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(recorder.path.parent.stat().st_mode) == 0o700


def test_changes_are_replayed(tmp_path):
    recorder = Recorder(tmp_path, "nano", None)
    say(recorder, "a", "b")
    say(recorder, "c", "d")
    recorder.change("undo")
    recorder.change("system", text="Be long.")
    recorder.change("model", name="other")
    saved = read(recorder.path)
    assert turns(saved) == [("a", "", "b")] and (saved.system, saved.model) == ("Be long.", "other")
    recorder.change("clear")
    assert turns(read(recorder.path)) == []
    assert listing(tmp_path) == []


def test_a_line_that_was_cut_is_left_out_and_the_conversation_goes_on(tmp_path):
    recorder = Recorder(tmp_path, "nano", None)
    say(recorder, "a", "b")
    recorder.question("c")
    recorder.piece("answer", "one line\n")
    with recorder.path.open("a") as file:
        file.write('{"kind": "answer", "text": "never fin')
    saved = read(recorder.path)
    assert turns(saved) == [("a", "", "b"), ("c", "", "one line\n")]
    assert saved.turns[-1].reason == ""
    again = Recorder(tmp_path, "nano", None, saved)
    say(again, "d", "e")
    assert turns(read(recorder.path))[-1] == ("d", "", "e")
    assert len(list(tmp_path.iterdir())) == 1


def test_pieces_are_on_disk_after_each_line_end(tmp_path):
    recorder = Recorder(tmp_path, "nano", None)
    recorder.question("q")
    recorder.piece("answer", "first line\n")
    recorder.piece("answer", "x")
    assert read(recorder.path).turns[0].answer.startswith("first line\n")


def test_finding_by_the_beginning_of_the_id_and_by_words(tmp_path):
    ids = []
    for question in ("pears and apples", "figs"):
        recorder = Recorder(tmp_path, "nano", None)
        say(recorder, question, "Fruit.")
        ids.append(recorder.id)
    assert find(tmp_path, ids[0]).title == "pears and apples"
    assert [saved.id for saved in listing(tmp_path, "APPLES fruit")] == [ids[0]]
    assert len(listing(tmp_path, "fruit")) == 2 and listing(tmp_path, "plum") == []
    with pytest.raises(NotFoundError, match="no saved conversation 0"):
        find(tmp_path, "0")
    with pytest.raises(NotFoundError, match="no saved conversation yet"):
        latest(tmp_path / "nowhere")


def test_the_latest_and_the_ids_are_found_without_reading_all(tmp_path, monkeypatch):
    for question in ("one", "two", "three"):
        recorder = Recorder(tmp_path, "nano", None)
        say(recorder, question, "Yes.")
        os.utime(recorder.path, (1_000_000 + len(question), 1_000_000 + len(question)))
    read_paths = []
    monkeypatch.setattr(history, "read", lambda path: read_paths.append(path) or read(path))
    assert latest(tmp_path).title == "three" and len(read_paths) == 1
    assert history.ids(tmp_path)[0] == recorder.id and len(read_paths) == 1


def test_a_file_that_is_no_conversation_is_refused_and_not_listed(tmp_path):
    (tmp_path / "20260101-000000-abcd.jsonl").write_text('{"no": "kind"}\nnonsense\n')
    with pytest.raises(CorruptError):
        find(tmp_path, "abcd")
    assert listing(tmp_path) == []


def test_it_gives_up_once_where_nothing_can_be_written(tmp_path):
    (tmp_path / "talks").write_text("not a folder")
    recorder = Recorder(tmp_path / "talks", "nano", None)
    with pytest.raises(DiskError, match="cannot save"):
        recorder.question("one")
    assert recorder.failed and not recorder.id
    (tmp_path / "talks").unlink()
    say(recorder, "two", "2")
    recorder.close()
    assert not (tmp_path / "talks").exists(), "half of a conversation would be taken for all of it"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that has no room")
def test_a_full_disk_ends_the_recording_and_not_more(tmp_path):
    recorder = Recorder(tmp_path, "nano", None)
    say(recorder, "one", "1")
    with Path("/dev/full").open("w") as full:
        os.dup2(full.fileno(), recorder._file.fileno())
    recorder._size_bytes = 0
    with pytest.raises(DiskError, match="No space"):
        recorder.question("two")
    say(recorder, "three", "3")
    recorder.close()
    assert turns(read(recorder.path)) == [("one", "", "1")]


def test_two_that_go_on_with_one_conversation_do_not_mix(tmp_path):
    first = Recorder(tmp_path, "nano", None)
    say(first, "one", "1")
    second = Recorder(tmp_path, "nano", None, read(first.path))
    say(second, "two", "2")
    with pytest.raises(DiskError, match="another localr1 goes on"):
        first.question("three")
    say(first, "four", "4")
    say(second, "five", "5")
    assert turns(read(second.path)) == [("one", "", "1"), ("two", "", "2"), ("five", "", "5")]


def test_one_broken_conversation_hides_no_other(tmp_path):
    recorder = Recorder(tmp_path, "nano", None)
    say(recorder, "one", "1")
    (tmp_path / "gone-aaaa.jsonl").symlink_to(tmp_path / "nowhere")
    broken = tmp_path / "broken-bbbb.jsonl"
    broken.write_text('{"kind": "conversation"}\n{"kind": "user", "text": "q"}\n{"kind": "end", "tokens": null}\n')
    assert [saved.id for saved in listing(tmp_path)] == [recorder.id] == [latest(tmp_path).id]
    for line in ('{"kind": "end", "tokens": 1e999}', "[" * 100_000, '{"kind": "system", "text": 5}'):
        broken.write_text('{"kind": "conversation"}\n{"kind": "user", "text": "q"}\n' + line + "\n")
        with pytest.raises(CorruptError):
            read(broken)
