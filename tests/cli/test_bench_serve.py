"""`puna bench serve`: the load, what is measured of it, the formats, servers that fail."""

from __future__ import annotations

import csv
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from puna.entrypoints.benchmark.http_stream import Endpoint
from puna.entrypoints.benchmark.load import Load, Seen, _times, make_prompts
from puna.entrypoints.benchmark.load_report import LoadReport, percentile
from puna.entrypoints.cli import run
from puna.errors import InvalidRequestError
from support.serving import NAME, Served, serving
from support.tiny_model import write_tiny_model

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "bench-serve.json"
KEY = "the-key"
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=1024)
    with serving(path, api_keys={"bench": KEY}) as server:
        yield server


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str]) -> Bench:
    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(["bench", "serve", *arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return call


@contextmanager
def canned(answer: bytes) -> Iterator[str]:
    """A server that answers every connection with the same bytes; its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def work() -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                connection.recv(1 << 16)
                connection.sendall(answer)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_json(served: Served, bench: Bench, endpoint: str) -> None:
    arguments = ["--base-url", f"{served.url}/v1", "--api-key", KEY, "--endpoint", endpoint, "--num-prompts", "6"]
    arguments += ["--random-input-len", "8", "--random-output-len", "5", "--max-concurrency", "2", "--format", "json"]
    bounds = ["--goodput", "ttft:60000", "--goodput", "e2el:0.001"]
    status, out, _err = bench(*arguments, *bounds, "--percentiles", "50,99.9")
    assert status == 0
    found = json.loads(out)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert found["model"] == NAME and found["num_answered"] == found["num_requests"] == 6 and not found["failures"]
    assert found["output_tokens"] == 30 and found["is_counted_by_server"] and found["prompt_tokens"] >= 48
    assert found["requests_per_s"] == pytest.approx(6 / found["duration_s"], rel=0.01)
    assert found["goodput"]["num_good"] == 0 and found["goodput"]["bounds_ms"] == {"ttft": 60000, "e2el": 0.001}
    assert set(found["ttft_ms"]) == {"mean", "p50", "p99.9"}
    assert found["e2el_ms"]["mean"] >= found["ttft_ms"]["mean"] > 0


def test_shared_beginnings_are_read_once(served: Served, bench: Bench) -> None:
    before = served.llm.statistics().counts.num_cached_tokens
    arguments = ["--base-url", f"{served.url}/v1", "--api-key", KEY, "--num-prompts", "4", "--max-concurrency", "1"]
    arguments += ["--random-input-len", "4", "--random-output-len", "2", "--prefix-len", "60", "--warmup", "0"]
    status, out, _err = bench(*arguments, "--format", "json", "--seed", "7")
    assert status == 0 and json.loads(out)["num_prefixes"] == 1
    assert served.llm.statistics().counts.num_cached_tokens - before >= 3 * 48


def test_table_and_rows(served: Served, bench: Bench) -> None:
    arguments = ["--base-url", f"{served.url}/v1", "--api-key", KEY, "--num-prompts", "3", "--random-input-len", "4"]
    arguments += ["--random-output-len", "3", "--request-rate", "200"]
    status, out, _err = bench(*arguments)
    assert status == 0 and "| time to first token (ttft) " in out and "3 of 3 requests answered" in out
    status, out, _err = bench(*arguments, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 0 and len(rows) == 3
    assert all(int(row["output_tokens"]) == 3 and float(row["ttft_ms"]) > 0 and row["is_good"] == "1" for row in rows)
    sent = [float(row["sent_ms"]) for row in rows]
    assert sent == sorted(sent) and sent[0] == 0


def test_requests_that_fail_are_counted(served: Served, bench: Bench) -> None:
    arguments = ["--base-url", f"{served.url}/v1", "--api-key", KEY, "--num-prompts", "2", "--format", "json"]
    status, out, _err = bench(*arguments, "--model", "other")
    found = json.loads(out)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert status == 1 and found["num_answered"] == 0
    [(why, count)] = found["failures"].items()
    assert count == 2 and "status 404" in why and "other" in why
    status, out, _err = bench(*arguments[:-2], "--model", "other")
    assert status == 1 and "2 failed: /v1/completions: status 404" in out


def test_a_wrong_key_and_nobody_there(served: Served, bench: Bench) -> None:
    status, out, err = bench("--base-url", f"{served.url}/v1", "--api-key", "wrong")
    assert (status, out) == (1, "") and "status 401" in err
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    status, out, err = bench("--base-url", f"http://127.0.0.1:{port}/v1")
    assert (status, out) == (1, "") and f"cannot reach 127.0.0.1:{port}" in err


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-x\r\n\r\n", "the connection broke"),
        (b"", "the connection broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\ndata: {}\n\n", "the connection broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "the answer has no text"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\ndata: 5x\n\n", "no stream of OpenAI's chunks"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndata: 5\n\n", "no stream of OpenAI's chunks"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nOops", "status 500: Oops"),
    ],
)
def test_servers_that_answer_nonsense(bench: Bench, answer: bytes, why: str) -> None:
    with canned(answer) as url:
        arguments = ["--base-url", url, "--model", "x", "--num-prompts", "1", "--warmup", "0", "--format", "json"]
        status, out, _err = bench(*arguments)
        assert status == 1 and why in next(iter(json.loads(out)["failures"]))
        if b" 500 " not in answer:
            status, out, err = bench("--base-url", url)
            assert status in (1, 2) and out == "" and "error" in err.lower()


def test_a_server_that_does_not_count(bench: Bench) -> None:
    chunks = [{"choices": [{"text": text}]} for text in ("a", "b", "c")]
    body = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    with canned(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as url:
        status, out, _err = bench("--base-url", url, "--model", "x", "--num-prompts", "2", "--format", "json")
    found = json.loads(out)
    assert status == 0 and found["output_tokens"] == 6 and not found["is_counted_by_server"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--base-url", "ftp://127.0.0.1/"), ("--base-url", "http://"), ("--base-url", "http://127.0.0.1:99999/v1"),
        ("--goodput", "itl:5"), ("--goodput", "ttft"), ("--goodput", "ttft:nan"), ("--goodput", "ttft:-1"),
        ("--goodput", "ttft:1", "--goodput", "ttft:2"), ("--percentiles", ""), ("--percentiles", "101"),
        ("--percentiles", "5,5"), ("--num-prompts", "0"), ("--request-rate", "0"), ("--num-prefixes", "2"),
        ("--api-key", "a\nb"),
    ],
)  # fmt: skip
def test_wrong_usage(bench: Bench, arguments: tuple[str, ...]) -> None:
    status, out, _err = bench(*arguments)
    assert (status, out) == (2, "")


def test_endpoints() -> None:
    assert Endpoint.parse("https://a.example/openai/") == Endpoint("a.example", 443, "/openai", True)
    assert ("Host", "[::1]:80") in Endpoint.parse("http://[::1]").headers(None)
    with pytest.raises(InvalidRequestError, match="is no URL"):
        Endpoint.parse("127.0.0.1:8000")


def test_prompts_are_a_function_of_the_seed() -> None:
    load = Load("m", 9, 10, 1, prefix_len=5, num_prefixes=3, seed=4)
    prompts = make_prompts(load)
    assert prompts == make_prompts(load) and len(set(prompts)) == 9
    beginnings = [" ".join(prompt.split()[:5]) for prompt in prompts]
    assert len(set(beginnings)) == 3 and beginnings[:3] == beginnings[3:6] == beginnings[6:]
    assert all(len(prompt.split()) == 15 for prompt in prompts)


def test_gaps_are_those_of_a_poisson_process() -> None:
    times = np.array(list(islice(_times(Load("m", 1, 1, 1, request_rate=50.0)), 20_001)))
    gaps = np.diff(times)
    assert times[0] == 0 and gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # an exponential's deviation is its mean


def test_percentiles_are_numpys() -> None:
    draw = np.random.default_rng(0)
    for count in (1, 2, 7, 100):
        values = draw.standard_normal(count).tolist()
        for share in (0, 12.5, 50, 99, 100):
            assert percentile(values, share) == pytest.approx(np.percentile(values, share))
    assert percentile([], 50) == 0


def test_latencies_and_goodput_by_hand() -> None:
    def seen(sent: float, *times: float, **more: Any) -> Seen:
        return Seen(sent, list(times), times[-1], 10, len(times), True, **more)

    found = [seen(0.0, 0.1, 0.2, 0.4), seen(1.0, 1.3), seen(2.0, 2.1, failure="it broke")]
    report = LoadReport("u", Load("m", 3, 1, 3), found, (50.0,), {"ttft": 200.0, "tpot": 160.0})
    values = {name: report.values_ms(name) for name in ("ttft", "tpot", "itl", "e2el")}
    assert values["ttft"] == pytest.approx([100, 300]) and values["tpot"] == pytest.approx([150])
    assert values["itl"] == pytest.approx([100, 200]) and values["e2el"] == pytest.approx([400, 300])
    assert report.duration_s == pytest.approx(1.3) and report.num_good == 1 and report.failures == {"it broke": 1}
