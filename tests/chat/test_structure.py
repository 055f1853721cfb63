import json
import os
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher

from localr1 import nano
from localr1.chat.structure import Structures, read_structure
from localr1.chat.tokenizer import Tokenizer
from localr1.errors import AccessError, LocalR1Error, NotFoundError, UsageError

NANO = Path(nano.__path__[0])
EOS = json.loads((NANO / "config.json").read_text())["eos_token_id"]
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 999}, "word": {"enum": ["red", "blue"]}},
    "required": ["sum", "word"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(NANO)


@pytest.fixture(scope="module")
def structures(tokenizer: Tokenizer) -> Structures:
    return Structures(tokenizer, (EOS,))


def schema(folder: Path, content: object) -> Path:
    path = folder / "schema.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def drawn(structure, tokenizer: Tokenizer, chance: random.Random) -> str:
    """An answer of tokens taken at random from those that may come."""
    tokens: list[int] = []
    while (token := chance.choice(structure.allowed().nonzero()[0].tolist())) != EOS:
        structure.take(token)
        tokens.append(token)
        assert len(tokens) < 100
    return tokenizer.decode(tokens)


def test_whatever_is_drawn_keeps_to_the_schema(tmp_path, structures, tokenizer):
    form = read_structure(schema(tmp_path, SCHEMA), None)
    chance, seen = random.Random(5), set()
    for _ in range(40):
        answer = drawn(structures.start(form), tokenizer, chance)
        record = json.loads(answer)
        assert record.keys() == {"sum", "word"} and 0 <= record["sum"] <= 999
        seen.add(record["word"])
        assert answer == json.dumps(record)
    assert seen == {"red", "blue"}


def test_whatever_is_drawn_keeps_to_the_grammar(tmp_path, structures, tokenizer):
    path = tmp_path / "form.lark"
    path.write_text('start: "yes" | "no, " /[0-9]{2}/')
    chance, form = random.Random(5), read_structure(None, path)
    answers = {drawn(structures.start(form), tokenizer, chance) for _ in range(30)}
    assert "yes" in answers and all(answer == "yes" or answer.removeprefix("no, ").isdecimal() for answer in answers)


def test_a_grammar_may_ask_for_a_models_own_tokens(tmp_path, structures, tokenizer):
    path = tmp_path / "form.lark"
    path.write_text('start: <think> "yes"')
    structure = structures.start(read_structure(None, path))
    assert structure.allowed().nonzero()[0].tolist() == [tokenizer.token_id("<think>")]


def test_a_thought_is_free_and_may_come_before_the_form_but_not_within(tmp_path, structures, tokenizer):
    structure = structures.start(read_structure(schema(tmp_path, SCHEMA), None))
    structure.thinking = True
    ends = np.flatnonzero(~structure.allowed())
    assert ends.tolist() == [tokenizer.token_id("<｜end▁of▁sentence｜>")], "anything but an end"
    structure.take(7)
    structure.thinking = False
    opening = structure.opening = tokenizer.token_id("<think>")
    assert structure.allowed()[opening] and structure.allowed().sum() < 4
    structure.take(opening)
    assert structure.thinking
    structure.thinking = False
    assert not structure.allowed()[opening]


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_form_may_come_from_a_pipe_which_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "form")
    threading.Thread(target=lambda: (tmp_path / "form").write_text('{"type": "integer"}'), daemon=True).start()
    form = read_structure(tmp_path / "form", None)
    assert form is not None and read_structure(tmp_path / "form", None) == form


def test_a_format_that_is_not_known_is_a_note_to_the_reader(tmp_path, structures, tokenizer):
    code = {"type": "string", "format": "password", "minLength": 2, "maxLength": 3, "pattern": "^[ab]+$"}
    form = read_structure(schema(tmp_path, code), None)
    answers = {drawn(structures.start(form), tokenizer, random.Random(seed)) for seed in range(8)}
    assert all(2 <= len(json.loads(answer)) <= 3 and set(json.loads(answer)) <= set("ab") for answer in answers)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not a JSON schema"),
        ("[1]", "is not a JSON schema: it is no object"),
        ("true", "is not a JSON schema: it is no object"),
        ({"type": "nonsense"}, "nonsense"),
        ({"$ref": "#/nowhere"}, "cannot be used"),
        ({"not": {"type": "string"}}, "cannot be used"),
        ({"format": "password", "not": {"type": "string"}}, r"Unimplemented keys: .*not"),
        ({"$ref": "#"}, "nothing keeps to it"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "recursion"),
        ({"pattern": "^(?=.*[A-Z]).+$"}, r"\^\(\?=\.\*\[A-Z\]\)\.\+\$: look-around.* is not supported"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(tmp_path, content, words):
    path = schema(tmp_path, content)
    with pytest.raises(UsageError, match=words) as caught:
        read_structure(path, None)
    assert str(path) in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"), [('start: "unclosed', "lexer error"), ("start: /a(?!b)/", "look-around.* is not supported")]
)
def test_a_grammar_that_is_none_is_refused(tmp_path, content, words):
    path = tmp_path / "form.lark"
    path.write_text(content)
    with pytest.raises(UsageError, match=f"cannot be used as a grammar: .*{words}"):
        read_structure(None, path)


def test_files_that_cannot_be_read(tmp_path):
    assert read_structure(None, None) is None
    with pytest.raises(NotFoundError, match="no file"):
        read_structure(tmp_path / "none.json", None)
    with pytest.raises(AccessError):
        read_structure(tmp_path, None)
    with pytest.raises(UsageError, match="either"):
        read_structure(tmp_path / "a", tmp_path / "b")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        read_structure(tmp_path / "binary", None)
    (tmp_path / "large").write_bytes(b" " * 1_000_001)
    with pytest.raises(UsageError, match="1,000,001 bytes"):
        read_structure(tmp_path / "large", None)


def test_a_token_that_may_not_come_ends_in_an_error_not_in_silence(tmp_path, structures):
    structure = structures.start(read_structure(schema(tmp_path, SCHEMA), None))
    with pytest.raises(LocalR1Error, match="does not keep to its form"):
        structure.take(int((~structure.allowed()).nonzero()[0][0]))


def test_a_form_that_cannot_be_followed_further_ends_no_answer(structures):
    """The matcher itself marks the ends where it has failed, and takes them."""
    structure = structures.start(LLMatcher.grammar_from_lark("start: start"))
    with pytest.raises(LocalR1Error, match="its form: nothing may follow") as caught:
        structure.allowed()
    assert caught.value.hint
