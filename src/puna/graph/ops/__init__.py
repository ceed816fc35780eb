"""The operations of a graph. Each is a function that appends one node to a graph and returns the results."""

from __future__ import annotations

from puna.graph.ops.attention import KVCacheValues, RopeSpec, kv_store, paged_attention, rope, rope_angles
from puna.graph.ops.elementwise import Activation, add, clamp, divide, glu, scale, softcap
from puna.graph.ops.linear import embedding, matmul, quantize_codes
from puna.graph.ops.lora import AdapterValues, lora, lora_embedding
from puna.graph.ops.norm import head_norm, layer_norm, rms_norm
from puna.graph.ops.op import Op
from puna.graph.ops.rows import concat_columns, gather_last, gather_variable, slice_columns, variable_offsets

__all__ = [
    "Activation",
    "AdapterValues",
    "KVCacheValues",
    "Op",
    "RopeSpec",
    "add",
    "clamp",
    "concat_columns",
    "divide",
    "embedding",
    "gather_last",
    "gather_variable",
    "glu",
    "head_norm",
    "kv_store",
    "layer_norm",
    "lora",
    "lora_embedding",
    "matmul",
    "paged_attention",
    "quantize_codes",
    "rms_norm",
    "rope",
    "rope_angles",
    "scale",
    "slice_columns",
    "softcap",
    "variable_offsets",
]
