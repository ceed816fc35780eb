"""What a server does with those who mean it harm, or do not know what they do."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2
import pytest

from puna.entrypoints.cli import run
from puna.entrypoints.server.app import all_operations
from puna.entrypoints.server.keys import read_keys
from puna.entrypoints.server.settings import is_loopback
from puna.errors import InvalidRequestError
from support.serving import Served, serving
from support.tiny_model import write_tiny_model

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
LONG: dict[str, Any] = {"prompt": "Hello", "max_tokens": 200, "ignore_eos": True, "seed": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def served(path: str) -> Iterator[Served]:
    limits = {"max_body_bytes": 200_000, "header_timeout_s": 1.0, "body_timeout_s": 1.0, "write_timeout_s": 1.0}
    with serving(path, engine={"max_num_seqs": 4}, limits=limits) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(path: str) -> Iterator[Served]:
    keys = {"alice": "alice-secret", "bob": "bob-secret-"}
    with serving(path, api_keys=keys, allowed_origins=("https://page.example",)) as server:
        yield server


def raw(served: Served, data: bytes) -> bytes:
    """What a bare connection gets until the server closes it."""
    with served.connect() as connection:
        connection.sendall(data)
        return read_all(connection)


def posted(body: bytes) -> bytes:
    """A request for a completion, byte by byte."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def read_all(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_every_route_but_health_and_the_pages_files_needs_a_key(guarded: Served) -> None:
    page = {"/", *(f"/page/{file.name}" for file in files("puna.entrypoints.server.page").iterdir())}
    assert {operation.path for operation in all_operations() if not operation.needs_key} <= {"/health", "/ping"} | page
    for operation in all_operations():
        for key in ({}, {"Authorization": "Bearer alice-secre"}):
            where = operation.path.replace("{model:path}", "tiny").replace("{", "").replace("}", "")
            response = guarded.client.request(operation.method, where, headers=key)
            if not operation.needs_key:
                assert response.status_code == 200 and "tiny" not in response.text
                assert operation.path in page or response.json() == {"status": "ok"}
            else:
                assert response.status_code == 401, where
                assert "tiny" not in response.text and response.headers["www-authenticate"] == "Bearer"
    assert guarded.client.get("/nowhere").status_code == 401
    for headers in ({"Authorization": "Bearer alice-secret"}, {"x-api-key": "bob-secret-"}):
        assert guarded.client.get("/v1/models", headers=headers).status_code == 200


def test_tenants_do_not_share_a_cache_or_timelines(guarded: Served) -> None:
    def ask(key: str) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"}
        body = {"prompt": [7] * 200, "max_tokens": 1}
        response = guarded.client.post("/v1/completions", json=body, headers=headers)
        return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"], response.headers["x-request-id"]

    (cold, name), (warm, _), (foreign, _) = ask("alice-secret"), ask("alice-secret"), ask("bob-secret-")
    assert cold == 0 and warm > 0 and foreign == 0
    for key, status in (("alice-secret", 200), ("bob-secret-", 404)):
        response = guarded.client.get(f"/v1/requests/{name}", headers={"x-api-key": key})
        assert response.status_code == status


