"""`Model`: a graph that was loaded and can be run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from puna.driver import Buffer
from puna.dtype import DType
from puna.engine.step_check import check_logit_rows
from puna.engine.trace import MachineLimits, Trace
from puna.errors import DTypeError, WeightsError
from puna.graph import LOGIT_ROWS, Dim, Graph, TensorType
from puna.graph.type import bind, resolve

if TYPE_CHECKING:
    from puna.engine.adapters import AdapterSlots
    from puna.engine.native_program import LoadReport

__all__ = ["Executor", "Model", "PreparedStep", "TensorMetadata"]

Array: TypeAlias = np.ndarray[Any, Any]


class Executor(Protocol):
    """Computes the outputs of a graph."""

    def run(self, inputs: Mapping[str, Array], outputs: list[Array]) -> None:
        """Fill the outputs, which have the right shapes and types."""

    def derive(self, graph: Graph, adapters: AdapterSlots | None = None) -> Executor:
        """The executor of another graph over the same weights, or some of them."""


class TracingExecutor(Executor, Protocol):
    """An executor that notes what its instructions cost."""

    def set_tracing(self, is_on: bool) -> None:
        """Note times from the next run on, or no longer."""

    def trace_records(self) -> Sequence[Mapping[str, Any]]:
        """What was noted during the last run."""


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """Name, element type and shape of an input or output.

    Attributes:
        name: Its name in the graph.
        dtype: Type of the elements.
        shape: Sizes; a text such as `batch_size + 1` stands for a size that is known at run time.
        is_optional: An input that may be left out.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A step that may be run.

    Attributes:
        arrays: Its inputs by name.
        outputs: Shape and element type of each of its outputs.
    """

    arrays: Mapping[str, Array]
    outputs: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]


class Model:
    """A loaded graph. Made by `InferenceSession.load`.

    One step is `model.execute(*inputs)` or `model(*inputs)`: buffers, NumPy arrays, or anything that speaks DLPack,
    in the order of `input_metadata`. Optional inputs may be left out at the end. What a graph declares as a KV cache
     is written in place.
    """

    def __init__(
        self,
        graph: Graph,
        executor: Executor,
        *,
        report: LoadReport,
        tracer: TracingExecutor | None,
        limits: Callable[[], MachineLimits],
    ) -> None:
        self.name = graph.name
        self.report = report
        self._graph = graph
        self._executor = executor
        self._tracer = tracer
        self._limits = limits
        self._is_tracing = False
        self._has_logit_rows = any(_has_logit_rows(value.type) for value in graph.outputs)
        self._input_types = [(value.name, value.dtype.to_numpy()) for value in graph.inputs]
        self._output_types = [(value.shape, value.dtype.to_numpy()) for value in graph.outputs]
        self._last_step: tuple[list[tuple[int, ...]], dict[str, int]] = ([], {})

    @property
    def input_metadata(self) -> list[TensorMetadata]:
        """What `execute` takes, in order."""
        required = len(self._graph.inputs) - self._graph.num_optional_inputs
        return [_metadata(v.name, v.type, i >= required) for i, v in enumerate(self._graph.inputs)]

    @property
    def output_metadata(self) -> list[TensorMetadata]:
        """What `execute` returns, in order."""
        named = zip(self._graph.output_names, self._graph.outputs, strict=True)
        return [_metadata(name, value.type, False) for name, value in named]

    def execute(self, *inputs: object) -> list[Buffer]:
        """Run one step.

        Returns:
            New buffers, in the order of `output_metadata`.

        Raises:
            TypeError: not as many inputs as the graph takes, or an object that is no array.
            DTypeError: an input has another element type than the graph declares.
            ShapeError: an input has another shape, or the sizes of two inputs contradict each other.
            ValueError: an input is not contiguous, the cache is read-only, or a value is out of range (a token id, an
                offset, a block id, a length); the message names the input.
        """
        step = self.prepare(*inputs)
        outputs = [np.empty(shape, dtype) for shape, dtype in step.outputs]
        self.run(step, outputs)
        return [Buffer.from_numpy(output) for output in outputs]

    __call__ = execute

    def prepare(self, *inputs: object) -> PreparedStep:
        """Check the inputs of a step as `execute` does, and say which outputs it will have."""
        arrays = self._arrays(inputs)
        sizes = self._sizes(arrays)
        return PreparedStep(arrays, [(resolve(shape, sizes), dtype) for shape, dtype in self._output_types])

    def run(self, step: PreparedStep, outputs: list[Array]) -> None:
        """Run a step into arrays of the shapes and types that it states."""
        self._executor.run(step.arrays, outputs)

    def derive(self, graph: Graph, adapters: AdapterSlots | None = None) -> Model:
        """Another graph over this model's weights, or some of them: nothing is packed anew. It cannot be traced.

        Args:
            graph: What to compute; its weights are weights of this model's graph, as they are declared there.
            adapters: The adapters that its steps can name, where it takes any.

        Raises:
            WeightsError: it declares a weight that this model does not have.
        """
        missing = sorted(graph.weights.keys() - self._graph.weights.keys())
        if missing:
            raise WeightsError(f"the loaded model lacks {', '.join(missing)}", tensor=missing[0])
        executor = self._executor.derive(graph, adapters)
        return Model(graph, executor, report=self.report, tracer=None, limits=self._limits)

    @property
    def is_tracing(self) -> bool:
        """Whether steps note what their instructions cost; setting it takes effect with the next step.

        Raises:
            ValueError: on setting it with the reference executor, which has no instructions.
        """
        return self._is_tracing

    @is_tracing.setter
    def is_tracing(self, is_on: bool) -> None:
        if self._tracer is None:
            raise ValueError("this model cannot be traced: the reference executor has no instructions")
        self._tracer.set_tracing(is_on)
        self._is_tracing = is_on

    def trace(self) -> Trace:
        """What the last step spent its time on. Measures the machine's limits when it is first called.

        Raises:
            ValueError: `is_tracing` was not set before that step.
        """
        if self._tracer is None or not self._is_tracing:
            raise ValueError("no step was traced: set is_tracing before the step")
        return Trace.from_program(self._tracer.trace_records(), self._limits())

    def _arrays(self, inputs: Sequence[object]) -> dict[str, Array]:
        declared = self._input_types
        required = len(declared) - self._graph.num_optional_inputs
        if not required <= len(inputs) <= len(declared):
            names = ", ".join(name for name, _ in declared)
            count = str(required) if required == len(declared) else f"{required} to {len(declared)}"
            raise TypeError(f"model {self.name!r} takes {count} inputs ({names}), got {len(inputs)}")
        arrays: dict[str, Array] = {}
        for (name, dtype), given in zip(declared, inputs, strict=False):
            array = as_array(name, given)
            if array.dtype != dtype:
                raise DTypeError(f"input {name!r}", array.dtype, DType.from_numpy(dtype))
            flags = array.flags
            if not flags.c_contiguous:
                raise ValueError(f"input {name!r} is not contiguous; pass a contiguous copy")
            if name in ("kv_blocks", "kv_scales") and not flags.writeable:
                raise ValueError(f"input {name!r} is read-only; the step writes to it")
            arrays[name] = array
        return arrays

    def _sizes(self, arrays: Mapping[str, Array]) -> Mapping[str, int]:
        """Sizes by the names that the graph gives them. Steps that generate have the same shapes again and again."""
        shapes = [array.shape for array in arrays.values()]
        known, sizes = self._last_step
        if shapes != known:
            sizes = {}
            for value, shape in zip(self._graph.inputs, shapes, strict=False):
                bind(value.name, value.type, shape, sizes)
            self._last_step = (shapes, sizes)
        if not self._has_logit_rows:
            return sizes
        return {**sizes, LOGIT_ROWS.name: check_logit_rows(arrays["input_row_offsets"], arrays["return_n_logits"])}


def as_array(name: str, given: object) -> Array:
    """The array of an input.

    Raises:
        TypeError: it is none.
    """
    if isinstance(given, Buffer):
        return given.to_numpy()
    if isinstance(given, np.ndarray):
        return given
    if hasattr(given, "__dlpack__"):
        return Buffer.from_dlpack(given).to_numpy()
    raise TypeError(f"input {name!r} is a {type(given).__name__}; expected a buffer or an array")


def _metadata(name: str, type_: TensorType, is_optional: bool) -> TensorMetadata:
    shape = tuple(str(size) if isinstance(size, Dim) else size for size in type_.shape)
    return TensorMetadata(name, type_.dtype, shape, is_optional)


def _has_logit_rows(type_: TensorType) -> bool:
    return any(isinstance(size, Dim) and size.name == LOGIT_ROWS.name for size in type_.shape)
