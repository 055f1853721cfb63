"""A conversation as the prompt that the model was trained on.

Owns the reading of a model's chat template, its rendering, and the prompt's tokens. Knows no model weights and no
sampling. Invariant: control tokens in a prompt come from the template alone, never from what a message says.

There is no fallback template: with a wrong one a model answers badly and nobody knows why, so a model without a
template is refused by name.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from localr1.chat.sandbox import LimitError, Limits, Sandbox
from localr1.chat.tokenizer import Tokenizer, read_json_object
from localr1.chat.transcript import Message
from localr1.errors import AccessError, CorruptError, NotFoundError, UnsupportedError, UsageError

_THINKING_VARIABLES = ("enable_thinking", "thinking")
"""What templates call the switch: GLM and Qwen3 the first, DeepSeek-V3.1 the second."""

_OPENED_THOUGHT = re.compile(r"<think>\s*\Z")
_PRIVATE_USE = range(0xE000, 0xF8FF)
_REPORT = "Report it to the model's publisher, or use another model."


@dataclass(frozen=True)
class Prompt:
    """What the model is given. `opened_thought`: the prompt ends inside a thought, so the answer starts in one."""

    tokens: list[int]
    opened_thought: bool


class ChatTemplate:
    """One model's template, compiled. `origin` names it in errors."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None, origin: str = "template") -> None:
        self._origin = origin
        self._special_tokens = dict(special_tokens or {})
        self._sandbox = _compiled(source, origin)
        self._switches = tuple(name for name in _THINKING_VARIABLES if name in self._sandbox.variables)

    @property
    def end_token(self) -> str | None:
        """The spelling of the token that ends an answer, as the tokenizer's settings name it."""
        return self._special_tokens.get("eos_token")

    @classmethod
    def open(cls, folder: Path) -> "ChatTemplate":
        """From `chat_template.jinja` if there is one, else from `tokenizer_config.json`.

        NotFoundError, AccessError, CorruptError or UnsupportedError name the file and what to do.
        """
        config_path = folder / "tokenizer_config.json"
        config = read_json_object(config_path)
        special_tokens = _special_tokens(config)
        path = folder / "chat_template.jinja"
        if path.is_file():
            return cls(_read_text(path), special_tokens, str(path))
        source = _configured(config.get("chat_template"), config_path)
        if source is not None:
            return cls(source, special_tokens, str(config_path))
        if not folder.is_dir():
            raise NotFoundError(f"{folder} is not a folder", "Name a folder with a whole model.")
        raise UnsupportedError(
            f"{folder} has no chat template (neither chat_template.jinja nor one in tokenizer_config.json)",
            "A model without one is a base model; use its chat or instruct variant.",
        )

    @property
    def switches_thinking(self) -> bool:
        """Whether the template can turn thoughts on and off."""
        return bool(self._switches)

    def render(self, messages: Sequence[Message], *, thinking: bool | None = None, limits: Limits | None = None) -> str:
        """The prompt's text, up to where the answer begins.

        `thinking` None leaves it to the template; UsageError if it is given and the template has no such switch.
        UnsupportedError if the template refuses the conversation or goes beyond its bounds, CorruptError if it fails.
        """
        if thinking is not None and not self._switches:
            raise UsageError(
                f"{self._origin} has no switch for thinking", "Leave out --think and --no-think for this model."
            )
        variables: dict[str, Any] = {
            **self._special_tokens,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        if thinking is not None:
            variables.update(dict.fromkeys(self._switches, thinking))
        return self._run(variables, limits or _limits_for(messages))

    def _run(self, variables: dict[str, Any], limits: Limits) -> str:
        try:
            return self._sandbox.render(variables, limits)
        except LimitError as error:
            raise UnsupportedError(f"{self._origin} was stopped: {error}", _REPORT) from error
        except jinja2.exceptions.SecurityError as error:
            raise UnsupportedError(f"{self._origin} does what a template may not: {error}", _REPORT) from error
        except jinja2.UndefinedError as error:
            raise CorruptError(f"{self._origin} fails: {error}", _REPORT) from error
        except jinja2.TemplateError as error:
            raise UnsupportedError(
                f"{self._origin} refuses this conversation: {error}", "Leave out the system prompt, or /clear."
            ) from error
        except Exception as error:
            raise CorruptError(f"{self._origin} fails: {type(error).__name__}: {error}", _REPORT) from error


def encode_prompt(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], thinking: bool | None = None
) -> Prompt:
    """The prompt's tokens.

    As long as no message spells a control token they are those of the rendered text. A message that does is rendered as
    an unguessable mark in its place, and its content is encoded as text where the mark came out.
    """
    marks: dict[str, str] = {}
    marked = [_marked(message, marks) if tokenizer.spells_control(message.content) else message for message in messages]
    rendered = template.render(marked, thinking=thinking)
    if not rendered:
        raise UnsupportedError("the chat template renders this conversation as nothing", _REPORT)
    if not marks:
        return Prompt(tokenizer.encode_rendered(rendered), opens_thought(rendered))
    parts = re.split(f"({'|'.join(marks)})", rendered)
    lost = marks.keys() - set(parts)
    if lost:
        raise UnsupportedError(
            f"the chat template does not show a message that spells a control token: {marks[lost.pop()][:60]!r}",
            "Write the message without the model's control tokens.",
        )
    tokens: list[int] = []
    for part in filter(None, parts):
        tokens += tokenizer.encode_text(marks[part]) if part in marks else tokenizer.encode_rendered(part)
    return Prompt(tokens, opens_thought(parts[-1]))


