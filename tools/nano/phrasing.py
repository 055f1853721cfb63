# ruff: noqa: E501, SIM905 - the phrasings are written as lines of alternatives
"""The many ways people type the same question."""

import random

BINARY: dict[str, list[str]] = {
    "+": "{a} + {b}|{a}+{b}|{a} plus {b}|add {a} and {b}|add {a} to {b}|what is {a} + {b}|what is {a} plus {b}|what's {a} + {b}|what's {a} plus {b}"
    "|sum of {a} and {b}|the sum of {a} and {b}|what is the sum of {a} and {b}|calculate {a} + {b}|compute {a}+{b}|{a} + {b} =|{a}+{b}=|how much is {a} + {b}"
    "|how much is {a} plus {b}|{a} and {b} together|what do you get if you add {a} and {b}|work out {a} + {b}|solve {a} + {b}|{b} more than {a}"
    "|what is {b} more than {a}|total of {a} and {b}|what does {a} + {b} equal|what does {a} plus {b} make|find {a} + {b}|evaluate {a} + {b}"
    "|i need {a} + {b}|tell me {a} + {b}|{a} added to {b}|do {a} + {b}".split("|"),
    "-": "{a} - {b}|{a}-{b}|{a} minus {b}|subtract {b} from {a}|take {b} from {a}|take {b} away from {a}|what is {a} - {b}|what is {a} minus {b}"
    "|what's {a} - {b}|what's {a} minus {b}|calculate {a} - {b}|compute {a}-{b}|{a} - {b} =|{a}-{b}=|how much is {a} - {b}|how much is {a} minus {b}"
    "|the difference of {a} and {b}|what is {a} take away {b}|{a} take away {b}|{a} less {b}|{b} less than {a}|what is {b} less than {a}|work out {a} - {b}"
    "|solve {a} - {b}|what does {a} - {b} equal|what is left if you take {b} from {a}|find {a} - {b}|evaluate {a} - {b}|{a} − {b}|{a} – {b}|tell me {a} - {b}"
    "|do {a} - {b}".split("|"),
    "*": "{a} * {b}|{a}*{b}|{a} x {b}|{a}x{b}|{a} × {b}|{a}×{b}|{a} times {b}|multiply {a} by {b}|multiply {a} and {b}|what is {a} * {b}|what is {a} x {b}"
    "|what is {a} × {b}|what is {a} times {b}|what's {a} times {b}|what's {a} * {b}|what's {a} x {b}|product of {a} and {b}|the product of {a} and {b}"
    "|what is the product of {a} and {b}|calculate {a} * {b}|calculate {a} x {b}|compute {a}*{b}|{a} * {b} =|{a}*{b}=|{a} x {b} =|how much is {a} times {b}"
    "|how much is {a} x {b}|{a} multiplied by {b}|what is {a} multiplied by {b}|work out {a} × {b}|solve {a} * {b}|what does {a} * {b} equal|find {a} × {b}"
    "|evaluate {a} * {b}|tell me {a} times {b}|do {a} times {b}|{a} X {b}|{a} · {b}".split("|"),
    "/": "{a} / {b}|{a}/{b}|{a} ÷ {b}|{a}÷{b}|{a} divided by {b}|divide {a} by {b}|what is {a} / {b}|what is {a} ÷ {b}|what is {a} divided by {b}"
    "|what's {a} divided by {b}|what's {a} / {b}|calculate {a} / {b}|compute {a}/{b}|{a} / {b} =|{a} ÷ {b} =|how much is {a} divided by {b}|how much is {a} / {b}"
    "|divide {a} by {b} with remainder|{a} divided by {b} with remainder|what is the remainder of {a} divided by {b}|how many times does {b} go into {a}"
    "|quotient and remainder of {a} and {b}|work out {a} ÷ {b}|solve {a} / {b}|find {a} / {b}|{b} into {a}|how often does {b} fit in {a}|evaluate {a} / {b}"
    "|do {a} divided by {b}|{a} over {b}|{a} : {b}|tell me {a} / {b}".split("|"),
}  # fmt: skip

