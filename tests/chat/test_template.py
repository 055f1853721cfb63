"""Templates: where they are found, the exact strings of the models' families, and what goes wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from localr1.chat.template import ChatTemplate, opens_thought
from localr1.chat.transcript import Message
from localr1.errors import CorruptError, NotFoundError, UnsupportedError, UsageError
from tests.chat import templates

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SPECIAL = {"bos_token": BOS, "eos_token": EOS}


def talk(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]  # type: ignore[arg-type]


# The conversation of llama.cpp's tests/test-chat-template.cpp, spaces included.
LLAMA_CPP = talk(
    ("system", "You are a helpful assistant"),
    ("user", "Hello"),
    ("assistant", "Hi there"),
    ("user", "Who are you"),
    ("assistant", "   I am an assistant   "),
    ("user", "Another question"),
)
# The conversation of DeepSeek-V3.1's model card.
V3_1_CARD = talk(
    ("system", "You are a helpful assistant"),
    ("user", "Who are you?"),
    ("assistant", "<think>Hmm</think>I am DeepSeek"),
    ("user", "1+1=?"),
)
V3_1_STEM = (
    f"{BOS}You are a helpful assistant<｜User｜>Who are you?<｜Assistant｜></think>I am DeepSeek{EOS}<｜User｜>1+1=?"
)
R1_STEM = (
    f"{BOS}You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there{EOS}<｜User｜>Who are you"
    f"<｜Assistant｜>   I am an assistant   {EOS}<｜User｜>Another question"
)
HELLO = talk(("user", "Hello"))


@pytest.mark.parametrize(
    ("template", "messages", "thinking", "expected", "opened"),
    [
        # R1's first release and R1-0528: the tokenizer configs end in the assistant's mark alone.
        pytest.param(templates.DEEPSEEK, LLAMA_CPP, None, R1_STEM + "<｜Assistant｜>", False, id="r1-first, r1-0528"),
        # R1 and its distills since February 2025 (DeepSeek-R1 issue 363): the thought is opened by the prompt.
        pytest.param(
            templates.R1_UPDATED, LLAMA_CPP, None, R1_STEM + "<｜Assistant｜><think>\n", True, id="r1, r1-distill"
        ),
        # The model card's own outputs.
        pytest.param(templates.V3_1, V3_1_CARD, True, V3_1_STEM + "<｜Assistant｜><think>", True, id="v3.1 thinking"),
        pytest.param(templates.V3_1, V3_1_CARD, False, V3_1_STEM + "<｜Assistant｜></think>", False, id="v3.1 not"),
        pytest.param(templates.V3_1, V3_1_CARD, None, V3_1_STEM + "<｜Assistant｜></think>", False, id="v3.1 default"),
        # llama.cpp, case "DeepSeek-V2" (there without a bos token).
        pytest.param(
            templates.V2,
            LLAMA_CPP,
            None,
            f"{BOS}You are a helpful assistant\n\nUser: Hello\n\nAssistant: Hi there{EOS}User: Who are you\n\n"
            f"Assistant:    I am an assistant   {EOS}User: Another question\n\nAssistant:",
            False,
            id="v2-lite",
        ),
        # llama.cpp, case "teknium/OpenHermes-2.5-Mistral-7B".
        pytest.param(
            templates.CHATML,
            LLAMA_CPP,
            None,
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n"
            "<|im_start|>assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n"
            "<|im_start|>assistant\n",
            False,
            id="chatml",
        ),
        # Qwen3's documentation: thinking is the default, an empty thought switches it off.
        pytest.param(
            templates.QWEN3,
            HELLO,
            True,
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
            False,
            id="qwen3",
        ),
        pytest.param(
            templates.QWEN3,
            HELLO,
            False,
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            False,
            id="qwen3 not",
        ),
        # Ollama's tests of its GLM-4.6 renderer, and the model's template for thinking off.
        pytest.param(templates.GLM_4_5, HELLO, None, "[gMASK]<sop><|user|>\nHello<|assistant|>", False, id="glm-4.6"),
        pytest.param(
            templates.GLM_4_5,
            HELLO,
            False,
            "[gMASK]<sop><|user|>\nHello/nothink<|assistant|>\n<think></think>",
            False,
            id="glm-4.6 not",
        ),
        # GLM-4.7's template: no newlines, and the thought opened or closed by the prompt.
        pytest.param(
            templates.GLM_4_7,
            talk(("system", "You are helpful."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Bye")),
            None,
            "[gMASK]<sop><|system|>You are helpful.<|user|>Hello<|assistant|></think>Hi<|user|>Bye<|assistant|><think>",
            True,
            id="glm-4.7-flash",
        ),
        pytest.param(
            templates.GLM_4_7, HELLO, False, "[gMASK]<sop><|user|>Hello<|assistant|></think>", False, id="glm-4.7 not"
        ),
        # Moonlight's template, with the system prompt that it adds.
        pytest.param(
            templates.MOONLIGHT,
            HELLO,
            None,
            "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|><|im_user|>user<|im_middle|>Hello"
            "<|im_end|><|im_assistant|>assistant<|im_middle|>",
            False,
            id="moonlight",
        ),
    ],
)
def test_a_family(template: str, messages: list[Message], thinking: bool | None, expected: str, opened: bool) -> None:
    rendered = ChatTemplate(template, SPECIAL).render(messages, thinking=thinking)
    assert rendered == expected
    assert opens_thought(rendered) is opened


def test_smollm2s_own_template(smollm2_folder: Path) -> None:
    """The system prompt that it adds is documented in Hugging Face's SmolLM2 course."""
    rendered = ChatTemplate.open(smollm2_folder).render(HELLO)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


