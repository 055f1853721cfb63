"""`localr1` with a conversation that answers by rule, so that the terminal can be tried without a model.

"count" counts until stopped and "slowly" for three seconds, "hostile" and "everything hostile" answer with escape
sequences, "fail" raises; everything else is echoed. "read" is slow to read and hears of no stop meanwhile, like a
kernel; so is loading with LOCALR1_FAKE_SLOW.
"""

import os
import re
import sys
import time
import types
from pathlib import Path

import localr1
from localr1.errors import ContextError, CorruptError
from localr1.events import AnswerText, LoadProgress, PrefillProgress, ReasoningText, ThoughtEnd, TurnEnd
from localr1.options import SamplingOptions

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.terminal.hostile import HOSTILE

ANSWER = Path(__file__).parent.parent / "terminal" / "answer.md"


class Conversation:
    def __init__(self) -> None:
        self.turns = 0
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True

    def clear(self) -> None:
        self.turns = 0

    def undo(self) -> bool:
        self.turns -= 1
        return self.turns > 0

    def resume(self, turns) -> None:
        self.turns = len(turns)

    def keep(self, path) -> int:
        path.write_text(str(self.turns))
        return 10

    def recall(self, path):
        if not path.read_text().isdecimal():
            raise CorruptError("what was kept of its cache is damaged")
        return 10 * int(path.read_text()), 30

    def context(self):
        return 10 * self.turns, 4096

    def configure(self, sampling, options) -> None:
        pass

    def sampling(self):
        return SamplingOptions(temperature=0.6, top_p=0.95, top_k=0, min_p=0.0)

    def go_on(self):
        yield AnswerText("and so on.")
        yield TurnEnd("end", 10, 10, 4, 0, 0.1, 0.1, 14, 4096)

    def ask(self, text):
        self.stopped = False
        if text == "fail":
            raise ContextError("5,000 tokens of 4,096", "start anew with /clear")
        self.turns += 1
        count = 0
        for event in self.answer(text):
            if self.stopped:
                break
            count += 1
            yield event
        reason = "interrupted" if self.stopped else "end"
        yield TurnEnd(reason, 10, 0, count, 0, 0.1, 0.1, 10 * self.turns, 4096)

    def answer(self, text):
        if text == "count":
            for number in range(1000):
                time.sleep(0.02)
                yield AnswerText(f"{number} ")
        elif text == "slowly":
            for number in range(150):
                time.sleep(0.02)
                yield AnswerText(f"{number} ")
        elif text == "think":
            for word in ["Let ", "me ", "see. "] * 20:
                time.sleep(0.01)
                yield ReasoningText(word)
            yield ThoughtEnd(60, 12.2)
            yield AnswerText("I **thought** about it.")
        elif text == "ponder":
            for number in range(300):
                time.sleep(0.01)
                yield ReasoningText(f"thought{number} " + "\n" * (number % 30 == 29))
            yield ThoughtEnd(300, 3.2)
            yield AnswerText("Pondered.")
        elif text == "markdown":
            for piece in re.findall(r"\s*\S+|\s+$", ANSWER.read_text()):
                yield AnswerText(piece)
        elif text == "read":
            yield PrefillProgress(512, 4096)
            time.sleep(3)
        elif text == "hostile":
            yield ReasoningText("\x1b]0;owned\x07")
            yield AnswerText("\x1b[?25l\x1b[31m\x1b[2J\x1b]52;c;aGk=\x07\u202eabc")
        elif text == "everything hostile":
            for hostile in HOSTILE:
                yield ReasoningText(hostile[:3000] + "\n")
            for hostile in HOSTILE:
                yield from map(AnswerText, [hostile[:7], hostile[7:2000], hostile[2000:], "\n\n"])
        else:
            yield AnswerText(f"You said {text!r}, turn {self.turns}.")


def load(model, engine, instead_of=None):
    yield LoadProgress("opening a model")
    time.sleep(float(os.environ.get("LOCALR1_FAKE_SLOW", 0)))
    return types.SimpleNamespace(
        name="echo", routing=None, foretold=None, converse=lambda sampling, options: Conversation()
    )


session = types.ModuleType("localr1.session")
session.__path__ = [str(Path(localr1.__file__).parent / "session")]  # for /plan, which is the real one
session.load = load
session.gpu_bytes = lambda: None
session.expectation = lambda model, engine, placed: "in RAM; about 20 tokens/s expected"
sys.modules["localr1.session"] = localr1.session = session

if __name__ == "__main__":
    from localr1.cli.app import main

    main()
