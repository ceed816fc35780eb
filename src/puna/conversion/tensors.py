"""The tensors of a checkpoint by their names in a GGUF file, one at a time.

A family's adapter for Hugging Face layout gives the graph's weights, its adapter for GGUF the file's names. What is
left is to take apart what one layout stacks and the other does not, and to put the rows of queries and keys in pairs of
neighbours where a family's GGUF files have them so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from puna.dtype import DType
from puna.errors import WeightsError
from puna.graph.weights import WeightData, Weights, WeightsAdapter
from puna.pipelines.architectures.llama3.weight_adapters import GGUFAdapter

if TYPE_CHECKING:
    from puna.pipelines.architectures.llama3 import Llama3Config

__all__ = ["TensorSource", "gguf_sources", "huggingface_sources", "outline_of", "sources_of_gguf"]

_TOPS: Final = ("token_embd", "rope_freqs", "rope_factors_long", "rope_factors_short")
_ENDS: Final = ("output_norm", "output")


@dataclass(frozen=True)
class TensorSource:
    """A tensor that can be read.

    Attributes:
        name: Its name in a GGUF file.
        shape: Its logical shape, outermost axis first.
        format: How it is stored: `F32`, `F16`, `BF16`, `Q4_K`, …
        load: Reads it: rows in a GGUF file's order, values as stored; a view of the file where nothing is rearranged.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    load: Callable[[], WeightData]


def sources_of_gguf(weights: Weights) -> tuple[TensorSource, ...]:
    """The tensors of a GGUF file, in its order."""
    return tuple(TensorSource(name, place.shape, place.data().format, place.data) for name, place in weights.items())


def huggingface_sources(
    weights: Weights, adapter: WeightsAdapter, target: GGUFAdapter, config: Any, numbers: Llama3Config, *, pairs: bool
) -> tuple[tuple[TensorSource, ...], dict[str, WeightData]]:
    """The tensors of a checkpoint in Hugging Face layout, in the order of a GGUF file.

    Args:
        weights: The checkpoint.
        adapter: Its family's, for this layout.
        target: The adapter of the GGUF files that are written.
        config: Its configuration.
        numbers: The same as numbers of the decoder.
        pairs: Whether rows of queries and keys are brought from halves of a head into pairs of neighbours.

    Returns:
        The tensors, and outlines of the graph's weights.

    Raises:
        WeightsError: A tensor that the decoder does not have, or two of one name.
    """
    found: dict[str, TensorSource] = {}
    outline: dict[str, WeightData] = {}
    for name, place in weights.items():
        read = partial(_adapted, adapter, name, place, config)
        for module, data in read().items():
            outline[module] = outline_of(data.name, data.shape, data.dtype)
            for source in gguf_sources(module, data, partial(_one, read, module), target, numbers, pairs=pairs):
                if source.name in found:
                    raise WeightsError(f"is a second {source.name}", file=_file(data), tensor=name)
                found[source.name] = source
    return tuple(sorted(found.values(), key=lambda source: _order(source.name))), outline


def outline_of(name: str, shape: tuple[int, ...], dtype: DType = DType.float32) -> WeightData:
    """A weight of this shape that takes no memory: all zeros."""
    return WeightData.from_numpy(np.broadcast_to(np.zeros((), dtype.to_numpy()), shape), name)


def gguf_sources(
    module: str,
    data: WeightData,
    load: Callable[[], WeightData],
    target: GGUFAdapter,
    numbers: Llama3Config,
    *,
    pairs: bool,
) -> Iterator[TensorSource]:
    """What one weight of the graph is in a GGUF file: one tensor, or those that the file keeps apart."""
    base, _, kind = module.rpartition(".")
    parent, _, last = base.rpartition(".")
    width, kv_width = (heads * numbers.head_dim for heads in (numbers.num_attention_heads, numbers.num_key_value_heads))
    stacked = {
        "qkv_proj": (("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)),
        "gate_up_proj": (("gate_proj", numbers.intermediate_size), ("up_proj", numbers.intermediate_size)),
    }
    parts: Iterable[tuple[str, int]] = ((last, data.shape[0]),)
    if last in stacked and not target.stacks(last):
        parts = stacked[last]
        if sum(rows for _, rows in parts) != data.shape[0]:
            raise WeightsError(f"has {data.shape[0]} rows, not {parts}", file=_file(data), tensor=data.name)
    begin = 0
    for part, rows in parts:
        graph_name = f"{parent}.{part}.{kind}" if parent else module
        try:
            name = target.file_name(graph_name)
        except KeyError:
            message = f"has no place in a GGUF file of this family ({graph_name})"
            raise WeightsError(message, file=_file(data), tensor=data.name) from None
        heads = {"q_proj": numbers.num_attention_heads, "k_proj": numbers.num_key_value_heads}.get(part)
        yield TensorSource(
            name,
            (rows, *data.shape[1:]),
            data.format,
            partial(_rows, load, begin, begin + rows, heads if pairs else None),
        )
        begin += rows


def _adapted(adapter: WeightsAdapter, name: str, place: Weights, config: Any) -> dict[str, WeightData]:
    return adapter({name: place}, huggingface_config=config)


def _one(read: Callable[[], dict[str, WeightData]], module: str) -> WeightData:
    return read()[module]


def _rows(load: Callable[[], WeightData], begin: int, end: int, heads: int | None) -> WeightData:
    data = load()
    if (begin, end) != (0, data.shape[0]):
        data = data.rows(begin, end)
    return data if heads is None else _paired(data, heads)


def _paired(data: WeightData, heads: int) -> WeightData:
    """Rows of each head from two halves to pairs of neighbours: row 2j is row j, row 2j + 1 is row j + D/2."""
    halves = data.array.reshape(heads, 2, -1, *data.array.shape[1:])
    return replace(data, array=np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(data.array.shape))


def _file(data: WeightData) -> Any:
    return data.source.path if data.source is not None else None


def _order(name: str) -> tuple[int, int, str]:
    stem, *rest = name.split(".")
    if stem == "blk":
        return (len(_TOPS), int(rest[0]), name)
    return (_TOPS.index(stem) if stem in _TOPS else len(_TOPS) + 1 + _ENDS.index(stem), 0, name)
