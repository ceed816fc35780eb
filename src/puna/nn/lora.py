"""What low-rank adapters add to products."""

from __future__ import annotations

from collections.abc import Sequence

from puna.graph import Value, ops
from puna.graph.ops import AdapterValues

__all__ = ["update"]


def update(
    x: Value, products: Sequence[Value], targets: Sequence[str], adapters: AdapterValues | None, layer: int
) -> tuple[Value, ...]:
    """Products of x with what the adapters of their rows add; without adapters the products themselves."""
    return tuple(products) if adapters is None else ops.lora(x, products, targets, adapters, layer)
