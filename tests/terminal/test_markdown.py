import re
from collections import Counter
from pathlib import Path

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from localr1.events import AnswerText, ReasoningText
from localr1.options import TerminalOptions
from localr1.terminal.blocks import Block, BlockSplitter
from localr1.terminal.markdown import Layout
from localr1.terminal.render import show_turn
from tests.terminal.fakes import environment, out, turn_end
from tests.terminal.hostile import HOSTILE

ANSWER = (Path(__file__).parent / "answer.md").read_text()


def lines(text: str, width: int, colours: str = "none") -> list[str]:
    layout, splitter = Layout(colours), BlockSplitter()
    shown = []
    for block in [*splitter.push(text), *splitter.flush()]:
        shown += [""] * block.gap + layout.block(block, width)
    return shown


@pytest.mark.parametrize("width", [80, 40, 12])
def test_no_line_is_wider_than_the_window_nor_ends_in_spaces(width):
    for line in lines(ANSWER, width):
        assert cell_len(line) <= width
        assert line == line.rstrip()


def test_styles_are_of_each_line_alone():
    for line in lines(ANSWER, 60, "256"):
        assert line.count("\x1b[0m") >= (1 if "\x1b[" in line else 0)
        assert not line or not re.search(r"\x1b\[[1-9][0-9;]*m[^\x1b]*$", line)


def test_code_keeps_its_characters():
    code = "def f():\n    return '**not bold**'  # <b>"
    assert lines(f"```python\n{code}\n```", 80)[1:] == code.split("\n")


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_table_loses_nothing_in_a_window_of_any_width(rows):
    for columns in range(1, 13):
        cells = [
            [f"{chr(97 + column)}{row}" * (1 + column % 3) for column in range(columns)] for row in range(rows + 1)
        ]
        head, *body = ["|" + "|".join(row) + "|" for row in cells]
        table = "\n".join([head, "|" + "-|" * columns, *body])
        for width in (*range(4, 24), *range(24, 90, 7)):
            shown = lines(table, width)
            lost = Counter("".join(map("".join, cells))) - Counter("".join(shown))
            assert not lost, (columns, width)
            assert max(map(cell_len, shown)) <= width


def test_a_table_of_too_many_columns_is_a_few_lines_for_each_row():
    assert lines("| |b|c|\n|-|-|-|\n|one|two||\n|three|four|five|", 12) == [
        "one",
        "b: two",
        "c:",
        "",
        "three",
        "b: four",
        "c: five",
    ]
    assert lines("|a|b|\n|-|-|\n|1|2|", 12)[0].split() == ["a", "b"]


def test_formulas_and_html_stay_as_they_are():
    assert lines(r"\[ x_1 \] <b>b</b> &lt;", 80) == [r"\[ x_1 \] <b>b</b> &lt;"]


AS_WRITTEN = (
    "2*3*4 = 24, a*b*c and n*(n-1)*(n-2)",
    "\\(5!=5*4*3*2*1\\) and \\(f^*(x) = g^*(x)\\)",
    "x**2 + y**2 = z**2, 2**n + 3**n",
    "\\mathbf{x}_{1} + \\mathbf{y}_{2}",
    "$\\hat{y}_{i} * \\bar{y}_{j}$ and $$a_b*c_d*e$$",
    "\\[\nx\n=\n5\n\\]",
    "\\[\nx = 100\n- 20\n+ 5\n\\]",
    "So:\n\n$$\n1\n- 2\n---\n$$",
    "it costs $5 to $10, or 3*$7",
)


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_formulas_are_shown_as_they_are_written(text):
    assert lines(text, 80) == text.split("\n")


def test_a_formula_in_an_item_stays_in_it():
    assert lines("1. Area:\n   \\[\n   a = 3*4\n   - 5\n   \\]\n2. b", 80) == [
        " 1. Area:", "    \\[", "    a = 3*4", "    - 5", "    \\]", " 2. b"
    ]  # fmt: skip


def test_a_formula_that_is_never_closed_ends_with_a_blank_line():
    assert lines("1. a:\n   \\[\n   x = 3*4\n\n   - *b*\n2. c", 80) == [
        " 1. a:", "    \\[", "    x = 3*4", "     • b", " 2. c"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**bold** and *so*, un**known**, **x**.", "bold and so, unknown, x."),
        ("2 * 3 * 4 and *a* * *b*", "2 * 3 * 4 and a * b"),
        ("**注意：**请看，这是**重点**，以及**（注）**后", "注意：请看，这是重点，以及（注）后"),
        ("他说**“好”**了", "他说“好”了"),
    ],
)
def test_emphasis_is_known_beside_it(text, shown):
    assert lines(text, 80) == [shown]


def test_code_in_an_item_has_the_label_that_copy_knows_it_by():
    text = "```\none\n```\n1. Do:\n   ```sh\n   ls -l\n   ```\n2. and:\n   ```\n   three\n   ```\n"
    shown = [line.strip() for line in lines(text, 60) if line]
    assert shown == ["code · /copy 1", "one", "1. Do:", "sh · /copy 2", "ls -l", "2. and:", "code · /copy 3", "three"]


def test_breaks_in_html_are_line_breaks_but_in_code():
    assert lines("one<br>two<BR/> three <br />\nfour `<br>` <break>", 80) == [
        "one",
        "two",
        "three",
        "four <br> <break>",
    ]
    assert [line.split() for line in lines("|a|b|\n|-|-|\n|1<br>2|3|", 80)[2:]] == [["1", "3"], ["2"]]


def test_open_emphasis_of_the_live_block_is_closed():
    live = Layout("standard").block(Block("prose", "so **bo"), 80, live=True)
    assert live == ["so \x1b[1mbo\x1b[0m"]


def test_an_encoding_of_few_characters_gets_what_it_has():
    assert all(line.isascii() for line in Layout("none", ascii_only=True).block(Block("item", "- 漢 • x"), 40))


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("mode", ["show", "fold"])
def test_a_hostile_answer_leaves_the_terminal_as_it_was(hostile, mode):
    shown = environment(tty="ioe", TERM="xterm-256color")
    pieces = [hostile[at : at + 7] for at in range(0, min(len(hostile), 2000), 7)] + [hostile[2000:]]
    events = [*map(ReasoningText, pieces), *map(AnswerText, pieces), turn_end()]
    show_turn(shown, events, TerminalOptions(thoughts=mode))
    screen = pyte.HistoryScreen(80, 24, history=100)
    screen.set_mode(pyte.modes.LNM)
    modes, titles = set(screen.mode), []
    screen.set_title = titles.append
    pyte.Stream(screen).feed(out(shown).encode("utf-8", "replace").decode())
    assert screen.mode == modes and titles == [] and not screen.cursor.hidden
    assert screen.cursor.attrs == screen.default_char and screen.cursor.x == 0
    ours = re.sub(r"\x1b\[(\?(2026|7)[hl]|\d*A|J|K|[0-9;]*m)", "", out(shown))
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", ours)


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab \n`*_#->|1.[]()<&;\x1b\x9b\u202e漢é\u0301\t"), max_size=120), st.integers(4, 30))
def test_any_text_is_laid_out_safely(text, width):
    for line in lines(text, width):
        assert cell_len(line) <= max(width, 2)
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", line)
