"""What a template may not do: leave the sandbox, or take more time and memory than a conversation is worth."""

from __future__ import annotations

import resource
import tracemalloc
from typing import Any

import pytest

from medha_jax.chat import ChatError, ChatTemplate, ChatTemplateError
from medha_jax.chat.work_limit import BASE_WORK

USER = [{"role": "user", "content": "hello"}]
LONG = [{"role": "user", "content": "word " * 20_000}]
DOUBLINGS = "{% for i in range(60) %}"
MOST_BYTES = 16 * BASE_WORK  # of memory that a rendering may hold; four for each character at most, and what it names


def render(source: str, messages: Any = USER, **more: Any) -> str:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"}).render(messages, **more)


BOMBS = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that see nothing": "{% for a in range(99999) if range(99999)|list|length < 0 %}{% endfor %}",
    "loops over what was said": "".join(f"{{% for {name} in messages[0].content %}}" for name in "abcdefghi")
    + "{% endfor %}" * 9,
    "recursive loops": "{% for a in range(8) recursive %}{{ loop(range(8)) }}{% endfor %}",
    "text in a loop": "{% set x %}{% for a in range(99999) %}" + "y" * 1000 + "{% endfor %}{% endset %}",
    "a macro's text": "{% macro m() %}" + "y" * 1000 + "{% endmacro %}{% for a in range(99999) %}{{ m() }}{% endfor %}",
    "macros that double": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}"
    + DOUBLINGS
    + "{% set ns.x = m(ns.x) %}{% endfor %}",
    "a macro that calls itself": "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a block that names itself": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "callers": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}{% set ns = namespace(x='ab') %}"
    + DOUBLINGS
    + "{% set ns.x %}{% call m() %}{{ ns.x }}{% endcall %}{% endset %}{% endfor %}",
    "a factor": "{{ 'a' * 10000000000 }}",
    "a list's factor": "{{ ([0] * 1000000000)|length }}",
    "a factor of a tuple": "{% set x = 1000000000 * (1, 2) %}",
    "sums that double": "{% set ns = namespace(x='ab') %}" + DOUBLINGS + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "lists that double": "{% set ns = namespace(x=[1]) %}" + DOUBLINGS + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "joins that double": "{% set ns = namespace(x='ab') %}" + DOUBLINGS + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "blocks that double": "{% set ns = namespace(x='ab') %}"
    + DOUBLINGS
    + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "filter blocks that double": "{% set ns = namespace(x='ab') %}"
    + DOUBLINGS
    + "{% set ns.x %}{% filter upper %}{{ ns.x }}{{ ns.x }}{% endfilter %}{% endset %}{% endfor %}",
    "a list in itself twice": "{% set ns = namespace(x=[1]) %}"
    + DOUBLINGS
    + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "a mapping in itself twice": "{% set ns = namespace(x={}) %}"
    + DOUBLINGS
    + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|tojson }}",
    "a dict in itself twice": "{% set ns = namespace(x={}) %}"
    + DOUBLINGS
    + "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x|string }}",
    "views in dicts": "{% set ns = namespace(x=dict(a=1)) %}"
    + DOUBLINGS
    + "{% set ns.x = dict(a=ns.x.items(), b=ns.x.items()) %}{% endfor %}{{ ns.x }}",
    "arguments of macros": "{% set ns = namespace(x=[1]) %}{% macro m() %}{% set ns.x = varargs %}{% endmacro %}"
    + DOUBLINGS
    + "{{ m(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    "named arguments of macros": "{% set ns = namespace(x=[1]) %}{% macro m() %}{% set ns.x = kwargs %}{% endmacro %}"
    + DOUBLINGS
    + "{{ m(a=ns.x, b=ns.x) }}{% endfor %}{{ ns.x }}",
    "comparing what is in itself twice": "{% set ns = namespace(x=(1,), y=(1,)) %}"
    + DOUBLINGS
    + "{% set ns.x = (ns.x, ns.x) %}{% set ns.y = (ns.y, ns.y) %}{% endfor %}{{ ns.x == ns.y }}",
    "lists in lists": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "keeping slices": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}"
    "{% set ns.x = ns.x + [messages[0].content[1:]] %}{% endfor %}",
    "keeping texts": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}"
    "{% set ns.x = ns.x + [messages[0].content|upper] %}{% endfor %}",
    "replacing": "{{ ('a' * 5000).replace('a', 'b' * 50000) }}",
    "replacing by a filter": "{{ ('a' * 5000)|replace('a', 'b' * 50000) }}",
    "replacing nothing": "{{ ('a' * 5000)|replace('', 'b' * 50000) }}",
    "a separator": "{{ range(99999)|list|join('b' * 50000) }}",
    "a separator's method": "{{ ('b' * 50000).join('a' * 99999) }}",
    "a separator of an iterator": "{{ ('b' * 50000).join(['a'] * 99999|list) }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format of a name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "a wide format of an odd name": "{{ '%((a))1000000000d' % {'(a)': 1} }}",
    "a format of flags": "{{ '%-+ #01000000000d' % 1 }}",
    "a date": "{{ strftime_now('%c' * 500000) }}",
    "a format as wide as a value": "{{ '%*d' % (1000000000, 1) }}",
    "a precise format": "{{ '%.1000000000f' % 1.0 }}",
    "a filter's format": "{{ '%1000000000d'|format(1) }}",
    "a method's format": "{{ '{:>1000000000}'.format(1) }}",
    "a format's format": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "a format map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "a format of many": "{{ ('{0}' * 50000).format('a' * 50000) }}",
    "a printf of many": "{{ ('%(a)s' * 50000) % {'a': 'b' * 50000} }}",
    "an indentation": "{{ ('a\n' * 50000)|indent(1000000) }}",
    "a text that indents": "{{ ('a\n' * 50000)|indent('a' * 100000) }}",
    "an indentation of JSON": "{{ [1, 2]|tojson(indent=1000000000) }}",
    "a separator of JSON": "{{ ([1] * 50000)|tojson(separators=('a' * 50000, ':')) }}",
    "a power": "{{ 10 ** 1000000000 }}",
    "powers": "{% set ns = namespace(x=10) %}" + DOUBLINGS + "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a precision": "{{ 1|round(1000000000, 'ceil') }}",
    "adding lists up": "{{ ([[1]] * 50000)|sum(start=[])|length }}",
    "comparing a long text often": "{% for a in range(99999) %}"
    "{% if messages[0].content + 'a' == messages[0].content + 'b' %}{% endif %}{% endfor %}",
    "searching a long text often": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% if 'zz' in messages[0].content %}{% endif %}{% endfor %}{% endfor %}",
    "splitting a long text often": "{% for a in range(99999) %}{% for b in range(99) %}"
    "{% set x = messages[0].content.split(' ') %}{% endfor %}{% endfor %}",
    "namespaces in lists": "{% set a = namespace() %}{% set x = [a, a] %}",
    "a namespace in another": "{% set a = namespace() %}{% set b = namespace(a=a) %}",
    "a namespace set in another": "{% set a = namespace() %}{% set b = namespace() %}{% set b.a = a %}",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("messages", [USER, LONG], ids=["short", "long"])
