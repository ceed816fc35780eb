"""Chat templates: sources, messages, and what hostile ones cannot do."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import InvalidRequestError, PunaError, UnsupportedModelError, WeightsError
from puna.tokenization import ChatTemplate, TemplateSources, template_budget
from support.chat_templates import CONVERSATIONS, TEMPLATES, TOOLS

HELLO = [{"role": "user", "content": "hello"}]


def render(text: str, messages: Any = HELLO, **more: Any) -> str:
    return ChatTemplate(text, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}).render(messages, **more)


# --- rendering


def test_special_tokens_variables_and_prompt() -> None:
    text = "{{ bos_token }}{{ messages[0].content }}{{ mood }}{% if add_generation_prompt %}>{% endif %}"
    assert render(text, variables={"mood": "!"}) == "<s>hello!>"
    assert render(text, add_generation_prompt=False) == "<s>hello"


def test_strftime_now_is_the_clock() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", clock=lambda: datetime(1999, 12, 31))
    assert template.render(HELLO) == "1999"


def test_tools_take_the_template_for_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools {{ tools | length }}"})
    assert template.render(HELLO) == "plain" and template.render(HELLO, tools=TOOLS) == "tools 2"
    assert template.render(HELLO, tools=[]) == "plain"


def test_text_of_users_is_no_template() -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "{{ 7*7 }}<&\"'>"}]) == "{{ 7*7 }}<&\"'>"


def test_long_prompts_are_within_the_budget() -> None:
    document = "word and text, " * 200_000  # three million characters
    messages = [{"role": "user", "content": document}, {"role": "assistant", "content": "ok"}] * 2
    text = render(TEMPLATES["qwen2"], messages)
    assert text.count(document) == 2
    many = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"message {i}"} for i in range(2000)]
    assert render(TEMPLATES["mistral"], many).count("message") == 2000


def test_a_template_that_refuses_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="Roles must alternate") as error:
        ChatTemplate(TEMPLATES["mistral"]).render(CONVERSATIONS["wrong"])
    assert error.value.param == "messages"


def test_errors_name_the_line() -> None:
    with pytest.raises(InvalidRequestError, match=r"line 3.*UndefinedError"):
        render("a\nb\n{{ messages[0].absent.more }}\n")
    with pytest.raises(UnsupportedModelError, match="line 2"):
        render("a\n{% if %}\n")
    with pytest.raises(UnsupportedModelError, match=r"urlize.*line 2"):
        ChatTemplate("\n{{ 'x' | urlize }}").prepare()
    with pytest.raises(InvalidRequestError, match="budget, line 2"):
        render("\n{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "no role"}]}, "messages"),
        ({"messages": [{"role": 5}]}, "messages"),
        ({"messages": [{"role": "user", "content": object()}]}, "messages"),
        ({"messages": [{"role": "user", "content": {1: 2}}]}, "messages"),
        ({"messages": HELLO, "tools": [{"f": print}]}, "tools"),
        ({"messages": HELLO, "documents": 1j}, "documents"),
        ({"messages": HELLO, "variables": {"messages": []}}, "chat_template_kwargs"),
        ({"messages": HELLO, "variables": {"f": len}}, "chat_template_kwargs"),
    ],
)
def test_only_json_values_go_in(arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        ChatTemplate("x").render(**arguments)
    assert error.value.param == param


def test_deeply_nested_messages_are_refused() -> None:
    nested: Any = "x"
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidRequestError, match="nested"):
        render("x", [{"role": "user", "content": nested}])


def test_one_template_in_many_threads() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    results: dict[int, str] = {}

    def run(number: int) -> None:
        for _ in range(50):
            results[number] = template.render([{"role": "user", "content": str(number)}] * 20)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: str(number) * 20 for number in range(4)}


# --- what hostile templates try: Python

ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__class__ }}",
    "{{ messages[0]['__class__']['__init__']['__globals__'] }}",
    "{{ cycler.__init__.__globals__.os.popen('touch canary').read() }}",
    "{{ lipsum.__globals__['os'].system('touch canary') }}",
    "{{ namespace.__init__.__globals__['__builtins__']['exec']('open(\"canary\", \"w\")') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__func__.__globals__ }}",
    "{{ strftime_now.__self__._local }}",
    "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context }}",
    "{{ ''.format.__self__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(strftime_now) }}",
    "{{ '{m.__class__}'.format_map({'m': messages}) }}",
    "{{ ['{0.__class__}'.format] | map('string') | list }}{% set f = '{0.__class__}'.format %}{{ f('x') }}",
    "{{ '{0.__class__}'['format'](1) }}",
    "{{ (messages | attr('__class__')) }}",
    "{{ [0] | map(attribute='__class__') | list }}",
    "{{ messages | map(attribute='__class__.__mro__') | list }}",
    "{{ messages | groupby('__class__') }}",
    "{% for x in messages | sort(attribute='__class__') %}{% endfor %}{{ [].append(1) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.clear() }}",
    "{{ dict.fromkeys('ab') }}{{ dict.__subclasses__() }}",
    "{{ 'abc'.encode() }}",
    "{{ (1).to_bytes(8, 'big') }}",
    "{{ 'a'.maketrans({}) }}",
    "{{ loop.__init__ }}",
    "{% for x in messages %}{{ loop._iterable }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{% extends 'x' %}",
    "{% from 'x' import y %}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ request.application }}",
    "{{ range.__class__ }}{{ range(3).__reduce__() }}",
    "{{ (x for x in []).gi_frame }}",
    "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "{{ (messages | map('upper')).gi_code }}",
    "{{ (messages | select).throw('x') }}",
    "{{ (messages | select).close() }}",
    "{{ environment.filters }}{{ context.environment.from_string('x') }}",
    "{{ namespace(a=1)['_Namespace__attrs'].x.y }}",
    "{{ strftime_now('%1000000000d' * 100) }}",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_templates_cannot_reach_python(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    messages = json.loads(json.dumps(HELLO))
    try:
        shown = render(text, messages)
    except PunaError:
        shown = ""
    assert not list(tmp_path.iterdir())
    assert messages == HELLO
    for word in ("class", "module", "built-in", "globals", "function", "subclasses", "Environment", "object at"):
        assert word not in shown


# --- what hostile templates try: time and memory

DOUBLE = "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = " + "EXPRESSION" + " %}{% endfor %}"
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "deep loops": "{% for a in range(99) %}" * 8 + "x" + "{% endfor %}" * 8,
    "filtered loop": "{% for a in range(99999) if a < 0 or (range(99999) | list | length) < 0 %}{% endfor %}",
    "huge range": "{% for a in range(10**12) %}{% endfor %}",
    "string times": "{{ 'a' * 10**10 }}",
    "list times": "{{ ([0] * 10**10) | length }}",
    "tuple times": "{{ (10**10 * (0,)) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "power loop": "{% set ns = namespace(x=3) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "doubled by +": DOUBLE.replace("EXPRESSION", "ns.x + ns.x") + "{{ ns.x }}",
    "doubled by ~": DOUBLE.replace("EXPRESSION", "ns.x ~ ns.x") + "{{ ns.x }}",
    "doubled by list": DOUBLE.replace("EXPRESSION", "[ns.x, ns.x]") + "{{ ns.x }}",
    "doubled by tuple": DOUBLE.replace("EXPRESSION", "(ns.x, ns.x)") + "{{ ns.x | string }}",
    "doubled by dict": DOUBLE.replace("EXPRESSION", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "doubled by dict()": DOUBLE.replace("EXPRESSION", "dict(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "doubled by list +": DOUBLE.replace("'a'", "[1]").replace("EXPRESSION", "ns.x + ns.x") + "{{ ns.x }}",
    "doubled by replace": DOUBLE.replace("EXPRESSION", "ns.x | replace('a', 'aa')") + "{{ ns.x }}",
    "doubled by .replace": DOUBLE.replace("EXPRESSION", "ns.x.replace('a', 'aa')") + "{{ ns.x }}",
    "doubled by join": DOUBLE.replace("EXPRESSION", "[ns.x, ns.x] | join") + "{{ ns.x }}",
    "doubled by .join": DOUBLE.replace("EXPRESSION", "''.join([ns.x, ns.x])") + "{{ ns.x }}",
    "doubled by %": DOUBLE.replace("EXPRESSION", "'%s%s' % (ns.x, ns.x)") + "{{ ns.x }}",
    "doubled by format": DOUBLE.replace("EXPRESSION", "'{0}{0}'.format(ns.x)") + "{{ ns.x }}",
    "doubled by format filter": DOUBLE.replace("EXPRESSION", "'%s%s' | format(ns.x, ns.x)") + "{{ ns.x }}",
    "doubled by block": DOUBLE.replace(" = EXPRESSION %}", " %}{{ ns.x }}{{ ns.x }}{% endset %}") + "{{ ns.x }}",
    "doubled by macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}" + DOUBLE.replace("EXPRESSION", "m(ns.x)"),
    "doubled by namespace": DOUBLE.replace("EXPRESSION", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "compared": DOUBLE.replace("EXPRESSION", "[ns.x, ns.x]")
    + DOUBLE.replace("ns", "no").replace("EXPRESSION", "[no.x, no.x]")
    + "{{ ns.x == no.x }}",
    "long list of long texts": "{{ ([('a' * 100000)] * 100000) | string }}",
    "long list joined": "{{ range(99999) | join('a' * 100000) }}",
    "views joined": "{% set d = dict(a='x' * 10000, b='y' * 10000) %}{{ ('a' * 999999).join(d.values()) }}",
    "generator .joined": "{{ ('a' * 100000).join(range(99999) | map('string')) }}",
    "views formatted": "{% set d = dict(a='x' * 10000) %}{{ ('%s' * 10000) | format(*([d.items()] * 10000)) }}",
    "views by .format": "{% set d = dict(a='x' * 10000) %}{{ ('{0}' * 10000).format(d.items()) }}",
    "namespace formatted": "{% set ns = namespace(a='x' * 10000) %}{{ ('{0}' * 10000).format(ns) }}",
    "namespace attributes formatted": "{% set ns = namespace(a='x' * 10000) %}{{ ('{0.a}' * 10000).format(ns) }}",
    "namespace filtered": "{% set ns = namespace(a='x' * 10000) %}{{ ns | center(5) }}",
    "namespace raised": "{% set ns = namespace(a='x' * 10000) %}{{ raise_exception(ns) }}",
    "loop joined": "{% for a in range(99999) %}{{ loop | join('a' * 100000) }}{% endfor %}",
    "loop .joined": "{% for a in ['a'] * 99999 %}{{ ('a' * 100000).join(loop) }}{% endfor %}",
    "long list .joined": "{{ ('a' * 100000).join(range(99999) | map('string') | list) }}",
    "many texts": "".join(f"{{% set a{i} = 'x{i}' * 100000 %}}" for i in range(1500)),
    "many slices": "{% set s = 'a' * 1000000 %}" + "".join(f"{{% set a{i} = s[{i}:] %}}" for i in range(1500)),
    "wide format": "{{ '%1000000000d' % 1 }}",
    "wide format of many": "{{ ('%9999d' * 10000) % (range(10000) | list) }}",
    "star format": "{{ '%*d' % (1000000000, 1) }}",
    "wide .format": "{{ '{:1000000000}'.format(1) }}",
    "nested .format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "nested .format of text": "{{ '{:{}}'.format(1, '1000000000') }}",
    "long attribute": "{{ range(99999) | map(attribute='a.' * 400000, default='x') | list }}",
    "precise": "{{ '%.1000000000f' % 1.5 }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    ".center": "{{ 'a'.center(1000000000) }}",
    ".zfill": "{{ '1'.zfill(1000000000) }}",
    ".ljust": "{{ 'a'.ljust(width=1000000000) if false else 'a'.ljust(1000000000) }}",
    "expandtabs": "{{ ('\t' * 1000).expandtabs(100000000) }}",
    "indent": "{{ ('\n' * 100000) | indent(1000000) }}",
    "indent text": "{{ ('\n' * 100000) | indent('a' * 100000) }}",
    "json indent": "{{ [[[[1]] * 1000] * 100] | tojson(indent=10000000) }}",
    "json separators": "{{ (range(9999) | list) | tojson(separators=('a' * 1000000, ':')) }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list | length }}",
    "slice": "{{ [1] | slice(1000000000) | list | length }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "sum of lists": "{{ ([[1] * 1000] * 1000) | sum(start=[]) }}",
    "output": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "captured output": "{% set a %}{% for i in range(99999) %}" + "x" * 10000 + "{% endfor %}{% endset %}",
    "filtered output": "{% filter upper %}{% for i in range(99999) %}" + "x" * 10000 + "{% endfor %}{% endfilter %}",
    "recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "recursion by halves": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "nested list": "{% set ns = namespace(x=[]) %}"
    "{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long sum": "{{ " + "1+" * 30_000 + "1 }}",
    "deep blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "deep for": "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
    "lipsum": "{{ lipsum(n=100000000) }}",
    "cycle": "{% for i in range(99999) %}{{ loop.cycle(*range(99999)) }}{% endfor %}",
    "sorts": "{% for i in range(99999) %}{% set x = range(99999) | sort %}{% endfor %}",
    "compared texts": "{% set a = 'a' * 1000000 %}{% set b = 'a' * 1000000 %}{{ " + "a == b and " * 5000 + "1 }}",
    "membership": "{% set a = ['a' * 100000] * 9 %}{% set b = 'a' * 99999 ~ 'b' %}"
    "{% for i in range(99999) %}{% if b in a %}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_soon_and_without_much_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "MAX_SECONDS", 0.1)  # the tests' time, too, is limited
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.thread_time()
    with pytest.raises((InvalidRequestError, UnsupportedModelError)):
        ChatTemplate(BOMBS[name]).render(HELLO)
    assert time.thread_time() - begin < 2  # compiling included
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 300 << 10


def test_the_wall_limit_is_about_a_second() -> None:
    begin = time.perf_counter()
    with pytest.raises(InvalidRequestError, match="more than"):
        render("{% for a in range(99999) %}{% for b in range(99999) %}{% set x = b ~ a %}{% endfor %}{% endfor %}")
    assert time.perf_counter() - begin < 3


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["{{", "}}", "{%", "%}", "for", "x", "in", "messages", "if", "endif", "endfor", "set", "=", "'a'", "*",
             "99999999", "|", "join", "upper", "(", ")", "[", "]", ".", "__class__", "+", "~", "macro", "namespace"]
        ),
        max_size=14,
    ).map(" ".join)
)  # fmt: skip
def test_only_our_errors_come_out_of_strange_templates(text: str) -> None:
    try:
        render(text)
    except PunaError as error:
        assert str(error)


# --- where templates come from


def test_order_of_sources(tmp_path: Path) -> None:
    config: dict[str, Any] = {"chat_template": "config"}

    def chosen(override: str | Path | None = None) -> str | None:
        template = TemplateSources.from_directory(tmp_path, config, override=override).select({})
        return template and template.render(HELLO)

    assert chosen() == "config"
    (tmp_path / "chat_template.jinja").write_text("file {{ 1 }}")
    assert chosen() == "file 1"
    assert chosen("{{ 'given' }}") == "given"
    (tmp_path / "mine.jinja").write_text("mine")
    assert chosen(tmp_path / "mine.jinja") == chosen(str(tmp_path / "mine.jinja")) == "mine"
    with pytest.raises(InvalidRequestError, match="neither"):
        chosen("absent.jinja")
    (tmp_path / "chat_template.jinja").unlink()
    config["chat_template"] = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    sources = TemplateSources.from_directory(tmp_path, config).select({})
    assert sources is not None and sources.render(HELLO, tools=TOOLS) == "two"
    for damaged in ([{"name": "other", "template": "x"}], [1], 5):
        config["chat_template"] = damaged
        with pytest.raises(WeightsError, match="chat_template"):
            chosen()
    del config["chat_template"]
    assert chosen() is None


def test_templates_of_gguf_files() -> None:
    metadata: dict[str, object] = {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}
    template = TemplateSources.from_gguf(metadata, "m.gguf").select({})
    assert template is not None and template.source == "m.gguf: tokenizer.chat_template"
    assert template.render(HELLO) == "a" and template.render(HELLO, tools=TOOLS) == "b"
    assert TemplateSources.from_gguf({}, "m.gguf").select({}) is None
    assert TemplateSources.from_gguf({"tokenizer.chat_template": "  "}, "m.gguf").select({}) is None
    with pytest.raises(WeightsError, match=r"m\.gguf"):
        TemplateSources.from_gguf({"tokenizer.chat_template": 5}, "m.gguf")


def test_a_template_of_two_megabytes_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="characters"):
        render("x" * (1 << 21))


def test_the_recursion_limit_is_left_alone() -> None:
    limit = sys.getrecursionlimit()
    with pytest.raises(InvalidRequestError):
        render(BOMBS["recursion"])
    assert sys.getrecursionlimit() == limit
