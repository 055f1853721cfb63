import threading
import time

import pytest

from localr1.errors import ContextError
from localr1.events import AnswerText, LoadProgress, PrefillProgress, TurnEnd
from localr1.terminal.background import Background, BackgroundConversation, LeftBehind, is_anything_left_behind
from tests.terminal.fakes import FakeConversation, turn_end


def result_of(operation):
    events = []
    while True:
        try:
            events.append(next(operation))
        except StopIteration as end:
            return events, end.value


def test_events_and_result_come_from_one_other_thread():
    def operation():
        yield LoadProgress("one")
        return threading.current_thread()

    background = Background()
    first, second = result_of(background.run(operation())), result_of(background.run(operation()))
    assert first[0] == [LoadProgress("one")]
    assert first[1] is second[1] is not threading.current_thread()
    assert background.call(threading.current_thread) is first[1]


def test_errors_come_through():
    def operation():
        yield LoadProgress("one")
        raise ContextError("too long")

    with pytest.raises(ContextError, match="too long"):
        result_of(Background().run(operation()))
    with pytest.raises(ZeroDivisionError):
        Background().call(lambda: 1 / 0)


def test_what_does_not_stop_is_left_behind_and_ends_before_anything_else():
    may_end, closed = threading.Event(), []

    def operation():
        try:
            yield LoadProgress("one")
            may_end.wait(30)
            yield LoadProgress("two")
        finally:
            closed.append(True)

    background = Background()
    running = background.run(operation())
    next(running)
    background.hurry()
    with pytest.raises(LeftBehind):
        next(running)
    assert is_anything_left_behind() and not closed
    may_end.set()
    assert background.call(lambda: list(closed)) == [True]
    while is_anything_left_behind():
        time.sleep(0.001)


def test_what_ends_soon_after_a_stop_tells_its_own_end():
    conversation = FakeConversation({"q": [AnswerText(str(number)) for number in range(1000)]})
    held = BackgroundConversation(conversation, Background())
    conversation.before_piece = lambda piece: held.stop() if piece == 2 else None
    events = list(held.ask("q"))
    assert events[-1] == turn_end(reason="interrupted", generated_tokens=2)


def test_a_turn_that_was_left_behind_ends_with_what_was_seen_of_it():
    may_end = threading.Event()

    class Slow(FakeConversation):
        def ask(self, text):
            yield PrefillProgress(10, 30)
            yield AnswerText("a")
            held.stop()
            may_end.wait(30)

    held = BackgroundConversation(Slow(), Background())
    *_, end = held.ask("q")
    assert isinstance(end, TurnEnd)
    assert (end.reason, end.prompt_tokens, end.generated_tokens) == ("interrupted", 30, 1)
    assert end.context_limit_tokens == 0
    may_end.set()
    held.clear()


def test_all_else_reaches_the_conversation():
    conversation = FakeConversation()
    held = BackgroundConversation(conversation, Background())
    held.resume([("q", "a")])
    assert conversation.history == [("q", "a")] and held.undo()
    held.configure("sampling", "options")
    held.clear()
    assert conversation.configured == [("sampling", "options")] and conversation.cleared == 1
    assert list(held.go_on())[-1] == turn_end()
