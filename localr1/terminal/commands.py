"""The slash commands.

Owns what each is called, what it says of itself and what it does to the conversation, through `Repl` and `Talk`.
Invariant: a command returns whether to leave; what it cannot do it says with a LocalR1Error and changes nothing.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from localr1.chat.history import Recorder, ids
from localr1.errors import UnsupportedError, UsageError, meant
from localr1.options import ConversationOptions, SamplingOptions, TerminalOptions
from localr1.quantities import count_text, rate_text, seconds_text
from localr1.terminal import archive
from localr1.terminal.repl import Repl
from localr1.terminal.settings import read_value

_SETTABLE: Mapping[str, type] = {
    **{field.name: SamplingOptions for field in dataclasses.fields(SamplingOptions)},
    "think_budget": ConversationOptions,
    "context_policy": ConversationOptions,
}
_LEFT_OPEN = {"seed": "another every time", "max_tokens": "no limit", "think_budget": "no limit"}
_THOUGHTS = ("show", "fold", "hide")
_SHORTEST_MEANING = 40
_OTHER_NAMES = {"": "help", "?": "help", "quit": "exit", "bye": "exit", "q": "exit"}
"""What people are used to from other programs."""


@dataclass(frozen=True)
class Command:
    """A slash command: what /help says of it, what it takes, and what it does; it returns True to leave."""

    help: str
    action: Callable[[Repl, str], bool | None]
    takes: str = ""

    def run(self, repl: Repl, text: str) -> bool:
        if text and not self.takes:
            name = next(name for name, command in COMMANDS.items() if command is self)
            raise UsageError(f"/{name} takes nothing after it, got {text!r}")
        return bool(self.action(repl, text))


def find_command(name: str) -> Command:
    """UsageError, naming the nearest command, when there is none of this name."""
    name = _OTHER_NAMES.get(name, name)
    if name in COMMANDS:
        return COMMANDS[name]
    raise UsageError(
        f"unknown command /{name}", meant(name, COMMANDS, "/help lists the commands that there are", before="/")
    )


def arguments_of(repl: Repl, name: str) -> Iterable[str]:
    """What may follow a command, for completion."""
    if name == "help":
        return COMMANDS
    if name in ("model", "plan", "bench"):
        return repl.host.models()
    if name == "set":
        return _SETTABLE
    if name == "think":
        return ("on", "off", "auto")
    if name == "thoughts":
        return _THOUGHTS
    if name == "load" and repl.host.folder is not None:
        return ids(repl.host.folder)[: archive.MOST_LISTED]
    return ()


def _help(repl: Repl, text: str) -> None:
    asked = find_command(text.removeprefix("/").lower()) if text else None
    rows = [(f"/{name} {each.takes}".strip(), each.help) for name, each in COMMANDS.items() if asked in (None, each)]
    rows += [] if asked else _keys(repl)
    width = max(len(name) for name, _ in rows)
    for name, meaning in rows:
        if repl.environment.width > width + _SHORTEST_MEANING:
            repl.environment.status(f"  {name:<{width}} {meaning}")
        else:
            repl.environment.status(name)
            repl.say(f"  {meaning}")


def _keys(repl: Repl) -> list[tuple[str, str]]:
    """Those that there are here, with what they do."""
    if repl.by_line:
        return [(name, KEYS[name]) for name in PLAIN_KEYS]
    keys = dict(KEYS)
    named = any(repl.environment.variables.get(name) for name in ("VISUAL", "EDITOR"))
    if not named and not any(Path(editor).exists() for editor in EDITORS):
        del keys[EDIT_KEY]
    if sys.platform == "win32":  # whose terminals fill the screen upon Alt-Enter
        keys = {"Esc, Enter or Alt-Enter": keys.pop("Alt-Enter"), **keys}
    return list(keys.items())


def _model(repl: Repl, text: str) -> None:
    if not text:
        repl.say(f"This is {repl.host.model}. Another: /model NAME; /models lists those that are here.")
        return
    if repl.host.open_model is None:
        raise UnsupportedError("the model cannot be changed here", "start anew: localr1 chat MODEL")
    try:
        repl.host.model, conversation = repl.host.open_model(text, repl.settings)
    except KeyboardInterrupt:
        repl.say(f"Stopped; this is still {repl.host.model}.")
        return
    repl.talk.move_to(conversation, repl.host.model)
    repl.say(f"Now {repl.host.model}; the conversation goes on.")


def _models(repl: Repl, text: str) -> None:
    for name in repl.host.models():
        repl.environment.status(f"{'*' if name == repl.host.model else ' '} {name}")
    repl.say("More: localr1 models, localr1 download NAME")


def _system(repl: Repl, text: str) -> None:
    if not text:
        system = repl.settings.conversation.system
        repl.say(f"System prompt: {system}" if system else "There is no system prompt. /system TEXT sets one.")
        return
    system = None if text.lower() in ("none", '""') else text
    repl.configure(conversation=dataclasses.replace(repl.settings.conversation, system=system))
    repl.talk.set_system(system)
    repl.say("The system prompt is changed." if system else "There is no system prompt any more.")


def _set(repl: Repl, text: str) -> None:
    name, _, value = text.partition(" ")
    if not name:
        for each, record in _SETTABLE.items():
            repl.environment.status(f"  {each:<14} {_value_text(repl, record, each)}")
        return
    name = name.replace("-", "_").lower()
    if name not in _SETTABLE:
        raise UsageError(f"there is no setting {name}", meant(name, _SETTABLE, "/set lists them"))
    record = _SETTABLE[name]
    if not value.strip():
        raise UsageError(f"/set {name} needs a value", f"for example /set {name} default")
    changed = read_value(record, name, value.strip())
    if record is SamplingOptions:
        repl.configure(sampling=dataclasses.replace(repl.settings.sampling, **{name: changed}))
    else:
        repl.configure(conversation=dataclasses.replace(repl.settings.conversation, **{name: changed}))
    repl.say(f"{name} from now on: {_value_text(repl, record, name)}")


def _value_text(repl: Repl, record: type, name: str) -> str:
    """`0.5`; `0.6, the model's own`; `no limit`."""
    value = getattr(_in_force(repl, record), name)
    if value is not None:
        return str(value)
    own = getattr(repl.talk.conversation.sampling(), name, None)
    return _LEFT_OPEN[name] if own is None else f"{own:g}, the model's own"


def _in_force(repl: Repl, record: type) -> SamplingOptions | ConversationOptions:
    return repl.settings.sampling if record is SamplingOptions else repl.settings.conversation


def _think(repl: Repl, text: str) -> None:
    if text:
        think = read_value(ConversationOptions, "think", text)
        repl.configure(conversation=dataclasses.replace(repl.settings.conversation, think=think))
    words = {None: "left to the model", True: "on", False: "off"}
    repl.say(f"Thinking is {words[repl.settings.conversation.think]}; some models leave no choice.")


def _thoughts(repl: Repl, text: str) -> None:
    if text:
        mode = read_value(TerminalOptions, "thoughts", text)
        repl.settings.terminal = dataclasses.replace(repl.settings.terminal, thoughts=mode)
        repl.say(f"Thoughts: {mode}.")
        return
    thought = repl.talk.last.thought.strip()
    if not thought:
        raise UsageError("the last answer came without thoughts", "/thoughts show|fold|hide says how to show them")
    for line in thought.split("\n"):
        repl.say(line)


def _retry(repl: Repl, text: str) -> None:
    repl.show(repl.talk.retry())


def _edit(repl: Repl, text: str) -> None:
    repl.beginning = repl.talk.undo().question
    again = "type it anew as it should be" if repl.by_line else "change the message and send it again"
    repl.say(f"The last turn is taken back; {again}.")


def _undo(repl: Repl, text: str) -> None:
    question = repl.talk.undo().question.strip().partition("\n")[0]
    repl.say(f"Taken back: {question}")


def _continue(repl: Repl, text: str) -> None:
    repl.show(repl.talk.go_on())


def _clear(repl: Repl, text: str) -> None:
    talk, recorder = repl.talk, repl.talk.recorder
    talk.settle()
    repl.attachments.clear()
    if recorder is not None and repl.host.folder is not None:
        talk.keep()
        talk.close()
        talk.recorder = Recorder(repl.host.folder, repl.host.model, repl.settings.conversation.system)
    kept = f" It is kept as {recorder.id}." if recorder is not None and recorder.id and talk.turns else ""
    talk.clear()
    repl.say(f"The conversation is forgotten.{kept}")


def _stats(repl: Repl, text: str) -> None:
    ends = repl.talk.ends
    if not ends:
        raise UsageError("there are no figures of this conversation yet", "type a message first")
    tokens, decode_s = sum(end.generated_tokens for end in ends), sum(end.decode_s for end in ends)
    steps, accepted = sum(end.steps for end in ends), sum(end.accepted_tokens for end in ends)
    last, (taken, limit) = ends[-1], repl.talk.context
    rows = [
        ("model", repl.host.model),
        ("turns", str(len(repl.talk.turns))),
        ("answered", f"{count_text(tokens, 'token')} in {seconds_text(decode_s)}"),
        ("thoughts", count_text(sum(end.reasoning_tokens for end in ends), "token")),
        ("speed", rate_text(max(tokens - len(ends), 0) / decode_s) if decode_s else "-"),
        ("reading", rate_text(last.prefill_tokens_per_s) if last.prefill_tokens_per_s else "-"),
        ("guessing", f"{(steps + accepted) / steps:.1f} tokens a step" if steps else "-"),
        ("context", f"{taken:,} of {limit:,} tokens" if limit else "-"),
    ]
    for name, value in rows:
        repl.environment.status(f"  {name:<9} {value}")


def _plan(repl: Repl, text: str) -> None:
    _tool(repl, "plan", text)


def _bench(repl: Repl, text: str) -> None:
    _tool(repl, "bench", text)


def _tool(repl: Repl, name: str, text: str) -> None:
    if name not in repl.host.tools:
        raise UnsupportedError(f"/{name} cannot be done here", f"in a shell: localr1 {name} MODEL")
    repl.host.tools[name](text or repl.host.model)


def _exit(repl: Repl, text: str) -> bool:
    return True


COMMANDS: Mapping[str, Command] = {
    "help": Command("Show the commands and keys, or one of them.", _help, "[COMMAND]"),
    "model": Command("Go on with another model.", _model, "[NAME]"),
    "models": Command("List the models that are here.", _models),
    "system": Command("Show or set the system prompt.", _system, "[TEXT|none]"),
    "set": Command("Show or change how tokens are chosen.", _set, "[NAME VALUE]"),
    "think": Command("Whether to think before answering.", _think, "[on|off|auto]"),
    "thoughts": Command("Show the last thoughts, or say how to show them.", _thoughts, "[show|fold|hide]"),
    "retry": Command("Answer the last message again.", _retry),
    "edit": Command("Take the last message back and change it.", _edit),
    "undo": Command("Take the last turn back.", _undo),
    "continue": Command("Go on with an answer that was stopped.", _continue),
    "clear": Command("Forget the conversation and start anew.", _clear),
    "read": Command("Put a text file into the next message.", archive.read, "FILE [MESSAGE]"),
    "copy": Command("Copy the last answer, or its N-th piece of code.", archive.copy, "[N]"),
    "save": Command("Say where the conversation is saved.", archive.save),
    "load": Command("Go on with a saved conversation.", archive.load, "[ID]"),
    "export": Command("Write the conversation to a .md or .json file.", archive.export, "FILE"),
    "history": Command("List or search the saved conversations.", archive.history, "[WORDS]"),
    "stats": Command("Show this conversation's figures.", _stats),
    "plan": Command("Show where a model's parts go, and how fast it is.", _plan, "[MODEL]"),
    "bench": Command("Measure a model on this computer.", _bench, "[MODEL]"),
    "exit": Command("Leave.", _exit),
}

PLAIN_KEYS = ('"""', "Ctrl-C", "Ctrl-D")
"""Those that there are where messages are read line by line."""

EDIT_KEY = "Ctrl-X Ctrl-E"
EDITORS = [f"/usr/bin/{name}" for name in ("editor", "nano", "pico", "vi", "emacs")]
"""What prompt_toolkit looks for where the variables VISUAL and EDITOR name none."""

KEYS = {
    "Alt-Enter": "Start another line of the same message.",
    '"""': "Begin and end a message of several lines.",
    "Ctrl-R": "Search the messages before; Enter takes one.",
    EDIT_KEY: "Write the message in your editor.",
    "Ctrl-C": "Stop the answer, or clear the line; again, leave.",
    "Ctrl-D": "Leave.",
}
