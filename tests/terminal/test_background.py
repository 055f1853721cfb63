import threading
import time

import pytest

from localr1.chat.history import Recorder, read
from localr1.errors import ContextError, LocalR1Error, UsageError
from localr1.events import AnswerText, LoadProgress, PrefillProgress, TurnEnd
from localr1.terminal.background import Background, BackgroundConversation, LeftBehind, is_anything_left_behind
from localr1.terminal.talk import Talk
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


class Stopping(FakeConversation):
    """Is stopped in the middle of a turn, and sees it when it may."""

    def __init__(self, stop, rest) -> None:
        super().__init__()
        self.may_end, self.press, self.rest = threading.Event(), stop, rest

    def ask(self, text):
        if self.may_end.is_set():
            yield from super().ask(text)
            return
        yield AnswerText("347+85: 7+")
        self.press()
        self.may_end.wait(30)
        if isinstance(self.rest, Exception):
            raise self.rest
        self.history.append((text, ""))
        yield from self.rest


def left_behind(tmp_path, rest):
    conversation = Stopping(lambda: held.stop(), rest)
    held = BackgroundConversation(conversation, Background())
    talk = Talk(held, Recorder(tmp_path, "nano", None))
    *_, end = talk.ask("q")
    assert end.reason == "interrupted" and talk.last.answer == "347+85: 7+"
    return conversation, talk


def test_what_still_comes_of_a_turn_that_was_left_behind_is_not_lost(tmp_path):
    conversation, talk = left_behind(tmp_path, [AnswerText("5="), turn_end(reason="interrupted", context_tokens=7)])
    conversation.may_end.set()
    events = list(talk.go_on())
    assert [event.text for event in events if isinstance(event, AnswerText)] == ["5=", " and so on."]
    assert talk.last.answer == "347+85: 7+5= and so on."
    assert read(talk.recorder.path).turns[0].answer == "347+85: 7+5= and so on."


def test_a_turn_that_ended_after_it_was_left_behind_is_complete(tmp_path):
    conversation, talk = left_behind(tmp_path, [AnswerText("5=12"), turn_end()])
    conversation.may_end.set()
    with pytest.raises(UsageError, match="complete"):
        list(talk.go_on())
    assert talk.last.answer == "347+85: 7+5=12" and talk.context == (41, 4096)
    assert read(talk.recorder.path).turns[0].reason == "end"


def test_a_question_that_fails_after_it_was_left_behind_leaves_no_trace(tmp_path):
    class Unread(Stopping):
        def ask(self, text):
            if text != "too long":
                yield from FakeConversation.ask(self, text)
                return
            yield PrefillProgress(0, 10)
            self.press()
            self.may_end.wait(30)
            raise ContextError("it does not fit")

    conversation = Unread(lambda: held.stop(), None)
    held = BackgroundConversation(conversation, Background())
    talk = Talk(held, Recorder(tmp_path, "nano", None))
    list(talk.ask("one"))
    list(talk.ask("too long"))
    assert [turn.question for turn in talk.turns] == ["one", "too long"]
    conversation.may_end.set()
    assert talk.undo().question == "one" and talk.turns == [] and conversation.history == []
    assert read(talk.recorder.path).turns == []


def test_a_question_that_is_stopped_before_it_could_begin_was_not_asked(tmp_path):
    conversation, talk = left_behind(tmp_path, [turn_end(reason="interrupted")])
    threading.Timer(0.1, talk.conversation.stop).start()
    with pytest.raises(LocalR1Error, match="still ending"):
        list(talk.ask("next"))
    assert [turn.question for turn in talk.turns] == ["q"]
    conversation.may_end.set()
    assert [event.text for event in talk.ask("next") if isinstance(event, AnswerText)] == ["You said 'next'."]
    assert [question for question, _ in conversation.history] == ["q", "next"]


def test_a_turn_behind_other_work_that_is_stopped_never_begins():
    background, may_end, conversation = Background(), threading.Event(), FakeConversation()

    def work():
        yield LoadProgress("one")
        may_end.wait(30)

    running = background.run(work())
    next(running)
    running.close()
    held = BackgroundConversation(conversation, background)
    threading.Timer(0.1, held.stop).start()
    with pytest.raises(LocalR1Error, match="still ending"):
        list(held.ask("q"))
    may_end.set()
    held.clear()
    assert conversation.asked == []


def test_all_else_reaches_the_conversation():
    conversation = FakeConversation()
    held = BackgroundConversation(conversation, Background())
    held.resume([("p", "b"), ("q", "a")])
    assert conversation.history == [("p", "b"), ("q", "a")] and held.undo() and not held.undo()
    held.configure("sampling", "options")
    held.clear()
    assert conversation.configured == [("sampling", "options")] and conversation.cleared == 1
    assert list(held.go_on())[-1] == turn_end()