FOLLOW_UP: dict[str, list[str]] = {
    "+": "plus {b}|and plus {b}|+ {b}|+{b}|add {b}|now add {b}|add {b} to that|and add {b}|then add {b}|what if you add {b}|and {b} more|{b} more"
    "|now plus {b}|and now add {b}|what is that plus {b}|what's that plus {b}|add {b} to it|add another {b}|that plus {b}|ok now add {b}|increase it by {b}".split("|"),
    "-": "minus {b}|and minus {b}|- {b}|-{b}|subtract {b}|now subtract {b}|subtract {b} from that|take away {b}|take {b} away|now take away {b}|then minus {b}"
    "|and less {b}|{b} less|now minus {b}|what is that minus {b}|what's that minus {b}|subtract {b} from it|take {b} from that|that minus {b}|decrease it by {b}".split("|"),
    "*": "times {b}|and times {b}|* {b}|x {b}|× {b}|*{b}|multiply by {b}|multiply that by {b}|now times {b}|multiply it by {b}|then times {b}|now multiply by {b}"
    "|and multiplied by {b}|what is that times {b}|what's that times {b}|that times {b}|and that times {b}|ok times {b}|x{b}|now multiply that by {b}".split("|"),
    "/": "divided by {b}|and divided by {b}|/ {b}|÷ {b}|/{b}|divide by {b}|divide that by {b}|now divide by {b}|divide it by {b}|then divided by {b}"
    "|what is that divided by {b}|what's that divided by {b}|that divided by {b}|now divide that by {b}|and now divide it by {b}|that / {b}".split("|"),
    "double": "double it|double that|and doubled|now double it|twice that|and twice that|what is double that|times two".split("|"),
    "half": "halve it|half of that|and half of that|now halve it|what is half of that|divide by two|half it".split("|"),
}  # fmt: skip

COMPARE_LARGER = (
    "which is larger, {a} or {b}|which is bigger, {a} or {b}|which is greater, {a} or {b}|what is larger, {a} or {b}|what is bigger: {a} or {b}"
    "|{a} or {b}, which is larger|{a} or {b}: which is bigger|which number is larger: {a} or {b}|which number is greater, {a} or {b}|compare {a} and {b}"
    "|compare {a} with {b}|compare {a} to {b}|{a} vs {b}|which one is bigger, {a} or {b}|larger of {a} and {b}|the larger of {a} and {b}|bigger: {a} or {b}"
    "|which is more, {a} or {b}|what's bigger, {a} or {b}|max of {a} and {b}|which is higher, {a} or {b}|{a} or {b}, what is more"
).split("|")
COMPARE_SMALLER = (
    "which is smaller, {a} or {b}|which is less, {a} or {b}|what is smaller, {a} or {b}|{a} or {b}, which is smaller|which number is smaller: {a} or {b}"
    "|which one is smaller, {a} or {b}|smaller of {a} and {b}|the smaller of {a} and {b}|smaller: {a} or {b}|what's smaller, {a} or {b}|min of {a} and {b}"
    "|which is lower, {a} or {b}|which number is less, {a} or {b}"
).split("|")
COMPARE_IS_LARGER = (
    "is {a} larger than {b}|is {a} bigger than {b}|is {a} greater than {b}|is {a} more than {b}|{a} > {b}|is {a} > {b}|is {a} higher than {b}|{a} bigger than {b}"
).split("|")
COMPARE_IS_SMALLER = "is {a} smaller than {b}|is {a} less than {b}|{a} < {b}|is {a} < {b}|is {a} lower than {b}|{a} smaller than {b}".split(
    "|"
)
LARGEST = (
    "what is the largest of {list}|largest of {list}|which is the largest: {list}|what's the biggest of {list}|find the maximum of {list}|max of {list}"
    "|biggest number in {list}|which number is the largest, {list}|the largest number of {list}|what is the highest of {list}"
).split("|")
SMALLEST = (
    "what is the smallest of {list}|smallest of {list}|which is the smallest: {list}|what's the smallest of {list}|find the minimum of {list}|min of {list}"
    "|smallest number in {list}|which number is the smallest, {list}|the smallest number of {list}|what is the lowest of {list}"
).split("|")

