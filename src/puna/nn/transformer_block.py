"""One layer of the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.graph import Value, ops
from puna.nn.attention import Attention, AttentionInputs
from puna.nn.declarations import WeightDeclarations
from puna.nn.mlp import MLP
from puna.nn.norm import Norm, declare_norm

if TYPE_CHECKING:
    from puna.nn.transformer import DecoderSpec

__all__ = ["TransformerBlock"]


@dataclass(frozen=True)
class TransformerBlock:
    """`h = h + m * attention(norm_1(h)); h = h + m * mlp(norm_2(h))` with m the residual multiplier."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: MLP
    residual_multiplier: float = 1.0

    @classmethod
    def declare(cls, spec: DecoderSpec, weights: WeightDeclarations, layer: int) -> TransformerBlock:
        """The module for the weights of one layer; `weights` is scoped to them."""
        return cls(
            declare_norm(spec, weights, "input_layernorm"),
            Attention.declare(spec, weights.scoped("self_attn."), layer),
            declare_norm(spec, weights, "post_attention_layernorm"),
            MLP.declare(spec, weights.scoped("mlp.")),
            spec.residual_multiplier,
        )

    def __call__(self, h: Value, step: AttentionInputs, layer: int, *, is_last_only: bool = False) -> Value:
        """Append the block: `[rows, H]` to `[rows, H]`.

        With `is_last_only` only each request's last row goes on after attention, `[batch_size, H]`: what follows the
        last layer reads no others, and rows do not depend on each other.
        """
        branch = self.attention(self.attention_norm(h), step, layer, is_last_only=is_last_only)
        h = self._residual(ops.gather_last(h, step.row_offsets) if is_last_only else h, branch)
        return self._residual(h, self.mlp(self.mlp_norm(h)))

    def _residual(self, h: Value, branch: Value) -> Value:
        return ops.add(h, branch if self.residual_multiplier == 1 else ops.scale(branch, self.residual_multiplier))
