"""`localr1 chat`: one question answered, or a conversation at the terminal.

Owns the decision what the words after `chat` mean (`split_words`) and whether a person or a pipe is at the other end.
"""

import difflib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localr1.cli.start import load
from localr1.cli.usage import check_text
from localr1.errors import ContextError, ExitStatus, LocalR1Error, NotFoundError, UsageError
from localr1.events import TurnEnd
from localr1.options import (
    BenchOptions,
    ChatOptions,
    ConversationOptions,
    EngineOptions,
    PlanOptions,
    SamplingOptions,
    TerminalOptions,
)
from localr1.terminal.background import Background, BackgroundConversation
from localr1.terminal.environment import Environment
from localr1.terminal.keyboard import unechoed
from localr1.terminal.progress import follow, open_display
from localr1.terminal.visible import visible

if TYPE_CHECKING:
    from localr1.chat.history import Saved
    from localr1.session import Engine
    from localr1.terminal.repl import Host, Settings
    from localr1.terminal.talk import Conversation, Talk

_NEAR = 0.75
_BEGINNING = 5
_PATH = re.compile(r"[\w.~-]*(/[\w.-]+)*/[\w.-]*[a-z][\w.-]*/?(@\S+)?", re.ASCII | re.IGNORECASE)
"""`org/repo` or a folder's name, which a sum like 12/4 is not."""
_SIZE = re.compile(r"-\d+(\.\d+)?[bm]$")
"""How names of models end, and no other words: -7b, -1.5b, -135m."""


def run(
    environment: Environment,
    chat: ChatOptions,
    options: ConversationOptions,
    terminal: TerminalOptions,
    sampling: SamplingOptions,
    engine: EngineOptions,
) -> ExitStatus:
    """Talk with a model, or ask it one question.

    At a terminal and without a question this is a conversation. With a question, or with text on stdin, it answers
    and leaves; in a pipe only the answer goes to stdout.

    - `localr1 chat`
    - `localr1 chat "What is 347 + 85?"`
    - `localr1 chat "Summarise this" < notes.txt > summary.txt`
    - `localr1 chat --json-schema person.json "Who wrote Faust?" > author.json`
    - `localr1 chat --resume`
    """
    from localr1.hub.cache import home
    from localr1.terminal.repl import Settings

    environment = replace(environment, plain=terminal.plain)
    words = [word for word in (chat.model, *chat.prompt) if word is not None]
    folder = home() / "conversations"
    if chat.list:
        return _list(environment, folder, " ".join(words))
    resumed, words = _resumed(folder, words) if chat.resume else (None, words)
    model, asked = split_words(words)
    question = "\n\n".join(part for part in (asked, environment.read_piped()) if part.strip())
    _check(environment, chat, options, question)
    if resumed is not None:
        model = model or resumed.model or None
        options = replace(options, system=resumed.system if options.system is None else options.system)

    with unechoed(environment.stdin):
        request = _Request(model, question, resumed, chat.json)
        return _talk(environment, folder, request, Settings(sampling, options, terminal), engine)


@dataclass(frozen=True)
class _Request:
    """What the words of the command line ask for; `question` "" is a conversation."""

    model: str | None
    question: str
    resumed: "Saved | None"
    json: bool


def _talk(
    environment: Environment, folder: Path, request: _Request, settings: "Settings", engine: EngineOptions
) -> ExitStatus:
    from localr1.chat.history import Recorder
    from localr1.terminal.repl import Repl, answer
    from localr1.terminal.talk import Talk

    background, question, resumed = Background(), request.question, request.resumed
    options, terminal = settings.conversation, settings.terminal
    loaded = follow(environment, background.run(load(request.model, engine, foretell=not question)))
    conversation = _converse(background, loaded, settings)
    recorder = None
    if terminal.save and (resumed is not None or not question):
        recorder = Recorder(folder, loaded.name, options.system, resumed)
    talk = Talk(conversation, recorder, resumed.turns if resumed else None)
    if resumed is not None:
        talk.recall(resumed.path)
    if request.json:
        return _status(_answer_json(environment, talk, question, loaded.name), options)
    if question:
        if resumed is not None:
            environment.status(f"Going on with {resumed.id}: {visible(resumed.title)}", "dim")
        end = answer(environment, conversation.stop, talk.ask(question), terminal)
        talk.keep()
        talk.close()
        return _status(end, options)
    host = _host(environment, background, loaded, engine, folder)
    del loaded, conversation  # the talk has them, until it goes on with another model
    if not terminal.save:
        host.history_file = None
    Repl(environment, talk, settings, host).run()
    return ExitStatus.OK


def _check(environment: Environment, chat: ChatOptions, options: ConversationOptions, question: str) -> None:
    """What can be refused before anything slow begins."""
    check_text(question, "the question")
    if not question and (chat.json or not environment.interactive):
        raise UsageError("there is nothing to ask", 'give a question: localr1 chat "What is 347 + 85?"')
    if options.json_schema is not None or options.grammar is not None:
        from localr1.chat.structure import read_structure

        read_structure(options.json_schema, options.grammar)


def _status(end: TurnEnd | None, options: ConversationOptions) -> ExitStatus:
    """Raises LocalR1Error for an answer that was to have a form and was cut before it had it."""
    if end is not None and (options.json_schema or options.grammar):
        if end.reason == "context":
            raise ContextError("the context was full before the answer had its form", "raise --context")
        if end.reason == "max_tokens":
            raise LocalR1Error("the answer was cut before it had its form", "raise --max-tokens")
    reasons = {"interrupted": ExitStatus.INTERRUPTED, "context": ExitStatus.CONTEXT}
    return reasons.get(end.reason, ExitStatus.OK) if end is not None else ExitStatus.OK


