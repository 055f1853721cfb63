"""Tokens to text, one at a time.

Owns the reading of a tokenizer's decoder into one rule (a token is some bytes) and the stream that turns bytes into
characters. Knows no templates. Invariant: what a stream has returned never changes, and never ends in half a character.

Two families exist among the models: byte-level BPE, whose tokens spell bytes in the GPT-2 alphabet, and SentencePiece,
whose tokens are text with `▁` for a space and `<0xE4>` for a byte that has no token.
"""

import codecs
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from localr1.errors import UnsupportedError


def _byte_alphabet() -> dict[int, str]:
    """The GPT-2 alphabet: a printable character for every byte, itself where it is printable in Latin-1."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


CHARACTER_OF_BYTE = _byte_alphabet()
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class DecodeRule:
    """How a token's spelling becomes bytes, and how many spaces the start of a text loses."""

    to_bytes: Callable[[str], bytes]
    leading_spaces: int = 0


def read_rule(decoder_json: str | None) -> DecodeRule:
    """The rule of a tokenizer's `decoder` section; UnsupportedError names a step that is not known here."""
    decoder = json.loads(decoder_json) if decoder_json else None
    steps = _flatten(decoder)
    kinds = [step["type"] for step in steps if step["type"] != "Fuse"]
    if kinds == ["ByteLevel"]:
        return DecodeRule(byte_level)
    known = {"Replace", "ByteFallback", "Strip", "Metaspace"}
    if not kinds or not known.issuperset(kinds):
        raise UnsupportedError(
            f"the tokenizer's decoder is {' + '.join(kinds) or 'absent'}; supported are ByteLevel and SentencePiece's",
            "Use a model whose tokenizer.json is of the DeepSeek, Qwen, Llama, GLM or Kimi kind.",
        )
    return _sentencepiece(steps)


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _flatten(part)]


def byte_level(token: str) -> bytes:
    """The bytes that a byte-level token spells; a token with other characters in it is plain text."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()


def _sentencepiece(steps: list[dict[str, Any]]) -> DecodeRule:
    replacements: list[tuple[str, str]] = []
    leading_spaces = 0
    byte_tokens = False
    for step in steps:
        match step:
            case {"type": "Fuse"}:
                pass
            case {"type": "ByteFallback"}:
                byte_tokens = True
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                leading_spaces += start
            case {"type": "Metaspace", "replacement": str(mark)}:
                replacements.append((mark, " "))
                leading_spaces += step.get("prepend_scheme", "always") != "never"
            case _:
                raise UnsupportedError(
                    f"the tokenizer's decoder has a step that is not supported: {json.dumps(step, ensure_ascii=False)}",
                    "Use a model whose tokenizer.json is of the DeepSeek, Qwen, Llama, GLM or Kimi kind.",
                )

    def to_bytes(token: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(token) if byte_tokens else None
        if byte:
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return DecodeRule(to_bytes, leading_spaces)


class TextStream:
    """The text of one answer as its tokens come; each push costs the token's own length.

    Invalid UTF-8 becomes U+FFFD once no further byte could complete it, as many as Unicode recommends. (For a run of
    `<0x..>` tokens that `tokenizers` would replace byte by byte, the valid characters in it are kept.)
    """

    def __init__(
        self,
        rule: DecodeRule,
        token: Callable[[int], str | None],
        verbatim: Mapping[int, str],
        known: dict[int, bytes] | None = None,
    ) -> None:
        """`token`: a token's spelling, None for an unknown number; `verbatim`: the added tokens' text as shown;
        `known`: bytes of tokens that came before, which streams of one tokenizer may share."""
        self._known = {} if known is None else known
        self._rule = rule
        self._token = token
        self._verbatim = verbatim
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._leading_spaces = rule.leading_spaces

    def push(self, token_id: int) -> str:
        """The characters that are certain now; "" for a hidden or unknown token or half a character."""
        spelled = self._known.get(token_id)
        if spelled is None:
            spelled = self._known[token_id] = self._bytes(token_id)
        text = self._utf8.decode(spelled)
        return self._strip(text) if self._leading_spaces else text

    def flush(self) -> str:
        """What was held back, now that nothing follows: "" or the replacement character."""
        return self._strip(self._utf8.decode(b"", final=True))

    def _bytes(self, token_id: int) -> bytes:
        text = self._verbatim.get(token_id)
        if text is not None:
            return text.encode()
        token = self._token(token_id)
        return b"" if token is None else self._rule.to_bytes(token)

    def _strip(self, text: str) -> str:
        while text and self._leading_spaces:
            if text[0] != " ":
                self._leading_spaces = 0
            else:
                self._leading_spaces -= 1
                text = text[1:]
        return text
