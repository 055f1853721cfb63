import errno
import json
import os
import types
from pathlib import Path

import pytest

from localr1.errors import NotFoundError
from localr1.events import LoadProgress
from localr1.options import BenchOptions, DownloadOptions


@pytest.fixture
def store(session, tmp_path):
    session.store = tmp_path / "store"
    session.store.mkdir()
    (session.store / "dense.safetensors").write_bytes(b"x" * 2500)
    return session.store


def test_download_ends_with_the_place_the_size_and_what_to_type_next(
    store, session, localr1_command, tmp_path, monkeypatch
):
    (tmp_path / "my model").mkdir()
    monkeypatch.chdir(tmp_path)
    outcome = localr1_command("download", "./my model")
    assert outcome.status == 0
    assert outcome.out == ""
    assert outcome.err.splitlines()[-3:] == [
        "./my model is already here",
        f"Ready: 2.5 kB in {store}",
        "Next:  localr1 chat './my model'",
    ]
    assert session.calls == [("download", DownloadOptions("./my model"))]


@pytest.mark.parametrize(("model", "typed"), [("./my model", '"./my model"'), ("nano", "nano")])
def test_what_to_type_next_is_quoted_as_cmd_takes_it(
    store, session, localr1_command, tmp_path, monkeypatch, model, typed
):
    (tmp_path / "my model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.platform", "win32")
    assert localr1_command("download", model).err.endswith(f"\nNext:  localr1 chat {typed}\n")


def test_a_quiet_download_says_nothing(store, localr1_command):
    assert localr1_command("download", "nano", "--quiet").err == ""


def test_a_quiet_download_still_says_what_failed(session, localr1_command):
    session.error = NotFoundError("no such repository: a/b")
    outcome = localr1_command("download", "a/b", "--quiet")
    assert (outcome.status, outcome.err) == (3, "error: no such repository: a/b\n")


def test_models_lists_what_is_here_and_what_could_be(localr1_command, tmp_path):
    folder = tmp_path / "home" / "models" / "some-org--model" / ("a" * 40)
    folder.mkdir(parents=True)
    manifest = {"source": "some-org/model", "revision": "a" * 40, "files": {}, "created": "2026-01-02T03:04:05Z"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    outcome = localr1_command("models")
    assert outcome.status == 0
    here, to_download = outcome.out.split("To download")
    assert "some-org/model" in here and "made 2026-01-02" in here
    assert "r1-distill-qwen-7b" in to_download
    assert max(map(len, outcome.out.splitlines())) < 200
    assert all(line == line.rstrip() for line in outcome.out.splitlines())


def test_models_lists_what_comes_with_the_program(localr1_command, tmp_path, monkeypatch):
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "manifest.json").write_text(json.dumps({"source": "nano", "files": {}}))
    monkeypatch.setattr("localr1.hub.catalog.resources.files", lambda package: tmp_path)
    here, _ = localr1_command("models").out.split("To download")
    assert "nano " in here


def test_models_says_that_there_are_none(localr1_command, tmp_path, monkeypatch):
    monkeypatch.setattr("localr1.hub.catalog.resources.files", lambda package: tmp_path)
    assert "(none yet)" in localr1_command("models").out


@pytest.fixture
def bench(monkeypatch):
    """A measurement that takes no time."""
    from localr1.bench import measure, subject
    from localr1.bench.report import Figure, Report, Row, Section

    calls = []
    speed = Figure((20.9, 21.4, 21.8), "tokens/s", "more")
    section = Section("speed", "Speed by context", ("context", "decode 32"), (Row("0", (speed,)),), ("a note",))

    def open_model(name, options, cold):
        yield LoadProgress("opening")
        return types.SimpleNamespace(name=name or "nano")

    def run(opened, options):
        calls.append((opened.name, options))
        yield LoadProgress("measuring", 1, 2)
        return Report("nano", False, {"processor": "a processor", "memory_bytes": 8e9}, (section,), {"threads": 1})

    monkeypatch.setattr(subject, "open_model", open_model)
    monkeypatch.setattr(subject, "open_synthetic", lambda shape, *_: open_model(shape.name, None, False))
    monkeypatch.setattr(measure, "bench", run)
    return calls


def test_bench_prints_the_figures_and_writes_them(bench, localr1_command, tmp_path):
    file = tmp_path / "figures.json"
    outcome = localr1_command("bench", "--repeats", "2", "--json", str(file))
    assert outcome.status == 0
    assert "Speed by context" in outcome.out and "a note" in outcome.out
    assert "21.4 tokens/s (20.9 to 21.8)" in outcome.out
    assert "a processor, 1 thread, 8 GB of RAM" in outcome.err
    assert json.loads(file.read_text())["sections"][0]["rows"][0]["cells"][0]["values"] == [20.9, 21.4, 21.8]
    assert bench == [("nano", BenchOptions(repeats=2, json=file))]


