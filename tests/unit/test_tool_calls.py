"""Tool calls and reasoning in texts: every format, cut into any pieces."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.entrypoints.outputs import AnswerMessage
from puna.entrypoints.reasoning import REASONING_FORMATS, detect_reasoning
from puna.entrypoints.tool_calls import FORMATS, MessageParser, detect_format, message_delta
from puna.entrypoints.tool_calls.grammars import behind_reasoning
from puna.structured_output import DeadEndError, GrammarCompiler, byte_vocabulary
from puna.structured_output.grammars import json_grammar, literal
from support import chat_templates

THINK = REASONING_FORMATS[0]
Plain = tuple[str, str | None, list[tuple[str, str]]]


def parsed(name: str | None, text: str, *, reasoning: Any = None, is_open: bool = False, cuts: Any = ()) -> Plain:
    """What a text comes to: content, reasoning, names and arguments; by way of deltas."""
    parser = MessageParser(FORMATS[name] if name else None, ["f", "g"], reasoning, is_open)
    before: AnswerMessage | None = None
    content, thought, calls, ids = "", "", [], set()
    ends = [*sorted(cut for cut in cuts if cut < len(text)), len(text), None]
    begin = 0
    for end in ends:
        if end is None:
            parser.finish()
        else:
            parser.add(text[begin:end])
            begin = end
        message = parser.message
        delta = message_delta(before, message)
        content, thought, before = content + delta.content, thought + delta.reasoning, message
        for call in delta.tool_calls:
            if call.index == len(calls):
                assert call.name and call.id
                ids.add(call.id)
                calls.append([call.name, ""])
            else:
                assert call.name is None and call.id is None
            calls[call.index][1] += call.arguments
    assert before is not None and len(ids) == len(calls)
    assert (content, thought) == (before.content, before.reasoning or "")
    assert [tuple(call) for call in calls] == [(call.name, call.arguments) for call in before.tool_calls]
    return content, before.reasoning, [(name, arguments) for name, arguments in calls]


A = '{"x": [1, {"y": "}<|[\\"é"}]}'
CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", f'<tool_call>\n{{"name": "f", "arguments": {A}}}\n</tool_call>', "", [("f", A)]),
    (
        "hermes",
        f'So:\n\n<tool_call>\n{{"name": "f", "arguments": {A}}}\n</tool_call>\n'
        '<tool_call>{"arguments": {}, "name": "h"}</tool_call>',
        "So:",
        [("f", A), ("h", "{}")],
    ),
    ("hermes", '<tool_call>{"name": "f"}</tool_call> done', "done", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
    ("hermes", "a < b <tool_ca <tool_call> no call", "a < b <tool_ca <tool_call> no call", []),
    ("hermes", '<tool_call>{"no": 1}</tool_call>', '<tool_call>{"no": 1}</tool_call>', []),
    ("llama", f'{{"name": "f", "parameters": {A}}}', "", [("f", A)]),
    ("llama", f' {{"name": "f", "parameters": {A}}}; {{"name": "g", "parameters": {{}}}}', "", [("f", A), ("g", "{}")]),
    ("llama", f'<|python_tag|>{{"name": "h", "parameters": {A}}}', "", [("h", A)]),
    ("llama", '<|python_tag|>search.call(query="a b", n=3)', "", [("search", '{"query": "a b", "n": 3}')]),
    ("llama", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("llama", '{"name": "Paris", "people": 2}', '{"name": "Paris", "people": 2}', []),
    ("llama", 'The answer: {"name": "f", "parameters": {}}', 'The answer: {"name": "f", "parameters": {}}', []),
    ("mistral", f'[TOOL_CALLS] [{{"name": "f", "arguments": {A}, "id": "abcdefghi"}}]', "", [("f", A)]),
    (
        "mistral",
        f'[TOOL_CALLS][{{"name": "f", "arguments": {A}}}, {{"name": "g", "arguments": {{}}}}]',
        "",
        [("f", A), ("g", "{}")],
    ),
    ("mistral-v11", f"[TOOL_CALLS]f[ARGS]{A}[TOOL_CALLS]g[CALL_ID]abcdefghi[ARGS]{{}}", "", [("f", A), ("g", "{}")]),
    ("mistral-v11", f"Well.[TOOL_CALLS]f{A}", "Well.", [("f", A)]),
    ("granite", f'<|tool_call|>[{{"name": "f", "arguments": {A}}}]', "", [("f", A)]),
    ("granite", f'<tool_call>[{{"name": "f", "arguments": {A}}}]', "", [("f", A)]),
    ("phi", f'<|tool_call|>[{{"name": "f", "arguments": {A}}}]<|/tool_call|>', "", [("f", A)]),
    ("phi", f'functools[{{"name": "f", "parameters": {A}}}]', "", [("f", A)]),
    ("phi", "some functools text", "some functools text", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
def test_every_format_is_read(name: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parsed(name, text) == (content, None, calls)
    assert parsed(name, text, cuts=range(len(text))) == (content, None, calls)


@settings(max_examples=150, deadline=None)
@given(case=st.sampled_from(CASES), cuts=st.sets(st.integers(0, 120)), tail=st.text("<[{ \n", max_size=3))
def test_pieces_make_no_difference(case: tuple[str, str, str, Any], cuts: set[int], tail: str) -> None:
    name, text = case[0], f"<think>\n why \n</think>\n\n{case[1]}{tail}"
    assert parsed(name, text, reasoning=THINK, cuts=cuts) == parsed(name, text, reasoning=THINK)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from([None, *FORMATS]),
    text=st.lists(
        st.sampled_from([
            "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>", "</think>", "[{",
            '"name": "f"', '"arguments":', "{", "}", "[", "]", ",", '"', "\\", "f", " ", "\n", "1", ";", "}]",
            "<|tool_call|>",
        ]),
        max_size=14,
    ).map("".join),
    cuts=st.sets(st.integers(0, 100)),
    is_open=st.booleans(),
)  # fmt: skip
def test_any_text_is_read_alike_in_any_pieces(name: str | None, text: str, cuts: set[int], is_open: bool) -> None:
    whole = parsed(name, text, reasoning=THINK, is_open=is_open)
    assert parsed(name, text, reasoning=THINK, is_open=is_open, cuts=cuts) == whole


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content"),
    [
        ("<think>\nwhy\n</think>\n\nthis", False, "why", "this"),
        ("why\n</think>\n\nthis", True, "why", "this"),
        (" <think>a</thin</think>b", False, "a</thin", "b"),
        ("this <think>", False, "", "this <think>"),
        ("<thi", False, "", "<thi"),
        ("why </thi", True, "why </thi", ""),
        ("  plain ", False, "", "  plain "),
        ("<think></think>x  \n y", False, "", "x  \n y"),
    ],
)
def test_reasoning_is_split(text: str, is_open: bool, reasoning: str, content: str) -> None:
    for cuts in ((), range(len(text))):
        assert parsed(None, text, reasoning=THINK, is_open=is_open, cuts=cuts) == (content, reasoning, [])


def test_without_formats_the_text_is_the_content() -> None:
    assert parsed(None, ' {"name": "f"} <tool_call>\n') == (' {"name": "f"} <tool_call>\n', None, [])


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>", "hermes"),
        ("<tool_call>\n<function=example>\n<parameter=a>", None),
        ("<|start_header_id|> Environment: ipython <|python_tag|> \"parameters\"", "llama"),
        ("<|start_header_id|> {\"name\": function name, \"parameters\": dictionary}", "llama"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS] [", "mistral"),
        ("[TOOL_CALLS] name [ARGS]", "mistral-v11"),
        ("<|start_of_role|>available_tools <|tool_call|>", "granite"),
        ("<|tool|>...<|/tool|>", "phi"),
        ("{{ messages }}", None),
    ],
)  # fmt: skip
def test_format_is_found_in_the_template(template: str, name: str | None) -> None:
    found = detect_format([template])
    assert (found.name if found else None) == name
    assert detect_reasoning([template]) is None
    assert detect_reasoning([template, "{{ content.split('</think>')[-1] }}"]) == THINK


@pytest.mark.parametrize("is_open", [False, True])
def test_forms_hold_behind_the_reasoning(is_open: bool) -> None:
    compiler = GrammarCompiler(byte_vocabulary)
    grammar = behind_reasoning(json_grammar({"enum": [1, 23]}), THINK, is_open, literal)
    constraint = compiler.compile_grammar(grammar)

    def follows(text: str) -> bool:
        state, data = constraint.begin(), list(text.encode())
        places = [state.allowed(np.array(data[:place], dtype=np.int64)) for place in range(len(data) + 1)]
        return all(row[token] for row, token in zip(places, [*data, 256], strict=True))

    begin = "" if is_open else "<think>"
    assert follows(f"{begin}why < 5</think>23") and follows(f"{begin}why</think>\n\n1")
    for text in (f"{begin}why", f"{begin}1</think>2", f"{begin}a</think>b"):
        with contextlib.suppress(DeadEndError):
            assert not follows(text), text
    if not is_open:
        assert follows("1")


def test_format_is_found_in_templates_of_models() -> None:
    templates = (chat_templates.LLAMA3, chat_templates.QWEN2, chat_templates.MISTRAL, chat_templates.GRANITE)
    found = [detect_format([text]) for text in templates]
    assert [known and known.name for known in found] == ["llama", "hermes", "mistral", "granite"]
    assert detect_reasoning([chat_templates.QWEN2]) == THINK


def test_arguments_are_what_the_model_wrote() -> None:
    _, _, ((_, arguments),) = parsed("hermes", f'<tool_call>{{"name": "f", "arguments":  {A}  }}</tool_call>')
    assert arguments == A and json.loads(arguments)["x"][0] == 1
