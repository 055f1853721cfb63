"""Text to tokens and back, with the model's own tokenizer.

Owns the opening of a tokenizer from a model's folder and the line between text and control tokens. Knows no templates.
Invariants: `encode_text` never yields a control token, whatever the text spells; `decode` is the joined stream.

A control token is an added token (`<｜User｜>`, `<|im_end|>`, `<think>`), special by its flag or not, because roles and
turns are made of them. Added tokens that are a single character or white space are ordinary text: some tokenizers keep
letters there.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from localr1.chat import tiktoken
from localr1.chat.detokenize import TextStream, read_rule
from localr1.errors import AccessError, CorruptError, LocalR1Error, NotFoundError, UnsupportedError

SHOWN_TAGS = ("<think>", "</think>")
"""Control tokens that a stream shows as text even where they are special, for `ThoughtSplitter` to read."""


class Tokenizer:
    """One model's tokenizer. Beginning-of-text tokens are never added: they are in the chat template."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._control = {number: token.content for number, token in added.items() if _is_control(token)}
        self._ordinary = [token for number, token in sorted(added.items()) if number not in self._control]
        self._verbatim = {
            number: "" if token.special and token.content not in SHOWN_TAGS else token.content
            for number, token in added.items()
        }
        self._first_characters = {text[0] for text in self._control.values()}
        self._plain: tokenizers.Tokenizer | None = None
        self._known: dict[int, bytes] = {}
        self._rule = read_rule(_state(backend.decoder))

    @classmethod
    def open(cls, folder: Path) -> "Tokenizer":
        """From `tokenizer.json`, or from Moonshot's `tiktoken.model`.

        NotFoundError, AccessError, CorruptError or UnsupportedError name the file and what to do.
        """
        path = folder / "tokenizer.json"
        if path.is_file():
            return _checked(path, lambda: cls(_read_tokenizer_json(path)))
        path = folder / "tiktoken.model"
        if path.is_file():
            config = read_json_object(folder / "tokenizer_config.json")
            return _checked(path, lambda: cls(tiktoken.convert(path, config)))
        if (folder / "tokenizer.model").is_file():
            raise UnsupportedError(
                f"{folder} has only a SentencePiece tokenizer.model",
                "Use a model that has a tokenizer.json.",
            )
        raise NotFoundError(
            f"{folder} has no tokenizer.json", "Download the model again, or name a folder with a whole model."
        )

    def to_json(self) -> str:
        """The content of a `tokenizer.json`, which opens at once where a `tiktoken.model` takes seconds to convert."""
        return str(self._backend.to_str())

    def encode_text(self, text: str) -> list[int]:
        """Tokens of what a person or a file said; text that spells a control token stays text."""
        text = _without_surrogates(text)
        if not self.spells_control(text):
            return self._ids(self._backend, text)
        plain = self._without_control()
        ids = self._ids(plain, text)
        if self._control.keys().isdisjoint(ids):
            return ids
        return [number for character in text for number in self._ids(plain, character)]

    def encode_rendered(self, text: str) -> list[int]:
        """Tokens of a rendered template, whose control tokens are meant."""
        return self._ids(self._backend, _without_surrogates(text))

    def spells_control(self, text: str) -> bool:
        """Whether `encode_rendered` could find a control token in the text."""
        if self._first_characters.isdisjoint(text):
            return False
        normalizer = self._backend.normalizer
        normalized = text if normalizer is None else normalizer.normalize_str(_without_surrogates(text))
        return any(control in text or control in normalized for control in self._control.values())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of whole answer; special tokens but the think tags are left out."""
        stream = self.stream()
        return "".join([stream.push(number) for number in ids]) + stream.flush()

    def token_id(self, text: str) -> int | None:
        """The number of one token by its exact spelling (`</think>`), None if there is no such token."""
        number: int | None = self._backend.token_to_id(text)
        return number

    def stream(self) -> TextStream:
        """A fresh stream, for one answer."""
        return TextStream(self._rule, self._backend.id_to_token, self._verbatim, self._known)

    def _without_control(self) -> tokenizers.Tokenizer:
        """The same model without its control tokens; it shares the vocabulary, so it costs next to nothing."""
        if self._plain is None:
            self._plain = tokenizers.Tokenizer(self._backend.model)
            if self._backend.normalizer is not None:
                self._plain.normalizer = self._backend.normalizer
            if self._backend.pre_tokenizer is not None:
                self._plain.pre_tokenizer = self._backend.pre_tokenizer
            self._plain.add_tokens(self._ordinary)
        return self._plain

    @staticmethod
    def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the model; {} if there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {error.strerror}", "Check the file's permissions.") from error
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path} is not JSON: {error}", "Download the model again.") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{path} holds a {type(value).__name__}, not an object", "Download the model again.")
    return value


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_buffer(path.read_bytes())


def _checked(path: Path, opened: Any) -> Tokenizer:
    """`opened()`, with whatever `tokenizers` raises turned into what a person can act on."""
    try:
        tokenizer: Tokenizer = opened()
    except LocalR1Error:
        raise
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {error.strerror}", "Check the file's permissions.") from error
    except Exception as error:
        if path.suffix == ".json":
            read_json_object(path)
        raise UnsupportedError(
            f"{path} cannot be used as a tokenizer: {error}",
            "Download the model again; if that does not help, it needs another version of the tokenizers package.",
        ) from error
    return tokenizer


def _is_control(token: AddedToken) -> bool:
    return bool(token.special) or (len(token.content) > 1 and not token.content.isspace())


def _state(decoder: Any) -> str | None:
    """A `tokenizers` component as its JSON, which is what it pickles to."""
    return None if decoder is None else decoder.__getstate__().decode()


def _without_surrogates(text: str) -> str:
    """Lone surrogates, as a terminal or Windows may hand over, cannot be encoded: pairs are joined, others replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