def _converse(background: Background, engine: "Engine", settings: "Settings") -> "Conversation":
    if engine.routing is not None:
        engine.routing.kept = settings.terminal.save  # routes tell much of what was said
    conversation = background.call(lambda: engine.converse(settings.sampling, settings.conversation))
    return BackgroundConversation(conversation, background)


def _host(
    environment: Environment, background: Background, loaded: "Engine", engine: EngineOptions, folder: Path
) -> "Host":
    from localr1.hub.cache import source_of, stores
    from localr1.hub.catalog import CATALOG
    from localr1.terminal.repl import Host

    def open_model(name: str, settings: "Settings") -> "tuple[str, Conversation]":
        nonlocal loaded
        source_of(name)
        new = follow(environment, background.run(load(name, engine, loaded)))
        conversation = _converse(background, new, settings)
        loaded = new
        return loaded.name, conversation

    def models() -> list[str]:
        built_in = [name for name, entry in CATALOG.items() if entry.repo_id is None]
        return [*built_in, *(store.name for store in stores())]

    def plan(name: str) -> None:
        from localr1.cli import plan as command

        command.run(environment, PlanOptions(name), engine)

    def bench(name: str) -> None:
        from localr1.cli import bench as command

        command.run(environment, BenchOptions((name,)), engine)

    def alone(tool: Callable[[str], None]) -> Callable[[str], None]:
        """With nothing else at work; Ctrl-C brings the prompt back."""

        def run_tool(name: str) -> None:
            background.call(lambda: None)
            tool(name)

        return run_tool

    from localr1 import session

    tools = {"plan": alone(plan), "bench": alone(bench)}
    history_file = folder.parent / "history"
    return Host(loaded.name, models, open_model, folder, history_file, tools, background.tell, session.gpu_bytes)


def _answer_json(environment: Environment, talk: "Talk", question: str, model: str) -> TurnEnd | None:
    """One record on stdout: what was asked, thought and answered, and the figures."""
    from localr1.terminal.talk import stopped_by_ctrl_c

    display = open_display(environment)
    end: TurnEnd | None = None
    with stopped_by_ctrl_c(talk.conversation.stop):
        for event in talk.ask(question):
            if isinstance(event, TurnEnd):
                end = event
            else:
                display.show(event)
    display.close()
    talk.keep()
    talk.close()
    record = {
        "model": model,
        "question": question,
        "thoughts": talk.last.thought.strip(),
        "answer": talk.last.answer.strip(),
        "reason": end.reason if end else "",
        "statistics": {name: value for name, value in asdict(end).items() if name != "reason"} if end else {},
    }
    environment.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
    return end


def _resumed(folder: Path, words: list[str]) -> "tuple[Saved, list[str]]":
    """The conversation that the first word names, else the one used last, and the words that are left."""
    from localr1.chat.history import find, latest

    if words:
        alone = len(words) == 1 or any(" " in word for word in words[1:])
        try:
            saved = find(folder, words[0])
            if alone or saved.id == words[0].lower():  # a short word may be the beginning of an ID by chance
                return saved, words[1:]
        except NotFoundError:
            if alone and " " not in words[0] and not _looks_like_model(words[0]):
                raise
    return latest(folder), words


def _list(environment: Environment, folder: Path, words: str) -> ExitStatus:
    """ID, day, turns, model and first line of each, newest first."""
    from rich.cells import set_cell_size

    from localr1.chat.history import listing

    found = listing(folder, words)
    for saved in found:
        title = visible(saved.title)
        row = f"{saved.id}  {saved.created[:10]}  {len(saved.turns):>3}  {visible(saved.model)}  {title}"
        if environment.stdout.isatty():
            row = set_cell_size(row, environment.size()[0] - 1)
        environment.stdout.write(row.rstrip() + "\n")
    if not found:
        environment.status(f"No saved conversation holds {words!r}." if words else "No conversation is saved yet.")
    elif environment.stdout.isatty():
        environment.status("Go on with one: localr1 chat --resume ID", "dim")
    return ExitStatus.OK


def split_words(words: Sequence[str]) -> tuple[str | None, str]:
    """What the words after `chat` are: (model or None for the default one, question or "").

    The first word is taken for a model when it holds no spaces and is a short name of the catalog, nearly one or the
    beginning of one, ends in a model's size (-7b), is written like a path or org/repo, or is a folder that holds a
    model. Everything else is the question, its words joined by spaces; so a question within quotes is never taken for
    a model.

    >>> split_words(["r1", "Why", "so?"])
    ('r1', 'Why so?')
    >>> split_words(["What is 347 + 85?"])
    (None, 'What is 347 + 85?')

    NotFoundError, naming the nearest, when the first word was taken for a model and is none.
    """
    from localr1.hub.cache import source_of

    if not words or not _looks_like_model(words[0]):
        return None, " ".join(words)
    source_of(words[0])
    return words[0], " ".join(words[1:])


def _looks_like_model(word: str) -> bool:
    from localr1.hub.catalog import CATALOG
    from localr1.terminal.files import is_there

    if not word or any(character.isspace() for character in word):
        return False
    name = word.lower().partition("@")[0]
    return (
        bool(difflib.get_close_matches(name, CATALOG, n=1, cutoff=_NEAR))
        or (len(name) >= _BEGINNING and any(known.startswith(name) for known in CATALOG))
        or _SIZE.search(name) is not None
        or _PATH.fullmatch(word) is not None
        or (os.sep != "/" and os.sep in word)
        or ("/" in word and is_there(Path(word)))
        or any(is_there(Path(word) / file) for file in ("config.json", "manifest.json"))
    )
