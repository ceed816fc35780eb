"""`ReplicatedModel`: copies of a decoder that run one step together, each with requests and a KV cache of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from puna.driver import Buffer
from puna.engine.model import Model, PreparedStep, TensorMetadata, as_array
from puna.errors import UnsupportedModelError

if TYPE_CHECKING:
    from puna.engine.adapters import AdapterSlots
    from puna.engine.native_program import LoadReport
    from puna.engine.trace import Trace
    from puna.graph import Graph

__all__ = ["ReplicatedModel"]

Array: TypeAlias = np.ndarray[Any, Any]

_SPLITS: Final = "data_parallel_splits"
_OFFSETS: Final = "logit_offsets"
_SHARED: Final = ["tokens", "input_row_offsets", "return_n_logits"]


class ReplicatedModel:
    """A decoder that was loaded several times over the same weights. Made by `InferenceSession.load`.

    One step is `model.execute(tokens, input_row_offsets, return_n_logits, splits, *cache)`: the requests of all
    replicas one after the other, where those of each replica end, and the leaves of each replica's cache in turn.
    Replicas run at the same time, on groups of cores of their own. A request gets the bits that one model gives it.

    Args:
        replicas: The copies.
    """

    def __init__(self, replicas: Sequence[Model]) -> None:
        names = [item.name for item in replicas[0].input_metadata]
        if names[: len(_SHARED)] != _SHARED:
            raise UnsupportedModelError("inputs of a replicated graph", names, supported=f"{', '.join(_SHARED)}, …")
        self.name = replicas[0].name
        self._replicas = list(replicas)
        self._output_names = [item.name for item in replicas[0].output_metadata]
        self._threads = ThreadPoolExecutor(len(replicas) - 1, thread_name_prefix="puna-replica")
        self._process = os.getpid()

    @property
    def report(self) -> LoadReport:
        """What loading made; weights are there once, activations once per replica."""
        return self._replicas[0].report

    @property
    def input_metadata(self) -> list[TensorMetadata]:
        """What `execute` takes, in order: sizes of a replica's cache end in its number."""
        shared, cache = _divide(self._replicas[0].input_metadata)
        splits = TensorMetadata(_SPLITS, shared[2].dtype, (len(self._replicas) + 1,))
        own = [
            TensorMetadata(f"{item.name}.{number}", item.dtype, tuple(_own_size(size, number) for size in item.shape))
            for number in range(len(self._replicas))
            for item in cache
            if not item.is_optional
        ]
        return [*shared, splits, *own]

    @property
    def output_metadata(self) -> list[TensorMetadata]:
        """What `execute` returns, in order."""
        return self._replicas[0].output_metadata

    @property
    def is_tracing(self) -> bool:
        """Whether steps note what their instructions cost; replicas do not."""
        return False

    @is_tracing.setter
    def is_tracing(self, is_on: bool) -> None:
        raise ValueError("steps of several replicas are not traced; load the model with data_parallel_degree 1")

    def trace(self) -> Trace:
        """What the last step spent its time on.

        Raises:
            ValueError: always; steps of several replicas are not traced.
        """
        raise ValueError("steps of several replicas are not traced; load the model with data_parallel_degree 1")

    def derive(self, graph: Graph, adapters: AdapterSlots | None = None) -> ReplicatedModel:
        """Another graph over the same weights, on the same groups of cores. As `Model.derive`, but without adapters.

        Raises:
            UnsupportedModelError: adapters were given.
        """
        if adapters is not None:
            raise UnsupportedModelError("adapters", "set", supported="none, with several replicas")
        return ReplicatedModel([model.derive(graph) for model in self._replicas])

    def execute(self, *inputs: object) -> list[Buffer]:
        """Run one step of all replicas.

        Returns:
            New buffers, in the order of `output_metadata`, over all requests; `logit_offsets` is one ascending vector.

        Raises:
            TypeError: another number of inputs.
            ValueError: the splits do not divide the requests, or as `Model.execute`.
            RuntimeError: the process was forked after the model had been loaded.
        """
        if os.getpid() != self._process:
            raise RuntimeError("this process was forked from one that had loaded replicas; load them after the fork")
        parts, splits = self._parts(inputs)
        steps = [model.prepare(*part) for model, part in zip(self._replicas, parts, strict=True)]
        outputs, own = self._allocate(steps)
        runs = [
            lambda model=model, step=step, arrays=arrays: model.run(step, arrays)
            for model, step, arrays, size in zip(self._replicas, steps, own, np.diff(splits), strict=True)
            if size
        ]
        self._run(runs)
        for index, name in enumerate(self._output_names):
            if name == _OFFSETS:
                _join_offsets(outputs[index], [arrays[index] for arrays in own], splits)
        return [Buffer.from_numpy(output) for output in outputs]

    __call__ = execute

    def _parts(self, inputs: Sequence[object]) -> tuple[list[list[object]], Array]:
        """The inputs of each replica, with offsets that begin at 0, and the splits."""
        count = len(self._replicas)
        num_head = len(_SHARED) + 1
        leaves, rest = divmod(len(inputs) - num_head, count)
        if len(inputs) < num_head or rest or not leaves:
            raise TypeError(f"model {self.name!r} takes {num_head} inputs and the caches of {count} replicas")
        tokens, offsets = as_array("tokens", inputs[0]), as_array("input_row_offsets", inputs[1])
        splits = as_array(_SPLITS, inputs[3]).astype(np.int64)
        rows = offsets.astype(np.int64)
        if splits.shape != (count + 1,) or splits[0] != 0 or splits[-1] != len(rows) - 1 or (np.diff(splits) < 0).any():
            raise ValueError(
                f"{_SPLITS}: must ascend from 0 to {len(rows) - 1} in {count} parts, got {splits.tolist()}"
            )
        if rows[0] != 0 or rows[-1] != len(tokens) or (np.diff(rows) < 0).any():
            raise ValueError(f"input_row_offsets: must ascend from 0 to {len(tokens)}, got {rows.tolist()}")
        parts: list[list[object]] = []
        for number in range(count):
            begin, end = int(splits[number]), int(splits[number + 1])
            own = tokens[rows[begin] : rows[end]]
            cache = inputs[num_head + number * leaves : num_head + (number + 1) * leaves]
            parts.append([own, offsets[begin : end + 1] - offsets[begin], inputs[2], *cache])
        return parts, splits

    def _allocate(self, steps: Sequence[PreparedStep]) -> tuple[list[Array], list[list[Array]]]:
        """The outputs, and for each replica its rows of them; offsets it writes elsewhere."""
        outputs: list[Array] = []
        own: list[list[Array]] = [[] for _ in steps]
        for index, name in enumerate(self._output_names):
            shapes = [step.outputs[index][0] for step in steps]
            dtype = steps[0].outputs[index][1]
            is_offsets = name == _OFFSETS
            num_rows = sum(shape[0] for shape in shapes) - (len(steps) - 1 if is_offsets else 0)
            outputs.append(np.empty((num_rows, *shapes[0][1:]), dtype))
            begin = 0
            for arrays, shape in zip(own, shapes, strict=True):
                arrays.append(np.zeros(shape, dtype) if is_offsets else outputs[-1][begin : begin + shape[0]])
                begin += shape[0]
        return outputs, own

    def _run(self, runs: Sequence[Callable[[], None]]) -> None:
        """All of them at the same time, the first one in this thread; all have ended when one fails."""
        others: list[Future[None]] = [self._threads.submit(run) for run in runs[1:]]
        try:
            if runs:
                runs[0]()
        finally:
            errors = [future.exception() for future in others]
        for error in errors:
            if error is not None:
                raise error


def _join_offsets(joined: Array, own: Sequence[Array], splits: Array) -> None:
    """Puts the replicas' offsets behind each other: `[sum(B) + 1]`, ascending."""
    joined[0] = 0
    for number, offsets in enumerate(own):
        begin, end = int(splits[number]), int(splits[number + 1])
        joined[begin + 1 : end + 1] = offsets[1:] + joined[begin]


def _divide(metadata: Sequence[TensorMetadata]) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
    return list(metadata[: len(_SHARED)]), list(metadata[len(_SHARED) :])


def _own_size(size: int | str, number: int) -> int | str:
    return size if isinstance(size, int) else f"{size}.{number}"