def test_bombs_are_refused_before_they_take_memory(name: str, messages: Any) -> None:
    template = ChatTemplate({"default": BOMBS[name]})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ChatError, match="the chat template cannot render") as refused:
        template.render(messages)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_BYTES + 64 * len(str(messages))
    assert len(str(refused.value)) < 500


def test_constants_are_not_computed_while_a_template_is_read() -> None:
    tracemalloc.start()
    try:
        ChatTemplate({"default": BOMBS["a factor"]})
        ChatTemplate({"default": "{% if 10 ** 100000000 %}{% endif %}{% set x = ('ab' ~ 'c') * 10000000000 %}"})
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ ''['__class__'].__mro__ }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__.__mro__}'|attr('format')('') }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ strftime_now.__code__.co_consts }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace()._Namespace__attrs.a }}",
    "{{ dict.__call__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ loop.__class__.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._environment.filters }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{{ ([1]|map('string')).gi_frame.f_globals }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.sort() }}",
    "{{ 'a'.encode() }}",
    "{{ 'a'.translate({97: 'b'}) }}",
    "{{ 'a'.center(9) }}",
    "{{ lipsum() }}",
    "{{ cycler(1).next() }}",
    "{{ messages[0].items().mapping.a }}",
    "{{ range.start.real() }}",
    "{% set ns = namespace(_a=1) %}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_what_is_not_for_templates_is_out_of_reach(source: str) -> None:
    with pytest.raises(ChatError, match="the chat template cannot render these messages"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ ''|attr('format')|attr('__globals__')|string }}{{ ''.format.__self__.__class__ }}",
        "{% for a in [1] recursive %}{{ loop._iterator }}{% endfor %}",
    ],
)
def test_what_is_out_of_reach_has_no_text(source: str) -> None:
    assert render(source) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{% include 'a' %}",
        "{% import 'a' as a %}",
        "{% from 'a' import b %}",
        "{% extends 'a' %}",
        "{% autoescape true %}{% endautoescape %}",
        "{{ messages|pprint }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ [1]|batch(1000000000, 0)|list }}",
        "{{ [1]|slice(1000000000)|list }}",
        "{{ 'a'|urlize }}",
        "{{ 'a'|wordwrap(1) }}",
        "{{ [1]|random }}",
        "{% debug %}",
        "{% do messages.append(1) %}",
        "{% if %}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "{% for a in b %}" * 60 + "{% endfor %}" * 60,
        "{% if a %}" * 200 + "{% endif %}" * 200,
        "{{ " + "9" * 5000 + " }}",
        "x" * (2**18 + 1),
        "{{ messages[1:2, 3] }}",
    ],
    ids=lambda source: source[:40],
)
def test_templates_that_need_more_are_refused_where_they_are_read(source: str) -> None:
    with pytest.raises(ChatTemplateError) as refused:
        ChatTemplate({"default": source})
    assert len(str(refused.value)) < 500


