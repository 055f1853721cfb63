"""Answers of a given form: a JSON schema or a grammar, as what may come next.

Owns the reading and checking of the file, and the matcher (the llguidance library's) that follows one answer token by
token. Knows no logits. Invariants: of the tokens that `allowed` marks every one goes on with the form, and an end is
marked only where the form is complete; thoughts are not held to it, they come before a matcher is asked.
"""

import json
from collections.abc import Collection
from functools import cache, partial
from pathlib import Path

import llguidance
import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from localr1.chat.tokenizer import Tokenizer
from localr1.errors import AccessError, LocalR1Error, NotFoundError, UnsupportedError, UsageError

LARGEST_BYTES = 1_000_000
UNKNOWN_FORMAT = "Unknown format: "


@cache
def read_structure(schema: Path | None, grammar: Path | None) -> str | None:
    """The checked form in llguidance's own terms, None without a file; read once a run, since a pipe says it once.

    Raises UsageError, saying what is wrong and where, NotFoundError or AccessError.
    """
    if schema is not None and grammar is not None:
        raise UsageError("either --json-schema or --grammar", "leave one of them out")
    path = schema or grammar
    if path is None:
        return None
    text = _read(path)
    if schema is not None:
        kind, hint = "a JSON schema", "not all of JSON Schema can be followed; leave that part out"
        try:
            form, wrong = _of_schema(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not a JSON schema: {error}", "see json-schema.org for what one is") from None
    else:
        kind, hint = "a grammar", "it is a Lark grammar with a rule called start; see llguidance's documentation"
        form = LLMatcher.grammar_from_lark(text)
        wrong = _complaints(form)
    if not wrong and _nothing_begins(form):
        wrong = ["nothing keeps to it"]
    if wrong:
        raise UsageError(f"{path} cannot be used as {kind}: {_gist(wrong[0])}", hint)
    return form


def _of_schema(text: str) -> tuple[str, list[str]]:
    """The form, and what is wrong with it. A format that is not known is a note to the reader, as the standard has it.

    Raises ValueError or RecursionError.
    """
    if not isinstance(json.loads(text), dict):
        raise ValueError("it is no object")
    # A model that has nothing to say would fill its context with the white space that JSON allows.
    compiled = partial(
        LLMatcher.grammar_from_json_schema,
        text,
        defaults={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    )
    form = compiled()
    wrong = _complaints(form)
    if wrong and wrong[0].startswith(UNKNOWN_FORMAT):
        form = compiled(overrides={"lenient": True})
        wrong = [one for one in LLMatcher.validate_grammar_with_warnings(form)[1] if not one.startswith(UNKNOWN_FORMAT)]
    return form, wrong


def _complaints(form: str) -> list[str]:
    wrong, messages = LLMatcher.validate_grammar_with_warnings(form)
    return messages if wrong else []


def _nothing_begins(form: str) -> bool:
    """Whether no text at all is of this form, as where it is defined by itself alone."""
    matcher = LLMatcher(LLTokenizer("byte"), form, log_level=0)
    if matcher.is_error():  # it asks for a model's own tokens
        return False
    matcher.compute_bitmask()
    return matcher.is_error()


def _read(path: Path) -> str:
    try:
        data = path.expanduser().read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", "check the name") from None
    except OSError as error:
        raise AccessError(f"cannot read {path}: {error.strerror}", "name a file that you may read") from error
    if len(data) > LARGEST_BYTES:
        raise UsageError(f"{path} has {len(data):,} bytes", f"the largest form has {LARGEST_BYTES:,}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}", "convert it") from None


class Structures:
    """Makes matchers for one model's tokens; the first takes about a second for a large vocabulary."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Collection[int]) -> None:
        self._ends = eos_token_ids
        try:
            self._tokenizer = LLTokenizer(tokenizer.to_json(), eos_token=list(eos_token_ids))
        except Exception as error:
            raise UnsupportedError(
                f"this model's tokenizer cannot be held to a form: {_gist(str(error))}",
                "leave --json-schema and --grammar out",
            ) from error

    def start(self, form: str) -> "Structure":
        """A matcher at the beginning of an answer."""
        matcher = LLMatcher(self._tokenizer, form, log_level=0)
        if matcher.is_error():
            raise UsageError(f"the form cannot be used: {_gist(matcher.get_error())}", "simplify it")
        return Structure(matcher, self._tokenizer.vocab_size, self._ends)


class Structure:
    """Follows one answer. While `thinking`, anything goes but an end, since the form is still to come."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, ends: Collection[int] = ()) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._going_on = np.ones(vocabulary, dtype=bool)
        self._going_on[list(ends)] = False
        self._bits = llguidance.numpy.allocate_token_bitmask(1, vocabulary)
        self.thinking = False
        self.begun = False
        """Whether any of the answer came."""
        self.opening: int | None = None
        """A token that opens a thought, allowed once, instead of the form's beginning."""

    @property
    def complete(self) -> bool:
        """Whether the answer is whole, and nothing may follow it."""
        return self.begun and self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> NDArray[np.bool_]:
        """Which of the tokenizer's tokens [V] may come next. LocalR1Error where the form can be followed no further."""
        if self.thinking:
            return self._going_on
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():  # then it marks the ends, and takes them
            raise _broken(self._matcher)
        bits = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")
        allowed: NDArray[np.bool_] = bits[: self._vocabulary].astype(bool)
        if self.opening is not None:
            allowed[self.opening] = True
        return allowed

    def take(self, token: int) -> None:
        """This token came. LocalR1Error when it does not go on with the form."""
        if self.thinking:
            return
        opening, self.opening = self.opening, None
        if token == opening:
            self.thinking = True
        elif not self._matcher.consume_token(token):
            raise _broken(self._matcher)
        else:
            self.begun = True


def _broken(matcher: LLMatcher) -> LocalR1Error:
    reason = _gist(matcher.get_error())
    if not reason or reason.startswith("NoExtension"):
        reason = "nothing may follow"
    return LocalR1Error(f"the answer does not keep to its form: {reason}", "simplify the schema or grammar")


def _gist(text: str) -> str:
    """A message's first line, and of a pattern that cannot be read what it is and why."""
    lines = text.strip().split("\n")
    reason = next((line.removeprefix("error: ") for line in lines[2:] if line.startswith("error: ")), None)
    return lines[0] if reason is None else f"{lines[0]} {lines[1].strip()}: {reason}"
