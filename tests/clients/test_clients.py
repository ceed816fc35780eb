"""Clients of others, unchanged, against `puna serve`; and schemathesis against its OpenAPI document."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.serving import NAME, Served, serving
from support.tiny_model import write_tiny_model

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # what clients warn of is theirs

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
KEY = "the-key-of-the-clients"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def served(path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(path, api_keys={"clients": KEY}, storage_dir=tmp_path_factory.mktemp("state")) as server:
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        yield server


@pytest.fixture(scope="module")
def expected(served: Served) -> str:
    """The greedy answer to `HELLO`, of 8 tokens."""
    body = served.post("/v1/chat/completions", messages=HELLO, temperature=0, max_tokens=8).json()
    return str(body["choices"][0]["message"]["content"])


def test_openai(served: Served, expected: str, tmp_path: Path) -> None:
    import openai

    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        use_openai(served, client, expected, tmp_path)
    wrong = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def use_openai(served: Served, client: Any, expected: str, tmp_path: Path) -> None:
    import openai

    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "temperature": 0, "max_tokens": 8}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.content == expected and whole.usage is not None
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens == 8 and len(content[0].top_logprobs) == 2
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *parts, last = list(stream)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    assert last.usage.completion_tokens == 8 and parts[-1].choices[0].finish_reason == "length"
    written = client.completions.create(model=NAME, prompt=["a", "b"], n=2, max_tokens=3, logprobs=1, echo=True)
    assert [choice.index for choice in written.choices] == [0, 1, 2, 3]
    assert written.choices[0].logprobs.token_logprobs[0] is None
    extra = client.chat.completions.create(**asked, extra_body={"top_k": 5, "min_p": 0.1})
    assert extra.choices[0].message.content == expected
    assert len(client.embeddings.create(model=NAME, input=["a", "b"]).data) == 2
    assert [model.id for model in client.models.list()] == [NAME] and client.models.retrieve(NAME).id == NAME
    response = client.responses.create(model=NAME, input="Hello", temperature=0, max_output_tokens=8)
    assert response.output_text == expected
    assert client.responses.retrieve(response.id).output_text == expected
    with client.responses.stream(model=NAME, input="Hello", temperature=0, max_output_tokens=8) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == expected
    file = tmp_path / "in.jsonl"
    body = {"messages": HELLO, "temperature": 0, "max_tokens": 8}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file.write_text(json.dumps(line) + "\n")
    with file.open("rb") as content_of:
        sent = client.files.create(file=content_of, purpose="batch")
    batch = client.batches.create(input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h")
    served.wait(lambda: client.batches.retrieve(batch.id).status == "completed", 60)
    found = json.loads(client.files.content(client.batches.retrieve(batch.id).output_file_id).text)
    assert found["response"]["body"]["choices"][0]["message"]["content"] == expected
    assert sent.id in [entry.id for entry in client.files.list()]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**asked, "temperature": 9})
    assert refused.value.param == "temperature" and refused.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**asked, "model": "gpt-4"})


def test_anthropic(served: Served, expected: str) -> None:
    import anthropic

    with anthropic.Anthropic(base_url=served.url, api_key=KEY, max_retries=0) as client:
        use_anthropic(client, expected)


def use_anthropic(client: Any, expected: str) -> None:
    import anthropic

    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "max_tokens": 8, "temperature": 0}
    try:
        message = client.messages.create(**asked)
    except TypeError:  # newer clients leave the temperature to extra_body
        asked["extra_body"] = {"temperature": asked.pop("temperature")}
        message = client.messages.create(**asked)
    assert message.content[0].text == expected and message.stop_reason == "max_tokens"
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == expected
        assert stream.get_final_message().usage.output_tokens == 8
    counted = client.messages.count_tokens(model=NAME, messages=HELLO).input_tokens
    assert counted == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**asked, "model": "claude"})


def test_ollama(served: Served, expected: str) -> None:
    import ollama

    client = ollama.Client(host=served.url, headers={"Authorization": f"Bearer {KEY}"})
    options = {"temperature": 0, "num_predict": 8}
    assert client.chat(NAME, HELLO, options=options).message.content == expected
    parts = list(client.chat(NAME, HELLO, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == expected and parts[-1].done_reason == "length"
    assert client.generate(NAME, "Hello", options=options).response == expected
    assert "".join(part.response for part in client.generate(NAME, "Hello", options=options, stream=True)) == expected
    assert len(client.embed(NAME, ["a", "b"]).embeddings) == 2
    assert [model.model for model in client.list().models] == [NAME] == [model.model for model in client.ps().models]
    assert "im_start" in client.show(NAME).template
    with pytest.raises(ollama.ResponseError) as refused:
        client.chat("other", HELLO)
    assert refused.value.status_code == 404


def test_litellm(served: Served, expected: str) -> None:
    import litellm

    asked: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 8, "api_key": KEY}
    for model, base in ((f"openai/{NAME}", f"{served.url}/v1"), (f"hosted_vllm/{NAME}", f"{served.url}/v1")):
        answer = litellm.completion(model=model, api_base=base, **asked)
        assert answer.choices[0].message.content == expected
        parts = litellm.completion(model=model, api_base=base, stream=True, **asked)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    with pytest.raises(litellm.ContextWindowExceededError):
        asked["messages"] = [{"role": "user", "content": "x " * 1000}]
        litellm.completion(model=f"openai/{NAME}", api_base=f"{served.url}/v1", **asked)


def test_langchain(served: Served, expected: str) -> None:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(model=NAME, base_url=f"{served.url}/v1", api_key=KEY, temperature=0, max_tokens=8, max_retries=0)
    assert chat.invoke("Hello").content == expected
    assert "".join(str(part.content) for part in chat.stream("Hello")) == expected
    vectors = OpenAIEmbeddings(
        model=NAME, base_url=f"{served.url}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    assert len(vectors.embed_documents(["a", "b"])) == 2


def test_llm(served: Served, expected: str, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: puna\n  model_name: {NAME}\n  api_base: {served.url}/v1\n  api_key_name: puna\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"puna": KEY}))
    for more in ([], ["--no-stream"]):
        command = [sys.executable, "-m", "llm", "prompt", "Hello", "-m", "puna", "-o", "temperature", "0"]
        command += ["-o", "max_tokens", "8", *more]
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == expected.strip()


def test_openai_for_node(served: Served, expected: str, tmp_path: Path) -> None:
    modules = Path(sys.prefix) / "node" / "node_modules"
    if not modules.is_dir() or shutil.which("node") is None:
        pytest.skip("node or npm were not there when the oracles were made")
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "run.mjs").write_text("""
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.URL + "/v1", apiKey: process.env.KEY, maxRetries: 0 });
const asked = { model: "tiny", messages: [{ role: "user", content: "Hello" }], temperature: 0, max_tokens: 8 };
const whole = await client.chat.completions.create(asked);
let streamed = "";
for await (const part of await client.chat.completions.create({ ...asked, stream: true })) {
  streamed += part.choices[0]?.delta?.content ?? "";
}
const response = await client.responses.create({ model: "tiny", input: "Hello", temperature: 0, max_output_tokens: 8 });
let refused = null;
try { await client.chat.completions.create({ ...asked, n: 1000 }); } catch (error) { refused = error.status; }
console.log(JSON.stringify([whole.choices[0].message.content, streamed, response.output_text, refused]));
""")
    environment = {**os.environ, "URL": served.url, "KEY": KEY}
    command = ["node", "run.mjs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected, expected, expected, 400]


@pytest.mark.slow
def test_schemathesis(path: str, tmp_path: Path) -> None:
    limits = {"max_output_tokens": 8, "request_timeout_s": 5.0, "max_choices": 16}
    engine = {"max_num_seqs": 16, "max_model_len": 128}
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with serving(path, engine=engine, limits=limits, storage_dir=tmp_path / "state", lora_dir=tmp_path) as served:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json", "--workers", "2"]
        command += ["--checks", f"{checks},negative_data_rejection", "--phases", "examples,coverage,fuzzing"]
        command += ["--max-examples", "25", "--seed", "1", "--request-timeout", "30", "--continue-on-failure"]
        command += ["--suppress-health-check", "all"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:]
        served.wait(lambda: served.used_blocks() == 0)
