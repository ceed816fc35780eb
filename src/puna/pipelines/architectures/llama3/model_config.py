"""`Llama3Config`: the numbers of one Llama-shaped model, and where each of them comes from.

It is filled in two steps: `initialize` from the pipeline's options and the checkpoint's configuration, `finalize`
from the tensors that the checkpoint turned out to hold. `decoder_spec` then says the same in the words of `puna.nn`.
A family that differs subclasses it: it overrides `initial_values`, `finalize` or `decoder_spec`, and adds fields
after these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, Self

from puna.dtype import DType
from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.graph import DeviceRef
from puna.graph.quantization import QuantizationEncoding
from puna.graph.weights import WeightData
from puna.nn.decoder_spec import DecoderSpec, ReturnHiddenStates, ReturnLogits
from puna.nn.kv_cache import KVCacheParams, KVCacheQuantizationConfig
from puna.nn.quant_config import QuantConfig, QuantizationConfig
from puna.nn.rotary_embedding import DynamicRopeScalingParams, LongRoPEScalingParams, RopeScalingParams, RotaryEmbedding
from puna.pipelines.architectures.llama3.decoder import decoder_spec, rotary_embedding
from puna.pipelines.architectures.llama3.layout import CheckpointLayout
from puna.pipelines.architectures.llama3.quantization import read_gptq_settings, read_quant_config
from puna.pipelines.architectures.llama3.rope_scaling import read_rope_settings
from puna.pipelines.lib import (
    ArchConfigWithKVCache,
    KVCacheConfig,
    LoRAConfig,
    MAXModelConfig,
    PipelineConfig,
    RopeType,
    require_huggingface_config,
    upper_bounded_default,
)
from puna.pipelines.lib.config_values import (
    config_source,
    read_count,
    read_flag,
    read_number,
    read_value,
)

__all__ = ["Llama3Config", "NormMethod"]

NormMethod = Literal["rms_norm", "layer_norm"]

_NORM_METHODS: Final = ("rms_norm", "layer_norm")


@dataclass(kw_only=True)
class Llama3Config(ArchConfigWithKVCache):
    """Model configuration of a Llama-shaped model.

    Attributes:
        hidden_size: Width of the residual stream, H.
        num_attention_heads: Query heads, Nq; a multiple of `num_key_value_heads`.
        num_key_value_heads: Key and value heads, Nkv.
        num_hidden_layers: Layers, L.
        rope_theta: Base of the rotary frequencies.
        rope_scaling_params: How the context was stretched: any record of `puna.nn.rotary_embedding` but LongRoPE's,
            or None.
        max_seq_len: Most tokens of a sequence, prompt and output.
        intermediate_size: Width of the MLP, F.
        interleaved_rope_weights: Whether elements 2j and 2j+1 of a head turn together (Llama's GGUF files), not j and
            j + D/2 (safetensors).
        vocab_size: Rows of embedding and output matrix, V.
        dtype: Element type of the stored weights; `uint8` for packed encodings.
        model_quantization_encoding: Block format, or GPTQ; None for floats.
        quantization_config: GPTQ's settings, or None.
        kv_params: Sizes of the KV cache. Its `head_dim` is the model's.
        return_logits: Which rows of logits a step returns.
        norm_method: `rms_norm`, or `layer_norm` without weights and with an epsilon of 1e-5.
        norm_dtype: Element type of the norm weights; None: `dtype`.
        attention_bias: Whether Q, K and V have biases.
        rms_norm_eps: Epsilon of `rms_norm`; None with `layer_norm`.
        tie_word_embeddings: Whether the output matrix is the embedding.
        stacked_mlp: Whether gate and up are one matrix.
        stacked_qkv: Whether Q, K and V are one matrix.
        attention_multiplier: The whole factor on q·k; it replaces `1 / sqrt(D)`.
        embedding_multiplier: Factor on embeddings, once, before layer 0. It never touches the output matrix.
        residual_multiplier: Factor on each branch before it joins the residual stream.
        devices: Where the model runs, in order.
        clip_qkv: Projected Q, K, V are clamped to plus or minus this (the reference's reading); None: not at all.
        quant_config: Scales of FP8 and FP4 checkpoints, or None.
        lora_config: Options of adapters, or None.
        longrope_scaling_params: LongRoPE's factor lists, or None.
        logits_scaling: What logits are divided by.
        return_hidden_states: Which hidden states a step returns.
        use_subgraphs: Whether equal layers are built once.
        data_parallel_degree: Replicas of the model.
        partial_rotary_factor: Share of a head that is rotated. Not a parameter: `initialize_from_config` sets it.
        attention_output_bias: Whether the attention's output projection has a bias. Not a parameter: `finalize` finds
            it.
        mlp_bias: Whether the products of the MLP have biases. Not a parameter: `finalize` finds it.
    """

    default_rope_type: ClassVar[RopeType] = "normal"
    """Pairing in GGUF files of this family, where the configuration resolved none."""

    activations: ClassVar[tuple[str, ...]] = ("silu", "swish")
    """Values of `hidden_act` that the decoder computes."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int
    rope_theta: float
    rope_scaling_params: RopeScalingParams | None
    max_seq_len: int
    intermediate_size: int
    interleaved_rope_weights: bool
    vocab_size: int
    dtype: DType
    model_quantization_encoding: QuantizationEncoding | None
    quantization_config: QuantizationConfig | None
    kv_params: KVCacheParams
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN
    norm_method: NormMethod = "rms_norm"
    norm_dtype: DType | None = None
    attention_bias: bool = False
    rms_norm_eps: float | None = None
    tie_word_embeddings: bool = False
    stacked_mlp: bool = False
    stacked_qkv: bool = False
    attention_multiplier: float
    embedding_multiplier: float
    residual_multiplier: float
    devices: list[DeviceRef]
    clip_qkv: float | None
    quant_config: QuantConfig | None = None
    lora_config: LoRAConfig | None = None
    longrope_scaling_params: LongRoPEScalingParams | None = None
    logits_scaling: float = 1.0
    return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE
    use_subgraphs: bool = True
    data_parallel_degree: int = 1
    partial_rotary_factor: float = field(init=False, default=1.0)
    attention_output_bias: bool = field(init=False, default=False)
    mlp_bias: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.return_logits = ReturnLogits(self.return_logits)
        self.return_hidden_states = ReturnHiddenStates(self.return_hidden_states)
        _check_norm_method(self.norm_method)

    @staticmethod
    def calculate_attention_multiplier(huggingface_config: Any) -> float:
        """The whole factor on q·k: the configuration's `attention_multiplier`, else `sqrt(1 / D)`."""
        multiplier: float | None = read_number(huggingface_config, "attention_multiplier", None)
        if multiplier is not None:
            return multiplier
        return math.sqrt(1.0 / Llama3Config.get_head_dim(huggingface_config))

    @staticmethod
    def calculate_max_seq_len(
        pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> int:
        """Most tokens of a sequence: `max_length` where it is set, else `max_position_embeddings`.

        With dynamic scaling of rotary embedding, which begins where `max_position_embeddings` ends, `max_length` may be
        up to its `factor` times as long.

        Raises:
            ValueError: `max_length` is above what the model allows; it is never lowered silently.
        """
        model_config = model_config or pipeline_config.model
        length, bound = model_config.max_length, read_count(huggingface_config, "max_position_embeddings")
        if length is not None and length > bound:
            scaling = read_rope_settings(huggingface_config).scaling
            if isinstance(scaling, DynamicRopeScalingParams) and length <= bound * scaling.factor:
                return length
        try:
            return upper_bounded_default(upper_bound=bound, default=length)
        except ValueError as error:
            raise InvalidRequestError(
                f"unable to infer max_length for Llama 3: the given max_length ({length}) exceeds "
                f"the model's max_position_embeddings ({bound})",
                param="max_length",
            ) from error

    @staticmethod
    def construct_kv_params(
        huggingface_config: Any,
        pipeline_config: PipelineConfig,
        devices: list[DeviceRef],
        kv_cache_config: KVCacheConfig,
        cache_dtype: DType,
    ) -> KVCacheParams:
        """Sizes of the KV cache: heads from the model, pages from the options.

        Raises:
            ValueError: the sizes do not fit each other, see `KVCacheParams`.
        """
        head_dim = Llama3Config.get_head_dim(huggingface_config)
        speculative = pipeline_config.speculative
        reads_states = speculative is not None and speculative.reads_hidden_states
        return KVCacheParams(
            dtype=cache_dtype,
            n_kv_heads=read_count(huggingface_config, "num_key_value_heads"),
            head_dim=head_dim,
            num_layers=Llama3Config.get_num_layers(huggingface_config),
            devices=list(devices),
            enable_prefix_caching=kv_cache_config.enable_prefix_caching,
            kv_connector=kv_cache_config.kv_connector,
            kv_connector_config=kv_cache_config.kv_connector_config,
            page_size=kv_cache_config.kv_cache_page_size,
            num_q_heads=read_count(huggingface_config, "num_attention_heads"),
            kvcache_quant_config=KVCacheQuantizationConfig.of(cache_dtype, head_dim),
            data_parallel_degree=pipeline_config.model.data_parallel_degree,
            num_eagle_speculative_tokens=(
                speculative.num_speculative_tokens if speculative is not None and reads_states else 0
            ),
        )

    @staticmethod
    def get_head_dim(huggingface_config: Any) -> int:
        """Size of a head: `head_dim` where it is set and not null, else `hidden_size // num_attention_heads`."""
        head_dim: int | None = read_count(huggingface_config, "head_dim", None)
        if head_dim is not None:
            return head_dim
        return read_count(huggingface_config, "hidden_size") // read_count(huggingface_config, "num_attention_heads")

    @staticmethod
    def get_num_layers(huggingface_config: Any) -> int:
        """Layers: `num_hidden_layers`."""
        return read_count(huggingface_config, "num_hidden_layers")

    def get_kv_params(self) -> KVCacheParams:
        """Sizes of the KV cache."""
        return self.kv_params

    def get_max_seq_len(self) -> int:
        """Most tokens of a sequence, prompt and output."""
        return self.max_seq_len

    @classmethod
    def initialize(cls, pipeline_config: PipelineConfig, model_config: MAXModelConfig | None = None) -> Self:
        """The configuration of the main model, or of the model that `model_config` describes.

        Raises:
            ValueError: the model has no configuration (the message names its path); otherwise as
                `initialize_from_config`.
        """
        model_config = model_config or pipeline_config.model
        huggingface_config = require_huggingface_config(model_config)
        return cls.initialize_from_config(pipeline_config, huggingface_config, model_config)

    @classmethod
    def initialize_from_config(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig | None = None
    ) -> Self:
        """Fill everything that does not need the tensors; what `finalize` sets keeps its default.

        KV options, encoding, devices and rope type are `model_config`'s; `use_subgraphs`, `data_parallel_degree`,
        block format, GPTQ's settings and the number of devices are the main model's, even for a draft.

        Raises:
            ValueError: a required key is missing, or its value is not supported; the encoding is not resolved;
                `max_length` is above what the model allows; the cache's sizes do not fit.
        """
        model_config = model_config or pipeline_config.model
        cls.check_supported(huggingface_config, model_config)
        config = cls(**cls.initial_values(pipeline_config, huggingface_config, model_config))
        config.partial_rotary_factor = read_rope_settings(huggingface_config).partial_rotary_factor
        return config

    @classmethod
    def check_supported(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """Refuse keys whose values would change the result and that this family does not implement.

        Raises:
            UnsupportedModelError: one of them has such a value.
            InvalidRequestError: an option that this family does not have.
        """
        file = config_source(huggingface_config)
        for key in ("hidden_act", "hidden_activation"):
            activation = read_value(huggingface_config, key)
            if activation is not None and activation not in cls.activations:
                raise UnsupportedModelError(key, activation, file=file, supported=", ".join(cls.activations))
        cls.check_sliding_window(huggingface_config, model_config)

    @classmethod
    def check_sliding_window(cls, huggingface_config: Any, model_config: MAXModelConfig) -> None:
        """Refuse attention windows, which this family does not have. Raises as `check_supported`."""
        window = read_value(huggingface_config, "sliding_window")
        if window is not None and read_value(huggingface_config, "use_sliding_window") is not False:
            file = config_source(huggingface_config)
            raise UnsupportedModelError("sliding_window", window, file=file, supported="null")
        if model_config.sliding_window is not None:
            raise InvalidRequestError("is not an option of this architecture", param="sliding_window")

    @classmethod
    def initial_values(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, model_config: MAXModelConfig
    ) -> dict[str, Any]:
        """The keyword arguments that `initialize_from_config` makes the configuration of. Raises as that method."""
        main = pipeline_config.model
        encoding = model_config.resolved_encoding
        rope = read_rope_settings(huggingface_config)
        is_longrope = isinstance(rope.scaling, LongRoPEScalingParams)
        specs = model_config.device_specs[: len(main.device_specs)]
        devices = [DeviceRef(spec.device_type, spec.id) for spec in specs]
        cache = model_config.kv_cache
        return {
            "hidden_size": read_count(huggingface_config, "hidden_size"),
            "num_attention_heads": read_count(huggingface_config, "num_attention_heads"),
            "num_key_value_heads": read_count(huggingface_config, "num_key_value_heads"),
            "num_hidden_layers": cls.get_num_layers(huggingface_config),
            "rope_theta": rope.theta,
            "rope_scaling_params": None if is_longrope else rope.scaling,
            "longrope_scaling_params": rope.scaling if is_longrope else None,
            "max_seq_len": cls.calculate_max_seq_len(pipeline_config, huggingface_config, model_config),
            "intermediate_size": read_count(huggingface_config, "intermediate_size"),
            "interleaved_rope_weights": cls.is_interleaved(model_config),
            "vocab_size": read_count(huggingface_config, "vocab_size"),
            "dtype": encoding.dtype,
            "model_quantization_encoding": main.resolved_encoding.quantization_encoding,
            "quantization_config": read_gptq_settings(main.resolved_encoding, huggingface_config),
            "kv_params": cls.construct_kv_params(
                huggingface_config, pipeline_config, devices, cache, cache.cache_dtype
            ),
            "attention_multiplier": cls.calculate_attention_multiplier(huggingface_config),
            "embedding_multiplier": read_number(huggingface_config, "embedding_multiplier", 1.0),
            "residual_multiplier": read_number(huggingface_config, "residual_multiplier", 1.0),
            "logits_scaling": read_number(huggingface_config, "logits_scaling", 1.0),
            "devices": devices,
            "clip_qkv": read_number(huggingface_config, "clip_qkv", None),
            "lora_config": pipeline_config.lora,
            "use_subgraphs": main.use_subgraphs,
            "data_parallel_degree": main.data_parallel_degree,
        }

    @classmethod
    def is_interleaved(cls, model_config: MAXModelConfig) -> bool:
        """Whether rotated pairs are neighbours: for GGUF files whose resolved rope type is `normal`."""
        return model_config.is_gguf and (model_config.rope_type or cls.default_rope_type) == "normal"

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: dict[str, WeightData],
        return_logits: ReturnLogits,
        return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE,
        norm_method: NormMethod = "rms_norm",
        attention_bias: bool = False,
    ) -> None:
        """Define parameters that can't be determined just from the pipeline config.

        Layer 0 tells the layout of all layers. Biases that the checkpoint holds are never left out: `attention_bias`
        and `mlp_bias` are also set where the configuration or the tensors have them.

        Args:
            huggingface_config: The checkpoint's configuration.
            state_dict: Its tensors, with or without a `language_model.` or `model.` prefix.
            return_logits: Which rows of logits a step returns.
            return_hidden_states: Which hidden states a step returns.
            norm_method: The model class' norm.
            attention_bias: Whether the model class has biases on Q, K and V.

        Raises:
            ValueError: an unknown norm, a quantization that is not run, or a value of the wrong type.
        """
        _check_norm_method(norm_method)
        layout = CheckpointLayout.of(state_dict)
        self.quant_config = read_quant_config(huggingface_config, state_dict)
        self.norm_dtype = layout.norm_dtype
        self.stacked_mlp = layout.stacked_mlp
        self.stacked_qkv = layout.stacked_qkv
        self.tie_word_embeddings = read_flag(huggingface_config, "tie_word_embeddings", not layout.has_lm_head)
        self.rms_norm_eps = _rms_norm_eps(huggingface_config) if norm_method == "rms_norm" else None
        self.norm_method = norm_method
        states_bias = read_flag(huggingface_config, "attention_bias", False)
        self.attention_bias = attention_bias or layout.attention_bias or states_bias
        self.attention_output_bias = layout.attention_output_bias
        self.mlp_bias = layout.mlp_bias or read_flag(huggingface_config, "mlp_bias", False)
        self.return_logits = ReturnLogits(return_logits)
        self.return_hidden_states = ReturnHiddenStates(return_hidden_states)

    @property
    def head_dim(self) -> int:
        """Size of a head, for attention and rotary embedding alike."""
        return self.kv_params.head_dim

    def rotary_embedding(self) -> RotaryEmbedding:
        """The rotary embedding that the fields describe. Raises as `decoder.rotary_embedding`."""
        return rotary_embedding(self)

    def decoder_spec(self) -> DecoderSpec:
        """The decoder that the fields describe. Raises as `decoder.decoder_spec`."""
        return decoder_spec(self)


def _check_norm_method(norm_method: str) -> None:
    if norm_method not in _NORM_METHODS:
        raise ValueError(f"norm_method = {norm_method!r} is unknown; there is: {', '.join(_NORM_METHODS)}")


def _rms_norm_eps(config: Any) -> float | None:
    if read_value(config, "model_type") == "exaone" and read_value(config, "layer_norm_epsilon") is not None:
        return read_number(config, "layer_norm_epsilon")
    return read_number(config, "rms_norm_eps", None)
