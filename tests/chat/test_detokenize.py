"""The text stream: never half a character, and in the end what decoding the whole gives."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel

from localr1.chat.detokenize import BYTE_OF_CHARACTER, CHARACTER_OF_BYTE, TextStream, byte_level, read_rule
from localr1.chat.tokenizer import Tokenizer
from localr1.errors import UnsupportedError
from tests.chat.corpus import CORPUS


def bytes_tokenizer(extra: tuple[str, ...] = ()) -> Backend:
    """A byte-level tokenizer with a token for each byte, numbered as the byte."""
    backend = Backend(models.BPE(vocab={character: byte for byte, character in CHARACTER_OF_BYTE.items()}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(token, special=token.startswith("<|"), normalized=False) for token in extra])
    return backend


def sentencepiece(strip: bool = True) -> Backend:
    """Llama's way: `▁` for a space, a token for each byte, one leading space removed."""
    words = ["▁Hello", "▁world", "▁", "▁▁▁", "lo", "é", "中", "<unk>"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + n for n, word in enumerate(words)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return backend


def streamed(stream: TextStream, ids: list[int]) -> list[str]:
    return [stream.push(number) for number in ids] + [stream.flush()]


def test_the_byte_alphabet_is_the_one_of_tokenizers() -> None:
    assert set(CHARACTER_OF_BYTE.values()) == set(ByteLevel.alphabet())
    assert [BYTE_OF_CHARACTER[CHARACTER_OF_BYTE[byte]] for byte in range(256)] == list(range(256))
    assert byte_level("Ġä½łåĵĪ") == b" \xe4\xbd\xa0\xe5\x93\x88"
    assert byte_level("<｜User｜>") == "<｜User｜>".encode()


@pytest.mark.parametrize("name", CORPUS)
def test_a_stream_gives_what_tokenizers_decodes(deepseek: Tokenizer, deepseek_backend: Backend, name: str) -> None:
    ids = deepseek.encode_text(CORPUS[name])
    pieces = streamed(deepseek.stream(), ids)
    assert "".join(pieces) == deepseek_backend.decode(ids) == CORPUS[name]
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_family_of_emoji_comes_a_character_at_a_time(deepseek: Tokenizer) -> None:
    ids = deepseek.encode_text("👩‍👩‍👧")
    assert len(ids) > 5, "the test needs characters that are split between tokens"
    pieces = streamed(deepseek.stream(), ids)
    assert "".join(pieces) == "👩‍👩‍👧"
    assert "" in pieces[:-1]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_decode_as_tokenizers_does(data: bytes) -> None:
    backend = bytes_tokenizer()
    pieces = streamed(Tokenizer(backend).stream(), list(data))
    assert "".join(pieces) == backend.decode(list(data)) == data.decode("utf-8", "replace")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 129_300), max_size=30))
def test_any_tokens_decode_as_tokenizers_does(deepseek: Tokenizer, deepseek_backend: Backend, ids: list[int]) -> None:
    assert "".join(streamed(deepseek.stream(), ids)) == deepseek_backend.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20), st.integers(0, 20))
def test_a_character_is_whole_as_soon_as_its_last_byte_has_come(text: str, stop: int) -> None:
    data = text.encode()
    stream = Tokenizer(bytes_tokenizer()).stream()
    so_far = "".join(stream.push(byte) for byte in data[:stop])
    assert so_far == data[:stop].decode("utf-8", "ignore")


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (b"\xf0\x9f\x91\x8d", ["", "", "", "👍", ""]),
        (b"\xf0\x9f\x91", ["", "", "", "\ufffd"]),  # may still be completed, until the end
        (b"\xf0\x9fa", ["", "", "\ufffda", ""]),  # certain once a letter follows
        (b"\xff", ["\ufffd", ""]),  # certain at once
        (b"\xed\xa0\x80", ["", "", "\ufffd\ufffd\ufffd", ""]),  # a surrogate is not UTF-8
        (b"a\xc3\xa9 ", ["a", "", "é", " ", ""]),
    ],
)
def test_replacement_characters_come_only_when_certain(data: bytes, pieces: list[str]) -> None:
    assert streamed(Tokenizer(bytes_tokenizer()).stream(), list(data)) == pieces


