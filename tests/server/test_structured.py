"""Forms and tools over HTTP: what a schema says holds, what it can't is a 400, and streams add up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from support.serving import Served, events, serving
from support.tiny_model import TEMPLATE, write_tiny_model
from support.tiny_tokenizers import byte_level_tokenizer_json

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"enum": ["x", "größe"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "set", "parameters": SCHEMA}}]
WORDS = json.loads(byte_level_tokenizer_json())["model"]["vocab"]
ENDS = {"2": 20, **{str(WORDS[text]): 12 for text in '"}:,'}}  # or a model with random weights would not come to an end


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = write_tiny_model(tmp_path_factory.mktemp("tiny"), template="{# <tool_call> #}" + TEMPLATE)
    with serving(str(path), engine={"max_num_seqs": 8, "block_size": 8}) as server:
        yield server


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}


def test_response_format_holds(served: Served) -> None:
    more = {"seed": 1, "max_tokens": 120, "logit_bias": ENDS}
    body = served.post(CHAT, messages=HELLO, response_format=form(SCHEMA), **more).json()
    jsonschema.validate(json.loads(body["choices"][0]["message"]["content"]), SCHEMA)
    body = served.post(COMPLETIONS, prompt="x", structured_outputs={"choice": ["yes", "no"]}, **more).json()
    assert body["choices"][0]["text"] in ("yes", "no")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"response_format": form({"properties": {"a": {"not": {}}}})},
            "response_format.json_schema.schema",
            "at $.properties.a.not: the keyword 'not' is not supported",
        ),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "unclosed group"),
        ({"grammar": "start: ["}, "grammar", "Expected"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", "must be none"),
        ({"response_format": form(SCHEMA), "stop": ["a"]}, "stop", "says where the text ends"),
    ],
)
def test_what_is_not_enforced_is_a_400(served: Served, fields: dict[str, Any], param: str, message: str) -> None:
    response = served.post(CHAT, messages=HELLO, max_tokens=5, **fields)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param and message in error["message"]


def test_a_call_is_the_same_whole_and_streamed(served: Served) -> None:
    body = {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    body |= {"seed": 4, "max_tokens": 160, "logit_bias": ENDS}
    (choice,) = served.post(CHAT, **body).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert call["type"] == "function" and call["function"]["name"] == "set"
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)

    names, arguments, reasons = [], "", []
    *parts, done = events(served.post(CHAT, stream=True, **body).text)
    assert done == "[DONE]"
    for part in parts:
        (piece,) = json.loads(part)["choices"]
        reasons.append(piece["finish_reason"])
        for item in piece["delta"].get("tool_calls", []):
            names += [item["function"]["name"]] if "name" in item["function"] else []
            arguments += item["function"]["arguments"]
    assert (names, arguments, reasons[-1]) == (["set"], call["function"]["arguments"], "tool_calls")
