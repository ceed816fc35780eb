"""InternLM 2's names, and its matrix of Q, K and V."""

from __future__ import annotations

import re
from typing import Any, Final

from puna.errors import WeightsError
from puna.graph.weights import WeightData, Weights
from puna.pipelines.architectures.llama3.weight_adapters import safetensors_adapter
from puna.pipelines.lib.config_values import read_count

__all__ = ["internlm2_state_dict"]

_rename: Final = safetensors_adapter(
    {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attention.wqkv": "self_attn.wqkv",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
    },
    top_names={"tok_embeddings.weight": "embed_tokens.weight", "output.weight": "lm_head.weight"},
)
_GROUPED: Final = re.compile(r"(layers\.\d+\.self_attn\.)wqkv\.(weight|bias)")


def internlm2_state_dict(
    state_dict: dict[str, Weights], /, *, huggingface_config: Any = None, **_: Any
) -> dict[str, WeightData]:
    """The tensors of a checkpoint in Hugging Face layout, by the graph's names; arguments as `safetensors_adapter`'s.

    `wqkv` holds, KV head by KV head, the query heads of its group, the head of keys, the head of values.

    Raises:
        WeightsError: a tensor that the decoder does not have, or a `wqkv` whose rows are not whole heads.
    """
    heads = read_count(huggingface_config, "num_attention_heads")
    kv_heads = read_count(huggingface_config, "num_key_value_heads")
    found: dict[str, WeightData] = {}
    for name, data in _rename(state_dict, huggingface_config=huggingface_config).items():
        grouped = _GROUPED.fullmatch(name)
        if grouped is None:
            found[name] = data
            continue
        size, rest = divmod(data.shape[0], heads + 2 * kv_heads)
        if rest:
            file = data.source.path if data.source is not None else None
            message = f"has {data.shape[0]} rows, not {heads} + 2 * {kv_heads} heads of equal size"
            raise WeightsError(message, file=file, tensor=data.name)
        group = heads // kv_heads * size
        begins = range(0, data.shape[0], group + 2 * size)
        for part, first, count in (("q", 0, group), ("k", group, size), ("v", group + size, size)):
            rows = [data.rows(begin + first, begin + first + count) for begin in begins]
            found[f"{grouped[1]}{part}_proj.{grouped[2]}"] = WeightData.concat(rows, f"{data.name} ({part})")
    return found
