"""From `Llama3Config` to `puna.nn`: the same facts as a decoder and as a rotary embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from puna.errors import UnsupportedModelError
from puna.nn.decoder_spec import DecoderSpec
from puna.nn.rotary_embedding import RotaryEmbedding

if TYPE_CHECKING:
    from puna.pipelines.architectures.llama3.model_config import Llama3Config

__all__ = ["decoder_spec", "rotary_embedding"]

_LAYER_NORM_EPS: Final = 1e-5


def rotary_embedding(config: Llama3Config) -> RotaryEmbedding:
    """The rotary embedding of a configuration; its head size is the attention's, whatever `hidden_size` is.

    Raises:
        ValueError: both kinds of scaling are set, or sizes do not fit.
    """
    if config.rope_scaling_params is not None and config.longrope_scaling_params is not None:
        raise ValueError("rope_scaling_params and longrope_scaling_params are both set; a model has one of them")
    return RotaryEmbedding(
        head_dim=config.head_dim,
        rot_dim=int(config.head_dim * config.partial_rotary_factor),
        theta=config.rope_theta,
        scaling=config.longrope_scaling_params or config.rope_scaling_params,
    )


def decoder_spec(config: Llama3Config) -> DecoderSpec:
    """The decoder of a configuration.

    Raises:
        ValueError: `rms_norm` without `rms_norm_eps`, sizes that do not fit.
        UnsupportedModelError: something is carried that is not run: several devices per replica.
    """
    _require_runnable(config)
    return DecoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        norm_eps=_norm_eps(config),
        rope=rotary_embedding(config),
        kv_params=config.kv_params,
        norm_method=config.norm_method,
        attention_bias=config.attention_bias,
        attention_output_bias=config.attention_output_bias,
        mlp_bias=config.mlp_bias,
        stacked_qkv=config.stacked_qkv,
        stacked_mlp=config.stacked_mlp,
        clip_qkv=config.clip_qkv,
        attention_multiplier=config.attention_multiplier,
        embedding_multiplier=config.embedding_multiplier,
        residual_multiplier=config.residual_multiplier,
        logits_scaling=config.logits_scaling,
        tie_word_embeddings=config.tie_word_embeddings,
        interleaved_rope=config.interleaved_rope_weights,
        return_logits=config.return_logits,
        return_hidden_states=config.return_hidden_states,
        use_subgraphs=config.use_subgraphs,
    )


def _norm_eps(config: Llama3Config) -> float:
    if config.norm_method == "layer_norm":
        return _LAYER_NORM_EPS
    if config.rms_norm_eps is None:
        raise ValueError("rms_norm_eps is None; rms_norm needs a number")
    return config.rms_norm_eps


def _require_runnable(config: Llama3Config) -> None:
    refused = (
        (
            "devices",
            ", ".join(map(str, config.devices)),
            len(config.devices) != config.data_parallel_degree,
            f"one per replica ({config.data_parallel_degree})",
        ),
    )
    for name, value, is_refused, supported in refused:
        if is_refused:
            raise UnsupportedModelError(name, value, supported=supported)
