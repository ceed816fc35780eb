"""Spans of requests at a collector: whose they are, what they say, and that no text is in them."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from puna.entrypoints.cli import run
from support.serving import serving
from support.tiny_model import write_tiny_model

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """What was sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def spans(self) -> list[Any]:
        """All of them."""
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.server.shutdown()
    found.server.server_close()
    found.thread.join()


def values_of(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def test_a_request_is_a_span_with_parts(collector: Collector, tmp_path: Any) -> None:
    path = str(write_tiny_model(tmp_path / "tiny"))
    with serving(path, otlp_traces_endpoint=collector.url) as served:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
        body = {"prompt": "a secret", "max_tokens": 5, "ignore_eos": True}
        assert served.client.post("/v1/completions", json=body, headers=headers).status_code == 200
        assert served.client.get("/v1/models").status_code == 200
        assert served.post("/v1/completions", **body, stream=True).status_code == 200
    spans = {span.span_id: span for span in collector.spans()}
    roots = [span for span in spans.values() if span.name == "llm_request"]
    assert len(roots) == 2  # none for the list of models
    (own,) = [span for span in roots if span.trace_id.hex() == TRACE]
    assert own.parent_span_id.hex() == PARENT
    values = values_of(own)
    assert (values["gen_ai.response.id"], values["http.response.status_code"]) == ("mine", 200)
    assert values["gen_ai.usage.output_tokens"] == 5 and values["gen_ai.usage.input_tokens"] > 0
    assert (values["gen_ai.request.model"], values["http.route"]) == ("tiny", "/v1/completions")
    for root in roots:
        parts = [span for span in spans.values() if span.parent_span_id == root.span_id]
        assert [part.name for part in sorted(parts, key=lambda part: part.start_time_unix_nano)] == [
            "queue", "prefill", "decode"
        ]  # fmt: skip
        for part in parts:
            assert root.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano
            assert part.end_time_unix_nano <= root.end_time_unix_nano and part.trace_id == root.trace_id
    assert not any(b"a secret" in sent for sent in collector.bodies)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    path = str(write_tiny_model(tmp_path / "tiny"))
    assert run(["serve", path, "--port", "0", "--otlp-traces-endpoint", "collector:4317"]) == 2
    assert "must begin with http://" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert run(["serve", path, "--port", "0", "--otlp-traces-endpoint", "http://127.0.0.1:1/v1/traces"]) == 2
    assert "pip install 'puna[otel]'" in capfd.readouterr().err
