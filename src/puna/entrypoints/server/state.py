"""`Server`: what all routes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from starlette.requests import Request

from puna.entrypoints.async_llm import AsyncLLM
from puna.entrypoints.server.admission import Admission
from puna.entrypoints.server.batches import Batches
from puna.entrypoints.server.file_store import FileStore
from puna.entrypoints.server.host import ModelHost
from puna.entrypoints.server.keys import ApiKeys, Tenant
from puna.entrypoints.server.metrics import Metrics
from puna.entrypoints.server.settings import Limits, ServerSettings
from puna.entrypoints.server.stored import ResponseStore
from puna.entrypoints.server.timeline import Timeline, Timelines
from puna.entrypoints.server.tracing import Tracing
from puna.errors import ModelNotFoundError

__all__ = ["Server", "server_of", "tenant_of", "timeline_of"]


@dataclass
class Server:
    """What all routes share.

    Attributes:
        settings: How it behaves.
        host: The model.
        keys: Who may use it.
        admission: The line in front of the engine.
        metrics: What is counted.
        timelines: The latest requests.
        responses: Responses that are kept.
        files: Files that are kept; None: none are.
        batches: Batches that are kept; None: none are.
        tracing: What sends spans of requests; None: nothing does.
    """

    settings: ServerSettings
    host: ModelHost
    keys: ApiKeys
    admission: Admission
    metrics: Metrics
    timelines: Timelines
    responses: ResponseStore
    files: FileStore | None = None
    batches: Batches | None = None
    tracing: Tracing | None = None

    @classmethod
    def of(cls, settings: ServerSettings, host: ModelHost) -> Server:
        """A server around a model."""
        keys, limits = ApiKeys(settings.api_keys), settings.limits
        admission = Admission(keys.names, settings.max_in_engine, limits.max_queue_size, limits.queue_timeout_s)
        metrics = Metrics(host, admission, settings.model_name, settings.has_vllm_metrics)
        timelines, responses = Timelines(settings.num_timelines), ResponseStore(settings.max_stored_bytes)
        server = cls(settings, host, keys, admission, metrics, timelines, responses)
        if settings.otlp_traces_endpoint is not None:
            server.tracing = Tracing(settings.otlp_traces_endpoint, settings.model_name)
        if settings.storage_dir is not None:
            server.files = FileStore(settings.storage_dir / "files")
            server.batches = Batches(server, server.files, settings.storage_dir / "batches")
        return server

    @property
    def limits(self) -> Limits:
        """What requests may take."""
        return self.settings.limits

    @property
    def llm(self) -> AsyncLLM:
        """The model.

        Raises:
            Refusal: it is not ready; 503.
        """
        return self.host.llm

    @property
    def adapter_names(self) -> list[str]:
        """Names of the loaded adapters: requests may name them as their model.

        Raises:
            Refusal: the model is not ready; 503.
        """
        return [info.name for info in self.llm.list_lora_adapters()]

    def adapter_of(self, model: object) -> str | None:
        """The adapter that a request's `model` names; None: it is the model itself.

        Raises:
            ModelNotFoundError: there is neither a model nor an adapter of this name.
            Refusal: the model is not ready; 503.
        """
        if model is None or model in self.settings.model_names:
            return None
        if model in (names := self.adapter_names):
            return str(model)
        raise ModelNotFoundError(str(model), "it is not loaded", choices=[*self.settings.model_names, *names])


def server_of(request: Request) -> Server:
    """The server that a request came to."""
    return cast(Server, request.app.state.server)


def _state(request: Request) -> dict[str, Any]:
    return cast(dict[str, Any], request.scope["puna"])


def tenant_of(request: Request) -> Tenant:
    """Whose request it is."""
    return cast(Tenant, _state(request)["tenant"])


def timeline_of(request: Request) -> Timeline:
    """Where it is noted what happens to a request."""
    return cast(Timeline, _state(request)["timeline"])
