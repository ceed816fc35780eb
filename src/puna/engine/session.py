"""`InferenceSession`: turns graphs and weights into models."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, get_args

from puna.driver import CPU, Device
from puna.engine.model import Model
from puna.engine.native_program import LoadReport, Native, NativeExecutor
from puna.engine.packed_weights import PackedWeights
from puna.engine.reference import Observer, ReferenceExecutor
from puna.engine.registry import WeightSource, bind_weights
from puna.engine.replicated_model import ReplicatedModel
from puna.engine.trace import MachineLimits
from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.graph import Graph

if TYPE_CHECKING:
    from puna.engine.packed_cache import PackedCache
    from puna.graph.weights.weight_data import WeightData

__all__ = ["ExecutorName", "InferenceSession", "Precision"]

ExecutorName = Literal["native", "reference"]
Precision = Literal["auto", "float32"]

_PROBE_S: Final = 0.5
_MAX_THREADS: Final = 1024  # of the native pool
_log = logging.getLogger(__name__)


class InferenceSession:
    """Loads graphs for this machine. Several models may be loaded by one session; sessions share one pool of threads.

    Args:
        devices: Where models run: CPUs, which are groups of cores; one is the default. Several are for replicas.
        num_threads: Threads that work on a step, over all devices; None: as many as this process may use (affinity and
            quota).
        precision: `"auto"` rounds activations to 8 bits where a weight's format has an integer kernel, and to bfloat16
            where weights are bfloat16; `"float32"` makes every product take float32 activations.
        variant: Which kernels (`"scalar"`, `"avx2"`, …); None: the best that this machine runs, or `PUNA_VARIANT`.
        weight_cache: Where packed weights are kept for later starts; None: nowhere.

    Raises:
        UnsupportedModelError: no device, one that is no CPU, or one twice.
        ValueError: a number of threads outside 1 to 1024, or an unknown precision.
    """

    def __init__(
        self,
        devices: Sequence[Device] | None = None,
        *,
        num_threads: int | None = None,
        precision: Precision = "auto",
        variant: str | None = None,
        weight_cache: PackedCache | None = None,
    ) -> None:
        self.devices = list(devices) if devices is not None else [CPU()]
        if not self.devices or len(set(self.devices)) < len(self.devices) or not all(d.is_host for d in self.devices):
            raise UnsupportedModelError("devices", [str(d) for d in self.devices], supported="CPUs, each once")
        if num_threads is not None and not 1 <= num_threads <= _MAX_THREADS:
            raise InvalidRequestError(f"must be from 1 to {_MAX_THREADS}, got {num_threads}", param="num_threads")
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
        self.precision: Precision = precision
        self._num_threads = num_threads
        self._variant = variant
        self._weight_cache = weight_cache
        self._limits: MachineLimits | None = None

    @property
    def num_threads(self) -> int:
        """Threads that work on a step."""
        if self._num_threads is None:
            from puna import _native

            self._num_threads = int(_native.cpu_info()["default_threads"])
        return self._num_threads

    @property
    def variant(self) -> str:
        """The kernels that models of this session run with.

        Raises:
            RuntimeError: `PUNA_VARIANT` names kernels that this machine cannot run.
        """
        if self._variant is None:
            from puna import _native

            self._variant = _native.default_variant()
        return self._variant

    @property
    def limits(self) -> MachineLimits:
        """What this machine reaches at best; measured once, in about half a second."""
        if self._limits is None:
            from puna import _native

            measured = _native.measure_limits(_PROBE_S, self.num_threads)
            names = ("read_gbps", "f32_gflops", "int8_gops")
            self._limits = MachineLimits(*(float(measured[name]) for name in names))
        return self._limits

    def load(
        self,
        graph: Graph,
        weights_registry: Mapping[str, WeightSource] | None = None,
        *,
        executor: ExecutorName = "native",
        observer: Observer | None = None,
    ) -> Model | ReplicatedModel:
        """Bind weights to a graph and make it ready to run.

        On several devices the graph must be a decoder; each device then has a copy of it, over the same weights.

        Weights are packed for the kernels, once per name, and not kept in their stored form. `model.report` says how
        many bytes that took.

        Args:
            graph: What to compute.
            weights_registry: Its weights by name; arrays stand for plain float weights. Names that the graph declares
                as unused are tolerated, no others.
            executor: `"native"`, or `"reference"`: the NumPy twins, the oracle of tests. It keeps the stored weights.
            observer: Of the reference executor: told every product's weight, by name, and what it is multiplied by.

        Raises:
            WeightsError: a weight is missing, is left over, has another shape, type or encoding than the graph
                declares, or its file was cut while it was read.
            UnsupportedModelError: the graph holds something that the native program has no instruction for.
            ValueError: an unknown executor.
        """
        if executor not in get_args(ExecutorName):
            raise ValueError(f"executor must be one of {', '.join(get_args(ExecutorName))}, got {executor!r}")
        begin = time.perf_counter()
        weights = bind_weights(graph, weights_registry or {})
        is_native = executor == "native"
        models = self._load_native(graph, weights) if is_native else self._load_reference(graph, weights, observer)
        model = models[0] if len(models) == 1 else ReplicatedModel(models)
        report = model.report
        _log.info(
            "loaded %s (%s): %d weights, %.1f MB stored, %.1f MB packed (%.1f MB mapped), %d instructions, %.2f s",
            graph.name,
            executor,
            report.num_weights,
            report.source_bytes / 1e6,
            report.packed_bytes / 1e6,
            report.mapped_bytes / 1e6,
            report.num_instructions,
            time.perf_counter() - begin,
        )
        return model

    def _load_native(self, graph: Graph, weights: Mapping[str, WeightData]) -> list[Model]:
        """The graph on each device, over the same packed weights."""
        from puna import _native

        native: Native = _native
        models: list[Model] = []
        packed: PackedWeights | None = None
        each, more = divmod(self.num_threads, len(self.devices))
        for group in range(len(self.devices)):
            executor = NativeExecutor(
                native,
                graph,
                weights,
                precision=self.precision,
                variant=self.variant,
                threads=max(each + (group < more), 1),
                cache=self._weight_cache,
                packed=packed,
                group=group,
            )
            packed = executor.packed
            models.append(
                Model(graph, executor, report=executor.report, tracer=executor, limits=lambda: self.limits)
            )
        return models

    def _load_reference(
        self, graph: Graph, weights: Mapping[str, WeightData], observer: Observer | None
    ) -> list[Model]:
        executor = ReferenceExecutor(graph, weights, is_exact=self.precision == "float32", observer=observer)
        report = LoadReport(
            num_weights=len(weights),
            source_bytes=sum(weight.nbytes for weight in weights.values()),
            packed_bytes=0,
            token_bytes=0,
            request_bytes=0,
            logit_row_bytes=0,
            num_instructions=len(graph.nodes),
            pack_s=0.0,
            lower_s=0.0,
        )
        return [
            Model(graph, executor, report=report, tracer=None, limits=lambda: self.limits) for _device in self.devices
        ]
