"""The metadata of a GGUF file as the keys of a `config.json`.

Keys are `<general.architecture>.<name>`. Each is read, or known to say nothing about the result, or refused by name.
Some facts are in the tensors: the vocabulary's size, whether the output matrix is the embedding, and the factors of
rotary scaling. Numbers are checked against the tensors' shapes here, before anything is sized by them.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from puna.errors import UnsupportedModelError, WeightsError
from puna.pipelines.lib.gguf_keys import (
    COUNTS,
    GGUF_FAMILIES,
    NEUTRAL,
    READ,
    REQUIRED,
    TOKENIZER_IDS,
    WITH_WINDOWS,
    GGUFFamily,
)

if TYPE_CHECKING:
    from puna.graph.weights import WeightData

__all__ = ["GGUFContents", "TensorPlace", "read_gguf_config"]


class TensorPlace(Protocol):
    """A tensor of a file, or of one that is about to be written."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its logical shape."""
        ...

    def data(self) -> WeightData:
        """Its values."""
        ...


class GGUFContents(Protocol):
    """What a GGUF file holds; `GGUFWeights` is one."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Its keys."""
        ...

    @property
    def path(self) -> str:
        """The file, for messages."""
        ...

    def items(self) -> Iterable[tuple[str, TensorPlace]]:
        """Its tensors by name."""
        ...

_FLOAT32_EPS: Final = 2.0**-23


def read_gguf_config(weights: GGUFContents) -> tuple[dict[str, Any], str, str]:
    """The configuration of a GGUF file.

    Files of some families with a sliding window are of another one. Of an architecture that is not known only its name
    is read.

    Returns:
        The keys of a `config.json`, the file, and `general.architecture`.

    Raises:
        WeightsError: a key is missing or of the wrong type, or contradicts the shape of a tensor.
        UnsupportedModelError: a key that is not known, or one whose value is not supported.
    """
    reader = _Reader(weights)
    family = GGUF_FAMILIES.get(reader.architecture)
    if family is None:
        return {}, reader.file, reader.architecture
    reader.refuse_unknown(family)
    values = dict(family.values) | _sizes(reader)
    values |= _norm(reader, family)
    for key, name in family.extra.items():
        number = reader.number(key)
        if number:  # zero: not used
            values[name] = int(number) if name == "sliding_window" else number
    values["model_type"] = family.model_type
    if "sliding_window" in values:
        values["model_type"] = WITH_WINDOWS.get(family.model_type, family.model_type)
    values |= _rope(reader, values)
    values |= {key: weights.metadata[name] for key, name in TOKENIZER_IDS.items() if name in weights.metadata}
    _check_shapes(reader, values)
    return values, reader.file, reader.architecture


