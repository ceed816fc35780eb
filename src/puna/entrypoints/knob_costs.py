"""What a program that leaves one of a model's numbers out, or takes Llama's for it, would get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from puna.nn.decoder_spec import PRE_NORM, DecoderSpec
from puna.nn.rotary_embedding import DynamicRopeScalingParams, LongRoPEScalingParams, YarnRopeScalingParams

__all__ = ["FAMILY_SWITCHES", "cost_of"]

FAMILY_SWITCHES: Final = (
    "activation",
    "norm_places",
    "parallel_branches",
    "qk_norm",
    "unrotated_layers",
    "window_rope",
    "norm_has_bias",
)
"""Fields of `DecoderSpec` that a family sets and no number of its configuration says, in the order in which they are
shown."""


def cost_of(name: str, spec: DecoderSpec) -> str | None:
    """What ignoring a number would cost, as a sentence; None where the model has what Llama has.

    Args:
        name: A field of a configuration or of `DecoderSpec`.
        spec: The model.
    """
    found = _COSTS.get(name)
    return None if found is None else found(spec)


def _attention_multiplier(spec: DecoderSpec) -> str | None:
    plain = spec.head_dim**-0.5
    if abs(spec.attention_scale / plain - 1) < 1e-6:
        return None
    return f"with 1/sqrt(D) = {plain:.4g} scores would be {plain / spec.attention_scale:.3g} times as large"


def _embedding_multiplier(spec: DecoderSpec) -> str | None:
    factor = spec.embedding_multiplier
    return None if factor == 1 else f"embeddings would be {_times(1 / factor)} beside what layers add to them"


def _residual_multiplier(spec: DecoderSpec) -> str | None:
    factor = spec.residual_multiplier
    count = 2 * spec.num_layers
    return None if factor == 1 else f"what each of the {count} branches adds would be {_times(1 / factor)}"


def _logits_scaling(spec: DecoderSpec) -> str | None:
    factor = spec.logits_scaling
    if factor == 1:
        return None
    return f"logits would be {_times(factor)}: greedy text stays, every temperature means {1 / factor:.3g} of itself"


def _times(factor: float) -> str:
    return f"{factor:.3g} times as large"


def _sliding_window(spec: DecoderSpec) -> str | None:
    layers = sum(spec.window_of(layer) is not None for layer in range(spec.num_layers))
    if not layers:
        return None
    return f"from token {spec.sliding_window} on, {layers} of {spec.num_layers} layers would see what they never saw"


def _scaling(spec: DecoderSpec) -> str | None:
    scaling = spec.rope.scaling
    if scaling is None:
        return None
    original = None
    if isinstance(scaling, (DynamicRopeScalingParams, LongRoPEScalingParams, YarnRopeScalingParams)):
        original = scaling.original_max_position
    where = "at any length" if original is None else f"beyond {original} tokens, and a little before"
    return f"positions would be turned by other angles than in training, {where}"


def _partial_rotary(spec: DecoderSpec) -> str | None:
    rest = spec.rope.head_dim - spec.rope.rot_dim
    return None if not rest else f"{rest} of {spec.rope.head_dim} elements of a head would turn that must not"


def _when(condition: Callable[[DecoderSpec], object], sentence: str) -> Callable[[DecoderSpec], str | None]:
    return lambda spec: sentence if condition(spec) else None


def _norm_places(spec: DecoderSpec) -> str | None:
    if spec.norm_places == PRE_NORM or spec.parallel_branches:
        return None
    return f"a layer has {len(spec.norm_places)} norms, {', '.join(sorted(spec.norm_places))}: text would be noise"


def _unrotated(spec: DecoderSpec) -> str | None:
    if not spec.unrotated_layers:
        return None
    return f"{len(spec.unrotated_layers)} of {spec.num_layers} layers would turn queries and keys that must not"


_COSTS: Final[dict[str, Callable[[DecoderSpec], str | None]]] = {
    "attention_multiplier": _attention_multiplier,
    "embedding_multiplier": _embedding_multiplier,
    "residual_multiplier": _residual_multiplier,
    "logits_scaling": _logits_scaling,
    "sliding_window": _sliding_window,
    "rope_scaling_params": _scaling,
    "longrope_scaling_params": _scaling,
    "partial_rotary_factor": _partial_rotary,
    "clip_qkv": _when(lambda spec: spec.clip_qkv, "outliers of Q, K and V would pass that training cut off"),
    "attention_softcap": _when(lambda spec: spec.attention_softcap, "scores would grow that training bent down"),
    "logits_softcap": _when(lambda spec: spec.logits_softcap, "large logits would stand out more than in training"),
    "attention_bias": _when(lambda spec: spec.attention_bias, "Q, K and V would lack a vector in every layer"),
    "attention_output_bias": _when(
        lambda spec: spec.attention_output_bias, "attention would lack a vector in every layer"
    ),
    "mlp_bias": _when(lambda spec: spec.mlp_bias, "the MLP would lack vectors in every layer"),
    "tie_word_embeddings": _when(
        lambda spec: spec.tie_word_embeddings, "there would be no output matrix: it is the embedding"
    ),
    "norm_method": _when(
        lambda spec: spec.norm_method == "layer_norm", "means would stay in the rows that layer norm takes out"
    ),
    "interleaved_rope_weights": _when(
        lambda spec: spec.interleaved_rope, "elements of a head would turn with the wrong partners: text would be noise"
    ),
    "activation": _when(
        lambda spec: spec.activation != "silu", "gates would open by SiLU where they were trained with another curve"
    ),
    "norm_places": _norm_places,
    "parallel_branches": _when(
        lambda spec: spec.parallel_branches, "the MLP would read what attention added: text would be noise"
    ),
    "qk_norm": _when(lambda spec: spec.qk_norm, "scores would be of any size: text would be noise"),
    "unrotated_layers": _unrotated,
    "window_rope": _when(
        lambda spec: spec.window_rope, "layers with a window would turn by the angles of those without"
    ),
    "norm_has_bias": _when(lambda spec: spec.norm_has_bias, "every norm would lack a vector"),
}
