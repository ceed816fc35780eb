"""The process: how it loads, drains, fails and ends; options, files of options, logs."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from puna import AsyncLLM
from puna.entrypoints.cli import run
from support.adapters import module_shapes, random_pairs, write_peft
from support.serving import Served, events, serving
from support.tiny_model import CONFIG, write_tiny_model

LONG = {"prompt": "Hello", "max_tokens": 5000, "ignore_eos": True, "stream": True, "seed": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=8192))


@contextmanager
def process(
    *arguments: str, before: Callable[[], None] | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server process, its address, and its log as it grows; `before` runs in it first."""
    command = [sys.executable, "-m", "puna.entrypoints.cli", "serve", *arguments, "--port", "0", "--no-storage"]
    log: list[str] = []
    variables = os.environ | environment
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables, preexec_fn=before) as running:
        assert running.stderr is not None
        reader = threading.Thread(target=lambda: log.extend(running.stderr or ()), daemon=True)
        reader.start()
        try:
            end = time.monotonic() + 60
            while not (found := [entry for entry in log if "listening on" in entry]):
                assert time.monotonic() < end and running.poll() is None, log
                time.sleep(0.02)
            url = found[0].partition("listening on ")[2].split("\"")[0].strip()
            while httpx2.get(f"{url}/health").status_code != 200:
                assert time.monotonic() < end and running.poll() is None, log
                time.sleep(0.02)
            yield running, url, log
        finally:
            running.kill()
            running.wait()
            reader.join(5)


@pytest.mark.slow
def test_sigterm_lets_streams_end(path: str) -> None:
    with process(path, "--log-format", "json") as (running, url, log), httpx2.Client(timeout=60) as client:
        request = client.build_request("POST", f"{url}/v1/completions", json={**LONG, "max_tokens": 600})
        response = client.send(request, stream=True)
        parts = response.iter_text()
        text = next(parts)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        refused = httpx2.post(f"{url}/v1/completions", json=LONG)
        health = httpx2.get(f"{url}/health")
        if running.poll() is None and refused.status_code != 200:
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
            assert int(refused.headers["retry-after"]) >= 1 and health.json() == {"status": "draining"}
        text += "".join(parts)
        *chunks, done = events(text)
        assert done == "[DONE]" and json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
        assert running.wait(20) == 0
        time.sleep(0.1)
        entries = [json.loads(entry) for entry in log]
        assert any(entry["logger"] == "puna.access" and entry["status"] == 200 for entry in entries)
        assert "Hello" not in "".join(log)


@pytest.mark.slow
def test_options_of_adapters(path: str, tmp_path: Path) -> None:
    """MAX's name of the option or vLLM's, and a directory to load from; what cannot be used ends the process."""
    shapes = module_shapes(CONFIG, ("q_proj", "v_proj"))
    for number, name in enumerate("abc"):
        write_peft(tmp_path / name, random_pairs(shapes, 4, number))
    options = ["--lora-modules", f"a={tmp_path / 'a'}", "--lora-paths", f"b={tmp_path / 'b'}", "--max-loras", "2"]
    with process(path, *options, "--lora-dir", str(tmp_path)) as (_, url, _log), httpx2.Client(base_url=url) as client:
        assert client.post("/v1/load_lora_adapter", json={"lora_name": "c", "lora_path": "c"}).status_code == 200
        models = [entry["id"] for entry in client.get("/v1/models").json()["data"]]
        assert models[1:] == ["a", "b", "c"]
        body = {"prompt": "Hello", "temperature": 0, "max_tokens": 8, "ignore_eos": True}
        answers = [client.post("/v1/completions", json={**body, "model": model}).json() for model in models]
        assert [answer["model"] for answer in answers] == models
        assert len({answer["choices"][0]["text"] for answer in answers}) == 4
    for bad, words in (
        (["--lora-paths", f"a={tmp_path / 'none'}", "--enable-lora"], "does not exist"),
        (["--lora-dir", str(tmp_path / "none")], "is no directory"),
        (["--enable-lora", "--data-parallel-degree", "2"], "data_parallel_degree must be 1"),
    ):
        command = [sys.executable, "-m", "puna.entrypoints.cli", "serve", path, "--port", "0", "--no-storage", *bad]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode in (2, 3) and words in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_second_signal_ends_at_once(path: str) -> None:
    with process(path) as (running, url, _log), httpx2.Client(timeout=60) as client:
        response = client.send(client.build_request("POST", f"{url}/v1/completions", json=LONG), stream=True)
        parts = response.iter_bytes()
        next(parts)
        running.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert running.poll() is None
        begin = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 1 and time.monotonic() - begin < 5