def opens_thought(rendered: str) -> bool:
    """Whether a prompt ends right after an opening tag."""
    return _OPENED_THOUGHT.search(rendered) is not None


def _marked(message: Message, marks: dict[str, str]) -> Message:
    """The message with its content, less the white space around it (which templates trim), put behind a new mark."""
    content = message.content
    core = content.strip()
    mark = "".join(chr(secrets.choice(_PRIVATE_USE)) for _ in range(24))
    marks[mark] = core
    return replace(message, content=content.replace(core, mark, 1))


def _compiled(source: str, origin: str) -> Sandbox:
    try:
        return Sandbox(source)
    except LimitError as error:
        raise UnsupportedError(f"{origin} is not used: {error}", _REPORT) from error
    except jinja2.TemplateAssertionError as error:
        raise UnsupportedError(f"{origin}:{error.lineno}: {error.message}", _REPORT) from error
    except jinja2.TemplateSyntaxError as error:
        raise CorruptError(f"{origin}:{error.lineno}: {error.message}", "Download the model again.") from error
    except RecursionError as error:
        raise UnsupportedError(f"{origin} is nested too deep", _REPORT) from error
    except (SyntaxError, ValueError) as error:  # of the Python that jinja makes of it
        raise CorruptError(f"{origin} cannot be compiled: {error}", _REPORT) from error


def _limits_for(messages: Sequence[Message]) -> Limits:
    """Room for everything said a few times over, besides what templates add."""
    said = sum(len(message.content) for message in messages)
    return Limits(characters=Limits.characters + 4 * said)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its like; written as a string or as an added token's record."""
    found: dict[str, str] = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _configured(value: Any, path: Path) -> str | None:
    """The template in a `tokenizer_config.json`: a string, or a list of named ones of which "default" is meant."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        named = {entry.get("name"): entry.get("template") for entry in value}
        default = named.get("default")
        if isinstance(default, str):
            return default
        names = ", ".join(sorted(str(name) for name in named)) or "none"
        raise UnsupportedError(f'{path} has no chat template named "default" (it has: {names})', _REPORT)
    raise CorruptError(
        f"{path}: chat_template is a {type(value).__name__}, not text or a list of named ones",
        "Download the model again.",
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {error.strerror}", "Check the file's permissions.") from error
    except UnicodeDecodeError as error:
        raise CorruptError(f"{path} is not UTF-8: {error}", "Download the model again.") from error