def test_bench_prints_markdown_or_csv(bench, localr1_command):
    assert "| 0 | 21.4 tokens/s (20.9 to 21.8) |" in localr1_command("bench", "--markdown").out.splitlines()
    assert "nano,real,speed,0,decode 32,tokens/s,21.4," in localr1_command("bench", "--csv").out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--layers", "3"], 2, "--layers belongs to --shape"),
        (["nano", "--skew", "1"], 2, "--skew belongs to --shape"),
        (["nano", "--shape", "v2-lite"], 2, "either a model (nano) or a shape (v2-lite)"),
        (["nano", "other"], 2, "one model at a time"),
        (["--shape", "v2-lite", "--cold"], 2, "made in memory"),
        (["--markdown", "--csv"], 2, "both write to stdout"),
        (["--plot", "speed.jpg"], 2, "pictures are .svg or .png"),
        (["--claims", "--plot", "speed.png"], 2, "--plot draws speeds"),
        (["--depths", "0,x"], 2, "'x' is no number of tokens"),
        (["--compare", "speculate=off"], 2, "two or more different values"),
        (["--compare", "speed=1,2"], 2, "no engine option 'speed'"),
        (["--compare", "threads=0,2"], 2, "0 is out of range"),
        (["--compare", "speculate=on,off"], 2, "'on' is not possible"),
        (["--shape", "v4"], 3, "no shape called 'v4'"),
        (["--shape", "moonlight", "--context", "8193"], 8, "8,193 is beyond what moonlight was made for"),
        (["--shape", "moonlight", "--depths", "8k"], 2, "exceed the context of 8,192"),
        (["diff", "a.json"], 2, "diff compares two records"),
        (["diff", "a.json", "b.json"], 3, "there is no file a.json"),
        (["diff", "a.json", "b.json", "--json", "c.json"], 2, "takes no options, so not --json"),
        (["diff", "a.json", "b.json", "--markdown"], 2, "takes no options, so not --markdown"),
        (["diff", "a.json", "b.json", "--compare", "threads=1,2"], 2, "takes no options, so not --compare"),
        (["diff", "a.json", "b.json", "--prompt-tokens", "8"], 2, "takes no options, so not --prompt-tokens"),
        (["diff", "a.json", "b.json", "--replay"], 2, "takes no options, so not --replay"),
        (["--replay", "--repeats", "2"], 2, "--json only, not --repeats"),
        (["--replay", "--plot", "speed.svg"], 2, "--json only, not --plot"),
        (["--json", "-"], 2, "--json takes a file, not -"),
        (["--json", "V2-Lite"], 2, "--json takes a file, and V2-Lite is a model"),
        (["--json", "."], 2, "--json takes a file, and . is a folder"),
    ],
)
def test_bench_refuses_what_makes_no_sense_before_it_measures(
    bench, localr1_command, tmp_path, monkeypatch, arguments, status, words
):
    monkeypatch.chdir(tmp_path)
    outcome = localr1_command("bench", *arguments)
    assert outcome.status == status
    assert words in outcome.err
    assert bench == []


def test_bench_diff_compares_two_records(bench, localr1_command, tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    localr1_command("bench", "--json", str(a))
    b.write_text(a.read_text().replace("21.4", "31.4").replace("20.9", "30.9").replace("21.8", "31.8"))
    outcome = localr1_command("bench", "diff", str(a), str(b))
    assert outcome.status == 0
    (line,) = [line for line in outcome.out.splitlines() if "decode 32" in line]
    assert "1.47x" in line and line.endswith("better")
    b.write_text("{}")
    assert localr1_command("bench", "diff", str(a), str(b)).status == 7


def test_bench_draws_a_picture(bench, localr1_command, tmp_path):
    file = tmp_path / "speed.svg"
    assert localr1_command("bench", "--plot", str(file)).status == 0
    assert "<svg" in file.read_text(encoding="utf-8")


def test_bench_measures_nothing_that_it_could_not_write(bench, localr1_command, tmp_path):
    outcome = localr1_command("bench", "--json", str(tmp_path / "no" / "such.json"))
    assert outcome.status == 3
    assert bench == []


@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_bench_measures_nothing_for_a_place_that_may_not_be_written(
    bench, localr1_command, tmp_path, monkeypatch, flag
):
    old, new = tmp_path / "old.svg", tmp_path / "new.svg"
    old.touch()
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK or path not in (old, tmp_path))
    for path in (old, new):
        outcome = localr1_command("bench", flag, str(path))
        assert outcome.status == 5 and f"{path} may not be written" in outcome.err
    assert bench == []


@pytest.mark.parametrize(("kind", "status"), [(IsADirectoryError, 6), (PermissionError, 5)])
def test_bench_loses_nothing_to_a_file_that_cannot_be_written(
    bench, localr1_command, tmp_path, monkeypatch, kind, status
):
    record, picture = tmp_path / "figures.json", tmp_path / "speed.svg"

    def refuse(path, *_, **__):
        raise kind(1, "it cannot be", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    outcome = localr1_command("bench", "--json", str(record), "--plot", str(picture))
    assert outcome.status == status and f"cannot write {record}: it cannot be" in outcome.err
    assert "21.4" in outcome.out and picture.exists()


def test_bench_writes_its_record_where_stdout_has_no_room(bench, localr1_command, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("localr1.cli.bench.show_table", refuse)
    outcome = localr1_command("bench", "--json", str(tmp_path / "figures.json"))
    assert outcome.status == 6 and (tmp_path / "figures.json").exists()