@pytest.mark.slow
def test_what_does_not_end_in_time_ends_with_an_error(path: str) -> None:
    with process(path, "--drain-timeout", "0.3") as (running, url, _log), httpx2.Client(timeout=60) as client:
        response = client.send(client.build_request("POST", f"{url}/v1/completions", json=LONG), stream=True)
        parts = response.iter_text()
        text = next(parts)
        running.send_signal(signal.SIGTERM)
        text += "".join(parts)
        *_, last, done = events(text)
        assert done == "[DONE]" and "error" in json.loads(last)
        assert running.wait(20) == 1


def test_health_says_503_while_the_model_loads(path: str) -> None:
    is_allowed = threading.Event()

    def load() -> AsyncLLM:
        is_allowed.wait(30)
        return AsyncLLM(path)

    with serving(load, is_awaited=False) as served:
        health = served.client.get("/health")
        assert health.status_code == 503 and health.json() == {"status": "loading"}
        refused = served.post("/v1/completions", prompt="x")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "model_loading"
        assert "puna_ready 0.0" in served.client.get("/metrics").text
        is_allowed.set()
        served.wait(lambda: served.client.get("/health").status_code == 200)
        assert served.post("/v1/completions", prompt="x", max_tokens=1).status_code == 200


def test_the_death_of_the_engine_is_seen(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(path) as served:
        request = served.client.build_request("POST", "/v1/completions", json=LONG)
        response = served.client.send(request, stream=True)
        parts = response.iter_text()
        text = next(parts)
        pipeline = served.llm._loaded.pipeline
        monkeypatch.setattr(pipeline, "counts", lambda: 1 / 0)
        text += "".join(parts)
        *_, last, done = events(text)
        assert done == "[DONE]" and json.loads(last)["error"]["type"] == "server_error"
        served.wait(lambda: served.server.host.ended.is_set())
        health = served.client.get("/health")
        assert health.status_code == 503 and health.json() == {"status": "failed"}


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path: Path) -> None:
    bad = write_tiny_model(tmp_path / "bad", num_attention_heads=7)
    command = [sys.executable, "-m", "puna.entrypoints.cli", "serve", str(bad), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (2, 3) and "Traceback" not in done.stderr and done.stderr.strip()


def test_options_come_from_a_file_and_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('max-batch-size = 3\nmax_queue_size = 7\nport = 1\nserved-model-name = ["a", "b"]\n')
    monkeypatch.setenv("PUNA_SERVE_PORT", "2")
    monkeypatch.setenv("PUNA_SERVE_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("PUNA_SERVE_API_KEY", "secret-of-mine")
    options = ["--max-queue-size", "9", "--max-body-bytes", "1M", "--print-config"]
    assert run(["serve", "--config", str(file), *options]) == 0
    printed = capsys.readouterr().out
    assert "secret-of-mine" not in printed
    found = dict(entry.split(" = ") for entry in printed.splitlines() if " = " in entry)
    assert (found["max-num-seqs"], found["port"], found["max-queue-size"]) == ("3", "2", "9")
    assert found["served-model-name"] == '["a", "b"]' and found["max-body-bytes"] == str(1 << 20)
    file.write_text(printed)
    assert run(["serve", "--config", str(file), "--print-config"]) == 0
    file.write_text("colour = 1\n")
    assert run(["serve", "--config", str(file)]) == 2
    assert "colour" in capsys.readouterr().err


def test_metrics_and_timelines(path: str) -> None:
    with serving(path, has_vllm_metrics=True) as served:
        response = served.post("/v1/completions", prompt="Hello", max_tokens=5, ignore_eos=True)
        name = response.headers["x-request-id"]
        found = served.client.get(f"/v1/requests/{name}").json()
        order = ["received", "prepared", "admitted", "first_token", "last_token", "finished"]
        times = list(found["events_s"].values())
        assert list(found["events_s"]) == order and times == sorted(times)
        assert found["num_generated_tokens"] == 5 and found["status"] == 200 and found["finish_reasons"] == ["length"]
        own = served.client.post("/v1/completions", json={"prompt": "x"}, headers={"X-Request-Id": "mine-1"})
        assert own.headers["x-request-id"] == "mine-1" and "mine-1" in own.json()["id"]
        text = served.client.get("/metrics").text
        for entry in (
            "puna_ready 1.0",
            "puna_generated_tokens_total 21.0",
            'puna_choices_finished_total{reason="length"} 2.0',
            "puna_time_to_first_token_seconds_count 2.0",
            "puna_generated_tokens_sum 21.0",
            'puna_http_requests_total{method="POST",route="/v1/completions",status="200"} 2.0',
            'vllm:generation_tokens_total{model_name="tiny"} 21.0',
            'vllm:request_success_total{finished_reason="length",model_name="tiny"} 2.0',
            'vllm:time_to_first_token_seconds_count{model_name="tiny"} 2.0',
        ):
            assert entry in text, entry


def test_the_same_request_gets_the_same_bits_alone_and_in_a_crowd(path: str) -> None:
    bodies = [
        {"prompt": [7 + i, 8, 9] * (3 + 5 * i), "max_tokens": 12, "seed": i, "logprobs": 5, "temperature": 0.9}
        for i in range(12)
    ]

    def ask(served: Served, body: dict[str, object]) -> object:
        return served.client.post("/v1/completions", json=body).json()["choices"]

    with serving(path, engine={"enable_prefix_caching": False, "max_num_seqs": 1}) as served:
        alone = [ask(served, body) for body in bodies]
    engine = {"max_num_seqs": 8, "max_num_batched_tokens": 16, "block_size": 8, "threads": 1}
    with serving(path, engine=engine) as served, ThreadPoolExecutor(24) as pool:
        crowd = list(pool.map(lambda i: ask(served, bodies[i % 12]), range(36)))
    assert crowd == alone * 3


def test_a_cache_that_is_four_times_too_small_changes_no_answer(path: str) -> None:
    bodies = [
        {"prompt": [5] * 16 + [7 + i] * (4 + 3 * i), "max_tokens": 48, "seed": i, "logprobs": 1, "ignore_eos": True}
        for i in range(12)
    ]
    engine = {"block_size": 8, "max_model_len": 128, "max_num_seqs": 12}

    def ask(served: Served, body: dict[str, object]) -> object:
        return served.client.post("/v1/completions", json=body).json()["choices"]

    with serving(path, engine=engine) as served, ThreadPoolExecutor(12) as pool:
        plenty = list(pool.map(lambda body: ask(served, body), bodies))
    needed = sum(-(-(len(body["prompt"]) + 48) // 8) for body in bodies)  # type: ignore[arg-type]
    head = CONFIG.get("head_dim") or CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    page_bytes = 2 * CONFIG["num_hidden_layers"] * 8 * CONFIG["num_key_value_heads"] * head * 2  # keys, values; float16
    engine["kv_cache_memory"] = needed // 4 * page_bytes
    with serving(path, engine=engine) as served, ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda body: ask(served, body), bodies)) == plenty
        text = served.client.get("/metrics").text
        assert int(float(re.findall(r"^puna_preemptions(?:_total)? (\S+)$", text, re.MULTILINE)[0])) > 0


@pytest.mark.slow
def test_few_descriptors_one_processor_and_no_directory_for_temporary_files(path: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    with process(path, before=limit, TMPDIR="/nonexistent") as (running, url, log):
        body = {"prompt": "Hello", "max_tokens": 5}
        connections = []
        for _ in range(100):  # more than there are descriptors for
            connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10)
            connections.append(connection)
        for connection in connections:
            connection.close()
        reply = httpx2.post(f"{url}/v1/completions", json=body, timeout=60)
        assert reply.status_code == 200 and running.poll() is None
        assert not [entry for entry in log if "Traceback" in entry], log
        assert len([entry for entry in log if "connections wait: Too many open files; raise the limit" in entry]) == 1


def test_many_connections_are_closed_and_descriptors_come_back(path: str) -> None:
    with serving(path) as served:
        before = len(list(Path("/proc/self/fd").iterdir()))
        connections = [served.connect() for _ in range(100)]
        assert served.client.get("/health").status_code == 200
        for connection in connections:
            connection.close()
        served.wait(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before + 3)
