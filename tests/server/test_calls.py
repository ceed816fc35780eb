"""Calls of tools and reasoning in the interfaces besides OpenAI's chat: whole, streamed, and given back as history.

The server's sampling values hold the model to one text, the call of a tool. Behind another template it reasons, as it
does in OpenAI's chat.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from puna.pipelines.sampling_params import SamplingParamsInput, StructuredOutputsParams
from support.serving import Served, serving
from support.tiny_model import TEMPLATE, write_tiny_model
from support.tiny_tokenizers import byte_level_tokenizer_json

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"], "additionalProperties": False}
ARGUMENTS = {"a": 7}
SAID = r'<tool_call>\{"name": "set", "arguments": \{"a": 7\}\}</tool_call>'
GIVEN_BACK = TEMPLATE.replace(
    "{{ message.content }}",
    "{{ message.content }}{% for call in message.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}",
)
WORDS = json.loads(byte_level_tokenizer_json())["model"]["vocab"]
ENDS = {WORDS[text]: 12.0 for text in '"}:,'}  # or a model with random weights would not come to an end
LENGTH = 160


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("calls"), template="{# <tool_call> #}" + GIVEN_BACK))


@pytest.fixture(scope="module")
def served(path: str) -> Iterator[Served]:
    with serving(path, sampling=SamplingParamsInput(temperature=0.0, logit_bias=ENDS)) as server:
        yield server


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    template = "{# <think> </think> #}" + TEMPLATE + "<think>"
    path = write_tiny_model(tmp_path_factory.mktemp("thinking"), template=template)
    with serving(str(path), sampling=SamplingParamsInput(temperature=0.0)) as server:
        yield server


def data_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]


def test_anthropic(served: Served) -> None:
    tools = [{"name": "set", "description": "Sets it.", "input_schema": SCHEMA}]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = {"messages": HELLO, "tools": tools, "tool_choice": choice, "max_tokens": LENGTH}
    whole = served.post("/v1/messages", **body).json()
    (call,) = whole["content"]
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "set", ARGUMENTS)
    assert whole["stop_reason"] == "tool_use"

    events = data_of(served.post("/v1/messages", stream=True, **body).text)
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(start["type"], start["name"]) for start in starts] == [("tool_use", "set")]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert json.loads("".join(delta.get("partial_json", "") for delta in deltas)) == ARGUMENTS
    assert [event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta"] == ["tool_use"]

    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "done"}
    history = [*HELLO, {"role": "assistant", "content": whole["content"]}, {"role": "user", "content": [result]}]
    counted = served.post("/v1/messages/count_tokens", messages=history, tools=tools).json()["input_tokens"]
    assert counted == prompt_tokens(served, [*HELLO, assistant(call["id"]), tool(call["id"])])


def test_responses(served: Served) -> None:
    tools = [{"type": "function", "name": "set", "parameters": SCHEMA}]
    body = {"input": "Hello", "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    body["max_output_tokens"] = LENGTH
    whole = served.post("/v1/responses", **body).json()
    (call,) = whole["output"]
    assert whole["status"] == "completed"
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "set", ARGUMENTS)

    events = data_of(served.post("/v1/responses", stream=True, **body).text)
    kind = "response.function_call_arguments"
    arguments = "".join(event["delta"] for event in events if event["type"] == f"{kind}.delta")
    (ended,) = [event for event in events if event["type"] == f"{kind}.done"]
    assert json.loads(arguments) == ARGUMENTS and ended["arguments"] == arguments
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["function_call"]

    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}
    after = served.post("/v1/responses", input=[result], previous_response_id=whole["id"], max_output_tokens=LENGTH)
    expected = prompt_tokens(served, [*HELLO, assistant(call["call_id"]), tool(call["call_id"])])
    assert after.json()["usage"]["input_tokens"] == expected


def test_ollama(path: str) -> None:
    # No call can be demanded in this interface, so the model is held to a text that begins one.
    outputs = StructuredOutputsParams(regex=SAID)
    values = SamplingParamsInput(temperature=0.0, logit_bias=ENDS, structured_outputs=outputs)
    with serving(path, sampling=values) as served:
        calls_of_ollama(served)


def calls_of_ollama(served: Served) -> None:
    tools = [{"type": "function", "function": {"name": "set", "parameters": SCHEMA}}]
    body = {"model": "tiny", "messages": HELLO, "tools": tools, "options": {"num_predict": LENGTH}}
    chat = served.post("/v1/chat/completions", messages=HELLO, tools=tools, max_tokens=LENGTH).json()
    made = [call["function"] for call in chat["choices"][0]["message"]["tool_calls"]]
    # The last one may be cut off by the limit, before its arguments.
    calls = [{"function": {"name": one["name"], "arguments": json.loads(one["arguments"] or "{}")}} for one in made]
    assert len(calls) > 1 and calls[0]["function"]["name"] == "set"
    whole = served.post("/api/chat", stream=False, **body).json()
    assert whole["message"]["tool_calls"] == calls

    lines = [json.loads(line) for line in served.post("/api/chat", **body).text.splitlines()]
    assert [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]] == [calls]
    assert lines[-1]["done"]

    said = {"role": "assistant", "content": "", "tool_calls": calls[:1]}
    history = [*HELLO, said, {"role": "tool", "content": "done"}]
    after = served.post("/api/chat", stream=False, **{**body, "messages": history}).json()
    assert after["prompt_eval_count"] == prompt_tokens(served, [*HELLO, assistant("x"), tool("x")])


def test_reasoning(thinking: Served) -> None:
    (choice,) = thinking.post("/v1/chat/completions", messages=HELLO, max_tokens=12).json()["choices"]
    thought = choice["message"]["reasoning_content"]
    assert thought and not choice["message"]["content"]

    body: dict[str, Any] = {"messages": HELLO, "max_tokens": 12}
    (block,) = thinking.post("/v1/messages", **body).json()["content"]
    assert (block["type"], block["thinking"]) == ("thinking", thought)
    events = data_of(thinking.post("/v1/messages", stream=True, **body).text)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta["thinking"] for delta in deltas) == thought

    body = {"input": "Hello", "max_output_tokens": 12}
    (item,) = thinking.post("/v1/responses", **body).json()["output"]
    assert (item["type"], item["content"][0]["text"]) == ("reasoning", thought)
    events = data_of(thinking.post("/v1/responses", stream=True, **body).text)
    assert "".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta") == thought

    body = {"model": "tiny", "messages": HELLO, "options": {"num_predict": 12}}
    assert thinking.post("/api/chat", stream=False, **body).json()["message"]["thinking"] == thought
    lines = [json.loads(line) for line in thinking.post("/api/chat", **body).text.splitlines()]
    assert "".join(line["message"].get("thinking", "") for line in lines) == thought


def assistant(name: str) -> dict[str, Any]:
    """The call in a chat of OpenAI's interface."""
    function = {"name": "set", "arguments": json.dumps(ARGUMENTS)}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": name, "type": "function", "function": function}]}


def tool(name: str) -> dict[str, Any]:
    """What came of the call."""
    return {"role": "tool", "tool_call_id": name, "content": "done"}


def prompt_tokens(served: Served, messages: list[dict[str, Any]]) -> int:
    """How long the prompt of a chat of OpenAI's interface is; the call is in it."""
    body = served.post("/v1/chat/completions/render", messages=messages).json()
    assert "[set]" in body["prompt"]
    return int(body["count"])
