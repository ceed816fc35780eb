"""What the tensors of a checkpoint tell about the model: layer 0 speaks for all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from puna.dtype import DType
from puna.graph.weights import WeightData

__all__ = ["CheckpointLayout", "canonical_view"]

_MODEL_PREFIXES: Final = ("language_model.", "model.")
_ATTENTION: Final = "layers.0.self_attn."
_MLP: Final = "layers.0.mlp."


def canonical_view(state_dict: Mapping[str, WeightData]) -> dict[str, WeightData]:
    """The tensors by canonical name.

    If any name begins with `language_model.`, those names without it; else if any begins with `model.`, those without
    it; else all as they are.
    """
    for prefix in _MODEL_PREFIXES:
        view = {name.removeprefix(prefix): data for name, data in state_dict.items() if name.startswith(prefix)}
        if view:
            return view
    return dict(state_dict)


@dataclass(frozen=True)
class CheckpointLayout:
    """Facts that only the tensors tell.

    Attributes:
        norm_dtype: Element type of the first norm's weight, or None where it has none.
        stacked_mlp: Gate and up are one matrix.
        stacked_qkv: Q, K and V are one matrix.
        attention_bias: Q, K or V have a bias.
        attention_output_bias: The attention's output projection has one.
        mlp_bias: A product of the MLP has one.
        has_lm_head: There is an output matrix.
    """

    norm_dtype: DType | None
    stacked_mlp: bool
    stacked_qkv: bool
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    has_lm_head: bool

    @classmethod
    def of(cls, state_dict: Mapping[str, WeightData]) -> CheckpointLayout:
        """The facts of these tensors, read from their `canonical_view`."""
        view = canonical_view(state_dict)
        norm = view.get("layers.0.input_layernorm.weight")

        def has_bias(prefix: str, *names: str) -> bool:
            return any(f"{prefix}{name}.bias" in view for name in names)

        return cls(
            norm_dtype=norm.dtype if norm is not None else None,
            stacked_mlp=_MLP + "gate_up_proj.weight" in view,
            stacked_qkv=_ATTENTION + "qkv_proj.weight" in view,
            attention_bias=has_bias(_ATTENTION, "q_proj", "k_proj", "v_proj", "qkv_proj"),
            attention_output_bias=has_bias(_ATTENTION, "o_proj"),
            mlp_bias=has_bias(_MLP, "gate_proj", "up_proj", "down_proj", "gate_up_proj"),
            has_lm_head="lm_head.weight" in view,
        )
