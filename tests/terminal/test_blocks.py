import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from localr1.terminal.blocks import BlockSplitter, code_blocks

ANSWER = Path(__file__).with_name("answer.md").read_text()


def split(*pieces: str):
    splitter = BlockSplitter()
    done = [block for piece in pieces for block in splitter.push(piece)]
    return [*done, *splitter.flush()]


def outline(text: str) -> list[tuple[str, str, bool]]:
    return [(block.kind, block.text, block.gap) for block in split(text)]


def test_paragraphs_headings_and_items():
    assert outline("a\nb\n\n# H\nc\n- x\n- y\n  more\n\n- z\n\nd") == [
        ("prose", "a\nb", False),
        ("heading", "# H", True),
        ("prose", "c", True),
        ("item", "- x", False),
        ("item", "- y\n  more", False),
        ("item", "- z", True),
        ("prose", "d", True),
    ]


def test_code_is_text_until_its_fence():
    blocks = split("a\n```python\n# no heading\n\n- no item\n``\n```\nb\n~~~\n```\n~~~")
    assert [(block.kind, block.text, block.language, block.number) for block in blocks] == [
        ("prose", "a", "", 0),
        ("code", "# no heading\n\n- no item\n``", "python", 1),
        ("prose", "b", "", 0),
        ("code", "```", "", 2),
    ]


def test_code_may_be_indented_as_far_as_its_fence():
    blocks = split("Text:\n      ```python\n      if x:\n        y\n    z\n      ```\n\n\t~~~\n\tw\n\t~~~")
    assert [(block.kind, block.text) for block in blocks] == [
        ("prose", "Text:"),
        ("code", "if x:\n  y\nz"),
        ("code", "w"),
    ]
    splitter = BlockSplitter()
    splitter.push("    ```\n    one\n    tw")
    assert splitter.live.text == "one\ntw"


def test_code_in_an_item_stays_in_it():
    blocks = split("1. do\n\n   ```\n# no heading\n   - no item\n   ```\n2. then")
    assert [block.kind for block in blocks] == ["item", "item"]
    assert "# no heading" in blocks[0].text and blocks[1].text == "2. then"


def test_dashes_under_a_line_make_it_a_heading():
    assert next(block.text for block in split("Title\n---\ntext")).startswith("Title\n---")


def test_unclosed_code_ends_with_the_answer():
    assert [(block.kind, block.text) for block in split("```\nx = 1")] == [("code", "x = 1")]


def test_the_live_block_is_what_is_not_whole_and_hides_what_could_become_anything():
    splitter = BlockSplitter()
    splitter.push("first\n\nsecond ha")
    assert splitter.live.text == "second ha" and splitter.live.gap
    splitter.push("lf\n\n``")
    assert splitter.live is None
    splitter.push("`py")
    assert (splitter.live.kind, splitter.live.language) == ("code", "py")
    splitter.push("\nx = 1\n``")
    assert splitter.live.text == "x = 1"


def test_long_code_and_long_lines_come_in_parts_of_bounded_length():
    code = "\n".join(f"line {number}" for number in range(250))
    blocks = split(f"```\n{code}\n```\n")
    assert [block.continued for block in blocks] == [False, True, True]
    assert {block.number for block in blocks} == {1}
    assert "\n".join(block.text for block in blocks) == code
    blocks = split("word " * 20_000)
    assert max(len(block.text) for block in blocks) <= 4000
    assert "".join(block.text for block in blocks) == "word " * 20_000
    assert max(len(block.text) for block in split("x" * 100_000)) <= 4000


def test_code_blocks_are_those_to_copy():
    assert [code.split("\n")[0] for code in code_blocks(ANSWER)] == [
        "def key(word):",
        'words = ["pear", "fig", "apple"]',
    ]
    long = "\n".join(map(str, range(250)))
    assert code_blocks(f"```\n{long}\n```\n\n```sh\nls\n```") == [long, "ls"]


def test_code_in_items_and_quotations_is_numbered_with_the_rest_and_copied_without_their_indentation():
    text = """```
one
```

1. Write:

   ```python
   def two():
       return "> 2"

   - no item
   ```
   then
   ~~~
   three
   ~~~

> Quoted:
> ```sh
> four
>   > 4
> ```

   ```text
   five
     more
   ```
"""
    assert code_blocks(text) == [
        "one",
        'def two():\n    return "> 2"\n\n- no item',
        "three",
        "four\n  > 4",
        "five\n  more",
    ]
    assert [(block.number, len(block.codes)) for block in split(text) if block.number] == [
        (1, 0), (2, 2), (4, 1), (5, 0)
    ]  # fmt: skip


def test_nothing_in_a_formula_on_lines_of_its_own_starts_a_block():
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        text = f"{opening}\nx = 100\n- 20\n+ 5\n# 3\n{closing}"
        assert [block.text for block in split(f"So:\n{text}\n- an item\n\nend")] == [f"So:\n{text}", "- an item", "end"]
        assert [block.kind for block in split(f"{opening} x {closing}\n- an item")] == ["prose", "item"]
    assert [block.kind for block in split("$$ never closed\n\n- an item")] == ["prose", "item"]
    assert [block.kind for block in split("- a\n  $$\n  never closed\n\n- b\n\nc")] == ["item", "item", "prose"]


@given(st.lists(st.integers(0, len(ANSWER)), max_size=30))
def test_pieces_are_cut_like_the_whole(cuts):
    edges = sorted({0, len(ANSWER), *cuts})
    assert split(*(ANSWER[a:b] for a, b in itertools.pairwise(edges))) == split(ANSWER)


@given(st.text(st.sampled_from("ab `~#-*1.|>\n\t "), max_size=200))
def test_no_line_is_lost(text):
    blocks = split(text)
    kept = "\n".join(block.text for block in blocks)
    fences = {line for line in text.split("\n") if line.strip().startswith(("```", "~~~"))}
    for line in text.split("\n"):
        if line.strip() and line not in fences:
            assert line.lstrip() in kept
