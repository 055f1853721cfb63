"""The exercises are right, repeatable and apart from the held-out ones; tokenizer and template are faithful."""

import re
from itertools import islice

import pytest

from tools.nano.arithmetic import add_trace, checked, divide_trace, multiply_trace, subtract_trace
from tools.nano.tasks import DAYS, FAMILIES, Item, held_out_stream, is_held_out, training_stream
from tools.nano.tokenizer import build_tokenizer, known_words, render_messages, render_prompt, render_reply

ITEMS = list(islice(training_stream(7), 4000))
HELD_OUT = [item for family in FAMILIES for item in islice(held_out_stream(7, family), 120)]
EQUATION = re.compile(r"^(-?\d+) ([+×÷-]) (\d+) = (-?\d+)(?: remainder (\d+))?$")


def of(family: str) -> list[Item]:
    return [item for item in [*ITEMS, *HELD_OUT] if item.family == family]


def test_same_seed_gives_the_same_items():
    assert list(islice(training_stream(7), 300)) == ITEMS[:300]
    assert list(islice(training_stream(8), 300)) != ITEMS[:300]


def test_every_family_is_drawn():
    assert {item.family for item in ITEMS} == set(FAMILIES)


def test_training_and_held_out_items_do_not_meet():
    assert not any(is_held_out(item) for item in ITEMS)
    assert all(is_held_out(item) for item in HELD_OUT)
    assert not {item.key for item in ITEMS if item.key} & {item.key for item in HELD_OUT if not item.operands}


@pytest.mark.parametrize("family", ["add", "subtract", "multiply", "divide", "follow_up"])
def test_equations_hold(family):
    checked = 0
    for item in of(family):
        if item.answer == "You cannot divide by zero.":
            continue
        match = EQUATION.match(item.answer)
        assert match, item.answer
        a, b, result = int(match[1]), int(match[3]), int(match[4])
        if match[2] == "÷":
            assert (result, int(match[5] or 0)) == divmod(a, b)
        else:
            assert result == {"+": a + b, "-": a - b, "×": a * b}[match[2]]
        assert str(abs(result)) in item.thought
        checked += 1
    assert checked > 100


@pytest.mark.parametrize("trace", [add_trace, subtract_trace, multiply_trace])
def test_each_written_step_is_true(trace):
    for a in (0, 7, 40, 96, 347, 905, 1000, 9999):
        for b in (0, 5, 10, 68, 99):
            lines, result = trace(a, b)
            expected = {"add_trace": a + b, "subtract_trace": a - b, "multiply_trace": a * b}[trace.__name__]
            assert result == expected
            assert _check_equations(lines)


def _check_equations(lines: list[str]) -> int:
    """Every side of every "a+b=c" or "a=b=c" in the lines has the same value; returns how many there are."""
    chains = re.findall(r"(?<![\d+*|=-])[\d+*-]+(?:=[\d+*-]+)+", "\n".join(lines))
    for chain in chains:
        assert len({_value(side) for side in chain.split("=")}) == 1, (lines, chain)
    return len(chains)


def _value(side: str) -> int:
    terms = re.findall(r"([+-]?)(\d+(?:\*\d+)*)", f"+{side}" if side[0] != "-" else side)
    return sum(int(sign + "1") * _product(term) for sign, term in terms)


def _product(term: str) -> int:
    out = 1
    for factor in term.split("*"):
        out *= int(factor)
    return out


def test_division_ends_at_the_true_quotient_by_true_steps():
    for a in range(0, 3000, 37):
        for b in (1, 3, 9, 10, 12, 19, 85, 99):
            lines, result = divide_trace(a, b)
            assert result == divmod(a, b)
            assert lines[-1] == f"= {a // b} remainder {a % b}"
            assert a < b or _check_equations(lines) or a // b == 0
            for x, asked, y, verdict in re.findall(r"(\d+)([<>])(\d+)\?.*: ([yn=])", "\n".join(lines)):
                assert verdict == ("=" if x == y else "y" if (int(x) > int(y)) == (asked == ">") else "n")


def test_comparisons_say_what_is_true():
    for a in ("0", "7", "12", "19", "480", "484", "4840"):
        for b in ("7", "12", "91", "484", "844", "1000"):
            for asked in "<>":
                line, verdict = checked(a, asked, b)
                truth = int(a) > int(b) if asked == ">" else int(a) < int(b)
                assert verdict == ("=" if a == b else "y" if truth else "n")
                assert line.startswith(f"{a}{asked}{b}? ") and line.endswith(f": {verdict}")


def test_letters_are_counted_reversed_and_spelled():
    for item in of("reverse"):
        word, back = re.match(r'"(\w+)" reversed is "(\w+)"\.', item.answer).groups()
        assert back == word[::-1]
    for item in of("spell"):
        word, letters = re.match(r'"(\w+)" is spelled ([\w-]+)\.', item.answer).groups()
        assert letters.replace("-", "") == word
    for item in of("count"):
        match = re.match(r"There (?:is|are) (\d+) (\w)(?:'s)? in \"(\w+)\"\.", item.answer)
        if match:
            assert int(match[1]) == match[3].count(match[2])


def test_sorted_lists_are_sorted():
    for item in of("sort"):
        numbers = [int(n) for n in re.findall(r"\d+", item.answer)]
        assert numbers == sorted(numbers, reverse="largest" in item.answer)
        assert sorted(numbers) == sorted(item.operands)


def test_weekdays_are_right():
    for item in of("weekday"):
        n, way, start, end = re.match(r"(\d+) days? (\w+) (\w+) is (\w+)\.", item.answer).groups()
        step = int(n) if way == "after" else -int(n)
        assert DAYS[(DAYS.index(start) + step) % 7] == end


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(items=6000)


def test_tokenizer_round_trips_and_keeps_digits_and_letters_apart(tokenizer):
    for item in ITEMS[:300]:
        text = render_prompt(item) + render_reply(item)
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.decode(tokenizer.encode("naïve 東京 🙂").ids) == "naïve 東京 🙂"
    assert tokenizer.encode("4096").tokens == ["4", "0", "9", "6"]
    assert tokenizer.encode(" zyzzyva").tokens == ["Ġz", "y", "z", "z", "y", "v", "a"]


def test_words_that_are_single_tokens_are_never_held_out(tokenizer):
    known = known_words(tokenizer)
    assert {"how", "many"} <= set(known)
    words = {item.key.removeprefix("word ") for item in islice(held_out_stream(3, "spell", known), 200)}
    assert not words & set(known)


def test_template_matches_the_prompt_the_model_is_trained_on():
    for item in [item for item in ITEMS if item.history][:50]:
        messages = [{"role": "system", "content": item.system}] if item.system else []
        for question, answer in item.history:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": f"<think>\nforgotten\n</think>\n\n{answer}"})
        messages.append({"role": "user", "content": item.question})
        assert render_messages(messages) == render_prompt(item)
