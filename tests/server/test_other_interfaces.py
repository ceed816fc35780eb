"""Responses, Anthropic's and Ollama's interface, vectors and tokens: each is the answer of the chat completion."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from puna import LLM
from support.serving import NAME, Served, serving
from support.tiny_model import write_tiny_model

HELLO = [{"role": "user", "content": "Hello"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def served(path: str) -> Iterator[Served]:
    with serving(path) as server:
        yield server


@pytest.fixture(scope="module")
def llm(path: str) -> Iterator[LLM]:
    with LLM(path) as model:
        yield model


def text_of(served: Served, messages: list[dict[str, Any]], **more: Any) -> str:
    body = served.post("/v1/chat/completions", messages=messages, **{**GREEDY, **more}).json()
    return str(body["choices"][0]["message"]["content"])


def typed_events(response: httpx2.Response) -> list[dict[str, Any]]:
    """Events whose type is named twice: in the event, and in its data."""
    found = []
    for part in response.text.strip().split("\n\n"):
        name, data = part.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def test_messages(served: Served) -> None:
    expected = text_of(served, [{"role": "system", "content": "Be brief"}, *HELLO])
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    body = {"model": NAME, "messages": blocks, "system": [{"type": "text", "text": "Be brief"}], **GREEDY}
    answer = served.post("/v1/messages", **body).json()
    assert answer["content"] == [{"type": "text", "text": expected}] and answer["role"] == "assistant"
    assert answer["stop_reason"] == "max_tokens" and answer["usage"]["output_tokens"] == 12
    events = typed_events(served.post("/v1/messages", stream=True, **body))
    kinds = [event["type"] for event in events if event["type"] not in ("content_block_delta", "ping")]
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(deltas) == expected
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    counted = served.post("/v1/messages/count_tokens", **body).json()["input_tokens"]
    assert counted == answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"]


def test_messages_end_at_stop_sequences_and_go_on_with_an_answer(served: Served) -> None:
    whole = text_of(served, HELLO)
    stop = whole[3:5]
    answer = served.post("/v1/messages", messages=HELLO, stop_sequences=[stop], **GREEDY).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    begun = [*HELLO, {"role": "assistant", "content": "The"}]
    answer = served.post("/v1/messages", messages=begun, **GREEDY).json()
    assert answer["content"][0]["text"] == text_of(served, begun, continue_final_message=True)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"messages": HELLO}, 400, "invalid_request_error"),
        ({"messages": HELLO, "max_tokens": 0}, 400, "invalid_request_error"),
        ({"messages": HELLO, "max_tokens": 1, "model": "claude"}, 404, "not_found_error"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 1}, 400,
         "invalid_request_error"),
    ],
)  # fmt: skip
def test_errors_of_messages(served: Served, body: dict[str, Any], status: int, kind: str) -> None:
    response = served.post("/v1/messages", **body)
    assert response.status_code == status
    assert response.json()["type"] == "error" and response.json()["error"]["type"] == kind


def test_ollama(served: Served) -> None:
    expected = text_of(served, HELLO)
    options = {"num_predict": 12, "temperature": 0, "num_ctx": 100}
    body: dict[str, Any] = {"model": f"{NAME}:latest", "options": options}
    whole = served.post("/api/chat", messages=HELLO, stream=False, **body).json()
    assert whole["message"] == {"role": "assistant", "content": expected} and whole["done"]
    assert whole["done_reason"] == "length" and whole["eval_count"] == 12
    lines = [json.loads(line) for line in served.post("/api/chat", messages=HELLO, **body).text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == expected
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    written = served.post("/api/generate", prompt="Hello", stream=False, **body).json()
    assert written["response"] == expected
    raw = served.post("/api/generate", prompt="Hello", raw=True, stream=False, **body).json()
    plain = served.post("/v1/completions", prompt="Hello", **GREEDY).json()["choices"][0]["text"]
    assert raw["response"] == plain
    (model,) = served.client.get("/api/tags").json()["models"]
    assert model["name"] == NAME and served.client.get("/api/ps").json()["models"][0]["model"] == NAME
    assert "version" in served.client.get("/api/version").json()
    shown = served.post("/api/show", model=NAME).json()
    assert "im_start" in shown["template"]
    count = sum(int(np.prod(weight.shape)) for _, weight in served.llm.model.pipeline_config.model.weights.items())
    assert shown["model_info"]["general.parameter_count"] == count and model["size"] == 4 * count
    assert (model["details"]["format"], model["details"]["quantization_level"]) == ("safetensors", "FLOAT32")
    assert shown["details"] == model["details"] and model["details"]["family"] == "llama"
    assert shown["model_info"]["llama.block_count"] == 2
    (loaded,) = served.client.get("/api/ps").json()["models"]
    assert loaded["details"] == model["details"] and loaded["size"] == model["size"]
    missing = served.post("/api/chat", model="other", messages=HELLO)
    assert missing.status_code == 404 and isinstance(missing.json()["error"], str)


def test_responses(served: Served) -> None:
    expected = text_of(served, [{"role": "system", "content": "Be brief"}, *HELLO])
    body = {"input": "Hello", "instructions": "Be brief", "temperature": 0, "max_output_tokens": 12}
    made = served.post("/v1/responses", metadata={"a": "b"}, **body).json()
    (item,) = made["output"]
    assert item["content"][0]["text"] == expected and made["status"] == "incomplete"
    assert made["incomplete_details"] == {"reason": "max_output_tokens"} and made["metadata"] == {"a": "b"}
    name = made["id"]
    assert served.client.get(f"/v1/responses/{name}").json() == made
    (asked,) = served.client.get(f"/v1/responses/{name}/input_items").json()["data"]
    assert asked["content"][0]["text"] == "Hello"
    again = served.post(
        "/v1/responses", input="And?", previous_response_id=name, temperature=0, max_output_tokens=12
    ).json()
    conversation = [*HELLO, {"role": "assistant", "content": expected}, {"role": "user", "content": "And?"}]
    assert again["output"][0]["content"][0]["text"] == text_of(served, conversation)
    assert served.client.delete(f"/v1/responses/{name}").json()["deleted"]
    assert served.client.get(f"/v1/responses/{name}").status_code == 404
    assert served.post("/v1/responses", input="x", previous_response_id=name).status_code == 404
    stateless = served.post("/v1/responses", store=False, **body).json()
    assert served.client.get(f"/v1/responses/{stateless['id']}").status_code == 404


def test_streamed_responses(served: Served) -> None:
    body = {"input": HELLO, "temperature": 0, "max_output_tokens": 12, "stream": True}
    events = typed_events(served.post("/v1/responses", **body))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events if "delta" not in event]
    begin = ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds == [*begin, "output_text.done", "content_part.done", "output_item.done", "incomplete"]
    text = "".join(event["delta"] for event in events if "delta" in event)
    assert text == text_of(served, HELLO) == events[-1]["response"]["output"][0]["content"][0]["text"]


@pytest.mark.parametrize("more", [{"background": True}, {"include": ["x"]}, {"tools": [{"type": "web_search"}]}])
def test_what_responses_refuse(served: Served, more: dict[str, Any]) -> None:
    response = served.post("/v1/responses", input="x", **more)
    assert response.status_code == 400 and response.json()["error"]["param"] == next(iter(more))


def test_vectors(served: Served, llm: LLM) -> None:
    texts = ["a cat", "a dog", "12 + 30"]
    expected = llm.embed(texts)
    body = served.post("/v1/embeddings", input=texts).json()
    np.testing.assert_array_equal(np.array([entry["embedding"] for entry in body["data"]], np.float32), expected)
    packed = served.post("/v1/embeddings", input="a cat", encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), expected[0])
    found = served.post("/api/embed", model=NAME, input=texts).json()["embeddings"]
    np.testing.assert_array_equal(np.array(found, np.float32), expected)
    scores = served.post("/v1/score", text_1="a cat", text_2=texts).json()["data"]
    assert [entry["score"] for entry in scores] == pytest.approx((expected @ expected[0]).tolist(), abs=1e-6)
    ranked = served.post("/v1/rerank", query="a cat", documents=texts, top_n=2).json()
    assert ranked["results"][0]["index"] == 0 and len(ranked["results"]) == 2 and "cosine" in ranked["method"]


def test_tokens(served: Served, llm: LLM) -> None:
    found = served.post("/tokenize", prompt="Hello there", return_token_strs=True).json()
    assert found["tokens"] == llm.tokenize("Hello there") and found["count"] == len(found["token_strs"])
    assert served.post("/detokenize", tokens=found["tokens"]).json() == {"prompt": "Hello there"}
    rendered = llm.render(HELLO)
    body = served.post("/v1/chat/completions/render", messages=HELLO).json()
    assert (body["prompt"], body["prompt_token_ids"]) == (rendered.text, list(rendered.token_ids))
    assert served.post("/tokenize", messages=HELLO).json()["tokens"] == list(rendered.token_ids)
    assert served.post("/detokenize", tokens=[10**20]).status_code == 400
