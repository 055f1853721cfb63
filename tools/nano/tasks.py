# ruff: noqa: E501, SIM905 - the phrasings are written as lines of alternatives
"""An endless, seeded stream of conversations: earlier turns, a question, a short honest thought, the answer.

Owns what is asked and how it is worked out, and which items are kept for the evaluation. It knows nothing of tokens or
models. The one promise: `training_stream` never yields an item for which `is_held_out` is true, and `held_out_stream`
yields nothing else.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2s

from tools.nano import emphasis, smalltalk
from tools.nano import phrasing as say
from tools.nano.arithmetic import checked, divide_trace, extreme_trace, insertion_trace, multiply_trace, signed_trace
from tools.nano.words import any_word

# Numbers inside these intervals are never operands of a training question.
HELD_OUT_INTERVALS = ((36, 38), (71, 73), (230, 259), (610, 649), (870, 889), (2300, 2599), (7100, 7499))
SHOUTED = 0.04  # of the training questions are in capitals, besides those that the phrasing makes so
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Item:
    """One question with its worked answer. `key` names the item itself, whatever its wording, for the held-out split."""

    family: str
    question: str
    thought: str
    answer: str
    key: str
    operands: tuple[int, ...] = ()
    value: int | None = None  # the number a follow-up question continues from
    history: tuple[tuple[str, str], ...] = ()
    system: str = ""


def in_held_out_interval(number: int) -> bool:
    return any(low <= abs(number) <= high for low, high in HELD_OUT_INTERVALS)


def in_held_out_hash(key: str) -> bool:
    return blake2s(key.encode(), digest_size=4).digest()[0] % 10 == 0


def is_held_out(item: Item) -> bool:
    return any(in_held_out_interval(n) for n in item.operands) or (bool(item.key) and in_held_out_hash(item.key))


def _number(rng: random.Random, digits: int = 4) -> int:
    """A number of 1 to `digits` digits, every length about as likely as the others; sometimes one full of zeros or nines."""
    width = rng.choice((1, 2, 2, 3, 3, 3, 4, 4)[: {1: 1, 2: 3, 3: 6, 4: 8}[digits]])
    if rng.random() < 0.12:
        return int("".join(rng.choice("0099123456789") for _ in range(width)))
    return rng.randint(0 if width == 1 else 10 ** (width - 1), 10**width - 1)


def _typed(rng: random.Random, number: int) -> str:
    return f"{number:,}" if abs(number) >= 1000 and rng.random() < 0.04 else str(number)


def _division_answer(a: int, b: int, quotient: int, remainder: int) -> str:
    return f"{a} ÷ {b} = {quotient}" + (f" remainder {remainder}" if remainder else "")


def work_out(a: int, op: str, b: int) -> tuple[str, str, int]:
    """The thought, the answer and the value of `a op b`."""
    if op == "/":
        if b == 0:
            return f"{a}/0: no", "You cannot divide by zero.", 0
        lines, (quotient, remainder) = divide_trace(a, b)
        return "\n".join([f"{a}/{b}", *lines]), _division_answer(a, b, quotient, remainder), quotient
    lines, result = signed_trace(a, op, b)
    sign = {"+": "+", "-": "-", "*": "×"}[op]
    return "\n".join([f"{a}{op}{b}", *lines]), f"{a} {sign} {b} = {result}", result


def _operands(rng: random.Random, op: str) -> tuple[int, int]:
    if op in "+-":
        a, b = _number(rng), _number(rng)
        if op == "-" and a < b and rng.random() < 0.4:
            a, b = b, a
        if rng.random() < 0.04:
            a = -a
        return a, b
    if op == "*":
        a, b = _number(rng, 3), _number(rng, 2)
        return (b, a) if rng.random() < 0.2 else (a, b)
    b = rng.randint(2, 12) if rng.random() < 0.6 else _number(rng, 2)
    if b == 0 and rng.random() < 0.8:
        b = 5
    a = _number(rng)
    if rng.random() < 0.3 and b:
        a -= a % b
    return a, b


def _binary(family: str, op: str) -> Callable[[random.Random], Item]:
    def make(rng: random.Random) -> Item:
        a, b = _operands(rng, op)
        thought, answer, value = work_out(a, op, b)
        question = rng.choice(say.BINARY[op]).format(a=_typed(rng, a), b=_typed(rng, b))
        return Item(family, say.rough(rng, question), thought, answer, f"{op} {a} {b}", (a, b), value)

    return make


def _pair_to_compare(rng: random.Random) -> tuple[str, str]:
    a = str(_number(rng))
    draw = rng.random()
    if draw < 0.35:
        b = "".join(rng.choice("0123456789") if rng.random() < 0.4 and i else x for i, x in enumerate(a))
    elif draw < 0.4:
        b = a
    else:
        b = str(_number(rng))
    if rng.random() < 0.12:
        places = [rng.choice((1, 1, 2)) for _ in "ab"]
        whole = str(rng.randint(0, 20))
        a, b = (f"{whole}.{rng.randint(0, 10**p - 1):0{p}d}" for p in places)
    return a, b


def _padded(a: str, b: str) -> tuple[str, str]:
    """Decimals with equally many places."""
    if "." not in a:
        return a, b
    width = max(len(x.split(".")[1]) for x in (a, b))
    first, second = (f"{x}{'0' * (width - len(x.split('.')[1]))}" for x in (a, b))
    return first, second


def compare(rng: random.Random) -> Item:
    if rng.random() < 0.2:
        return _extreme(rng)
    a, b = _pair_to_compare(rng)
    kind = rng.choice(("larger", "larger", "smaller", "is_larger", "is_smaller"))
    word = kind.removeprefix("is_")
    asked = ">" if word == "larger" else "<"
    first, second = _padded(a, b)
    thought, verdict = checked(first, asked, second)
    thought = f"{asked}: {thought}"
    if kind == word:
        forms = say.COMPARE_LARGER if kind == "larger" else say.COMPARE_SMALLER
        first, second = (b, a) if verdict == "n" else (a, b)
        thought += f"\nso {first}{'=' if verdict == '=' else asked}{second}"
        answer = f"{a} and {b} are equal." if verdict == "=" else f"{first} is {kind} than {second}."
    else:
        forms = say.COMPARE_IS_LARGER if kind == "is_larger" else say.COMPARE_IS_SMALLER
        answer = f"Yes, {a} is {word} than {b}." if verdict == "y" else f"No, {a} is not {word} than {b}."
    question = rng.choice(forms).format(a=a, b=b)
    operands = () if "." in a else (int(a), int(b))
    return Item("compare", say.rough(rng, question), thought, answer, f"compare {a} {b}", operands)


def _listed(rng: random.Random, numbers: list[int]) -> str:
    style = rng.random()
    if style < 0.5:
        return ", ".join(map(str, numbers))
    if style < 0.7:
        return " ".join(map(str, numbers))
    if style < 0.8:
        return ",".join(map(str, numbers))
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


def _some_numbers(rng: random.Random, count: int) -> list[int]:
    numbers = [_number(rng, 3) if rng.random() < 0.9 else _number(rng, 4) for _ in range(count)]
    if rng.random() < 0.2:
        numbers[-1] = numbers[0] + rng.choice((-1, 0, 1, 10)) if numbers[0] else 1
    rng.shuffle(numbers)
    return numbers


def _extreme(rng: random.Random) -> Item:
    numbers = _some_numbers(rng, rng.randint(3, 5))
    larger = rng.random() < 0.6
    asked = ">" if larger else "<"
    lines, best = extreme_trace(numbers, asked)
    lines.insert(0, f"find {asked}")
    question = rng.choice(say.LARGEST if larger else say.SMALLEST).format(list=_listed(rng, numbers))
    answer = f"The {'largest' if larger else 'smallest'} is {best}."
    key = f"extreme {larger} {numbers}"
    return Item("compare", say.rough(rng, question), "\n".join(lines), answer, key, tuple(numbers), best)


def sort(rng: random.Random) -> Item:
    numbers = _some_numbers(rng, rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 6)))
    down = rng.random() < 0.3
    lines, ordered = insertion_trace(numbers, down)
    answer = f"Sorted{' from largest to smallest' if down else ''}: {', '.join(map(str, ordered))}"
    question = rng.choice(say.SORT_DOWN if down else say.SORT_UP).format(list=_listed(rng, numbers))
    return Item("sort", say.rough(rng, question, False), "\n".join(lines), answer, f"sort {numbers}", tuple(numbers))


class Letters:
    """The letter families; `known` words are single tokens, so they must be learned by heart and are never held out."""

    def __init__(self, known: tuple[str, ...] = ()) -> None:
        self.known = known

    def _word(self, rng: random.Random) -> str:
        return rng.choice(self.known) if self.known and rng.random() < 0.15 else any_word(rng)

    def _key(self, word: str) -> str:
        return "" if word in self.known else f"word {word}"

    def _typed(self, rng: random.Random, word: str) -> str:
        draw = rng.random()
        if draw < 0.10:
            word = word.capitalize()
        elif draw < 0.12:
            word = word.upper()
        return rng.choice(("{w}", "{w}", "{w}", "{w}", '"{w}"', '"{w}"', "'{w}'", "“{w}”")).format(w=word)

    def count(self, rng: random.Random) -> Item:
        word = self._word(rng)
        kind = rng.random()
        if kind < 0.12:
            hits, forms, header = word, say.COUNT_ALL, "letters"
            answer = f'"{word}" has {len(word)} letters.'
        elif kind < 0.18:
            hits, forms, header = "aeiou", say.COUNT_VOWELS, "vowels"
            total = sum(x in hits for x in word)
            answer = f'There {"is" if total == 1 else "are"} {total} vowel{"" if total == 1 else "s"} in "{word}".'
        else:
            hits = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
            forms, header, total = say.COUNT_LETTER, hits, word.count(hits)
            plural = "" if total == 1 else "'s"
            answer = f'There {"is" if total == 1 else "are"} {total} {hits}{plural} in "{word}".'
        seen, steps = 0, []
        for letter in word:
            seen += letter in hits
            steps.append(f"{letter}{seen}")
        shown = hits.upper() if len(hits) == 1 and rng.random() < 0.1 else hits
        question = rng.choice(forms).format(l=shown, w=self._typed(rng, word))
        thought = f"{header}: {' '.join(steps)}"
        return Item("count", say.rough(rng, question), thought, answer, self._key(word))

    def reverse(self, rng: random.Random) -> Item:
        word = self._word(rng)
        steps = [f"{place}{letter}" for place, letter in enumerate(word, 1)]
        thought = f"{' '.join(steps)}\n{' '.join(reversed(steps))}"
        question = rng.choice(say.REVERSE).format(w=self._typed(rng, word))
        return Item(
            "reverse", say.rough(rng, question), thought, f'"{word}" reversed is "{word[::-1]}".', self._key(word)
        )

    def spell(self, rng: random.Random) -> Item:
        word = self._word(rng)
        thought = " ".join(f"{place}{letter}" for place, letter in enumerate(word, 1))
        question = rng.choice(say.SPELL).format(w=self._typed(rng, word))
        return Item(
            "spell", say.rough(rng, question), thought, f'"{word}" is spelled {"-".join(word)}.', self._key(word)
        )


def weekday(rng: random.Random) -> Item:
    start = rng.randrange(7)
    back = rng.random() < 0.35
    if rng.random() < 0.12:
        n, forms = 1, say.DAY_PREVIOUS if back else say.DAY_NEXT
    else:
        n = rng.choice((rng.randint(1, 10), rng.randint(1, 60), rng.randint(1, 100), rng.randint(100, 400)))
        forms = say.DAY_BEFORE if back else say.DAY_AFTER
    lines, (_, rest) = divide_trace(n, 7)
    thought = [f"{n}/7", *lines] if n >= 7 else []
    step = -1 if back else 1
    walk = [DAYS[start], *(f"{k} {DAYS[(start + step * k) % 7]}" for k in range(1, rest + 1))]
    thought.append(f"{step * rest:+d} day{'' if rest == 1 else 's'}: {', '.join(walk)}")
    end = DAYS[(start + step * rest) % 7]
    answer = f"{n} day{'' if n == 1 else 's'} {'before' if back else 'after'} {DAYS[start]} is {end}."
    day = DAYS[start] if rng.random() < 0.85 else DAYS[start].lower()
    question = rng.choice(forms).format(n=n, d=day).replace(" 1 days", " 1 day")
    return Item("weekday", say.rough(rng, question), "\n".join(thought), answer, f"day {step * n} {start}", (n,))


# (larger unit and its spellings, smaller unit and its spellings, how many of the smaller make one of the larger)
UNITS: tuple[tuple[tuple[str, ...], tuple[str, ...], int], ...] = (
    (("km", "kilometers", "kilometres"), ("m", "meters", "metres"), 1000),
    (("m", "meters", "metres"), ("cm", "centimeters", "centimetres"), 100),
    (("m", "meters", "metres"), ("mm", "millimeters"), 1000),
    (("cm", "centimeters", "centimetres"), ("mm", "millimeters"), 10),
    (("kg", "kilograms", "kilos"), ("g", "grams"), 1000),
    (("g", "grams"), ("mg", "milligrams"), 1000),
    (("liters", "l", "litres"), ("ml", "milliliters"), 1000),
    (("hours", "h", "hrs"), ("minutes", "min", "mins"), 60),
    (("minutes", "min", "mins"), ("seconds", "s", "sec"), 60),
    (("days",), ("hours", "h", "hrs"), 24),
    (("weeks",), ("days",), 7),
    (("years",), ("months",), 12),
    (("years",), ("weeks",), 52),
    (("dollars",), ("cents",), 100),
    (("dozen",), ("pieces", "eggs"), 12),
)


def _unit(name: str, n: int) -> str:
    return name[:-1] if n == 1 and name.endswith("s") and len(name) > 1 else name


def units(rng: random.Random) -> Item:
    large, small, factor = rng.choice(UNITS)
    big, little = large[0], small[0]
    if rng.random() < 0.6:
        n = rng.choice((rng.randint(1, 12), rng.randint(1, 99), rng.randint(1, 300)))
        source, target = large, small
        lines, result = multiply_trace(n, factor)
        thought = [f"1 {_unit(big, 1)} = {factor} {little}", f"{n}*{factor}", *lines]
        answer = f"{n} {_unit(big, n)} = {result} {_unit(little, result)}"
    else:
        n = rng.choice((rng.randint(1, 9999), rng.randint(1, 999), factor * rng.randint(1, max(2, 999 // factor))))
        source, target = small, large
        thought = [f"1 {_unit(big, 1)} = {factor} {little}", f"{n}/{factor}"]
        if factor in (10, 100, 1000):
            quotient, remainder = divmod(n, factor)
            for zeros in range(1, len(str(factor))):  # a zero is dropped and a digit crosses the bar
                first, last = divmod(n, 10**zeros)
                thought.append(f"{factor // 10**zeros} {first}|{last:0{zeros}d}")
            thought.append(f"= {quotient} remainder {remainder}")
        else:
            lines, (quotient, remainder) = divide_trace(n, factor)
            thought += lines
        rest = f" {remainder} {_unit(little, remainder)}" if remainder or not quotient else ""
        answer = f"{n} {_unit(little, n)} ="
        answer += f" {quotient} {_unit(big, quotient)}{rest}" if quotient else rest
    u, v = rng.choice((source[0], *source)), rng.choice((target[0], *target))
    question = rng.choice(say.CONVERT).format(n=_typed(rng, n), u=_unit(u, n), v=v)
    if n == 1 and rng.random() < 0.2 and source is large:
        question = question.replace("1 ", "a ", 1)
    key = f"unit {n} {source[0]} {target[0]}"
    return Item("units", say.rough(rng, question), "\n".join(thought), answer, key, (n,))


NAMES = "Tom|Anna|Ben|Lily|Sam|Mia|Max|Ella|Jack|Emma|Leo|Nina|Omar|Sara|Ivan|Kate|Paul|Rosa|Alex|Mary|John|Lucy|Peter|Maria".split(
    "|"
)
OBJECTS = "apples|books|pens|coins|cards|eggs|stickers|marbles|cookies|oranges|stamps|balls|flowers|pencils|shells|bananas|toys|candies".split(
    "|"
)
GROUPS = "boxes|bags|baskets|shelves|packs|rows|tables|crates".split("|")
MEMBERS = "friends|children|students|people|kids|boxes|bags|teams".split("|")

STORIES: dict[str, list[str]] = {
    "+": "{p} has {a} {o} and buys {b} more. How many {o} does {p} have|{p} has {a} {o}. {q} gives {p} {b} more. How many {o} does {p} have now"
    "|{p} has {a} {o} and {q} has {b} {o}. How many {o} do they have together|There are {a} {o} in one box and {b} {o} in another. How many {o} are there in total"
    "|{p} found {a} {o} in the morning and {b} {o} in the evening. How many {o} is that|A shop sold {a} {o} on Monday and {b} on Tuesday. How many {o} did it sell"
    "|{p} picks {a} {o}, then {b} more. How many {o} are there|If I have {a} {o} and get {b} more, how many {o} do I have"
    "|I have {a} {o} and you have {b}. How many {o} do we have together|{p} had {a} {o}. {p} got {b} more {o}. How many {o} now".split("|"),
    "-": "{p} has {a} {o} and gives {b} to {q}. How many {o} are left|{p} had {a} {o} and lost {b}. How many {o} are left|There are {a} {o}. {b} are eaten. How many {o} remain"
    "|A shop has {a} {o} and sells {b}. How many {o} are left|{p} has {a} {o}. {q} takes {b} of them. How many {o} does {p} have now|If I have {a} {o} and give away {b}, how many {o} do I have"
    "|{p} had {a} {o} but {b} broke. How many {o} are still whole|{p} has {a} {o} and {q} has {b} {o}. How many more {o} does {p} have than {q}"
    "|Out of {a} {o}, {b} were sold. How many {o} are left|I had {a} {o} and used {b}. How many {o} remain".split("|"),
    "*": "There are {a} {g} with {b} {o} each. How many {o} are there|{p} buys {a} {g} of {b} {o}. How many {o} does {p} have|Each of {a} {g} holds {b} {o}. How many {o} in total"
    "|{p} has {a} {g} and each has {b} {o}. How many {o} are there in all|If one box holds {b} {o}, how many {o} do {a} boxes hold|{a} {g} have {b} {o} each. How many {o} is that"
    "|A shop has {a} {g} with {b} {o} in each. How many {o} does it have|{p} puts {b} {o} in each of {a} {g}. How many {o} does {p} use"
    "|{p} reads {b} pages a day for {a} days. How many pages is that|One ticket costs {b} dollars. How many dollars do {a} tickets cost".split("|"),
    "/": "{p} shares {a} {o} equally among {b} {m}. How many {o} does each get|{a} {o} are divided equally among {b} {m}. How many {o} for each|{b} {m} share {a} {o} equally. How many {o} does each get"
    "|{p} packs {a} {o} into {b} boxes equally. How many {o} are in each box|If {b} {m} split {a} {o} evenly, how many {o} does each get|{p} has {a} {o} for {b} {m}. How many {o} does each get"
    "|Share {a} {o} between {b} {m}. How many does each one get|{a} {o} are put into {b} equal {g}. How many {o} are in each".split("|"),
    "+-": "{p} has {a} {o}, buys {b} more and gives away {c}. How many {o} are left|A bus has {a} people. {b} get on and {c} get off. How many people are on the bus"
    "|{p} had {a} {o}, found {b} and lost {c}. How many {o} does {p} have now|What is {a} + {b} - {c}|{a} + {b} - {c}|{a} plus {b} minus {c}".split("|"),
    "++": "{p} has {a} {o}, {q} has {b} and {r} has {c}. How many {o} do they have together|What is {a} + {b} + {c}|{a} + {b} + {c}|{a}+{b}+{c}|{a} plus {b} plus {c}|add {a}, {b} and {c}"
    "|sum of {a}, {b} and {c}|{p} finds {a} {o}, then {b}, then {c}. How many {o} is that".split("|"),
}  # fmt: skip


def _story_operands(rng: random.Random, kind: str) -> list[int]:
    if kind == "*":
        return [rng.randint(2, 30), rng.randint(2, 99)]
    if kind == "/":
        b = rng.randint(2, 12)
        return [rng.randint(b, 300) if rng.random() < 0.4 else b * rng.randint(1, 40), b]
    numbers = [max(2, _number(rng, 3)) for _ in range(3 if len(kind) == 2 else 2)]
    if kind == "-" and numbers[0] < numbers[1]:
        numbers.reverse()
    if kind == "+-":
        numbers[2] = rng.randint(1, numbers[0] + numbers[1])
    return numbers


def story(rng: random.Random) -> Item:
    kind = rng.choice(("+", "-", "*", "/", "+-", "++"))
    numbers = _story_operands(rng, kind)
    names = rng.sample(NAMES, 3)
    form = rng.choice(STORIES[kind])
    group = rng.choice(GROUPS)
    thing = (
        "pages"
        if "pages" in form
        else "dollars"
        if "dollars" in form
        else "people"
        if "people" in form
        else rng.choice(OBJECTS)
    )
    fields = dict(zip("abc", numbers, strict=False))
    question = form.format(p=names[0], q=names[1], r=names[2], o=thing, g=group, m=rng.choice(MEMBERS), **fields)
    if kind == "/":
        thought, _, value = work_out(numbers[0], "/", numbers[1])
        remainder = numbers[0] % numbers[1]
        answer = f"Each gets {value}{f', with {remainder} left over' if remainder else ''}."
    else:
        if form.find("{b}") < form.find("{a}"):  # written down in the order of the question
            numbers[:2] = numbers[1::-1]
        thought, _, value = work_out(numbers[0], kind[0], numbers[1])
        if len(kind) == 2:
            more, _, value = work_out(value, kind[1], numbers[2])
            thought += f"\n{more}"
        answer = f"That is {value}."
        if "{o}" in form or thing in ("pages", "dollars", "people"):
            thought, answer = f"how many {thing}\n{thought}\n= {value} {thing}", f"That is {value} {thing}."
    key = f"story {kind} {numbers}"
    return Item("story", say.rough(rng, question), thought, answer, key, tuple(numbers), value)


def _follow_operand(rng: random.Random, previous: int, op: str) -> int | None:
    if op in "+-":
        return _number(rng, 3) if abs(previous) < 100000 else None
    if op == "*":
        return rng.randint(2, 12) if 0 < abs(previous) < 10000 else None
    return rng.randint(2, 12) if 0 <= previous < 10000 else None


def _starter(rng: random.Random) -> Item:
    makers = [_binary("add", "+"), _binary("subtract", "-"), _binary("multiply", "*"), _binary("divide", "/"), story]
    while True:
        item = rng.choices(makers, (4, 4, 3, 2, 2))[0](rng)
        if item.value is not None:
            return item


def follow_up(rng: random.Random) -> Item:
    """One to three arithmetic turns that build on each other; the last one is the question."""
    item = _starter(rng)
    history: list[tuple[str, str]] = []
    operands: list[int] = list(item.operands)
    for _ in range(rng.choice((1, 1, 2, 3))):
        op = rng.choice("++--**/")
        previous = item.value or 0
        b = _follow_operand(rng, previous, op)
        if b is None:
            op, b = "-", _number(rng, 3)
        forms = say.FOLLOW_UP[op]
        if op == "*" and b == 2 and rng.random() < 0.7:
            forms = say.FOLLOW_UP["double"]
        elif op == "/" and b == 2 and rng.random() < 0.7:
            forms = say.FOLLOW_UP["half"]
        history.append((item.question, item.answer))
        thought, answer, value = work_out(previous, op, b)
        question = rng.choice(forms).format(b=b)
        item = Item("follow_up", say.rough(rng, question), thought, answer, f"{op} {previous} {b}", (), value)
        operands += [previous, b]
    return replace(item, operands=tuple(operands), history=tuple(history))


def _small_talk(family: str, table: dict[str, tuple[str, list[str]]]) -> Callable[[random.Random], Item]:
    def make(rng: random.Random) -> Item:
        answer, forms = table[rng.choice(list(table))]
        bare = rng.choice(forms)
        text = bare if rng.random() < 0.3 else smalltalk.dress(rng, bare)
        return Item(
            family, say.rough(rng, text, family == "identity"), "", answer, "" if text == bare else f"{family} {text}"
        )

    return make


def decline(rng: random.Random) -> Item:
    text = smalltalk.decline_question(rng)
    return Item("decline", say.rough(rng, text, rng.random() < 0.7), "", smalltalk.DECLINE, f"decline {text.lower()}")


Maker = Callable[[random.Random], Item]


def makers(known_words: tuple[str, ...] = ()) -> dict[str, Maker]:
    letters = Letters(known_words)
    return {
        "add": _binary("add", "+"),
        "subtract": _binary("subtract", "-"),
        "multiply": _binary("multiply", "*"),
        "divide": _binary("divide", "/"),
        "compare": compare,
        "sort": sort,
        "count": letters.count,
        "reverse": letters.reverse,
        "spell": letters.spell,
        "weekday": weekday,
        "units": units,
        "story": story,
        "follow_up": follow_up,
        "greet": _small_talk("greet", smalltalk.GREETINGS),
        "identity": _small_talk("identity", smalltalk.IDENTITY),
        "decline": decline,
    }


FAMILIES = tuple(makers())
_SYSTEMS = ("You are a helpful assistant.", "Be brief.", "You are nano.", "Answer politely.", "Think step by step.")


def _with_history(rng: random.Random, item: Item, table: dict[str, Maker], training: bool) -> Item:
    """Puts unrelated earlier turns before some of the items."""
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.12:
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
            earlier = table[rng.choice(FAMILIES)](rng)
            if not (training and is_held_out(earlier)):
                turns += [*earlier.history, (earlier.question, earlier.answer)]
    system = rng.choice(_SYSTEMS) if rng.random() < 0.03 else ""
    return replace(item, history=(*turns, *item.history), system=system)


def _stream(
    rng: random.Random, weights: dict[str, float], known_words: tuple[str, ...], held_out: bool
) -> Iterator[Item]:
    table = makers(known_words)
    while True:
        family = rng.choices(FAMILIES, [weights.get(name, 0.0) for name in FAMILIES])[0]
        item = table[family](rng)
        tries = emphasis.TRIES if not held_out and rng.random() < emphasis.SHARE else 0
        while is_held_out(item) != held_out or (tries > 0 and not emphasis.is_hard(item)):
            item, tries = table[family](rng), tries - 1
        item = _with_history(rng, item, table, not held_out)
        shouted = not held_out and rng.random() < SHOUTED  # in capitals nearly every word falls apart into letters
        yield replace(item, question=item.question.upper()) if shouted else item


def training_stream(
    seed: int | str, weights: dict[str, float] | None = None, known_words: tuple[str, ...] = ()
) -> Iterator[Item]:
    """Endless training items. `weights` is read again for every item, so the caller may change it in place."""
    return _stream(
        random.Random(f"train {seed}"),
        weights if weights is not None else dict.fromkeys(FAMILIES, 1.0),
        known_words,
        False,
    )


def held_out_stream(seed: int | str, family: str, known_words: tuple[str, ...] = ()) -> Iterator[Item]:
    """Endless items of one family, each held out by its operands, its words or its wording."""
    return _stream(random.Random(f"held out {seed} {family}"), {family: 1.0}, known_words, True)