class _Reader:
    """Typed access to one architecture's keys and to shapes of tensors."""

    def __init__(self, weights: GGUFContents) -> None:
        self.metadata = weights.metadata
        self.tensors = dict(weights.items())
        self.file = weights.path
        if not self.tensors:
            raise WeightsError("the file has no tensors", file=self.file)
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise WeightsError("is missing or no text", file=self.file, tensor="general.architecture")
        self.architecture = architecture

    def fail(self, key: str, message: str) -> NoReturn:
        raise WeightsError(message, file=self.file, tensor=self.full(key))

    def refuse(self, key: str, value: Any, supported: str) -> NoReturn:
        raise UnsupportedModelError(self.full(key), value, file=self.file, supported=supported)

    def full(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def value(self, key: str) -> Any:
        return self.metadata.get(self.full(key))

    def refuse_unknown(self, family: GGUFFamily) -> None:
        known = READ | COUNTS.keys() | family.extra.keys()
        prefix = f"{self.architecture}."
        for full, value in self.metadata.items():
            key = full.removeprefix(prefix)
            if not full.startswith(prefix) or key in known:
                continue
            if key not in NEUTRAL:
                self.refuse(key, value, "keys whose meaning is known")
            neutral = NEUTRAL[key]
            if neutral is not None and (not isinstance(value, (bool, int, float)) or value not in neutral):
                self.refuse(key, value, f"{neutral[0]}")

    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite number."""
        value = self.value(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.fail(key, f"{value!r} is not a finite number")
        return value

    def count(self, key: str) -> int | None:
        """A whole number; a list with one entry per layer counts where all of them are equal."""
        value = self.value(key)
        entries = getattr(value, "tolist", lambda: value)()
        if isinstance(entries, list) and entries and all(entry == entries[0] for entry in entries):
            value = entries[0]
        elif isinstance(entries, list):
            self.refuse(key, entries, "one value for all layers")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            self.fail(key, f"{value!r} is not a whole number")
        return value

    def shape(self, name: str) -> tuple[int, ...] | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.shape

    def factors(self, name: str) -> list[float] | None:
        """A vector of factors, as a list."""
        if name not in self.tensors:
            return None
        data = self.tensors[name].data()
        if len(data.shape) != 1:
            raise WeightsError(f"has shape {list(data.shape)}, one axis is expected", file=self.file, tensor=name)
        return [float(value) for value in data.to_float32()]


def _sizes(reader: _Reader) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, name in COUNTS.items():
        count = reader.count(key)
        if count is not None:
            values[name] = count
        elif key in REQUIRED:
            reader.fail(key, "is missing")
    value_length = reader.count("attention.value_length")
    head_dim = values.get("head_dim")
    if value_length is not None:
        head_dim = head_dim or values["hidden_size"] // max(values["num_attention_heads"], 1)
        if value_length != head_dim:
            reader.refuse("attention.value_length", value_length, f"{head_dim}, the size of keys")
    embedding = reader.shape("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise WeightsError("is missing or no matrix", file=reader.file, tensor="token_embd.weight")
    values["vocab_size"] = embedding[0]
    values["tie_word_embeddings"] = "output.weight" not in reader.tensors
    return values


def _norm(reader: _Reader, family: GGUFFamily) -> dict[str, Any]:
    if family.norm == "rms_norm_eps":
        epsilon = reader.number("attention.layer_norm_rms_epsilon")
        if epsilon is None:
            reader.fail("attention.layer_norm_rms_epsilon", "is missing")
        return {"rms_norm_eps": epsilon}
    epsilon = reader.number("attention.layer_norm_epsilon", family.fixed_norm_eps)
    if epsilon is None:
        reader.fail("attention.layer_norm_epsilon", "is missing")
    fixed = family.fixed_norm_eps
    if fixed is None:
        return {"layer_norm_eps": epsilon}
    if abs(epsilon - fixed) > fixed * _FLOAT32_EPS:
        reader.refuse("attention.layer_norm_epsilon", epsilon, f"{fixed:g}")
    return {}


def _rope(reader: _Reader, values: Mapping[str, Any]) -> dict[str, Any]:
    theta = reader.number("rope.freq_base")
    found: dict[str, Any] = {} if theta is None else {"rope_theta": theta}
    head_dim = values.get("head_dim") or values["hidden_size"] // max(values["num_attention_heads"], 1)
    rotated = reader.count("rope.dimension_count")
    if rotated is not None and rotated != head_dim:
        if not 0 < rotated < head_dim:
            reader.fail("rope.dimension_count", f"{rotated} is not within 1 to {head_dim}, the size of a head")
        share = rotated / head_dim
        while int(head_dim * share) < rotated:  # the quotient was rounded down
            share = math.nextafter(share, 1.0)
        found["partial_rotary_factor"] = share
    original = reader.count("rope.scaling.original_context_length")
    scaling = _scaling(reader, values, original)
    if scaling is not None:
        found["rope_scaling"] = scaling
    if original is not None and values["model_type"] == "phi3":
        found["original_max_position_embeddings"] = original
    return found


def _scaling(reader: _Reader, values: Mapping[str, Any], original: int | None) -> dict[str, Any] | None:
    factor = reader.number("rope.scaling.factor") or reader.number("rope.scale_linear") or 1.0
    attention_factor = reader.number("rope.scaling.attn_factor", 1.0)
    assert attention_factor is not None
    short, long = (reader.factors(f"rope_factors_{name}.weight") for name in ("short", "long"))
    kind = reader.value("rope.scaling.type")
    if kind is None:
        kind = "longrope" if short is not None or long is not None else "linear"
    length = {} if original is None else {"original_max_position_embeddings": original}
    freqs = reader.factors("rope_freqs.weight")
    if freqs is not None and any(value != 1 for value in freqs):
        if factor != 1 and kind != "none":
            reader.refuse("rope.scaling.factor", factor, "1 beside rope_freqs.weight")
        _require_one(reader, attention_factor)
        return {"rope_type": "factors", "factors": freqs}
    match kind:
        case "longrope" | "su":
            if short is None or long is None:
                missing = "rope_factors_short.weight" if short is None else "rope_factors_long.weight"
                raise WeightsError("is missing, longrope needs it", file=reader.file, tensor=missing)
            if original is None:
                reader.fail("rope.scaling.original_context_length", "is missing, longrope needs it")
            lists = {"short_factor": short, "long_factor": long}
            return {"rope_type": "longrope", **lists, "attention_factor": attention_factor, **length}
        case "yarn":
            # the key multiplies the factor that follows from the stretch
            magnitude = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
            betas = {
                key: reader.number(f"rope.scaling.yarn_{key}")
                for key in ("beta_fast", "beta_slow")
                if reader.value(f"rope.scaling.yarn_{key}") is not None
            }
            attention = {"attention_factor": magnitude * attention_factor}
            return {"rope_type": "yarn", "factor": factor, **attention, **betas, **length}
        case "none" | "linear":
            _require_one(reader, attention_factor)
            is_stretched = kind == "linear" and factor != 1
            return {"rope_type": "linear", "factor": factor} if is_stretched else None
        case _:
            reader.refuse("rope.scaling.type", kind, "none, linear, yarn, longrope")


def _require_one(reader: _Reader, attention_factor: float) -> None:
    if attention_factor != 1:
        reader.refuse("rope.scaling.attn_factor", attention_factor, "1 without yarn or longrope")


def _check_shapes(reader: _Reader, values: Mapping[str, Any]) -> None:
    """Sizes in the metadata are those of the tensors: of layer 0, and of how many layers there are."""
    hidden, layers = values["hidden_size"], values["num_hidden_layers"]
    heads, kv_heads = values["num_attention_heads"], values.get("num_key_value_heads", values["num_attention_heads"])
    head_dim = values.get("head_dim") or hidden // max(heads, 1)
    width, kv_width = heads * head_dim, kv_heads * head_dim
    expected = {
        "token_embd.weight": (values["vocab_size"], hidden),
        "output.weight": (values["vocab_size"], hidden),
        "blk.0.attn_q.weight": (width, hidden),
        "blk.0.attn_k.weight": (kv_width, hidden),
        "blk.0.attn_v.weight": (kv_width, hidden),
        "blk.0.attn_qkv.weight": (width + 2 * kv_width, hidden),
        "blk.0.attn_output.weight": (hidden, width),
        "blk.0.ffn_gate.weight": (values["intermediate_size"], hidden),
        "blk.0.ffn_down.weight": (hidden, values["intermediate_size"]),
    }
    for name, shape in expected.items():
        got = reader.shape(name)
        if got is not None and got != shape:
            message = f"has shape {list(got)}, the metadata says {list(shape)}"
            raise WeightsError(message, file=reader.file, tensor=name)
    stored = {int(name.split(".")[1]) for name in reader.tensors if name.startswith("blk.") and name[4:5].isdigit()}
    if len(stored) != layers or max(stored, default=-1) != layers - 1:
        reader.fail("block_count", f"is {layers}, the file has tensors of {len(stored)} layers")
