"""`LoRAAdapter`: an adapter that was read, checked against a model, and packed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from puna.dtype import DType
from puna.engine.adapters import AdapterKey, LowRank, PackedAdapter
from puna.errors import AdapterError, UnsupportedModelError, WeightsError
from puna.graph.weights import WeightData
from puna.pipelines.lora.gguf import read_gguf_adapter
from puna.pipelines.lora.module import AdapterModule
from puna.pipelines.lora.peft import CONFIG_NAME, read_peft
from puna.pipelines.lora.products import ModelProducts

__all__ = ["LoRAAdapter", "read_adapter", "read_updates"]

_DTYPES: Final = (DType.float32, DType.float16, DType.bfloat16)


@dataclass(frozen=True, slots=True, eq=False)
class LoRAAdapter:
    """An adapter that requests may name. Nothing of it ever changes: a request keeps the one that it began with.

    Attributes:
        name: What requests call it.
        path: Where it was read from.
        weights: Its matrices.
    """

    name: str
    path: Path
    weights: PackedAdapter

    @property
    def content_id(self) -> str:
        """Its identity, a function of what it adds to which products."""
        return self.weights.content_id

    @property
    def rank(self) -> int:
        """The largest rank of its updates."""
        return self.weights.rank

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices in memory."""
        return self.weights.nbytes


def read_adapter(name: str, path: Path, products: ModelProducts, max_rank: int) -> LoRAAdapter:
    """Reads an adapter: a directory in PEFT's layout, or a GGUF file. All of it is checked before any of it is packed.

    Args:
        name: What it will be called.
        path: Where it is.
        products: The model's.
        max_rank: The largest rank that is taken.

    Raises:
        AdapterError: it is missing or damaged, does not fit the model, or asks for something that is not computed.
    """
    try:
        updates = read_updates(path, products)
        ranks = {update.b.shape[1]: update.b.name for update in updates.values()}
        if max(ranks) > max_rank:
            message = f"has rank {max(ranks)}, max_lora_rank is {max_rank}"
            raise WeightsError(message, file=path, tensor=ranks[max(ranks)])
        return LoRAAdapter(name, path, PackedAdapter(updates))
    except (WeightsError, UnsupportedModelError, OSError) as error:
        raise AdapterError(name, str(error)) from error


def read_updates(path: Path, products: ModelProducts) -> dict[AdapterKey, LowRank]:
    """What an adapter adds to which products, in the model's order of rows.

    Raises:
        WeightsError: it is missing or damaged, or does not fit the model.
        UnsupportedModelError: it asks for something that is not computed.
    """
    if path.is_dir():
        if not (path / CONFIG_NAME).exists():
            raise WeightsError(f"has no {CONFIG_NAME}", file=path)
        modules = read_peft(path)
    elif path.suffix.lower() == ".gguf":
        modules = read_gguf_adapter(path, products.gguf_architectures)
    else:
        reason = "is no directory with an adapter and no .gguf file" if path.exists() else "does not exist"
        raise WeightsError(reason, file=path)
    updates: dict[AdapterKey, LowRank] = {}
    for module in modules:
        for key, update in _updates(module, products, path).items():
            if key in updates:
                raise WeightsError(f"{module.name} updates {key}, which another module does too", file=path)
            updates[key] = update
    return updates


def _updates(module: AdapterModule, products: ModelProducts, path: Path) -> dict[AdapterKey, LowRank]:
    a, b = module.a, module.b
    _check_numbers(a)
    _check_numbers(b)
    parts = products.parts(module.name, a.shape[1] if module.is_embedding else b.shape[0], module.kind)
    found: dict[AdapterKey, LowRank] = {}
    for part in parts:
        outputs, inputs = products.shape(part.key.target)
        is_lookup = part.key.target == "embed_tokens"
        if is_lookup != module.is_embedding:
            kind = "lora_embedding_A" if is_lookup else "lora_A"
            raise WeightsError(f"{module.name} is updated by {kind} in the model, the file has the other", file=path)
        if a.shape[1] != inputs or (is_lookup and b.shape[0] != outputs):
            got, wanted = f"{b.shape[0]} outputs of {a.shape[1]} inputs", f"{outputs} of {inputs}"
            raise WeightsError(f"{module.name} has {got}, the model's has {wanted}", file=path)
        if is_lookup:
            by_token = WeightData.from_numpy(np.ascontiguousarray(a.data.T[part.rows]), a.name)
            found[part.key] = LowRank(by_token, b, module.scale)
        elif np.array_equal(part.rows, np.arange(b.shape[0])):
            found[part.key] = LowRank(a, b, module.scale)
        else:
            found[part.key] = LowRank(a, WeightData.from_numpy(b.data[part.rows], b.name), module.scale)
    for weight in (a, b):
        weight.check()
    return found


def _check_numbers(weight: WeightData) -> None:
    if weight.dtype not in _DTYPES:
        supported = ", ".join(map(str, _DTYPES))
        file = weight.source.path if weight.source is not None else None
        raise UnsupportedModelError(f"dtype of {weight.name}", str(weight.dtype), file=file, supported=supported)
    if not np.isfinite(weight.data.astype(np.float32)).all():
        file = weight.source.path if weight.source is not None else None
        raise WeightsError("holds numbers that are not finite", file=file, tensor=weight.name)
