"""Loading float weights by a quantization recipe: each matrix is quantized when it is packed."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from puna.graph.quantization import (
    QuantizationOptions,
    TensorChoice,
    TensorOutline,
    choose_formats,
    fallback_sentence,
    has_small_values,
    recipe_of,
)
from puna.graph.weights import DeferredQuantization, WeightData, Weights

if TYPE_CHECKING:
    from puna.graph.weights import WeightsAdapter

__all__ = ["QuantizingAdapter", "gguf_name"]

_LAYER: Final = re.compile(r"layers\.(\d+)\.(.+)")
# The graph's names to those that recipes are written in, GGUF's.
_TOP_NAMES: Final = MappingProxyType({
    "embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "norm.weight": "output_norm.weight",
})
_MODULES: Final = MappingProxyType({
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
})


class QuantizingAdapter:
    """An adapter of weights that gives matrices the formats of a recipe, as `puna quantize` would.

    Args:
        recipe: The recipe's name, in any case.
        adapter: What names the tensors of a checkpoint; None: they have the graph's names.

    Raises:
        InvalidRequestError: there is no such recipe.
    """

    def __init__(self, recipe: str, adapter: WeightsAdapter | None) -> None:
        self._recipe = recipe_of(recipe, "quantize")
        self._adapter = adapter
        self._choices: tuple[TensorChoice, ...] = ()

    def __call__(
        self, state_dict: dict[str, Weights], /, *, huggingface_config: Any = None, **options: Any
    ) -> dict[str, WeightData]:
        """The weights by the graph's names; nothing is read.

        Raises:
            InvalidRequestError: weights are quantized already.
            As the wrapped adapter.
        """
        if self._adapter is None:
            named = {name: tensor.data() for name, tensor in state_dict.items()}
        else:
            named = self._adapter(state_dict, huggingface_config=huggingface_config, **options)
        outlines = [TensorOutline(gguf_name(name), data.shape, data.format) for name, data in named.items()]
        config = huggingface_config
        layers, group = config.num_hidden_layers, config.num_attention_heads // config.num_key_value_heads
        is_large = has_small_values(config.gguf_architecture or config.model_type, layers, group)
        chosen = choose_formats(outlines, QuantizationOptions(self._recipe, layers, group, is_large))
        self._choices = tuple(chosen)
        return {name: _quantized(data, choice) for (name, data), choice in zip(named.items(), chosen, strict=True)}

    @property
    def notice(self) -> str | None:
        """What a person should know about the formats that the last call gave; None: nothing."""
        return fallback_sentence(self._choices)


def gguf_name(name: str) -> str:
    """What GGUF files of Llama's kind call a weight of the graph; its own name, if they have no such one."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return _TOP_NAMES.get(name, name)
    module, _, kind = match[2].rpartition(".")
    return f"blk.{match[1]}.{_MODULES.get(module, module)}.{kind}"


def _quantized(data: WeightData, choice: TensorChoice) -> WeightData:
    if len(data.shape) != 2 or choice.format == data.format:
        return data
    return DeferredQuantization.of(data, choice.format)
