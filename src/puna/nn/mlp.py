"""The gated MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from puna.graph import Value, ops
from puna.graph.ops import AdapterValues
from puna.nn.declarations import WeightDeclarations
from puna.nn.linear import Linear
from puna.nn.lora import update

if TYPE_CHECKING:
    from puna.nn.decoder_spec import DecoderSpec

__all__ = ["MLP"]

_GATE_UP_TARGETS: Final = ("mlp.gate_proj", "mlp.up_proj")
_DOWN_TARGETS: Final = ("mlp.down_proj",)


@dataclass(frozen=True)
class MLP:
    """`down(activation(gate(x)) * up(x))`.

    Attributes:
        gate_up: Either two modules `[F, H]`, gate and up, or one `[2F, H]` with the gate's rows first.
        down: `[H, F]`.
        intermediate_size: F.
        activation: Of the gate.
    """

    gate_up: Linear | tuple[Linear, Linear]
    down: Linear
    intermediate_size: int
    activation: ops.Activation = "silu"

    @classmethod
    def declare(cls, spec: DecoderSpec, weights: WeightDeclarations) -> MLP:
        """The module for the weights of one layer's MLP; `weights` is scoped to them."""
        size, hidden = spec.intermediate_size, spec.hidden_size

        def project(name: str, out_features: int, in_features: int) -> Linear:
            return Linear.declare(weights, name, out_features, in_features, has_bias=spec.mlp_bias)

        gate_up: Linear | tuple[Linear, Linear]
        if spec.stacked_mlp:
            gate_up = project("gate_up_proj", 2 * size, hidden)
        else:
            gate_up = (project("gate_proj", size, hidden), project("up_proj", size, hidden))
        return cls(gate_up, project("down_proj", hidden, size), size, spec.activation)

    def __call__(self, x: Value, adapters: AdapterValues | None = None, layer: int = 0) -> Value:
        """Append the MLP: `[rows, H]` to `[rows, H]`."""
        if isinstance(self.gate_up, Linear):
            both = self.gate_up(x)
            gate = ops.slice_columns(both, 0, self.intermediate_size)
            up = ops.slice_columns(both, self.intermediate_size, 2 * self.intermediate_size)
        else:
            gate, up = (projection(x) for projection in self.gate_up)
        gate, up = update(x, (gate, up), _GATE_UP_TARGETS, adapters, layer)
        gated = ops.glu(gate, up, self.activation)
        return update(gated, (self.down(gated),), _DOWN_TARGETS, adapters, layer)[0]