def test_a_hidden_token_does_not_cut_a_character_and_a_shown_one_does() -> None:
    tokenizer = Tokenizer(bytes_tokenizer(("<|pad|>", "</think>")))
    pad, tag = 256, 257
    assert streamed(tokenizer.stream(), [0xC3, pad, 0xA9]) == ["", "", "é", ""]
    assert streamed(tokenizer.stream(), [0xC3, tag, 0xA9]) == ["", "\ufffd</think>", "\ufffd", ""]


def test_unknown_tokens_are_nothing(deepseek: Tokenizer) -> None:
    assert deepseek.decode([10_000_000, *deepseek.encode_text("a"), 999_999]) == "a"


def test_a_push_does_not_depend_on_what_came_before(deepseek: Tokenizer) -> None:
    """Nothing is kept but an unfinished character and what tokens are by themselves, so a push costs the same after a
    million tokens."""
    stream = deepseek.stream()
    for number in deepseek.encode_text(CORPUS["prose"][:20_000]):
        stream.push(number)
    given = ("_rule", "_token", "_verbatim", "_known")
    state = {name: value for name, value in vars(stream).items() if name not in given}
    assert all(spelled == stream._bytes(number) for number, spelled in stream._known.items())
    assert stream._utf8.getstate() == (b"", 0)
    assert state == {"_utf8": stream._utf8, "_leading_spaces": 0}


@pytest.mark.parametrize(
    "words",
    [
        ["▁Hello", "▁world"],
        ["▁", "▁Hello"],
        ["▁▁▁", "lo"],
        ["▁", "▁", "▁"],
        ["lo", "▁world"],
        ["<0xE4>", "<0xB8>", "<0xAD>", "▁world"],
        ["<0x20>", "lo"],
        ["▁Hello", "<0xF0>", "<0x9F>", "<0x91>", "<0x8D>"],
        [],
    ],
)
@pytest.mark.parametrize("strip", [True, False])
def test_sentencepiece_spaces_and_bytes(words: list[str], strip: bool) -> None:
    backend = sentencepiece(strip)
    ids = [backend.token_to_id(word) for word in words]
    assert "".join(streamed(Tokenizer(backend).stream(), ids)) == backend.decode(ids)


def test_sentencepiece_bytes_are_held_back_until_whole() -> None:
    backend = sentencepiece()
    ids = [backend.token_to_id(word) for word in ("▁Hello", "<0xE4>", "<0xB8>", "<0xAD>", "<0xE4>", "lo", "<0xFF>")]
    pieces = streamed(Tokenizer(backend).stream(), ids)
    assert pieces == ["Hello", "", "", "中", "", "\ufffdlo", "\ufffd", ""]


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_keeps_inner_spaces(scheme: str) -> None:
    backend = sentencepiece()
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    ids = [backend.token_to_id(word) for word in ("▁Hello", "▁world", "lo")]
    assert "".join(streamed(Tokenizer(backend).stream(), ids)) == backend.decode(ids)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 1)]),
        decoders.Sequence([decoders.Replace(Regex("a+"), " ")]),
    ],
)
def test_an_unknown_decoder_is_refused_by_name(decoder: object) -> None:
    state = None if decoder is None else decoder.__getstate__().decode()
    with pytest.raises(UnsupportedError, match="decoder"):
        read_rule(state)


def test_a_nested_sequence_is_read() -> None:
    inner = {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]}
    assert read_rule(json.dumps({"type": "Sequence", "decoders": [inner]})).to_bytes("Ġa") == b" a"


def test_invalid_bytes_streamed_among_real_tokens(deepseek: Tokenizer, deepseek_backend: Backend) -> None:
    """Single-byte tokens, cut at random into real text."""
    random.seed(7)
    single = [deepseek_backend.token_to_id(character) for character in CHARACTER_OF_BYTE.values()]
    single = [number for number in single if number is not None]
    for _ in range(50):
        ids = deepseek.encode_text(CORPUS["chinese"])
        for _ in range(5):
            ids.insert(random.randrange(len(ids)), random.choice(single))
        assert "".join(streamed(deepseek.stream(), ids)) == deepseek_backend.decode(ids)
