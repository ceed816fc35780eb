"""The gated MLP."""

from __future__ import annotations

from dataclasses import dataclass

from puna.graph import Value, ops
from puna.nn.linear import Linear

__all__ = ["MLP"]


@dataclass(frozen=True)
class MLP:
    """`down(silu(gate(x)) * up(x))`.

    Attributes:
        gate_up: Either two modules `[F, H]`, gate and up, or one `[2F, H]` with the gate's rows first.
        down: `[H, F]`.
        intermediate_size: F.
    """

    gate_up: Linear | tuple[Linear, Linear]
    down: Linear
    intermediate_size: int

    def __call__(self, x: Value) -> Value:
        """Append the MLP: `[rows, H]` to `[rows, H]`."""
        if isinstance(self.gate_up, Linear):
            both = self.gate_up(x)
            gate = ops.slice_columns(both, 0, self.intermediate_size)
            up = ops.slice_columns(both, self.intermediate_size, 2 * self.intermediate_size)
        else:
            gate, up = (projection(x) for projection in self.gate_up)
        return self.down(ops.swiglu(gate, up))
