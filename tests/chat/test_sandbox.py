"""A template is stopped, however it misbehaves; the limits are steps and sizes, so no test here looks at a clock."""

import threading
import tracemalloc

import pytest
from jinja2.exceptions import SecurityError

from localr1.chat.sandbox import LimitError, Limits, Sandbox
from localr1.chat.template import ChatTemplate
from localr1.chat.transcript import Message
from localr1.errors import UnsupportedError

HELLO = [Message("user", "Hello")]
DOUBLE = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}%s"
WRITTEN = "{% for i in range(3000) %}{{ 'a' * 19000 }}{% endfor %}"

ENDLESS = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loops within loops of a filter": "{% for i in range(99999) if range(50)|select|list %}{% endfor %}",
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a recursive loop": ("{% for x in [40] recursive %}{% if x %}{{ loop([x-1, x-1]) }}{% endif %}{% endfor %}"),
    "text written in a loop": "{% for i in range(100000) %}{{ messages[0].content * 100 }}{% endfor %}",
}

GROWING = {
    "joined to itself": DOUBLE % ("'ab'", "ns.x ~ ns.x", ""),
    "added to itself": DOUBLE % ("'ab'", "ns.x + ns.x", ""),
    "a list added to itself": DOUBLE % ("[1]", "ns.x + ns.x", ""),
    "a nested list as JSON": DOUBLE % ("[1]", "[ns.x, ns.x]", "{{ ns.x|tojson }}"),
    "a nested list as text": DOUBLE % ("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    "a nested list turned to text": DOUBLE % ("[1]", "[ns.x, ns.x]", "{{ (ns.x|string)|length }}"),
    "nested lists compared": DOUBLE % ("[1]", "[ns.x, ns.x]", "{{ ns.x == [ns.x[0], ns.x[1]] }}"),
    "a nested dictionary": DOUBLE % ("{}", "{'a': ns.x, 'b': ns.x}", "{{ ns.x|tojson }}"),
    "a number squared": DOUBLE % ("9", "ns.x * ns.x", "{{ ns.x }}"),
    "text times a number": "{{ 'a' * 1000000000 }}",
    "a number times a list": "{{ 1000000000 * [1] }}",
    "a power": "{{ 10 ** 10 ** 10 }}",
    "a wide field": "{{ '%0999999999d' % 1 }}",
    "a wide field of format": "{{ '{:0999999999d}'.format(1) }}",
    "a nested field of format": "{{ '{:{}}'.format('a', 99999999) }}",
    "a wide field of the filter": "{{ '%0999999999d'|format(1) }}",
    "a wide date": "{{ strftime_now('%0999999999Y') }}",
    "padding": "{{ 'a'.ljust(1000000000) }}",
    "centering": "{{ 'a'.center(1000000000) }}",
    "indenting": "{{ 'a\nb'|indent(1000000000) }}",
    "replacing with more": "{{ ('a' * 10000).replace('a', 'b' * 10000) }}",
    "the filter replacing with more": "{{ ('a' * 10000)|replace('a', 'b' * 10000) }}",
    "joining with more": "{{ ('b' * 10000).join(range(10000)|map('string')) }}",
    "the filter joining with more": "{{ range(10000)|join('b' * 10000) }}",
    "a long range": "{{ range(1000000000)|list }}",
    "a format that shows its value often": "{{ ('{0}' * 6000).format('a' * 19000) }}",
    "a format of % that does": "{{ ('%()s' * 2500) % {'': 'a' * 9900} }}",
    "the filter format that does": "{{ ('%(a)s' * 2000)|format(a='a' * 9900) }}",
    "indenting with more": "{{ ('\n' * 9900)|indent('a' * 9900, blank=true) }}",
    "JSON indented with more": "{{ range(5000)|list|tojson(indent='a' * 14000) }}",
    "what a macro writes": "{% macro m() %}" + WRITTEN + "{% endmacro %}{{ m()|length }}",
    "what a block sets": "{% set x %}" + WRITTEN + "{% endset %}",
    "what a block filters": "{% filter length %}" + WRITTEN + "{% endfilter %}",
    "long keys": "{{ ([{'a' * 19000: 1}] * 6000)|string|length }}",
    "the items of a nested dictionary": DOUBLE % ("{}", "{'a': ns.x, 'b': ns.x}", "{{ ns.x.items()|string|length }}"),
    "nested namespaces": DOUBLE % ("1", "namespace(a=ns.x, b=ns.x)", "{{ ns.x|string|length }}"),
    "a nested tuple as a key": DOUBLE % ("(1,)", "(ns.x, ns.x)", "{% set d = {ns.x: 1} %}"),
    "a nested tuple looked up": DOUBLE % ("(1,)", "(ns.x, ns.x)", "{{ {}[ns.x] }}"),
    "bytes replaced with more": "{{ ('a' * 9000).encode().replace('a'.encode(), ('b' * 9000).encode()) }}",
    "a number as bytes": "{{ (1).to_bytes(100000000, 'big') }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_template_is_stopped(name: str) -> None:
    with pytest.raises(UnsupportedError, match="was stopped: it "):
        ChatTemplate(ENDLESS[name]).render(HELLO, limits=Limits(steps=20_000))


@pytest.mark.parametrize("name", GROWING)
def test_a_value_that_grows_is_stopped_before_it_is_made(name: str) -> None:
    sandbox = Sandbox(GROWING[name])
    tracemalloc.start()
    try:
        with pytest.raises((LimitError, SecurityError, OverflowError)) as caught:
            sandbox.render({}, Limits(characters=20_000))
        assert not str(caught.value).startswith("it took"), "stopped by the clock or the steps, not by its size"
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()


def test_a_template_is_stopped_by_the_clock_alone() -> None:
    with pytest.raises(UnsupportedError, match="it took more than 0 s"):
        ChatTemplate(ENDLESS["nested loops"]).render(HELLO, limits=Limits(seconds=0.0))


def test_lists_are_added_a_step_each() -> None:
    assert Sandbox("{{ [1, 2.5]|sum }}{{ [{'a': 3}]|sum(attribute='a') }}").render({}, Limits()) == "3.53"
    with pytest.raises(LimitError, match="more than 90 steps"):
        Sandbox("{{ ([[1]] * 100)|sum(start=[]) }}").render({}, Limits(steps=90))


def test_output_is_bounded() -> None:
    template = ChatTemplate("{{ messages[0].content }}" * 50)
    assert len(template.render(HELLO, limits=Limits(characters=250))) == 250
    with pytest.raises(UnsupportedError, match="wrote more than 249 characters"):
        template.render(HELLO, limits=Limits(characters=249))


def test_a_long_conversation_has_room() -> None:
    messages = [Message("user" if turn % 2 == 0 else "assistant", "word " * 20_000) for turn in range(40)]
    source = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content|trim }}{{ messages|length }}{% endfor %}"
    assert len(ChatTemplate(source).render(messages)) > 3_900_000