TRANSFORMERS_CASES = [
    (templates.R1_UPDATED, LLAMA_CPP),
    (templates.V3_1, V3_1_CARD),
    (templates.V2, LLAMA_CPP),
    (templates.QWEN3, LLAMA_CPP),
    (templates.GLM_4_5, LLAMA_CPP),
    (templates.GLM_4_7, LLAMA_CPP),
    (templates.MOONLIGHT, LLAMA_CPP),
    (
        "{% generation %}a{% endgeneration %}\n  {% for m in messages %}\n"
        "{% if loop.index == 3 %}{% break %}{% endif %}"
        "{{ m|tojson }}{{ loop.length }}{{ loop.last }}{{ loop.nextitem.role }}\n  {% endfor %}\n"
        "{{ 'é<' | tojson }} {{ [2,1]|sort|join(', ') }} {{ {'b': [1]}|tojson(indent=2) }}"
        "{{ 'x-y'|replace('-', '+') }}{{ ['p','q']|join('/') }} {{ messages|map(attribute='role')|join('|') }}"
        "{{ '%s!' % 'z' }} {{ 'a' ~ 1 ~ none }} {{ messages|join(', ', attribute='role') }} "
        "{{ 'aaa'|replace('a', 'b', 2) }}{{ '%s %s'|format('y', 1) }}"
        "{% for i in [3, 1]|sort %}{{ loop.cycle('x', 'y') }}{{ i }}{% else %}none{% endfor %}"
        "{{ (messages|selectattr('role', 'equalto', 'user')|list)|length }}{{ missing }}{{ 7 % 4 }} {{ 2 * 'ab' }}"
        "{% set ns = namespace(n=0) %}{% for i in range(4) recursive %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"
        "{{ 'abc'.replace('b', 'x') }}{{ '-'.join(['a', 'b']) }}{{ '{}:{}'.format(1, 2) }}{{ documents is none }}",
        LLAMA_CPP,
    ),
]


@pytest.mark.parametrize(("source", "messages"), TRANSFORMERS_CASES)
def test_it_renders_as_transformers_does(source: str, messages: list[Message]) -> None:
    """Loop controls, white space, JSON and the rest, metered or not."""
    from transformers.utils.chat_template_utils import render_jinja_template

    records = [{"role": message.role, "content": message.content} for message in messages]
    expected, _ = render_jinja_template([records], chat_template=source, add_generation_prompt=True, **SPECIAL)
    assert ChatTemplate(source, SPECIAL).render(messages) == expected[0]


def write(folder: Path, config: Any = None, jinja: str | None = None) -> Path:
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return folder


def test_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    folder = write(tmp_path, {"chat_template": "config", "bos_token": "<s>"}, "{{ bos_token }}file ｜")
    assert ChatTemplate.open(folder).render(HELLO) == "<s>file ｜"


def test_a_template_in_the_config(tmp_path: Path) -> None:
    assert ChatTemplate.open(write(tmp_path, {"chat_template": "{{ messages[0].content }}"})).render(HELLO) == "Hello"


def test_a_list_of_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert ChatTemplate.open(write(tmp_path, {"chat_template": named})).render(HELLO) == "plain"


