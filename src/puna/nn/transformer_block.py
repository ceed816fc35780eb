"""One layer of the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from puna.graph import Value, ops
from puna.nn.attention import Attention, AttentionInputs
from puna.nn.declarations import WeightDeclarations
from puna.nn.mlp import MLP
from puna.nn.norm import Norm, declare_norm

if TYPE_CHECKING:
    from puna.nn.decoder_spec import DecoderSpec

__all__ = ["TransformerBlock"]


# The weights of a norm by its place. The first and the third have the names that Llama gives them.
_NORM_NAMES: Final = {
    "before_attention": "input_layernorm",
    "after_attention": "attention_output_layernorm",
    "before_mlp": "post_attention_layernorm",
    "after_mlp": "mlp_output_layernorm",
}


@dataclass(frozen=True)
class TransformerBlock:
    """`h = h + m * n2(attention(n1(h))); h = h + m * n4(mlp(n3(h)))` with m the residual multiplier.

    Norms that the family does not have leave their operand as it is. With parallel branches
    `h = h + m * attention(n1(h)) + m * mlp(n1(h))`.
    """

    attention: Attention
    mlp: MLP
    norms: Mapping[str, Norm]
    residual_multiplier: float = 1.0
    is_parallel: bool = False

    @classmethod
    def declare(cls, spec: DecoderSpec, weights: WeightDeclarations, layer: int) -> TransformerBlock:
        """The module for the weights of one layer; `weights` is scoped to them."""
        names = {place: name for place, name in _NORM_NAMES.items() if place in spec.norm_places}
        return cls(
            Attention.declare(spec, weights.scoped("self_attn."), layer),
            MLP.declare(spec, weights.scoped("mlp.")),
            {place: declare_norm(spec, weights, name) for place, name in names.items()},
            spec.residual_multiplier,
            spec.parallel_branches,
        )

    def __call__(self, h: Value, step: AttentionInputs, layer: int, *, is_last_only: bool = False) -> Value:
        """Append the block: `[rows, H]` to `[rows, H]`.

        With `is_last_only` only each request's last row goes on after attention, `[batch_size, H]`: what follows the
        last layer reads no others, and rows do not depend on each other.
        """

        def rows(x: Value) -> Value:
            return ops.gather_last(x, step.row_offsets) if is_last_only else x

        x = self._norm("before_attention", h)
        branch = self._norm("after_attention", self.attention(x, step, layer, is_last_only=is_last_only))
        h = self._residual(rows(h), branch)
        x = rows(x) if self.is_parallel else self._norm("before_mlp", h)
        return self._residual(h, self._norm("after_mlp", self.mlp(x, step.adapters, layer)))

    def _norm(self, place: str, x: Value) -> Value:
        norm = self.norms.get(place)
        return x if norm is None else norm(x)

    def _residual(self, h: Value, branch: Value) -> Value:
        return ops.add(h, branch if self.residual_multiplier == 1 else ops.scale(branch, self.residual_multiplier))