def test_a_length_or_a_kind_is_asked_without_a_look_at_all_that_is_in_a_value() -> None:
    """Qwen3's template asks how many messages there are for every message; 1,000 turns took it over 10 s."""
    source = "{% for m in x %}{{ x|length }}{{ x is defined and m is string }}{% endfor %}"
    assert Sandbox(source).render({"x": ["a" * 500] * 2}, Limits(characters=900)) == "2True2True"


def test_each_render_starts_anew() -> None:
    template = ChatTemplate("{% for i in range(600) %}{% endfor %}ok")
    for _ in range(5):
        assert template.render(HELLO, limits=Limits(steps=1_000)) == "ok"


def test_an_enormous_template_is_not_compiled() -> None:
    with pytest.raises(UnsupportedError, match="the template itself has"):
        ChatTemplate("a" * 1_000_001)


def test_it_works_on_any_thread() -> None:
    seen: list[str] = []

    def render() -> None:
        try:
            ChatTemplate(ENDLESS["nested loops"]).render(HELLO, limits=Limits(steps=1_000))
        except UnsupportedError as error:
            seen.append(error.message)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert seen == ["template was stopped: it took more than 1,000 steps"]


def test_variables_are_those_that_come_from_outside() -> None:
    loop = "{% for c in d %}{{ c }}{% endfor %}"
    default = "{% if not e is defined %}{% set e = 1 %}{% endif %}{{ e }}"
    source = "{% set a = 1 %}{{ a }}{{ b }}" + loop + default
    assert {"b", "d", "e"} <= Sandbox(source).variables
    assert not {"a", "c"} & Sandbox(source).variables