@pytest.mark.parametrize("spelling", ["<s>", {"__type": "AddedToken", "content": "<s>", "lstrip": False}])
def test_special_tokens_in_both_spellings(tmp_path: Path, spelling: object) -> None:
    config = {
        "chat_template": "{{ bos_token }}|{{ unk_token }}|{{ pad_token is defined }}|{{ add_bos_token is defined }}",
        "bos_token": spelling,
        "unk_token": spelling,
        "pad_token": None,
        "add_bos_token": True,
    }
    assert ChatTemplate.open(write(tmp_path, config)).render(HELLO) == "<s>|<s>|False|False"


def test_the_packaged_deepseek_config_has_no_template(deepseek_folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="no chat template") as caught:
        ChatTemplate.open(deepseek_folder)
    assert "chat or instruct variant" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "jinja", "error", "message"),
    [
        ({"chat_template": [{"name": "rag", "template": "x"}]}, None, UnsupportedError, 'named "default"'),
        ({"chat_template": []}, None, UnsupportedError, "it has: none"),
        ({"chat_template": 3}, None, CorruptError, "int"),
        ({"chat_template": ["x"]}, None, CorruptError, "list"),
        ([1], None, CorruptError, "not an object"),
        (None, "{% if %}", CorruptError, "chat_template.jinja:1"),
        (None, "a\n{{ 'x' | nonsense }}", UnsupportedError, "chat_template.jinja:2: No filter named 'nonsense'"),
        (None, "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", UnsupportedError, "nested too deep"),
        (None, "{% break %}", CorruptError, "chat_template.jinja cannot be compiled: 'break' outside loop"),
        (None, "{% if 1 %}" * 150 + "{% endif %}" * 150, CorruptError, "cannot be compiled"),
        (None, "{{ " + "9" * 5000 + " }}", CorruptError, "cannot be compiled"),
    ],
)
def test_a_bad_template(
    tmp_path: Path, config: object, jinja: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")) as caught:
        ChatTemplate.open(write(tmp_path, config, jinja))
    assert caught.value.hint


def test_a_config_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": ')
    with pytest.raises(CorruptError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.open(tmp_path)


def test_a_template_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CorruptError, match="not UTF-8"):
        ChatTemplate.open(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        ChatTemplate.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("{{ raise_exception('no system prompt') }}", UnsupportedError, "refuses this conversation: no system prompt"),
        ("{{ a.b.c }}", CorruptError, "'a' is undefined"),
        ("{{ 1 / 0 }}", CorruptError, "ZeroDivisionError"),
        ("{% include 'x' %}", CorruptError, "no loader"),
        ("{{ ''.__class__.__mro__ }}", UnsupportedError, "__class__"),
        ("{{ messages.append(1) }}", UnsupportedError, "append"),
        ("{{ messages[0].update(a=1) }}", UnsupportedError, "update"),
        ("{{ (messages|map).gi_frame.f_globals }}", UnsupportedError, "gi_frame"),
    ],
)
def test_a_template_that_fails(source: str, error: type[Exception], message: str) -> None:
    template = ChatTemplate(source, origin="model/chat_template.jinja")
    with pytest.raises(error, match=message) as caught:
        template.render(HELLO)
    assert caught.value.message.startswith("model/chat_template.jinja")
    assert caught.value.hint


def test_the_switch_for_thinking() -> None:
    both = ChatTemplate("{{ enable_thinking is defined }} {{ thinking is defined }}")
    assert both.switches_thinking
    assert both.render(HELLO) == "False False"
    assert both.render(HELLO, thinking=False) == "True True"
    assert ChatTemplate("{{ thinking }}").render(HELLO, thinking=True) == "True"
    assert not ChatTemplate(templates.R1_UPDATED).switches_thinking
    assert ChatTemplate(templates.V3_1).switches_thinking
    local = ChatTemplate("{% set thinking = 1 %}{{ thinking }}{{ messages[0].thinking }}")
    assert not local.switches_thinking
    for thinking in (True, False):
        with pytest.raises(UsageError, match="no switch for thinking"):
            local.render(HELLO, thinking=thinking)


@pytest.mark.parametrize(
    ("rendered", "opened"),
    [
        ("<｜Assistant｜><think>\n", True),
        ("<think>", True),
        ("<think> \n\n", True),
        ("<think></think>", False),
        ("<think>\n\n</think>\n\n", False),
        ("<think>so", False),
        ("<think", False),
        ("", False),
    ],
)
def test_whether_a_prompt_opens_a_thought(rendered: str, opened: bool) -> None:
    assert opens_thought(rendered) is opened
