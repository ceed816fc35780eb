"""`Weights`: a checkpoint's tensors as a tree of names, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol, Self

from puna.dtype import DType
from puna.errors import MissingWeightError, WeightsError
from puna.graph.device import DeviceRef
from puna.graph.quantization import QuantizationEncoding
from puna.graph.value import Weight
from puna.graph.weights.mapping import MappedWeights
from puna.graph.weights.weight_data import WeightData

__all__ = ["Weights", "WeightsAdapter"]


class Entry(Protocol):
    """A weight of a checkpoint that was not read yet: a tensor of a file, or what several make up together."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> MappedWeights: ...
    @property
    def begin(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def quantization_encoding(self) -> QuantizationEncoding | None: ...
    @property
    def stored_as(self) -> str: ...
    def load(self) -> WeightData: ...


class _Checkpoint:
    """What all accessors of one checkpoint share."""

    __slots__ = ("allocated", "entries", "files", "metadata")

    def __init__(self, entries: Mapping[str, Entry], files: Sequence[Any], metadata: Mapping[str, Any]) -> None:
        self.entries = entries
        self.files = tuple(files)
        self.metadata = metadata
        self.allocated: dict[str, WeightData] = {}


class Weights:
    """A place in a checkpoint's tree of tensor names.

    `weights.model.layers[0].mlp` is the place `model.layers.0.mlp`; nothing is looked up until `data`, `items`,
    `exists` or
    `allocate` is called on it. A part of a name that is also a method here is reached as `weights["items"]`.
    """

    __slots__ = ("_checkpoint", "_prefix")
    _checkpoint: _Checkpoint
    _prefix: str

    @classmethod
    def _at(cls, checkpoint: _Checkpoint, prefix: str) -> Self:
        self = cls.__new__(cls)
        self._checkpoint = checkpoint
        self._prefix = prefix
        return self

    @property
    def name(self) -> str:
        """The dotted name of this place; empty at the root."""
        return self._prefix

    def __getattr__(self, attribute: str) -> Self:
        if attribute.startswith("__"):  # protocols that Python or NumPy probe for are not tensors
            raise AttributeError(attribute)
        return self[attribute]

    def __getitem__(self, part: int | str) -> Self:
        """The place below this one: a number for a list of layers, or any (dotted) text."""
        return self._at(self._checkpoint, f"{self._prefix}.{part}" if self._prefix else str(part))

    def items(self) -> Iterator[tuple[str, Self]]:
        """(full name, place) of every tensor from here down. Safetensors: sorted by name; GGUF: as in the file."""
        below = f"{self._prefix}." if self._prefix else ""
        for name in self._checkpoint.entries:
            if name == self._prefix or name.startswith(below):
                yield name, self._at(self._checkpoint, name)

    def exists(self) -> bool:
        """Whether there is a tensor of exactly this name."""
        return self._prefix in self._checkpoint.entries

    def data(self) -> WeightData:
        """The tensor of this name, as a view of its file.

        Raises:
            MissingWeightError: there is none; a `KeyError` and a `WeightsError` that names the closest one.
        """
        return self._entry().load()

    @property
    def dtype(self) -> DType:
        """Element type of the tensor of this name (`uint8` if quantized). Raises as `data`."""
        return self._entry().dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape of the tensor of this name. Raises as `data`."""
        return self._entry().shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor of this name in its file; of a quantized layer's weight those of all its tensors."""
        return self._entry().nbytes

    @property
    def stored_as(self) -> str:
        """The name of its encoding, as configurations write it: `bfloat16`, `q4_k`, `gptq`. Raises as `data`."""
        return self._entry().stored_as

    @property
    def quantization_encoding(self) -> QuantizationEncoding | None:
        """Encoding of the tensor of this name, None for plain elements. Raises as `data`."""
        return self._entry().quantization_encoding

    def allocate(
        self,
        dtype: DType | None = None,
        shape: Sequence[int] | None = None,
        quantization_encoding: QuantizationEncoding | None = None,
        device: DeviceRef | None = None,
    ) -> Weight:
        """Declares a graph weight that this tensor will be bound to.

        Args:
            dtype: expected element type; None takes the tensor's.
            shape: expected logical shape; None takes the tensor's.
            quantization_encoding: expected encoding; None expects nothing.
            device: where the weight is used; the first CPU by default.

        Raises:
            MissingWeightError: there is no tensor of this name.
            WeightsError: it is of another type, shape or encoding (a `ValueError`).
        """
        entry = self._entry()
        for what, expected, stored in (
            ("type", dtype, entry.dtype),
            ("shape", None if shape is None else tuple(shape), entry.shape),
            ("encoding", quantization_encoding, entry.quantization_encoding),
        ):
            if expected is not None and expected != stored:
                message = f"has {what} {stored or 'none'}, {expected} is expected"
                raise WeightsError(message, file=entry.source.path, tensor=entry.name, offset=entry.begin)
        self._checkpoint.allocated[entry.name] = entry.load()
        return Weight(
            entry.name,
            entry.dtype,
            entry.shape,
            device or DeviceRef.CPU(),
            quantization_encoding=entry.quantization_encoding,
        )

    @property
    def allocated_weights(self) -> dict[str, WeightData]:
        """Name and data of every weight allocated anywhere in this checkpoint: a registry for a session's `load`."""
        return dict(self._checkpoint.allocated)

    def _entry(self) -> Entry:
        entry = self._checkpoint.entries.get(self._prefix)
        if entry is None:
            close = get_close_matches(self._prefix, self._checkpoint.entries, n=1, cutoff=0.0)
            file = self._checkpoint.files[0].path if self._checkpoint.files else None
            raise MissingWeightError(self._prefix, closest=close[0] if close else None, file=file)
        return entry

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._prefix!r}, {sum(1 for _ in self.items())} tensors)"


class WeightsAdapter(Protocol):
    """Renames and restacks a checkpoint's tensors into the names that a model's graph uses.

    Called with the checkpoint by tensor name, and by keyword with `huggingface_config` and `pipeline_config`; keywords
    that an adapter does not need are ignored. Returns the weights by the graph's names.
    """

    def __call__(self, state_dict: dict[str, Weights], /, **kwargs: Any) -> dict[str, WeightData]: ...
