"""`HuggingFaceConfig`: what a checkpoint says about itself, from `config.json` or from GGUF metadata.

A record of plain values with attribute access, as transformers' configurations have. Keys that a file leaves out have
the defaults of the family's transformers class; rotary embedding is brought into one spelling; every number that sizes
follow from is checked against a range before anything is computed or allocated. Nothing is imported from a model
directory: `auto_map` is a key like any other, and nobody reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from puna.errors import UnsupportedModelError, WeightsError
from puna.pipelines.lib.family_defaults import FAMILIES, FamilyDefaults
from puna.pipelines.lib.rope_section import read_rope_section, split_rope

if TYPE_CHECKING:
    from puna.pipelines.lib.gguf_config import GGUFContents

__all__ = ["HuggingFaceConfig"]

_CONFIG_NAME: Final = "config.json"
_QUANTIZATION: Final = "quantization_config"
_QUANTIZATION_FILES: Final = {  # name -> the method of a file that names none
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
_MAX_CONFIG_BYTES: Final = 1 << 24
_MAX_INT: Final = (1 << 31) - 1

# Whole numbers: key -> least, greatest. The greatest are far above any model and far below what overflows.
_COUNTS: Final = MappingProxyType({
    "vocab_size": (1, 1 << 24),
    "hidden_size": (1, 1 << 18),
    "intermediate_size": (1, 1 << 20),
    "num_hidden_layers": (1, 1 << 12),
    "num_attention_heads": (1, 1 << 14),
    "num_key_value_heads": (1, 1 << 14),
    "head_dim": (2, 1 << 13),
    "max_position_embeddings": (1, _MAX_INT),
    "original_max_position_embeddings": (2, _MAX_INT),
    "sliding_window": (1, _MAX_INT),
    "max_window_layers": (0, _MAX_INT),
    "dim_model_base": (1, 1 << 18),
})
# Numbers: key -> above, at most.
_NUMBERS: Final = MappingProxyType({
    "rms_norm_eps": (0.0, 1.0),
    "layer_norm_eps": (0.0, 1.0),
    "logit_scale": (0.0, 1e6),
    "scale_emb": (-1e6, 1e6),
    "scale_depth": (0.0, 1e6),
    "rope_theta": (1.0, 1e15),
    "rope_local_base_freq": (1.0, 1e15),
    "query_pre_attn_scalar": (0.0, 1e9),
    "final_logit_softcapping": (0.0, 1e6),
    "attn_logit_softcapping": (0.0, 1e6),
    "partial_rotary_factor": (0.0, 1.0),
    "attention_multiplier": (0.0, 1e6),
    "logits_scaling": (0.0, 1e6),
    "embedding_multiplier": (-1e6, 1e6),
    "residual_multiplier": (-1e6, 1e6),
    "clip_qkv": (0.0, 1e6),
})
# What GGUF files mean by leaving a key out; every other key is stated there, or does not apply.
_GGUF_DEFAULTS: Final = MappingProxyType({"rope_theta": 10000.0, "hidden_act": "silu"})
_FLAGS: Final = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_REQUIRED: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rope_theta",
)


class HuggingFaceConfig:
    """The configuration of a checkpoint.

    Keys are attributes; an absent one is an `AttributeError`, so `getattr(config, key, None)` works as it does with
    transformers' classes. Of the families in `FAMILIES` the record is complete and checked. Of any other it has just
    the stated keys: which architectures there are is the registry's to say.

    Args:
        values: Keys as a `config.json` has them.
        source: The file they come from, for messages.
        gguf_architecture: `general.architecture`, where the source is a GGUF file.
        stated: The keys that the file states; None: those of `values`.

    Raises:
        UnsupportedModelError: neither `architectures` nor `model_type` is there or they contradict each other; a key
            without default is missing; a value is of the wrong type or out of range. Names key, value and file.
    """

    source: str | None
    """The file that the values come from."""

    gguf_architecture: str | None
    """`general.architecture` of a GGUF file, else None."""

    stated: frozenset[str]
    """The keys that the file states; all others are defaults of the family."""

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        source: str | Path | None = None,
        gguf_architecture: str | None = None,
        stated: Sequence[str] | None = None,
    ) -> None:
        self.source = str(source) if source is not None else None
        self.gguf_architecture = gguf_architecture
        self.stated = frozenset(values if stated is None else stated)
        self._values: dict[str, Any] = dict(values)
        family = self._find_family()
        if family is not None:
            self._complete(family)

    @classmethod
    def from_directory(cls, directory: str | Path) -> Self:
        """The configuration in a directory's `config.json`.

        Where it has no `quantization_config`, that is taken from the file beside it in which older tools write it:
        `quantize_config.json` (AutoGPTQ), `quant_config.json` (AutoAWQ) or `hf_quant_config.json` (ModelOpt).

        Raises:
            WeightsError: the file cannot be read, is too large, or is not a JSON object.
            UnsupportedModelError: as the class.
        """
        path = Path(directory) / _CONFIG_NAME
        values = _read_json_object(path)
        if values.get(_QUANTIZATION) is None:
            for name, method in _QUANTIZATION_FILES.items():
                if path.with_name(name).is_file():
                    values[_QUANTIZATION] = {"quant_method": method, **_read_json_object(path.with_name(name))}
                    break
        return cls(values, source=path)

    @classmethod
    def from_gguf(cls, weights: GGUFContents) -> Self:
        """The configuration that a GGUF file's metadata and tensors state.

        Raises:
            WeightsError: the metadata contradicts itself or the tensors' shapes.
            UnsupportedModelError: a value that would change the result is not supported; otherwise as the class.
        """
        from puna.pipelines.lib.gguf_config import read_gguf_config

        values, source, architecture = read_gguf_config(weights)
        return cls(values, source=source, gguf_architecture=architecture)

    def __getattr__(self, key: str) -> Any:
        if not key.startswith("_"):  # underscored names are looked up before `_values` exists, by copy and pickle
            try:
                return self._values[key]
            except KeyError:
                pass
        raise AttributeError(f"{key} is neither stated in {self.__dict__.get('source')} nor has it a default")

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HuggingFaceConfig) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]  # equal by value and holding lists

    def __repr__(self) -> str:
        return f"HuggingFaceConfig({self._values!r}, source={self.source!r})"

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values, defaults included (a shallow copy)."""
        return dict(self._values)

    def origin(self, key: str) -> str:
        """Where the value of a key comes from: the file's name, or `default`."""
        if key in self.stated:
            return Path(self.source).name if self.source is not None else "stated"
        return "default"

    def _refuse(self, key: str, value: Any, supported: str) -> NoReturn:
        raise UnsupportedModelError(key, value, file=self.source, supported=supported)

    def _find_family(self) -> FamilyDefaults | None:
        """The family, by `model_type` or else by the first known entry of `architectures`; adds what is missing."""
        names, model_type = self._values.get("architectures"), self._values.get("model_type")
        if names is not None and (not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
            self._refuse("architectures", names, "a list of names")
        if model_type is not None and not isinstance(model_type, str):
            self._refuse("model_type", model_type, "a name")
        if not names and model_type is None:
            if self.gguf_architecture is not None:
                return None
            self._refuse("architectures", names, "the name of a model class")
        by_architecture = {
            architecture: name
            for name, family in FAMILIES.items()
            for architecture in (family.architecture, *family.other_architectures)
        }
        known = [by_architecture[name] for name in names or () if name in by_architecture]
        if model_type is None and known:
            model_type = self._values["model_type"] = known[0]
        family = FAMILIES.get(model_type) if model_type is not None else None
        if known and model_type != known[0]:
            self._refuse("model_type", model_type, f"{known[0]!r}, as architectures = {names} says")
        if family is not None and not names:
            self._values["architectures"] = [family.architecture]
        return family

    def _complete(self, family: FamilyDefaults) -> None:
        values = self._values
        is_gguf = self.gguf_architecture is not None
        for theirs, ours in family.aliases.items():
            stated = values.pop(theirs, None) if not is_gguf else None
            if stated is None:
                continue
            if values.setdefault(ours, stated) != stated:
                self._refuse(theirs, stated, f"{values[ours]!r}, as {ours} says")
            self.stated |= {ours}
        if family.has_local_rope:
            values |= split_rope(values)
        rope = read_rope_section(values, family, self.source, allows_partial=is_gguf)
        values.pop("rope_parameters", None)
        values["rope_scaling"] = rope.scaling
        values["partial_rotary_factor"] = rope.partial_rotary_factor
        if rope.theta is not None:
            values["rope_theta"] = rope.theta
        for key, default in (_GGUF_DEFAULTS if is_gguf else family.values).items():
            values.setdefault(key, default)
        for key in ("head_dim", "num_key_value_heads"):
            if values.get(key) is None:
                values.pop(key, None)
        values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
        self._check(family)

    def _check(self, family: FamilyDefaults) -> None:
        values = self._values
        required = [*_REQUIRED, *(key for key in ("rms_norm_eps", "layer_norm_eps") if key in family.values)]
        for key in required:
            if values.get(key) is None:
                self._refuse(key, None, "a value, there is no default")
        for key, (least, greatest) in _COUNTS.items():
            value = values.get(key)
            if value is None:
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not least <= value <= greatest or value != int(value):
                self._refuse(key, value, f"whole numbers from {least} to {greatest}")
        for key, (above, at_most) in _NUMBERS.items():
            value = values.get(key)
            if value is None:
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not above < value <= at_most:
                self._refuse(key, value, f"numbers above {above:g}, at most {at_most:g}")
        for key in _FLAGS:
            if not isinstance(values.get(key), bool | None):
                self._refuse(key, values[key], "true, false")
        self._check_heads()

    def _check_heads(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            self._refuse("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads = {heads}")
        head_dim = self._values.get("head_dim") or self.hidden_size // heads
        rotated = int(head_dim * self.partial_rotary_factor)
        if rotated < 2 or rotated % 2:
            self._refuse("head_dim", head_dim, f"an even number of rotated elements, not {rotated}")
        scaling = self.rope_scaling or {}
        for key in ("short_factor", "long_factor", "factors"):
            if scaling.get(key) is not None and len(scaling[key]) != rotated // 2:
                self._refuse(f"rope_scaling.{key}", scaling[key], f"{rotated // 2} numbers, one per rotated pair")


def _read_json_object(path: Path) -> dict[str, Any]:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        with path.open("rb") as file:
            text = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"cannot be read: {error.strerror}", file=path) from error
    if len(text) > _MAX_CONFIG_BYTES:
        raise WeightsError(f"is larger than {_MAX_CONFIG_BYTES} bytes", file=path)
    try:
        values = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8 and numbers of too many digits
        raise WeightsError(f"is not JSON: {error}", file=path) from error
    if not isinstance(values, dict):
        raise WeightsError(f"is not a JSON object but {type(values).__name__}", file=path)
    return values
