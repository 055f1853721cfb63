from localr1.options import TerminalOptions
from localr1.terminal.rich_view import RichView
from tests.terminal.fakes import environment, out


def test_a_clock_that_ticks_seldom_makes_no_drawing_dear(monkeypatch):
    now_s, worked_s = [10.0], [0.0]

    def work() -> float:
        worked_s[0] += 0.015625  # Windows counts a thread's work so
        return worked_s[0]

    monkeypatch.setattr("time.perf_counter", lambda: 3.0)
    shown = environment(tty="o")
    view = RichView(shown, TerminalOptions(), clock=lambda: now_s[0], cpu=work)
    view.answer("one")
    now_s[0] += 0.06
    view.answer(" two")
    assert "two" in out(shown)


def test_a_drawing_that_took_work_is_followed_by_a_pause(monkeypatch):
    now_s, worked_s = [10.0], [0.0]

    def work() -> float:
        worked_s[0] += 0.1
        return worked_s[0]

    monkeypatch.setattr("time.perf_counter", work)
    shown = environment(tty="o")
    view = RichView(shown, TerminalOptions(), clock=lambda: now_s[0], cpu=work)
    view.answer("one")
    now_s[0] += 1.9
    view.answer(" two")
    assert "two" not in out(shown)
    now_s[0] += 4.0
    view.answer(" three")
    assert "two three" in out(shown)
