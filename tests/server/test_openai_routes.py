"""`/v1/chat/completions` and `/v1/completions`: the same answers as in process, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from puna import LLM, SamplingParams
from support.serving import NAME, Served, events, serving
from support.tiny_model import write_tiny_model

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def served(path: str) -> Iterator[Served]:
    with serving(path, engine={"max_num_seqs": 8, "block_size": 8}) as server:
        yield server


@pytest.fixture(scope="module")
def llm(path: str) -> Iterator[LLM]:
    with LLM(path) as model:
        yield model


def chunks_of(served: Served, path: str, **body: Any) -> list[dict[str, Any]]:
    response = served.post(path, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    *parts, done = events(response.text)
    assert done == "[DONE]"
    return [json.loads(part) for part in parts]


def test_a_chat_completion_is_the_answer_in_process(served: Served, llm: LLM) -> None:
    body = served.post(CHAT, messages=HELLO, max_tokens=9, temperature=0.7, seed=5, model=NAME).json()
    (expected,) = llm.chat(HELLO, SamplingParams(max_tokens=9, temperature=0.7, seed=5))
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.outputs[0].text, "refusal": None}
    assert choice["finish_reason"] == "length" and choice["seed"] == 5
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion" and body["model"] == NAME
    usage = body["usage"]
    assert usage["prompt_tokens"] == len(expected.prompt_token_ids) and usage["completion_tokens"] == 9
    assert usage["total_tokens"] == usage["prompt_tokens"] + 9


@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 3}, {"n": 3}, {"stop": ["e", "a"]}])
def test_a_streamed_chat_adds_up_to_the_whole_one(served: Served, more: dict[str, Any]) -> None:
    body = {"messages": HELLO, "max_tokens": 12, "seed": 3, "return_token_ids": True, **more}
    whole = served.post(CHAT, **body).json()
    chunks = chunks_of(served, CHAT, stream_options={"include_usage": True}, **body)
    *parts, last = chunks
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(part["usage"] is None and part["object"] == "chat.completion.chunk" for part in parts)
    assert len({(part["id"], part["created"], part["model"]) for part in parts}) == 1
    for choice in whole["choices"]:
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""} and mine[-1]["delta"] == {}
        assert [item["finish_reason"] for item in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        assert "".join(item["delta"].get("content", "") for item in mine) == choice["message"]["content"]
        assert mine[-1]["stop_reason"] == choice["stop_reason"]
        assert [token for item in mine for token in item.get("token_ids", [])] == choice["token_ids"]
        if "logprobs" in more:
            logprobs = [entry for item in mine if item["logprobs"] for entry in item["logprobs"]["content"]]
            assert logprobs == choice["logprobs"]["content"] and len(logprobs[0]["top_logprobs"]) == 3


@pytest.mark.parametrize("prompt", ["Hello", ["Hello", "The quick"], [5, 6, 7], [[5, 6], [7, 8, 9]]])
@pytest.mark.parametrize("echo", [False, True])
def test_a_streamed_completion_adds_up_to_the_whole_one(served: Served, prompt: Any, echo: bool) -> None:
    body = {"prompt": prompt, "max_tokens": 7, "seed": 1, "n": 2, "logprobs": 2, "echo": echo}
    whole = served.post(COMPLETIONS, **body).json()
    num_prompts = len(prompt) if isinstance(prompt[0], str | list) and isinstance(prompt, list) else 1
    assert [choice["index"] for choice in whole["choices"]] == list(range(2 * num_prompts))
    parts = chunks_of(served, COMPLETIONS, **body)
    for choice in whole["choices"]:
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(item["text"] for item in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"] == "length"
        for name, values in choice["logprobs"].items():
            assert [value for item in mine if item["logprobs"] for value in item["logprobs"][name]] == values
        if echo:
            assert choice["logprobs"]["token_logprobs"][0] is None
    assert all("usage" not in part for part in parts)


def test_completions_have_sixteen_tokens_unless_told_otherwise(served: Served) -> None:
    assert served.post(COMPLETIONS, prompt="Hello", ignore_eos=True).json()["usage"]["completion_tokens"] == 16


def test_a_chat_can_go_on_with_its_last_message(served: Served, llm: LLM) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "The quick"}]
    body = served.post(CHAT, messages=messages, continue_final_message=True, max_tokens=6, temperature=0).json()
    text = llm.render(HELLO).text + "The quick"
    ids = llm.tokenize(text)
    (expected,) = llm.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=6, temperature=0))
    assert body["usage"]["prompt_tokens"] == len(ids)
    assert body["choices"][0]["message"]["content"] == expected.outputs[0].text


def test_prompt_logprobs(served: Served, llm: LLM) -> None:
    (expected,) = llm.chat(HELLO, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1))
    assert expected.prompt_logprobs is not None
    body = served.post(CHAT, messages=HELLO, max_tokens=1, temperature=0, prompt_logprobs=1).json()
    first, *others = body["prompt_logprobs"]
    assert first is None
    for found, position in zip(others, expected.prompt_logprobs[1:], strict=True):
        assert position is not None
        assert {int(token): entry["logprob"] for token, entry in found.items()} == {
            token: value.logprob for token, value in position.items()
        }
    response = served.post(COMPLETIONS, prompt="Hello", max_tokens=1, prompt_logprobs=0)
    assert response.json()["choices"][0]["prompt_logprobs"][0] is None


def test_models(served: Served) -> None:
    (entry,) = served.client.get("/v1/models").json()["data"]
    assert entry["id"] == NAME and entry["object"] == "model" and entry["max_model_len"] == 256
    assert served.client.get(f"/v1/models/{NAME}").json() == entry
    missing = served.client.get("/v1/models/other/name")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


ERRORS: list[tuple[str, dict[str, Any], int, str | None, str]] = [
    (CHAT, {}, 400, "messages", "invalid_value"),
    (CHAT, {"messages": []}, 400, "messages", "invalid_value"),
    (CHAT, {"messages": HELLO, "model": "gpt"}, 404, "model", "model_not_found"),
    (CHAT, {"messages": HELLO, "temperature": 3}, 400, "temperature", "invalid_value"),
    (CHAT, {"messages": HELLO, "temperature": "warm"}, 400, "temperature", "invalid_value"),
    (CHAT, {"messages": HELLO, "n": 129}, 400, "n", "invalid_value"),
    (CHAT, {"messages": HELLO, "n": True}, 400, "n", "invalid_value"),
    (CHAT, {"messages": HELLO, "stop": ["x"] * 17}, 400, "stop", "invalid_value"),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),
    (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
    (CHAT, {"messages": HELLO, "audio": {}}, 400, "audio", "invalid_value"),
    (CHAT, {"messages": HELLO, "stream_options": {}}, 400, "stream_options", "invalid_value"),
    (CHAT, {"messages": HELLO, "logit_bias": {str(i): 1 for i in range(1025)}}, 400, "logit_bias", "invalid_value"),
    (CHAT, {"messages": HELLO, "logit_bias": {"1": 101}}, 400, "logit_bias", "invalid_value"),
    (CHAT, {"messages": HELLO, "chat_template_kwargs": {"bos_token": "x"}},
     400, "chat_template_kwargs", "invalid_value"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1"}}]}]},
     400, "messages", "invalid_value"),
    (CHAT, {"messages": [{"role": "user", "content": "x " * 300}]}, 400, "prompt", "context_length_exceeded"),
    (COMPLETIONS, {"prompt": "x", "suffix": "y"}, 400, "suffix", "invalid_value"),
    (COMPLETIONS, {"prompt": "x", "prompt_embeds": "y"}, 400, "prompt_embeds", "invalid_value"),
    (COMPLETIONS, {"prompt": [10**30]}, 400, "prompt", "invalid_value"),
    (COMPLETIONS, {"prompt": [-1]}, 400, "prompt", "invalid_value"),
    (COMPLETIONS, {"prompt": ["x"] * 2049}, 400, "prompt", "invalid_value"),
    (COMPLETIONS, {"prompt": ["x"] * 60, "n": 9}, 400, "n", "invalid_value"),
    (COMPLETIONS, {"prompt": "x", "stream": True, "best_of": 3}, 400, "best_of", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "status", "param", "code"), ERRORS)
def test_what_is_refused(
    served: Served, route: str, body: dict[str, Any], status: int, param: str | None, code: str
) -> None:
    response = served.post(route, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code), error
    assert error["type"] == "invalid_request_error" and error["message"]


def test_the_message_of_too_long_a_prompt_has_the_numbers(served: Served) -> None:
    message = served.post(COMPLETIONS, prompt=[5] * 300).json()["error"]["message"]
    assert "300" in message and "256" in message


def test_unknown_fields_are_served_and_named(served: Served, path: str) -> None:
    response = served.post(CHAT, messages=HELLO, max_tokens=1, bogus=1, other=None, more={"a": 1})
    assert response.status_code == 200 and response.headers["x-ignored-fields"] == "bogus, more"
    with serving(path, is_strict=True) as strict:
        response = strict.post(CHAT, messages=HELLO, max_tokens=1, bogus=1)
        assert response.status_code == 400 and response.json()["error"]["param"] == "bogus"
