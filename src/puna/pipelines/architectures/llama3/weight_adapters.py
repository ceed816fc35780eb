"""From the tensor names of a checkpoint to those of the graph, for safetensors and for GGUF.

Only names change here. Rows of Q and K stay as they are stored: GGUF files of Llama's kind hold them in pairs of
neighbours, and `interleaved_rope_weights` rotates them so. A name that means nothing to a Llama-shaped decoder is an
error, because a tensor that is left out silently is a model that computes something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from puna.errors import WeightsError
from puna.graph.weights import WeightData, Weights
from puna.pipelines.lib.config_values import read_count, read_value

__all__ = ["GGUF_LAYER_NAMES", "GGUFAdapter", "gguf_state_dict", "safetensors_adapter", "safetensors_state_dict"]

_PREFIXES: Final = ("language_model.", "model.", "transformer.")
_TOP_NAMES: Final = frozenset({"embed_tokens.weight", "norm.weight", "norm.bias", "lm_head.weight"})
_LAYER_MODULES: Final = frozenset({
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "qkv", "o")),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "gate_up", "down")),
})
_LAYER: Final = re.compile(r"(?:layers|blk)\.(\d{1,9})\.(.+)\.(weight|bias)")
# Frequencies that follow from the configuration, saved by some writers all the same.
_DERIVED: Final = re.compile(
    r"(?:\w+\.\d+\.[\w.]*attention\.|layers\.\d+\.self_attn\.)?rotary(?:_emb)?\.(?:inv_freq|cos_cached|sin_cached)"
)

_GGUF_TOP_NAMES: Final = MappingProxyType({
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output_norm.bias": "norm.bias",
    "output.weight": "lm_head.weight",
})
GGUF_LAYER_NAMES: Final = MappingProxyType({
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
})
"""Modules of a layer by their name in GGUF files of Llama's kind."""
# Facts about rotary embedding, which the configuration was read from.
_GGUF_DERIVED: Final = re.compile(r"rope_(?:freqs|factors_long|factors_short)\.weight|blk\.\d+\.attn_rot_embd\.weight")

NameMap = Callable[[str], str | None]
"""The graph's name of a tensor, None for one that is dropped; KeyError for one that means nothing."""


def safetensors_adapter(
    layer_names: Mapping[str, str] = MappingProxyType({}),
    *,
    top_names: Mapping[str, str] = MappingProxyType({}),
    layers: str = "layers",
) -> Callable[..., dict[str, WeightData]]:
    """An adapter for checkpoints in Hugging Face layout.

    Args:
        layer_names: The graph's module by the checkpoint's, for modules of a layer that Llama does not have or names
            otherwise. All others keep their names.
        top_names: The same for whole names outside of layers.
        layers: What the checkpoint calls its list of layers.
    """
    modules = {name: name for name in _LAYER_MODULES} | dict(layer_names)
    tops = {name: name for name in _TOP_NAMES} | dict(top_names)
    layer_of = re.compile(rf"{re.escape(layers)}\.(\d{{1,9}})\.(.+)\.(weight|bias)")

    def name_of(name: str) -> str | None:
        short = name
        for prefix in _PREFIXES:
            short = short.removeprefix(prefix)
        if _DERIVED.fullmatch(short):
            return None
        layer = layer_of.fullmatch(short)
        if layer is None:
            return tops[short]
        return f"layers.{int(layer[1])}.{modules[layer[2]]}.{layer[3]}"

    def adapt(
        state_dict: dict[str, Weights], /, *, huggingface_config: Any = None, **_: Any
    ) -> dict[str, WeightData]:
        """The tensors of a checkpoint in Hugging Face layout, by the graph's names.

        Prefixes `language_model.` and `model.` go, saved rotary frequencies are dropped, everything else must be a
        weight of the decoder.

        Args:
            state_dict: The checkpoint.
            huggingface_config: Its configuration: a layer beyond `num_hidden_layers` is an error, and an output matrix
                that `tie_word_embeddings` makes superfluous is dropped. None: neither is looked at.

        Raises:
            WeightsError: a tensor that the decoder does not have, or two tensors of one name.
        """
        return _renamed(state_dict, name_of, huggingface_config)

    return adapt


safetensors_state_dict: Final = safetensors_adapter()


class GGUFAdapter:
    """An adapter for GGUF files whose layers are made of these modules.

    Args:
        layer_names: The graph's module by the name that the file gives it, as `GGUF_LAYER_NAMES`.
        stacked: Modules of several parts that new files hold in one piece. Old ones may differ.
    """

    def __init__(self, layer_names: Mapping[str, str], *, stacked: Sequence[str] = ()) -> None:
        self._modules = dict(layer_names)
        self._stacked = frozenset(stacked)
        self._file_modules = {module: name for name, module in layer_names.items()}
        self._file_tops = {name: file_name for file_name, name in _GGUF_TOP_NAMES.items()}

    def __call__(
        self, state_dict: dict[str, Weights], /, *, huggingface_config: Any = None, **_: Any
    ) -> dict[str, WeightData]:
        """The tensors of a GGUF file by the graph's names. Arguments and errors as `safetensors_state_dict`."""
        return _renamed(state_dict, self._name_of, huggingface_config)

    def file_name(self, name: str) -> str:
        """The name in a file of one of the graph's weights.

        Raises:
            KeyError: the files have no such tensor.
        """
        layer = _LAYER.fullmatch(name)
        if layer is None:
            return self._file_tops[name]
        return f"blk.{layer[1]}.{self._file_modules[layer[2]]}.{layer[3]}"

    def stacks(self, module: str) -> bool:
        """Whether new files hold `qkv_proj` or `gate_up_proj` in one piece."""
        return module in self._stacked

    def _name_of(self, name: str) -> str | None:
        if _GGUF_DERIVED.fullmatch(name):
            return None
        layer = _LAYER.fullmatch(name) if name.startswith("blk.") else None
        if layer is None:
            return _GGUF_TOP_NAMES[name]
        return f"layers.{int(layer[1])}.{self._modules[layer[2]]}.{layer[3]}"


gguf_state_dict: Final = GGUFAdapter(GGUF_LAYER_NAMES)


def _renamed(state_dict: Mapping[str, Weights], name_of: NameMap, config: Any) -> dict[str, WeightData]:
    is_tied = read_value(config, "tie_word_embeddings") is True
    num_layers = read_count(config, "num_hidden_layers", None)
    found: dict[str, WeightData] = {}
    for name, tensor in state_dict.items():
        data = tensor.data()
        try:
            short = name_of(name)
        except KeyError:
            raise _error(data, "is no tensor of a Llama-shaped decoder") from None
        if short is None or (is_tied and short == "lm_head.weight"):
            continue
        layer = _LAYER.fullmatch(short)
        if num_layers is not None and layer is not None and int(layer[1]) >= num_layers:
            raise _error(data, f"belongs to a layer beyond num_hidden_layers = {num_layers}")
        if short in found:
            raise _error(data, f"is the same weight as {found[short].name!r}")
        found[short] = data
    return found


def _error(data: WeightData, message: str) -> WeightsError:
    return WeightsError(message, file=data.source.path if data.source is not None else None, tensor=data.name)
