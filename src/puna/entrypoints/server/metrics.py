"""Metrics for Prometheus: what the engine counts, read when somebody asks, and what requests took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from puna import __version__
from puna.entrypoints.server.admission import Admission
from puna.entrypoints.server.host import ModelHost
from puna.entrypoints.server.timeline import Timeline

__all__ = ["Metrics"]

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)

# name, what it is, name in vLLM
_HISTOGRAMS: Final = {
    "time_to_first_token": ("seconds", "From arrival to the first token.", "time_to_first_token_seconds"),
    "inter_token": ("seconds", "Between tokens of an answer.", "inter_token_latency_seconds"),
    "time_per_output_token": (
        "seconds",
        "Mean time between the tokens of an answer.",
        "request_time_per_output_token_seconds",
    ),
    "request": ("seconds", "From arrival to the last token.", "e2e_request_latency_seconds"),
    "queue": ("seconds", "Waiting for a place in the engine.", "request_queue_time_seconds"),
    "preparation": ("seconds", "Rendering and tokenizing.", None),
    "prompt": ("tokens", "Tokens of prompts.", "request_prompt_tokens"),
    "generated": ("tokens", "Tokens of answers.", "request_generation_tokens"),
}


class Metrics:
    """The metrics of one server.

    Args:
        host: The model.
        admission: The line in front of it.
        model_name: What it is called.
        has_vllm_names: Values have vLLM's names too.
    """

    def __init__(self, host: ModelHost, admission: Admission, model_name: str, has_vllm_names: bool) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_EngineCollector(host, admission, model_name, has_vllm_names))
        self._observers: dict[str, list[Callable[[float], None]]] = {}
        for name, (unit, text, alias) in _HISTOGRAMS.items():
            buckets = _SECONDS if unit == "seconds" else _TOKENS
            made: list[Callable[[float], None]] = [
                Histogram(f"puna_{name}_{unit}", text, buckets=buckets, registry=self._registry).observe
            ]
            if has_vllm_names and alias is not None:
                labelled = Histogram(
                    f"vllm:{alias}", text, ["model_name"], buckets=buckets, registry=self._registry
                )
                made.append(labelled.labels(model_name).observe)
            self._observers[name] = made
        self._http = Counter(
            "puna_http_requests", "Responses.", ["route", "method", "status"], registry=self._registry
        )
        self._http_seconds = Histogram(
            "puna_http_request_seconds",
            "From a request's headers to the end of its response.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._disconnects = Counter(
            "puna_client_disconnects", "Requests whose client went away.", registry=self._registry
        )
        self._unknown = Counter(
            "puna_unknown_fields", "Fields of requests that are not known.", registry=self._registry
        )

    def observe(self, name: str, value: float) -> None:
        """Adds a value to a histogram."""
        for add in self._observers[name]:
            add(value)

    def request_ended(self, timeline: Timeline) -> None:
        """Takes in a request that has ended."""
        marks = timeline.marks
        for name, begin, end in (
            ("preparation", "received", "prepared"),
            ("queue", "prepared", "admitted"),
            ("time_to_first_token", "received", "first_token"),
            ("request", "received", "finished"),
        ):
            if begin in marks and end in marks:
                self.observe(name, marks[end] - marks[begin])
        if timeline.num_generated_tokens > 1 and "first_token" in marks and "last_token" in marks:
            span = marks["last_token"] - marks["first_token"]
            self.observe("time_per_output_token", span / (timeline.num_generated_tokens - 1))
        if "admitted" in marks:
            self.observe("prompt", timeline.num_prompt_tokens)
            self.observe("generated", timeline.num_generated_tokens)

    def responded(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts a response."""
        self._http.labels(route, method, str(status)).inc()
        self._http_seconds.labels(route).observe(seconds)
        if status == 499:
            self._disconnects.inc()

    def unknown_fields(self, count: int) -> None:
        """Counts fields that are not known."""
        self._unknown.inc(count)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the engine's statistics whenever metrics are asked for."""

    def __init__(self, host: ModelHost, admission: Admission, model_name: str, has_vllm_names: bool) -> None:
        self._host = host
        self._admission = admission
        self._model_name = model_name
        self._has_vllm_names = has_vllm_names

    def collect(self) -> Iterator[Metric]:
        """The families."""
        info = InfoMetricFamily("puna_server", "What runs.")
        info.add_metric([], {"version": __version__, "model": self._model_name})
        yield info
        yield GaugeMetricFamily("puna_ready", "1 while requests are served.", self._host.state == "ready")
        llm = self._host.loaded
        if llm is None:
            return
        statistics = llm.statistics()
        counts, blocks, times = statistics.counts, statistics.counts.blocks, statistics.times
        num_waiting = statistics.num_waiting + self._admission.num_waiting
        used = blocks.used / max(1, blocks.total)
        gauges = {
            "puna_load_seconds": ("How long loading took.", llm.load_seconds),
            "puna_requests_running": ("Sequences that hold pages of the KV cache.", counts.num_running),
            "puna_requests_waiting": ("Requests that wait to begin.", num_waiting),
            "puna_kv_cache_used_ratio": ("Part of the KV cache's pages that sequences hold.", used),
            "puna_generated_tokens_per_second": ("Over the last ten seconds.", statistics.tokens_per_s),
            "puna_prompt_tokens_per_second": ("Over the last ten seconds.", statistics.prompt_tokens_per_s),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value)
        pages = GaugeMetricFamily("puna_kv_blocks", "Pages of the KV cache.", labels=["state"])
        for state, number in (("used", blocks.used), ("cached", blocks.cached), ("empty", blocks.free - blocks.cached)):
            pages.add_metric([state], number)
        yield pages
        counters = {
            "puna_prompt_tokens": ("Tokens of prompts that began.", counts.num_prompt_tokens),
            "puna_cached_prompt_tokens": ("Of these found in the prefix cache.", counts.num_cached_tokens),
            "puna_generated_tokens": ("Generated tokens.", counts.num_generated_tokens),
            "puna_preemptions": ("Sequences that gave their pages back for another.", counts.num_preemptions),
            "puna_step_retries": ("Requests tried again after a failed step.", counts.num_retries),
            "puna_steps": ("Steps of the engine.", times.num_steps),
            "puna_step_seconds": ("Time in steps.", times.step_s),
            "puna_model_seconds": ("Time of these in the model.", times.model_s),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value)
        ends = CounterMetricFamily("puna_choices_finished", "Answers that ended.", labels=["reason"])
        for reason, number in statistics.finished.items():
            ends.add_metric([reason], number)
        yield ends
        if self._has_vllm_names:
            yield from self._vllm(num_waiting, used, statistics.finished)

    def _vllm(self, num_waiting: int, used: float, finished: object) -> Iterator[Metric]:
        llm = self._host.loaded
        assert llm is not None and isinstance(finished, dict)
        counts = llm.statistics().counts
        label, values = ["model_name"], [self._model_name]
        gauges: dict[str, float] = {
            "num_requests_running": counts.num_running,
            "num_requests_waiting": num_waiting,
            "kv_cache_usage_perc": used,
        }
        counters = {
            "prefix_cache_queries": counts.num_prompt_tokens,
            "prefix_cache_hits": counts.num_cached_tokens,
            "num_preemptions": counts.num_preemptions,
            "prompt_tokens": counts.num_prompt_tokens,
            "generation_tokens": counts.num_generated_tokens,
        }
        for name, value in gauges.items():
            family: GaugeMetricFamily | CounterMetricFamily = GaugeMetricFamily(f"vllm:{name}", name, labels=label)
            family.add_metric(values, value)
            yield family
        for name, value in counters.items():
            family = CounterMetricFamily(f"vllm:{name}", name, labels=label)
            family.add_metric(values, value)
            yield family
        ends = CounterMetricFamily("vllm:request_success", "Answers.", labels=[*label, "finished_reason"])
        for reason in ("stop", "length"):
            ends.add_metric([*values, reason], finished.get(reason, 0))
        yield ends
