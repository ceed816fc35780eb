"""Requests as spans of OpenTelemetry, sent by OTLP over HTTP. Its packages come with `puna[otel]`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from puna.entrypoints.server.timeline import Timeline
from puna.errors import InvalidRequestError

__all__ = ["Tracing"]

_NS: Final = 1_000_000_000
# Span -> the marks of a timeline that it lies between.
_PARTS: Final = {
    "queue": ("prepared", "admitted"),
    "prefill": ("admitted", "first_token"),
    "decode": ("first_token", "last_token"),
}


class Tracing:
    """Sends a span for each request that reached the model, with one each for its wait, its prompt and its text.

    Spans have numbers and names, never text. Sending happens in a thread of its own; what cannot be sent is dropped.

    Args:
        endpoint: Where spans go, such as `http://127.0.0.1:4318/v1/traces`.
        model: What the model is called.

    Raises:
        InvalidRequestError: the endpoint is no address of HTTP, or the packages are not installed.
    """

    def __init__(self, endpoint: str, model: str) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise InvalidRequestError(
                f"must begin with http:// or https://, got {endpoint!r}", param="otlp_traces_endpoint"
            )
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise InvalidRequestError(
                f"needs OpenTelemetry ({error.name}): pip install 'puna[otel]'", param="otlp_traces_endpoint"
            ) from error
        self._model = model
        self._provider = TracerProvider(resource=Resource.create({"service.name": "puna"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("puna.server")
        self._propagator = TraceContextTextMapPropagator()

    def note(self, timeline: Timeline, headers: Mapping[str, str]) -> None:
        """Takes a request that ended. A `traceparent` among the headers is what its span belongs to."""
        from opentelemetry import trace

        if "prepared" not in timeline.marks:
            return
        begin = timeline.marks["received"]

        def at(mark: float) -> int:
            return int((timeline.created + mark - begin) * _NS)

        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes=self._attributes(timeline),
            start_time=at(begin),
        )
        if timeline.status is not None and timeline.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(span)
        for name, (first, last) in _PARTS.items():
            if first in timeline.marks and last in timeline.marks:
                part = self._tracer.start_span(name, context=inside, start_time=at(timeline.marks[first]))
                part.end(at(timeline.marks[last]))
        span.end(at(time.monotonic()))

    def _attributes(self, timeline: Timeline) -> dict[str, Any]:
        found: dict[str, Any] = {
            "http.route": timeline.route,
            "http.response.status_code": timeline.status or 499,
            "gen_ai.provider.name": "puna",
            "gen_ai.request.model": self._model,
            "gen_ai.response.id": timeline.request_id,
            "gen_ai.usage.input_tokens": timeline.num_prompt_tokens,
            "gen_ai.usage.output_tokens": timeline.num_generated_tokens,
            "gen_ai.usage.cache_read.input_tokens": timeline.num_cached_tokens,
            "gen_ai.response.finish_reasons": tuple(timeline.finish_reasons),
        }
        first = timeline.marks.get("first_token")
        if first is not None:
            found["gen_ai.server.time_to_first_token"] = first - timeline.marks["received"]
        return found

    def close(self) -> None:
        """Sends what is left. May take seconds."""
        self._provider.shutdown()