SORT_UP = (
    "sort {list}|sort these numbers: {list}|sort the numbers {list}|order {list}|put {list} in order|arrange {list}|sort {list} from smallest to largest"
    "|sort in ascending order: {list}|order these from low to high: {list}|sort: {list}|sort this list: {list}|sort [{list}]|please sort {list}|{list} sorted"
    "|put these in order: {list}|sort {list} ascending|arrange in increasing order: {list}|order the numbers {list}|what is {list} sorted|sort ascending {list}"
    "|sort these: {list}|order these numbers: {list}|sort from low to high {list}"
).split("|")
SORT_DOWN = (
    "sort {list} descending|sort {list} in descending order|sort {list} from largest to smallest|order {list} from high to low|sort descending: {list}"
    "|reverse sort {list}|sort these from largest to smallest: {list}|arrange in decreasing order: {list}|sort from high to low: {list}|sort {list} backwards"
    "|put {list} in descending order|order from biggest to smallest: {list}|sort descending {list}"
).split("|")

COUNT_LETTER = (
    "how many {l}'s are in {w}|how many {l}'s are there in {w}|how many {l}s are in {w}|how many {l}s in {w}|how many {l} in {w}|how many {l}'s in {w}"
    "|how many {l} are in {w}|how many {l} are there in {w}|how many times does the letter {l} appear in {w}|how many times does {l} appear in {w}"
    "|count the letter {l} in {w}|count the {l}'s in {w}|count the {l}s in {w}|number of {l}'s in {w}|the number of {l} in {w}|how often does {l} occur in {w}"
    "|how often does the letter {l} appear in {w}|how many letters {l} are in {w}|how many letter {l} in {w}|how many {l}'s does {w} have|how many {l}'s has {w}"
    "|how many {l}'s are in the word {w}|how many {l}s are there in the word {w}|how many times is {l} in {w}|count {l} in {w}|in {w}, how many {l}'s are there"
    "|{w}: how many {l}|how many of the letter {l} are in {w}|what is the number of {l}'s in {w}|tell me how many {l}'s are in {w}|how many {l}'s can you find in {w}"
).split("|")
COUNT_ALL = (
    "how many letters are in {w}|how many letters are there in {w}|how many letters in {w}|how many letters does {w} have|how many letters has {w}|count the letters in {w}"
    "|how long is the word {w}|number of letters in {w}|what is the length of {w}|length of {w}|how many characters are in {w}|how many letters are in the word {w}"
).split("|")
COUNT_VOWELS = (
    "how many vowels are in {w}|how many vowels in {w}|count the vowels in {w}|number of vowels in {w}|how many vowels does {w} have|how many vowels are there in the word {w}"
).split("|")
REVERSE = (
    "reverse {w}|reverse the word {w}|spell {w} backwards|write {w} backwards|{w} backwards|{w} reversed|what is {w} backwards|what is {w} reversed|what is {w} spelled backwards"
    "|reverse the letters of {w}|reverse the string {w}|say {w} backwards|how do you spell {w} backwards|turn {w} around|flip {w}|write {w} in reverse|{w} in reverse"
    "|what is the reverse of {w}|the reverse of {w}|type {w} backwards|mirror {w}|what does {w} look like backwards|reverse: {w}|spell {w} in reverse|what's {w} backwards"
).split("|")
SPELL = (
    "spell {w}|spell the word {w}|how do you spell {w}|how is {w} spelled|how to spell {w}|spell out {w}|spell {w} letter by letter|can you spell {w}|spelling of {w}"
    "|how do i spell {w}|what is the spelling of {w}|write {w} letter by letter|list the letters of {w}|what are the letters of {w}|what letters are in {w}|spell: {w}"
    "|how is the word {w} spelled|spell {w} for me|letters of {w}|split {w} into letters|what letters does {w} have|which letters are in {w}"
).split("|")

