import json

from localr1.events import DiskNeed, DownloadPlan, FetchProgress, LoadProgress, Notice, QuantizeProgress
from localr1.terminal.environment import Environment
from localr1.terminal.progress import follow
from localr1.terminal.transfer import Speed, TransferBars, TransferLines, open_transfer_display, plan_lines
from tests.terminal.fakes import environment, err, out
from tests.terminal.test_progress import screen_of

MB = 1_000_000
PLAN = DownloadPlan(
    "org/model", "a" * 40, 6, 30_000 * MB, 31_000 * MB, 15_700 * MB, (DiskNeed("/data", 25_000 * MB, 70_000 * MB),),
    "mit", "manual", False, ("about 20 tokens/s here",),
)  # fmt: skip


def fetch(file: str, done: int, total_done: int) -> FetchProgress:
    return FetchProgress(file, done * MB, 100 * MB, total_done * MB, 200 * MB)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_plan_says_what_how_large_where_and_under_which_licence():
    text = "\n".join(plan_lines(PLAN))
    files = (
        "org/model at aaaaaaaaaaaa: 6 files",
        "30.0 GB to fetch (of 31.0 GB",
        "15.7 GB",
        "go as they are converted",
    )
    disk = ("needs about 25.0 GB", "70.0 GB free (/data)")
    for words in (*files, *disk, "Licence: mit", "hf auth login", "20 tokens/s"):
        assert words in text


def test_the_speed_is_that_of_the_last_seconds():
    clock = Clock()
    speed = Speed(clock)
    assert speed.bytes_per_s == 0
    speed.add(0)
    clock.now_s = 0.001
    speed.add(64_000)
    assert speed.bytes_per_s == 0  # too soon to tell
    speed = Speed(clock)
    for second in range(60):
        clock.now_s = float(second)
        speed.add(1000 * second if second < 30 else 30_000)
    assert speed.bytes_per_s == 0  # it has stalled for longer than is looked back
    clock.now_s = 60.0
    speed.add(60_000)
    assert 1900 < speed.bytes_per_s < 2100


def test_a_log_gets_a_line_now_and_then_with_speed_and_time_left():
    clock, shown = Clock(), environment()
    display = TransferLines(shown, clock)
    for second in range(11):
        clock.now_s = float(second)
        display.show(fetch("a", second * 5, second * 10))
        display.show(QuantizeProgress("t", second, 40, second, 40))
    lines = err(shown).splitlines()
    assert len(lines) == 3
    assert lines[-1] == "Fetching: 100.0 MB of 200.0 MB, 10.0 MB/s, 10 s left; Quantizing: 9 of 40 tensors"


def test_the_end_is_a_line_for_each_part_and_counts_only_what_came_now():
    clock, shown = Clock(), environment()
    display = TransferLines(shown, clock)
    display.show(fetch("a", 50, 150))
    clock.now_s = 4.0
    display.show(fetch("a", 100, 200))
    display.show(QuantizeProgress("t", 40, 40, 40, 40))
    display.close()
    assert err(shown).splitlines()[-2:] == ["Fetched 50.0 MB in 4.0 s", "Quantized 40 tensors, done after 4.0 s"]


def test_bars_for_the_whole_each_file_and_the_quantizing_and_nothing_left_of_them():
    shown, clock = environment(tty="e", TERM="xterm"), Clock()
    display = TransferBars(shown, clock)
    display.show(fetch("one[red].safetensors", 20, 20))
    display.show(fetch("two\x1b[2J", 30, 50))
    display.show(QuantizeProgress("t", 3, 40, 3, 40))
    display._bars.refresh()
    drawn = "\n".join(screen_of(err(shown)))
    for words in ("Fetching", "50.0 MB of 200.0 MB", "one[red].safeten", "20.0 MB of 100.0 MB", "two␛[2J", "3 of 40"):
        assert words in drawn
    display.show(fetch("one[red].safetensors", 100, 130))
    display._bars.refresh()
    assert "one[red]" not in "\n".join(screen_of(err(shown)))
    clock.now_s = 10.0
    display.show(QuantizeProgress("t", 4, 40, 4, 40))
    display._bars.refresh()
    assert "two" not in "\n".join(screen_of(err(shown)))  # it does not move: it waits for its turn
    display.show(Notice("trying again"))
    display.close()
    assert screen_of(err(shown)) == ["trying again"]


def test_a_narrow_window_has_names_and_shares_in_place_of_bars(monkeypatch):
    monkeypatch.setattr(Environment, "width", 40)
    shown, clock = environment(tty="e", TERM="xterm"), Clock()
    display = TransferBars(shown, clock)
    display.show(fetch("model-00001-of-00005.safetensors", 0, 0))
    clock.now_s = 2.0
    display.show(fetch("model-00001-of-00005.safetensors", 20, 50))
    display._bars.refresh()
    drawn = screen_of(err(shown))
    assert [line.split() for line in drawn] == [
        ["Fetching", "25", "%,", "6.0", "s", "left"],
        ["model-00001-of-00005", "20", "%"],
    ]
    display.close()


def test_json_is_one_object_a_line_on_stdout():
    shown = environment(tty="e", TERM="xterm")

    def operation():
        yield PLAN
        yield fetch("a", 100, 200)
        yield LoadProgress("checking what was converted before", 1, 2)
        return 1

    assert follow(shown, operation(), display=open_transfer_display(shown, as_json=True)) == 1
    records = [json.loads(line) for line in out(shown).splitlines()]
    assert [record["event"] for record in records] == ["DownloadPlan", "FetchProgress", "LoadProgress"]
    assert records[0]["disks"][0]["needed_bytes"] == 25_000 * MB
    assert err(shown) == ""


def test_quiet_says_nothing():
    shown = environment(tty="e", TERM="xterm")
    display = open_transfer_display(shown, quiet=True)
    display.show(fetch("a", 1, 1))
    display.show(Notice("x"))
    display.close()
    assert err(shown) == out(shown) == ""
