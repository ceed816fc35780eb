"""The products of a model that adapters may update, and where a module of an adapter's file is among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from puna.engine.adapters import AdapterKey
from puna.errors import UnsupportedModelError, WeightsError
from puna.graph.ops.lora import LAYER_TARGETS, MODEL_LAYER, MODEL_TARGETS
from puna.graph.weights import WeightData, WeightsAdapter, WeightsFormat

__all__ = ["ModelProducts", "Part"]

_MOST_ROWS: Final = 1 << 24  # that float32 counts
_STACKED: Final = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
_TURNED: Final = ("self_attn.q_proj", "self_attn.k_proj")


@dataclass(frozen=True, slots=True)
class Part:
    """A product that a module of a file is, or holds beside others.

    Attributes:
        key: The product.
        rows: Which outputs of the module it has, in the model's order, int64 `[outputs]`.
    """

    key: AdapterKey
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ModelProducts:
    """What adapters may update in one model.

    Attributes:
        num_layers: Layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        vocab_size: Tokens.
        num_heads: Query heads.
        num_kv_heads: KV heads.
        head_dim: Elements of a head.
        is_interleaved: Whether rotated pairs are neighbours in the model's rows of Q and K.
        interleaved_in: The same of a checkpoint of each kind.
        weight_adapters: What renames, splits and orders the weights of a checkpoint of each kind.
        huggingface_config: The model's configuration, for these.
        gguf_architectures: What its GGUF files may call it.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    is_interleaved: bool
    interleaved_in: Mapping[WeightsFormat, bool]
    weight_adapters: Mapping[WeightsFormat, WeightsAdapter]
    huggingface_config: Any
    gguf_architectures: tuple[str, ...]

    def shape(self, target: str) -> tuple[int, int]:
        """Outputs and inputs of a product; of a look-up its columns and the vocabulary."""
        hidden, feed = self.hidden_size, self.intermediate_size
        width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = [(width, hidden), (kv_width, hidden), (kv_width, hidden), (hidden, width)]
        shapes = dict(zip(LAYER_TARGETS, [*attention, (feed, hidden), (feed, hidden), (hidden, feed)], strict=True))
        return shapes.get(target, (hidden, self.vocab_size) if target == "embed_tokens" else (self.vocab_size, hidden))

    def parts(self, module: str, num_rows: int, kind: WeightsFormat) -> list[Part]:
        """The products that a module of a file stands for.

        The family's own reader of checkpoints tells: it is given the numbers of the module's rows as if they were its
        weights, and where they end up, rows of the adapter's B belong.

        Args:
            module: Its name in a checkpoint of that kind.
            num_rows: Rows of its weight.
            kind: Which kind.

        Raises:
            WeightsError: the model has no such module, or of another size.
            UnsupportedModelError: the family has no such files, or does more to the weight than to order its rows.
        """
        adapt = self.weight_adapters.get(kind)
        if adapt is None:
            supported = ", ".join(self.weight_adapters)
            raise UnsupportedModelError(f"an adapter in {kind} layout", module, supported=supported)
        if num_rows > _MOST_ROWS:
            raise WeightsError(f"has {num_rows} outputs, at most {_MOST_ROWS} are read", tensor=module)
        name = f"{module}.weight"
        probe = WeightData.from_numpy(np.arange(num_rows, dtype=np.float32)[:, None], name)
        config = _Untied(self.huggingface_config)
        placed = adapt({name: _Stored(probe)}, huggingface_config=config)  # type: ignore[dict-item]  # all that adapters read
        parts: list[Part] = []
        for full, data in placed.items():
            rows = data.data.reshape(-1).astype(np.int64)
            if data.shape[1:] != (1,) or np.bincount(rows, minlength=1).max(initial=0) > 1:
                raise UnsupportedModelError("an adapter's module", module, supported="products that are used as stored")
            parts += self._split(full.removesuffix(".weight"), rows, module)
        return [self._turned(part, kind) for part in parts]

    def _split(self, name: str, rows: npt.NDArray[np.int64], module: str) -> list[Part]:
        layer = MODEL_LAYER
        if name.startswith("layers."):
            _, number, name = name.split(".", 2)
            layer = int(number)
        names = _STACKED.get(name, (name,))
        if any(part not in (MODEL_TARGETS if layer < 0 else LAYER_TARGETS) for part in names):
            supported = ", ".join([*LAYER_TARGETS, *MODEL_TARGETS])
            raise UnsupportedModelError("an adapter's module", module, supported=supported)
        sizes = [self.shape(part)[part == "embed_tokens"] for part in names]
        if sum(sizes) != len(rows):
            raise WeightsError(f"has {len(rows)} outputs, the model's has {sum(sizes)}", tensor=module)
        found, begin = [], 0
        for part, size in zip(names, sizes, strict=True):
            found.append(Part(AdapterKey(layer, part), rows[begin : begin + size]))
            begin += size
        return found

    def _turned(self, part: Part, kind: WeightsFormat) -> Part:
        """Rows of Q and K in the order in which the model's pairs are rotated."""
        if part.key.target not in _TURNED or self.interleaved_in[kind] == self.is_interleaved:
            return part
        pairs = (2, self.head_dim // 2) if self.is_interleaved else (self.head_dim // 2, 2)
        return Part(part.key, part.rows.reshape(-1, *pairs).swapaxes(1, 2).reshape(-1))


@dataclass(frozen=True, slots=True)
class _Stored:
    """What stands for a tensor of a checkpoint."""

    weight: WeightData

    def data(self) -> WeightData:
        return self.weight


class _Untied:
    """A configuration that has an output matrix of its own, so that none is dropped."""

    tie_word_embeddings = False

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        if isinstance(self._config, Mapping):
            return self._config.get(name)
        return getattr(self._config, name)