def test_a_template_tells_the_client_why_it_refuses() -> None:
    with pytest.raises(ChatError) as refused:
        render("{{ raise_exception('roles\nmust ' + 'alternate' + 'x' * 5000) }}")
    assert str(refused.value).startswith("the chat template refuses the messages: roles must alternate")
    assert len(str(refused.value)) < 500


def test_what_a_template_misses_is_named() -> None:
    with pytest.raises(ChatError, match="cannot render these messages: 'dict object' has no attribute 'a'"):
        render("{{ messages[0].a.b }}")
    with pytest.raises(ChatError, match="can only concatenate str"):
        render("{{ 'a' + 1 }}")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% generation %}{% set x = 1 %}{{ messages[0].content }}{% endgeneration %}{{ x }}", "hello"),
        (
            "{% for a in range(9) %}{% if a == 2 %}{% continue %}{% endif %}{% if a == 4 %}{% break %}{% endif %}"
            "{{ a }}{% endfor %}",
            "013",
        ),
        ("{{ {'b': '<é>', 'a': [1]}|tojson }}", '{"b": "<é>", "a": [1]}'),
        ("{{ {'b': 1, 'a': [1]}|tojson(indent=1, sort_keys=true) }}", '{\n "a": [\n  1\n ],\n "b": 1\n}'),
        ("{{ [1, 2]|tojson(separators=(',', ':')) }}{{ 'é'|tojson(ensure_ascii=true) }}", '[1,2]"\\u00e9"'),
        ("{{ strftime_now('x') }}{{ dict(a=1).a }}{{ dict.fromkeys(['a'], 2).a }}", "x12"),
        ("{% set ns = namespace(a=1, self=2) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.self }}", "22"),
        ("{{ [3, 1]|sort|join(',') }}{{ [1, 2]|sum }}{{ [{'a': 2}]|sum(attribute='a') }}", "1,332"),
        ("{{ '%s-%d' % ('a', 1) }}{{ '%(a)-2s%%'|format(a='b') }}{{ '{}{a}'.format(1, a=2) }}", "a-1b %12"),
        ("{{ 'abc'[1:] ~ 'x' ~ 1 }}{{ [1, 2, 3][::-1] }}{{ 'b' in 'abc' }}", "bcx1[3, 2, 1]True"),
        ("{{ messages|map(attribute='role')|map('upper')|join(', ') }}{{ ['a', 'b'].__len__ }}", "USER"),
        ("{{ messages|selectattr('role', 'in', ['user'])|map(attribute='content')|list }}", "['hello']"),
        (
            "{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}"
            "{% macro n() %}<{{ caller() }}>{% endmacro %}{% call n() %}3{% endcall %}",
            "12<3>",
        ),
        ("{% for a in [[1, [2]]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "12"),
        ("{{ bos_token }}{{ documents is none }}{{ tools is none }}{{ nothing }}|", "<s>TrueTrue|"),
        ("  {% if true %}\n  a\n  {% endif %}\nb\n\n", "  a\nb\n"),
    ],
)
def test_what_templates_need_is_there(source: str, text: str) -> None:
    assert render(source) == text
