"""Adapters over HTTP: named as models, loaded and unloaded within one directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from puna import LLM, SamplingParams
from support.adapters import module_shapes, random_pairs, write_peft
from support.serving import NAME, Served, serving
from support.tiny_model import CONFIG, write_tiny_model

ASKED = {"prompt": "Hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    write_tiny_model(root / "model")
    shapes = module_shapes(CONFIG, ("q_proj", "v_proj", "down_proj"))
    for seed, name in enumerate(("a", "b")):
        write_peft(root / "adapters" / name, random_pairs(shapes, 4, seed))
    write_peft(root / "secret", random_pairs(shapes, 4, 9))
    (root / "adapters" / "link").symlink_to(root / "secret")
    (root / "adapters" / "broken").mkdir()
    return root


@pytest.fixture(scope="module")
def served(files: Path) -> Iterator[Served]:
    engine = {"enable_lora": True, "lora_paths": [f"a={files / 'adapters' / 'a'}"], "enable_weight_cache": False}
    with serving(files / "model", engine=engine, lora_dir=files / "adapters") as server:
        yield server


def text(served: Served, model: str | None) -> Any:
    reply = served.post("/v1/completions", **ASKED, **({} if model is None else {"model": model}))
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == (model or NAME)
    return reply.json()["choices"][0]["text"]


def names(served: Served) -> list[str]:
    return [entry["id"] for entry in served.client.get("/v1/models").json()["data"]]


def test_a_model_is_an_adapter(files: Path, served: Served) -> None:
    llm = LLM(
        files / "model",
        enable_lora=True,
        lora_paths=[f"{name}={files / 'adapters' / name}" for name in "ab"],
        enable_weight_cache=False,
    )
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    wanted = {name: llm.generate("Hello", params, adapter=name)[0].outputs[0].text for name in ("a", "b", None)}
    assert text(served, None) == text(served, NAME) == wanted[None] != wanted["a"]
    assert text(served, "a") == wanted["a"]
    assert names(served) == [NAME, "a"]
    entry = served.client.get("/v1/models/a").json()
    assert (entry["parent"], entry["root"]) == (NAME, "a")
    reply = served.post("/v1/load_lora_adapter", lora_name="b", lora_path="b")
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'b' added successfully.")
    assert text(served, "b") == wanted["b"]
    assert names(served) == [NAME, "a", "b"]
    assert served.post("/v1/load_lora_adapter", lora_name="b", lora_path="b").status_code == 200
    assert served.post("/v1/load_lora_adapter", lora_name="b", lora_path="a").status_code == 409
    absolute = str(files / "adapters" / "a")
    assert served.post("/v1/load_lora_adapter", lora_name="b", lora_path=absolute, load_inplace=True).status_code == 200
    assert text(served, "b") == wanted["a"]
    embedded = [served.post("/v1/embeddings", input="Hello", model=model).json() for model in (NAME, "a")]
    assert embedded[0]["data"] != embedded[1]["data"]
    assert served.post("/v1/unload_lora_adapter", lora_name="b").status_code == 200
    assert served.post("/v1/unload_lora_adapter", lora_name="b").status_code == 404
    reply = served.post("/v1/completions", **ASKED, model="b")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


CHAT = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8}
# route, body, where the text is
ROUTES = (
    ("/v1/messages", CHAT, lambda body: body["content"][0]["text"]),
    ("/v1/responses", {"input": "Hello", "temperature": 0, "max_output_tokens": 8},
     lambda body: body["output"][0]["content"][0]["text"]),
    ("/api/chat", {**CHAT, "stream": False, "options": {"temperature": 0, "num_predict": 8}},
     lambda body: body["message"]["content"]),
    ("/api/generate", {"prompt": "Hello", "stream": False, "options": {"temperature": 0, "num_predict": 8}},
     lambda body: body["response"]),
    ("/api/embed", {"input": "Hello"}, lambda body: body["embeddings"]),
    ("/v1/score", {"text_1": "Hello", "text_2": "you"}, lambda body: body["data"][0]["score"]),
    ("/v1/rerank", {"query": "Hello", "documents": ["you", "nobody"]}, lambda body: body["results"]),
)  # fmt: skip


@pytest.mark.parametrize(("route", "body", "part"), ROUTES, ids=[route for route, _, _ in ROUTES])
def test_every_interface_takes_adapters_as_models(
    served: Served, route: str, body: dict[str, Any], part: Callable[[Any], Any]
) -> None:
    answers = {model: served.post(route, **body, model=model) for model in (NAME, "a", "nobody")}
    assert {model: answer.status_code for model, answer in answers.items()} == {NAME: 200, "a": 200, "nobody": 404}
    bodies = {model: answers[model].json() for model in (NAME, "a")}
    assert {model: answer["model"] for model, answer in bodies.items()} == {NAME: NAME, "a": "a"}
    assert part(bodies[NAME]) != part(bodies["a"])
    if "messages" in body or "prompt" in body or ("input" in body and route != "/api/embed"):
        chat = served.post("/v1/chat/completions", **CHAT, model="a").json()
        assert part(bodies["a"]) == chat["choices"][0]["message"]["content"]


def test_streams_name_their_adapter(served: Served) -> None:
    lines = served.post("/api/generate", prompt="Hello", model="a", options={"num_predict": 4}).text.splitlines()
    assert {json.loads(line)["model"] for line in lines} == {"a"}
    text = served.post("/v1/messages", **CHAT, model="a", stream=True).text
    start = json.loads(text.split("data: ", 1)[1].split("\n", 1)[0])
    assert start["message"]["model"] == "a"
    assert served.post("/api/generate", model="a:latest").json()["model"] == "a"  # nothing is asked
    assert "a" in {entry["name"] for entry in served.client.get("/api/tags").json()["models"]}


def test_swaps_while_requests_run(files: Path) -> None:
    """Whoever began with an adapter gets its text to the end; whoever names what is gone is told so."""
    engine = {"enable_lora": True, "max_num_loras": 2, "enable_weight_cache": False}
    with serving(files / "model", engine=engine, lora_dir=files / "adapters") as server:

        def text_of(model: str) -> tuple[int, str | None]:
            reply = server.post("/v1/completions", **{**ASKED, "max_tokens": 24}, model=model)
            return reply.status_code, reply.json()["choices"][0]["text"] if reply.status_code == 200 else None

        wanted = {}
        for name in "ab":
            assert server.post("/v1/load_lora_adapter", lora_name=name, lora_path=name).status_code == 200
            wanted[name] = text_of(name)
        bare = text_of(NAME)
        assert len({wanted["a"], wanted["b"], bare}) == 3

        def swap() -> list[int]:
            """`x` is a, then b, then nothing, again and again."""
            statuses = []
            for number in range(24):
                body = {"lora_name": "x", "lora_path": "ab"[number % 2], "load_inplace": True}
                statuses.append(server.post("/v1/load_lora_adapter", **body).status_code)
                if number % 2:
                    statuses.append(server.post("/v1/unload_lora_adapter", lora_name="x").status_code)
            return statuses

        with ThreadPoolExecutor(4) as pool:
            swaps = pool.submit(swap)
            answers: dict[str, set[Any]] = {"x": set(), "a": set(), NAME: set()}
            while not swaps.done():
                for model, answer in zip(answers, pool.map(text_of, answers), strict=True):
                    answers[model].add(answer)
            assert set(swaps.result()) == {200}
        assert answers["a"] == {wanted["a"]} and answers[NAME] == {bare}
        assert answers["x"] <= {wanted["a"], wanted["b"], (404, None)}
        assert names(server) == [NAME, "a", "b"]
        server.wait(lambda: server.used_blocks() == 0)


@pytest.mark.parametrize(
    "path", ["../secret", "link", "/etc", "..", ".", "", "a/../../secret", "missing", "a\0b", "broken", "x" * 5000]
)
def test_paths_do_not_lead_out(served: Served, path: str) -> None:
    reply = served.post("/v1/load_lora_adapter", lora_name="x", lora_path=path)
    assert reply.status_code == 400
    assert "secret/" not in reply.text
    assert "x" not in names(served)


@pytest.mark.parametrize(
    "body",
    [{}, {"lora_name": "x"}, {"lora_name": 1, "lora_path": "a"}, {"lora_name": "x", "lora_path": "a", "y": 1},
     {"lora_name": NAME, "lora_path": "a"}, {"lora_name": "x", "lora_path": "a", "load_inplace": "yes"},
     {"lora_name": "a\nb", "lora_path": "a"}],
)  # fmt: skip
def test_bodies_that_are_refused(served: Served, body: dict[str, Any]) -> None:
    assert served.post("/v1/load_lora_adapter", **body).status_code == 400


def test_nothing_is_loaded_without_a_directory(files: Path) -> None:
    with serving(files / "model", engine={"enable_weight_cache": False}) as server:
        for route in ("load", "unload"):
            reply = server.post(f"/v1/{route}_lora_adapter", lora_name="a", lora_path="a")
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "adapters_disabled")
        assert names(server) == [NAME]


def test_lines_of_a_batch_name_adapters(files: Path, tmp_path: Path) -> None:
    engine = {"enable_lora": True, "lora_paths": [f"a={files / 'adapters' / 'a'}"], "enable_weight_cache": False}
    with serving(files / "model", engine=engine, storage_dir=tmp_path) as server:
        found = [{"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {**ASKED, "model": name}}
                 for name in (NAME, "a", "b")]  # fmt: skip
        content = "".join(json.dumps(line) + "\n" for line in found).encode()
        form = {"files": {"file": ("in.jsonl", content)}, "data": {"purpose": "batch"}}
        name = server.client.post("/v1/files", **form).json()["id"]
        asked = {"input_file_id": name, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = server.post("/v1/batches", **asked).json()
        url = f"/v1/batches/{batch['id']}"
        server.wait(lambda: server.client.get(url).json()["completed_at"] is not None, 60)
        ended = server.client.get(url).json()
        made = server.client.get(f"/v1/files/{ended['output_file_id']}/content").text.splitlines()
        answers = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, made)}
        assert {name: body["model"] for name, body in answers.items()} == {NAME: NAME, "a": "a"}
        for name, body in answers.items():
            assert body["choices"][0]["text"] == text(server, name)
        failed = server.client.get(f"/v1/files/{ended['error_file_id']}/content").text
        assert "model_not_found" in failed
