"""Attention with rotary embedding over the paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from puna.graph import Value, ops
from puna.graph.ops import AdapterValues, KVCacheValues
from puna.nn.declarations import WeightDeclarations
from puna.nn.linear import Linear
from puna.nn.lora import update
from puna.nn.norm import HeadNorm

if TYPE_CHECKING:
    from puna.nn.decoder_spec import DecoderSpec

__all__ = ["Attention", "AttentionInputs"]

_QKV_TARGETS: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUTPUT_TARGETS: Final = ("self_attn.o_proj",)


class AttentionInputs(NamedTuple):
    """What all layers of a step share.

    Attributes:
        angles: Cosines and sines `[total_seq_len, rot_dim]`.
        row_offsets: uint32 `[batch_size + 1]`.
        cache: The KV cache.
        adapters: Which rows have which adapter; None: no row has one.
    """

    angles: Value
    row_offsets: Value
    cache: KVCacheValues
    adapters: AdapterValues | None = None


@dataclass(frozen=True)
class Attention:
    """Q, K, V; rotation; store; attention; output projection.

    Attributes:
        qkv: Either three modules, or one whose rows are Q's, K's and V's in that order.
        output: `[H, num_heads * head_dim]`.
        num_heads: Query heads.
        num_kv_heads: KV heads.
        head_dim: Elements of a head.
        rot_dim: Leading elements of a head that are rotated.
        is_interleaved: Rotated pairs are neighbours, not half a width apart.
        multiplier: The whole factor on q·k.
        clip: Q, K, V are clamped to plus or minus this; None: not at all. It limits the projected activations, as the
            models that define it (OLMo) compute it.
        window: A query sees itself and the `window - 1` positions before it; None: all.
        softcap: Scores s become `softcap * tanh(s / softcap)`; None: they stay.
        norms: RMS norms of queries and of keys, before rotation; None: there are none.
    """

    qkv: Linear | tuple[Linear, Linear, Linear]
    output: Linear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rot_dim: int
    is_interleaved: bool
    multiplier: float
    clip: float | None = None
    window: int | None = None
    softcap: float | None = None
    norms: tuple[HeadNorm, HeadNorm] | None = None

    @classmethod
    def declare(cls, spec: DecoderSpec, weights: WeightDeclarations, layer: int) -> Attention:
        """The module for the weights of one layer's attention; `weights` is scoped to them."""
        width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim

        def project(name: str, size: int) -> Linear:
            return Linear.declare(weights, name, size, spec.hidden_size, has_bias=spec.attention_bias)

        qkv: Linear | tuple[Linear, Linear, Linear]
        if spec.stacked_qkv:
            qkv = project("qkv_proj", width + 2 * kv_width)
        else:
            qkv = (project("q_proj", width), project("k_proj", kv_width), project("v_proj", kv_width))
        return cls(
            qkv=qkv,
            output=Linear.declare(weights, "o_proj", spec.hidden_size, width, has_bias=spec.attention_output_bias),
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            rot_dim=spec.rope.rot_dim,
            is_interleaved=spec.interleaved_rope,
            multiplier=spec.attention_scale,
            clip=spec.clip_qkv,
            window=spec.window_of(layer),
            softcap=spec.attention_softcap,
            norms=_declare_norms(spec, weights),
        )

    def __call__(self, x: Value, step: AttentionInputs, layer: int, *, is_last_only: bool = False) -> Value:
        """Append the attention of one layer: `[rows, H]` to `[rows, H]`; with `is_last_only` to `[batch_size, H]`."""
        q, k, v = self._project(x, step.adapters, layer)
        if self.norms is not None:
            q, k = (norm(value) for norm, value in zip(self.norms, (q, k), strict=True))
        q = self._rotate(q, step.angles, self.num_heads)
        k = self._rotate(k, step.angles, self.num_kv_heads)
        ops.kv_store(
            k,
            v,
            step.row_offsets,
            step.cache,
            layer=layer,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
        )
        mixed = ops.paged_attention(
            q,
            step.row_offsets,
            step.cache,
            layer=layer,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.multiplier,
            window=self.window,
            softcap=self.softcap,
        )
        if is_last_only:
            mixed = ops.gather_last(mixed, step.row_offsets)
        return update(mixed, (self.output(mixed),), _OUTPUT_TARGETS, step.adapters, layer)[0]

    def _project(self, x: Value, adapters: AdapterValues | None, layer: int) -> tuple[Value, Value, Value]:
        if not isinstance(self.qkv, Linear):
            parts: tuple[Value, ...] = tuple(projection(x) for projection in self.qkv)
        elif adapters is None:
            parts = self._split(self._clip(self.qkv(x)))
            return parts
        else:
            parts = self._split(self.qkv(x))
        q, k, v = (self._clip(part) for part in update(x, parts, _QKV_TARGETS, adapters, layer))
        return q, k, v

    def _split(self, stacked: Value) -> tuple[Value, Value, Value]:
        width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (
            ops.slice_columns(stacked, 0, width),
            ops.slice_columns(stacked, width, width + kv_width),
            ops.slice_columns(stacked, width + kv_width, width + 2 * kv_width),
        )

    def _rotate(self, x: Value, angles: Value, num_heads: int) -> Value:
        sizes = {"num_heads": num_heads, "head_dim": self.head_dim, "rot_dim": self.rot_dim}
        return ops.rope(x, angles, interleaved=self.is_interleaved, **sizes)

    def _clip(self, x: Value) -> Value:
        return x if self.clip is None else ops.clamp(x, self.clip)


def _declare_norms(spec: DecoderSpec, weights: WeightDeclarations) -> tuple[HeadNorm, HeadNorm] | None:
    if spec.qk_norm is None:
        return None
    is_per_head = spec.qk_norm == "head"

    def norm(name: str, heads: int) -> HeadNorm:
        size = spec.head_dim if is_per_head else heads * spec.head_dim
        return HeadNorm(weights.vector(f"{name}.weight", size), spec.norm_eps)

    return norm("q_norm", spec.num_heads), norm("k_norm", spec.num_kv_heads)