DAY_AFTER = (
    "what day is {n} days after {d}|what day is it {n} days after {d}|what day comes {n} days after {d}|which day is {n} days after {d}|{n} days after {d}|{d} plus {n} days"
    "|{d} + {n} days|if today is {d}, what day is it in {n} days|today is {d}, what day is it in {n} days|today is {d}. what day will it be in {n} days|{n} days from {d}"
    "|what weekday is {n} days after {d}|what day will it be {n} days after {d}|it is {d}. what day is it in {n} days|what is {n} days after {d}|what is {d} plus {n} days"
    "|if it is {d}, what day is it {n} days later|which weekday is {n} days from {d}|day {n} days after {d}|what day of the week is {n} days after {d}|{d} and {n} days"
    "|if today is {d} what day will it be in {n} days|what day follows {d} by {n} days|starting on {d}, what day is it after {n} days|in {n} days if today is {d}"
).split("|")
DAY_BEFORE = (
    "what day is {n} days before {d}|what day was {n} days before {d}|which day is {n} days before {d}|{n} days before {d}|{d} minus {n} days|{d} - {n} days"
    "|if today is {d}, what day was it {n} days ago|today is {d}, what day was it {n} days ago|what weekday was {n} days before {d}|what day came {n} days before {d}"
    "|it is {d}. what day was it {n} days ago|what is {n} days before {d}|if it is {d} what day was {n} days ago|what day of the week was {n} days before {d}"
    "|{n} days earlier than {d}|day {n} days before {d}"
).split("|")
DAY_NEXT = (
    "what day comes after {d}|what day is after {d}|if today is {d}, what day is tomorrow|today is {d}, what is tomorrow|which day follows {d}|what is the day after {d}"
    "|the day after {d}|what comes after {d}|next day after {d}"
).split("|")
DAY_PREVIOUS = (
    "what day comes before {d}|what day is before {d}|if today is {d}, what day was yesterday|today is {d}, what was yesterday|which day precedes {d}"
    "|what is the day before {d}|the day before {d}|what comes before {d}"
).split("|")

CONVERT = (
    "convert {n} {u} to {v}|convert {n} {u} into {v}|how many {v} are in {n} {u}|how many {v} is {n} {u}|how many {v} in {n} {u}|{n} {u} in {v}|{n} {u} to {v}|what is {n} {u} in {v}"
    "|how many {v} are {n} {u}|how many {v} are there in {n} {u}|express {n} {u} in {v}|{n} {u} = ? {v}|change {n} {u} to {v}|turn {n} {u} into {v}|what's {n} {u} in {v}"
    "|how many {v} make {n} {u}|{n} {u} is how many {v}|write {n} {u} in {v}|give me {n} {u} in {v}|{n} {u} as {v}|how much is {n} {u} in {v}|calculate {n} {u} in {v}"
).split("|")


_POLITE_BEFORE = [
    "please ",
    "can you tell me ",
    "hey, ",
    "ok, ",
    "so ",
    "could you ",
    "hi, ",
    "now ",
    "quick question: ",
    "and ",
    "tell me: ",
    "i wonder, ",
    "hi! ",
    "nano, ",
]
_POLITE_AFTER = [" please", ", please", " thanks", " for me", " then", " exactly", " now", " again"]


def rough(rng: random.Random, text: str, question: bool = True) -> str:
    """Types `text` the way people do: with or without capitals, politeness and final punctuation."""
    if rng.random() < 0.12:
        text = rng.choice(_POLITE_BEFORE) + text
    if rng.random() < 0.06:
        text += rng.choice(_POLITE_AFTER)
    draw = rng.random()
    if draw < 0.55:
        text = text[:1].upper() + text[1:]
    elif draw < 0.565:
        text = text.upper()
    elif draw < 0.65:
        text = text.lower()
    end = rng.random()
    if end < 0.55:
        text += "?" if question else rng.choice(["", ".", "!"])
    elif end < 0.60:
        text += rng.choice([".", "!", " ?", "??", "..", " !"])
    if rng.random() < 0.02:
        text = text.replace(" ", "  ", 1)
    if rng.random() < 0.02:
        text = f" {text}" if rng.random() < 0.5 else f"{text} "
    return text
