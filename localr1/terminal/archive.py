"""The slash commands that deal with files: what is read into a message, copied, saved, loaded and exported.

Owns what they do; their names and help are in `commands`. Invariant: what a command cannot do it says with a
LocalR1Error and changes nothing.
"""

import dataclasses
from contextlib import suppress

from localr1.chat.history import Recorder, find, listing
from localr1.errors import DiskError, UnsupportedError, UsageError
from localr1.quantities import count_text
from localr1.terminal.blocks import code_blocks
from localr1.terminal.clipboard import copy as copy_text
from localr1.terminal.files import is_there, read_attachment, typed_path
from localr1.terminal.repl import Repl
from localr1.terminal.talk import as_json, as_markdown
from localr1.terminal.visible import visible

MOST_LISTED = 20


def read(repl: Repl, text: str) -> None:
    """A file's text goes into the next message."""
    if not text:
        raise UsageError("/read needs a file", "for example /read notes.txt What is missing?")
    name, question = _file_and_question(text)
    attachment = read_attachment(typed_path(name))
    for note in attachment.notes:
        repl.say(f"{attachment.name}: {note}.")
    repl.attachments.append(attachment)
    if question:
        repl.ask(question)
    else:
        repl.say(f"{attachment.name}, {count_text(len(attachment.text), 'character')}, goes with the next message.")


def _file_and_question(text: str) -> tuple[str, str]:
    """A file's name may hold spaces if it is all there is, or stands within quotation marks."""
    if is_there(typed_path(text)):
        return text, ""
    if text[0] in "\"'":
        name, _, question = text[1:].partition(text[0])
        return name, question.strip()
    name, _, question = text.partition(" ")
    return name, question.strip()


def copy(repl: Repl, text: str) -> None:
    """The last answer, or a piece of its code, to the clipboard."""
    answer = repl.talk.last.answer.strip()
    if not answer:
        raise UsageError("the last answer holds nothing yet", "/continue goes on with it, /retry answers again")
    if text:
        blocks = code_blocks(answer)
        if not text.isdecimal() or not 1 <= int(text) <= len(blocks):
            there = f"it has {count_text(len(blocks), 'piece')} of code" if blocks else "it has no code"
            raise UsageError(
                f"there is no piece of code {text} in the last answer", f"{there}; /copy alone copies the whole answer"
            )
        answer = blocks[int(text) - 1]
    way = copy_text(repl.environment, answer)
    if way is None:
        raise UnsupportedError("there is no way to the clipboard here", "/export FILE.md writes a file instead")
    repl.say(f"Copied {count_text(len(answer), 'character')} {way}.")


def save(repl: Repl, text: str) -> None:
    """Where the conversation is kept; from now on, if it was not."""
    talk = repl.talk
    if talk.recorder is None or talk.recorder.failed:
        if repl.host.folder is None:
            raise UnsupportedError("conversations are not saved here")
        recorder = Recorder(repl.host.folder, repl.host.model, repl.settings.conversation.system)
        for turn in talk.turns:
            recorder.turn(turn)
        talk.recorder = recorder
    if not talk.recorder.id:
        repl.say("It is saved as soon as something is said.")
        return
    repl.say(f"Saved as it goes: {talk.recorder.path}")
    repl.say(f"Later: localr1 chat --resume {talk.recorder.id}")


def load(repl: Repl, text: str) -> None:
    """A saved conversation instead of this one."""
    if repl.host.folder is None:
        raise UnsupportedError("conversations are not saved here")
    if not text:
        history(repl, "")
        return
    saved = find(repl.host.folder, text)
    talk, saving = repl.talk, repl.settings.terminal.save
    talk.settle()
    repl.configure(conversation=dataclasses.replace(repl.settings.conversation, system=saved.system))
    recorder = Recorder(repl.host.folder, repl.host.model, saved.system, saved) if saving else None
    talk.keep()
    talk.close()
    talk.turns[:] = saved.turns
    talk.move_to(talk.conversation)
    talk.recall(saved.path)
    talk.ends.clear()
    talk.recorder = recorder
    repl.say(f"Loaded {saved.id}, {count_text(len(saved.turns), 'turn')}: {saved.title}")
    if talk.recalled:
        repl.say(talk.recalled)


def export(repl: Repl, text: str) -> None:
    """The conversation as a file for people or programs."""
    path = typed_path(text)
    writers = {".md": as_markdown, ".json": as_json}
    if path.suffix.lower() not in writers:
        raise UsageError("/export needs a file that ends in .md or .json", "for example /export talk.md")
    if is_there(path):
        raise UsageError(f"{path} is there already", "choose another name")
    if not repl.talk.turns:
        raise UsageError("nothing was said yet", "type a message first")
    shown = writers[path.suffix.lower()](repl.talk.turns, repl.host.model, repl.settings.conversation.system)
    try:
        path.write_text(shown, encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:  # the latter where a name holds what none may
        with suppress(OSError, ValueError):
            path.unlink()  # or the begun file would be in the way of the next try
        why = error.strerror if isinstance(error, OSError) else error
        raise DiskError(f"cannot write {path}: {why}", "choose another file") from error
    repl.say(f"Written: {path}")


def history(repl: Repl, text: str) -> None:
    """The saved conversations, or those that hold some words."""
    if repl.host.folder is None:
        raise UnsupportedError("conversations are not saved here")
    found = listing(repl.host.folder, text)
    if not found:
        repl.say("No saved conversation" + (f" holds {text!r}." if text else " yet."))
    for saved in found[:MOST_LISTED]:
        repl.environment.status(f"  {saved.id}  {saved.created[:10]}  {visible(saved.title)[:60]}")
    if found:
        repl.say("/load ID goes on with one; /history WORDS searches.")