def test_pages_of_other_origins(guarded: Served, served: Served) -> None:
    preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    response = guarded.client.options(CHAT, headers=preflight)
    assert response.status_code == 204 and response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    other = guarded.client.options(CHAT, headers={**preflight, "Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in served.client.get("/version", headers=preflight).headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_listening_to_others_needs_a_key(host: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_loopback(host)
    assert run(["serve", path, "--host", host]) == 2
    assert "--insecure" in capsys.readouterr().err


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nalice: alice-secret\n\nplain-secret\n")
    assert read_keys(("of-the-environment",), file) == {
        "key-1": "of-the-environment",
        "alice": "alice-secret",
        "key-3": "plain-secret",
    }
    for text in ("", "a: short\n", "a: alice-secret\nb: alice-secret\n", "a: alice-secret\na: alice-secret2\n"):
        file.write_text(text)
        with pytest.raises(InvalidRequestError):
            read_keys((), file)


def test_headers_bodies_and_depths_have_limits(served: Served) -> None:
    answer = raw(served, b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 40_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    assert raw(served, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    begin = time.perf_counter()
    long = served.client.post(CHAT, content=b'{"messages": "' + b"x" * 10_000_000 + b'"}')
    assert long.status_code == 413 and time.perf_counter() - begin < 2
    assert long.json()["error"]["code"] == "request_too_large"

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    headers = {"Content-Type": "application/json"}
    assert served.client.post(CHAT, content=endless(), headers=headers).status_code == 413
    for depth, status in ((60, 200), (65, 400), (90_000, 400)):
        more = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "more": '
        body = more + b"[" * depth + b"]" * depth + b"}"
        assert served.client.post(CHAT, content=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"messages": NaN}', b'{"temperature": Infinity}',
        b'{"a": ' + b"1" * 5000 + b"}", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"{}" * 2,
    ],
)  # fmt: skip
def test_what_is_no_body(served: Served, body: bytes) -> None:
    response = served.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
    assert served.client.post(CHAT, content=body, headers={"Content-Type": "text/plain"}).status_code == 415


def test_methods_and_paths_that_are_not_there(served: Served) -> None:
    assert served.client.get(CHAT).status_code == 405
    assert served.client.get(CHAT).json()["error"]["code"] == "method_not_allowed"
    assert served.client.get("/v1/nothing").json()["error"]["code"] == "not_found"


@pytest.mark.slow
def test_slow_headers_slow_bodies_and_idle_connections_end(served: Served) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with ThreadPoolExecutor(4) as pool:
        begin = time.perf_counter()
        answers = list(pool.map(lambda data: raw(served, data), [b"", b"GET /hea", head + b"\r\n{", whole]))
        assert time.perf_counter() - begin < 8
    assert answers[0] == answers[1] == b""
    assert answers[2].startswith(b"HTTP/1.1 408 ") and answers[3].startswith(b"HTTP/1.1 200 ")


def streamed(served: Served, **more: Any) -> httpx2.Response:
    request = served.client.build_request("POST", "/v1/completions", json={**LONG, "stream": True, **more})
    return served.client.send(request, stream=True)


def test_pages_are_back_when_clients_go(served: Served) -> None:
    for more in ({}, {"n": 3}, {"prompt": [5] * 150}):
        for _ in range(3):
            response = streamed(served, **more)
            next(response.iter_bytes())
            response.close()
    with served.connect() as connection:  # a whole answer, not streamed, that nobody waits for
        body = json.dumps(LONG).encode()
        connection.sendall(posted(body))
        served.wait(lambda: served.used_blocks() > 0)
    served.wait(lambda: served.used_blocks() == 0 and served.server.admission.num_running == 0, 3)

    def num_gone() -> float:
        text = served.client.get("/metrics").text
        (number,) = re.findall(r"^puna_client_disconnects_total (\S+)$", text, re.MULTILINE)
        return float(number)

    served.wait(lambda: num_gone() == 10)
    assert served.post("/v1/completions", **{**LONG, "max_tokens": 2}).status_code == 200


@pytest.mark.slow
def test_whoever_does_not_read_is_cut_off_and_holds_nobody_up(served: Served) -> None:
    body = json.dumps({**LONG, "n": 4, "stream": True, "logprobs": 20, "prompt": [[5, 6]] * 8}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect(("127.0.0.1", served.port))
    with connection:
        connection.sendall(posted(body))
        served.wait(lambda: served.used_blocks() > 0)
        assert served.post("/v1/completions", **{**LONG, "max_tokens": 2}).status_code == 200
        served.wait(lambda: served.used_blocks() == 0 and served.server.admission.num_running == 0, 60)
        time.sleep(1.5)
        data = read_all(connection)
    assert b"[DONE]" not in data


def test_overload_is_refused_quickly(path: str) -> None:
    with serving(path, engine={"max_num_seqs": 2}, limits={"max_queue_size": 3}, max_in_engine=2) as served:

        def ask(number: int) -> tuple[int, float, str | None]:
            begin = time.perf_counter()
            response = served.post("/v1/completions", **{**LONG, "seed": number})
            return response.status_code, time.perf_counter() - begin, response.headers.get("retry-after")

        with ThreadPoolExecutor(24) as pool:
            answers = pool.map(ask, range(24))
            healthy = [served.client.get("/health").status_code for _ in range(10)]
            found = list(answers)
        assert healthy == [200] * 10
        assert {status for status, _, _ in found} == {200, 429}
        assert sum(status == 200 for status, _, _ in found) >= 5
        for status, _seconds, retry in found:
            assert status == 200 or (retry is not None and int(retry) >= 1)
        served.wait(lambda: served.used_blocks() == 0)


def test_a_key_that_floods_the_line_takes_no_place_from_another(path: str) -> None:
    keys = {"alice": "alice-secret", "bob": "bob-secret-"}
    limits = {"max_queue_size": 40}
    with serving(path, engine={"max_num_seqs": 1}, limits=limits, max_in_engine=1, api_keys=keys) as served:
        ends: list[str] = []

        def ask(key: str) -> None:
            body, headers = {**LONG, "max_tokens": 60}, {"x-api-key": key}
            response = served.client.post("/v1/completions", json=body, headers=headers)
            assert response.status_code == 200
            ends.append(key)

        flood = [threading.Thread(target=ask, args=("alice-secret",)) for _ in range(12)]
        for thread in flood:
            thread.start()
        served.wait(lambda: served.server.admission.num_waiting >= 8)
        ask("bob-secret-")
        assert ends.index("bob-secret-") < 8
        for thread in flood:
            thread.join(60)


def test_errors_tell_nothing_about_the_machine(served: Served, path: str) -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": "x", "model": "/etc/passwd"},
        {"prompt": [10**9]},
        {"prompt": {"a": 1}},
        {"prompt": "x", "n": "y"},
    ]
    for body in bodies:
        text = served.post("/v1/completions", **body).text
        assert path not in text and "Traceback" not in text and " at 0x" not in text and "puna/" not in text
    assert path not in served.client.get("/v1/models").text


def test_no_address_in_a_request_is_opened(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        bodies = [
            {"messages": [{"role": "user", "content": parts}]},
            {"messages": HELLO, "max_tokens": 1, "image": url, "lora_path": url},
        ]
        for body in bodies:
            served.post(CHAT, **body)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.slow
def test_health_is_quick_while_a_long_prompt_is_tokenized(path: str) -> None:
    with serving(path) as served, ThreadPoolExecutor(1) as pool:
        text = "".join(chr(97 + i * 7 % 26) + " " * (i % 5 == 0) for i in range(1_000_000))
        pending = pool.submit(served.post, "/v1/completions", prompt=text)
        waits = []
        while not pending.done():
            begin = time.perf_counter()
            assert served.client.get("/health").status_code == 200
            waits.append(time.perf_counter() - begin)
            time.sleep(0.01)
        assert pending.result().json()["error"]["code"] == "context_length_exceeded"
        assert sorted(waits)[len(waits) // 2] < 0.1
