"""Opening a checkpoint with quantized layers: each layer's tensors become one weight, under the name `….weight`.

Whoever reads such a checkpoint sees weights of logical shapes, as in one that is not quantized: renaming, stacking and
shape checks need not know how a weight is stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from puna.dtype import DType
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights.mapping import MappedWeights
from puna.graph.weights.quantized.matrix import refuse
from puna.graph.weights.quantized.schemes import AwqScheme, FloatScheme, GptqScheme, IntegerScheme, Layer, LayerScheme
from puna.graph.weights.quantized.weight import QuantizedWeight
from puna.graph.weights.weight_data import WeightData
from puna.graph.weights.weights import Entry, Weights, _Checkpoint

__all__ = ["SchemeOf", "quantized_layers", "read_quantized"]

SchemeOf = Callable[[str], LayerScheme | None]
"""The scheme of a layer by its name; None: the configuration says that it is not quantized."""

_SUFFIXES: Final = frozenset().union(
    *(scheme.suffixes for scheme in (GptqScheme, AwqScheme, IntegerScheme, FloatScheme))
)
# One of these makes a layer a quantized one.
_MARKS: Final = frozenset({"qweight", "weight_packed", "weight_scale", "weight_scale_inv"})
_CODES: Final = (DType.int8, DType.uint8, DType.float8_e4m3fn, DType.float8_e5m2)
# Scales of a cache or of results in narrow types, which are kept in others here.
_CACHE_SCALES: Final = re.compile(r"(?:.*\.)?(?:[kvq]|prob_output|output)_(?:scale|zero_point)")


@dataclass(frozen=True)
class QuantizedEntry:
    """A weight of several tensors, as an entry of a checkpoint."""

    weight: QuantizedWeight
    begin: int

    @property
    def name(self) -> str:
        """Its name."""
        return self.weight.name

    @property
    def source(self) -> MappedWeights:
        """The file of its codes."""
        assert self.weight.source is not None
        return self.weight.source

    @property
    def dtype(self) -> DType:
        """Element type of its decoded form."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return self.weight.nbytes

    @property
    def quantization_encoding(self) -> QuantizationEncoding | None:
        """The block format of its decoded form, or None."""
        return self.weight.quantization_encoding

    @property
    def stored_as(self) -> str:
        """The encoding's name."""
        return self.weight.stored_as

    def load(self) -> WeightData:
        """The weight."""
        return self.weight


def quantized_layers(weights: Weights) -> set[str]:
    """Names of the layers whose tensors are those of a quantized one."""
    found = set()
    for name, tensor in weights.items():
        module, _, suffix = name.rpartition(".")
        is_coded = suffix == "weight" and len(tensor.shape) == 2 and tensor.dtype in _CODES
        if is_coded or suffix in _MARKS:
            found.add(module)
    return found


def read_quantized(weights: Weights, scheme_of: SchemeOf) -> Weights:
    """The checkpoint with one weight for the tensors of each quantized layer. Codes are not read.

    Args:
        weights: The checkpoint as it is stored.
        scheme_of: The scheme of a layer by its name.

    Raises:
        WeightsError: a layer's tensors are not those of its scheme.
    """
    checkpoint = weights._checkpoint
    entries: dict[str, Entry] = dict(checkpoint.entries)
    for module in sorted(quantized_layers(weights)):
        tensors = {suffix: entries.pop(name) for suffix, name in _names(entries, module)}
        layer = Layer(module, {suffix: entry.load() for suffix, entry in tensors.items()})
        first = next(iter(layer.tensors.values()))
        scheme = scheme_of(module)
        if scheme is None:
            refuse(first, "belongs to a quantized layer that quantization_config leaves out")
        for suffix, part in layer.tensors.items():
            if suffix not in scheme.suffixes:
                refuse(part, f"is no tensor of a layer in {scheme.encoding}")
        weight = QuantizedWeight.of(scheme.read(layer))
        if weight.name in entries:
            refuse(entries[weight.name].load(), "is there beside its quantized form")
        entries[weight.name] = QuantizedEntry(weight, min(entry.begin for entry in tensors.values()))
    kept = {name: entry for name, entry in sorted(entries.items()) if not _CACHE_SCALES.fullmatch(name)}
    return type(weights)._at(_Checkpoint(kept, checkpoint.files, checkpoint.metadata), weights.name)


def _names(entries: Iterable[str], module: str) -> list[tuple[str, str]]:
    """(last part, name) of the tensors of a layer."""
    candidates = ((suffix, f"{module}.{suffix}" if module else suffix) for suffix in sorted(_SUFFIXES))
    return [(suffix, name) for suffix, name in candidates if name in entries]
