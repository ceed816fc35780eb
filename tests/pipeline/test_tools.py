"""Tools in process: a model with random weights calls them, because grammars hold it to the form of its template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from puna.entrypoints.llm import LLM
from puna.entrypoints.openai.requests import BodyDefaults, Endpoint, read_body
from puna.entrypoints.openai.responses import generated_body
from puna.entrypoints.openai.streams import ChunkWriter
from puna.entrypoints.outputs import CompletionOutput
from puna.errors import InvalidRequestError
from puna.pipelines.sampling_params import SamplingParams
from puna.structured_output import GrammarError, StructuredOutputsParams
from support.tiny_model import TEMPLATE, write_tiny_model

END = 2  # the tiny tokenizer's
HELLO = [{"role": "user", "content": "Hi"}]
COLOR = {
    "type": "object",
    "properties": {"color": {"$ref": "#/$defs/color"}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["color", "n"],
    "additionalProperties": False,
    "$defs": {"color": {"enum": ["red", "blue"]}},
}


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or COLOR, **more}}


TOOLS = [tool("paint"), tool("wash", {"type": "object", "properties": {}, "additionalProperties": False})]
SIGNS = {
    "hermes": "{# <tool_call> #}",
    "llama": '{# <|start_header_id|> "parameters" #}',
    "mistral": "{# [TOOL_CALLS] #}",
    "mistral-v11": "{# [TOOL_CALLS] [ARGS] #}",
    "granite": "{# <|tool_call|> #}",
    "phi": "{# <|tool|> <|tool_call|> #}",
}


@pytest.fixture(scope="module", params=SIGNS)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = tmp_path_factory.mktemp(request.param)
    return LLM(str(write_tiny_model(directory, template=SIGNS[request.param] + TEMPLATE)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(str(write_tiny_model(tmp_path_factory.mktemp("plain"))))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    template = TEMPLATE.replace("assistant\n", "assistant\n<think>\n") + "{# </think> <tool_call> #}"
    return LLM(str(write_tiny_model(tmp_path_factory.mktemp("thinker"), template=template)))


def ask(llm: LLM, seed: int = 1, structure: Any = None, **options: Any) -> CompletionOutput:
    bias = {END: 20.0} | {llm.tokenize(text)[0]: 9.0 for text in '"}]:'}  # or it would go on at random
    params = SamplingParams(seed=seed, max_tokens=150, logit_bias=bias, structured_outputs=structure)
    (output,) = llm.chat(HELLO, params, **options)
    assert output.error is None
    return output.outputs[0]


def check_calls(output: CompletionOutput) -> list[str]:
    """The names of the calls, whose arguments are valid."""
    assert output.message is not None
    for call in output.message.tool_calls:
        schema = next(item["function"]["parameters"] for item in TOOLS if item["function"]["name"] == call.name)
        jsonschema.validate(json.loads(call.arguments), schema)
    return [call.name for call in output.message.tool_calls]


def test_required_and_named_calls_are_valid_in_every_format(llm: LLM) -> None:
    for seed in range(3):
        output = ask(llm, seed, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        if output.finish_reason == "stop":
            assert len(check_calls(output)) == 1 and output.message is not None and output.message.content == ""
    named = {"type": "function", "function": {"name": "wash"}}
    output = ask(llm, tools=TOOLS, tool_choice=named, parallel_tool_calls=False)
    assert check_calls(output) == ["wash"], output.text


def test_several_calls_are_read_in_every_format(llm: LLM) -> None:
    names = []
    for seed in range(4):
        output = ask(llm, seed, tools=TOOLS, tool_choice="required")
        if output.finish_reason == "stop":
            names.append(check_calls(output))
    assert names and all(names)


def test_strict_tools_may_be_called_or_not(llm: LLM) -> None:
    strict = [tool("paint", strict=True)]
    for seed in range(3):
        output = ask(llm, seed, tools=strict)
        assert output.message is not None
        if output.finish_reason == "stop":
            check_calls(output)


def test_tools_without_a_form_are_refused(plain: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=r"^tools: .*no known form of tool calls; known are: mistral-v11, "):
        ask(plain, tools=TOOLS)
    assert ask(plain, tools=TOOLS, tool_choice="none").message is not None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tools": [tool("a", {"not": {}}, strict=True)]}, r"tools\[0\].function.parameters: at \$.not: "),
        ({"tools": [tool("a b")]}, r"tools\[0\].function.name: must have up to 64"),
        ({"tools": [tool("a"), tool("a")]}, "two tools have one name"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice: must be none, auto"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "there is no tool 'x'"),
        ({"tool_choice": "required"}, "tool_choice: there are no tools"),
        (
            {"tools": TOOLS, "tool_choice": "required", "structure": StructuredOutputsParams(json_object=True)},
            "tools that must be called",
        ),
    ],
)
def test_wrong_tools_are_refused(thinker: LLM, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        ask(thinker, **options)


def test_a_form_is_for_the_answer_behind_the_reasoning(thinker: LLM) -> None:
    for seed in range(3):
        bias = dict.fromkeys(thinker.tokenize("x</think>")[1:], 14.0)
        structure = StructuredOutputsParams(choice=["red", "blue"])
        params = SamplingParams(seed=seed, max_tokens=150, logit_bias=bias, structured_outputs=structure)
        (output,) = thinker.chat(HELLO, params)[0].outputs
        assert output.message is not None
        assert output.message.content in ("red", "blue") or output.finish_reason == "length"
        assert not output.message.content or "</think>" in output.text


def test_grammar_errors_of_a_schema_have_their_place(thinker: LLM) -> None:
    schema = {"properties": {"q": {"oneOf": [{}, {"type": "object"}]}}}
    with pytest.raises(GrammarError, match=r"structured_outputs.json: at \$.properties.q: oneOf"):
        ask(thinker, structure=StructuredOutputsParams(json=schema))


def test_streamed_chunks_add_up_to_the_body(llm: LLM) -> None:
    body = {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "seed": 2, "max_tokens": 150, "stream": True}
    body["logit_bias"] = {str(END): 20}
    call = read_body(Endpoint.CHAT, body, ["m"], BodyDefaults(may_stream=True))
    writer = ChunkWriter(call, "x", model="m", created=1, tokenizer=llm.tokenizer)
    content, calls, reason, final = "", [], None, None
    for final in llm.stream_requests(call.requests):
        for chunk in writer.news(0, final):
            (choice,) = chunk["choices"]
            content += choice["delta"].get("content") or ""
            reason = choice["finish_reason"] or reason
            for part in choice["delta"].get("tool_calls", []):
                if "id" in part:
                    assert part["index"] == len(calls) and part["function"]["name"]
                    calls.append({"id": part["id"], "name": part["function"]["name"], "arguments": ""})
                calls[part["index"]]["arguments"] += part["function"]["arguments"]
    assert final is not None
    whole = generated_body(call, [final], model="m", created=1, tokenizer=llm.tokenizer)["choices"][0]
    assert [{"id": c["id"], **c["function"]} for c in whole["message"].get("tool_calls", [])] == calls
    assert (whole["message"]["content"] or "") == content and whole["finish_reason"] == reason
    assert not calls or reason in ("tool_calls", "length")


def test_earlier_calls_reach_the_template_as_objects(tmp_path: Path) -> None:
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.arguments.n + 1 }}{% endfor %}"
    template = f"{{% for m in messages %}}{calls}{{% endfor %}}x"
    llm = LLM(str(write_tiny_model(tmp_path, template=template)))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"n": 41}'}}
    (output,) = llm.chat([{"role": "assistant", "tool_calls": [call]}], SamplingParams(max_tokens=1))
    assert output.prompt == "42x"
    with pytest.raises(InvalidRequestError, match="arguments of a call are no JSON"):
        llm.chat([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema"),
        ({"structured_outputs": {"yaml": "x"}}, "structured_outputs.yaml"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex"),
        ({"grammar": "root ::= x", "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": "x"}, "tools"),
    ],
)
def test_fields_of_bodies_are_checked(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_body(Endpoint.CHAT, {"messages": HELLO, **fields}, ["m"], BodyDefaults())
    assert caught.value.param == param


def test_fields_of_bodies_are_read() -> None:
    schema = {"name": "x", "strict": True, "schema": {"type": "object"}}
    for fields, kind in (
        ({"response_format": {"type": "json_schema", "json_schema": schema}}, "json"),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice"),
        ({"grammar": 'root ::= "x"'}, "grammar"),
        ({"json_schema": {}}, "json"),
    ):
        call = read_body(Endpoint.CHAT, {"messages": HELLO, **fields}, ["m"], BodyDefaults())
        structure = call.requests[0].sampling_params.structured_outputs
        assert structure is not None and structure.kind == kind
    call = read_body(Endpoint.CHAT, {"messages": HELLO, "response_format": {"type": "text"}}, ["m"], BodyDefaults())
    assert call.requests[0].sampling_params.structured_outputs is None
