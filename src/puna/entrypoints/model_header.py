"""What a model's headers tell before any weight is read: its shape, its parts, what it will take and how fast it can
be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from puna import _native
from puna.dtype import DType
from puna.engine import plan_activations
from puna.engine.registry import bind_weights
from puna.entrypoints.knob_costs import FAMILY_SWITCHES, cost_of
from puna.graph.weights import GGUFWeights, WeightData, Weights
from puna.graph.weights.weight_data import stored_bytes
from puna.models import ModelFiles, find_model
from puna.nn.decoder_spec import ReturnLogits
from puna.nn.transformer import build_decoder_graph
from puna.pipelines.architectures import register_all_models
from puna.pipelines.kv_cache import MachineMemory
from puna.pipelines.lib import PIPELINE_REGISTRY, KVCacheConfig, MAXModelConfig, PipelineConfig, SupportedArchitecture
from puna.tokenization import Tokenizer, load_tokenizer

# Tensor class -> what its names contain, in Hugging Face's and in GGUF's spelling; the first that fits counts.
_CLASSES: Final = (
    ("norms", re.compile(r"norm")),
    ("embedding", re.compile(r"embed_tokens|token_embd|wte")),
    ("attention", re.compile(r"attn")),
    ("mlp", re.compile(r"mlp|ffn")),
    ("output", re.compile(r"lm_head|^output\.")),
)
# Fields that say how the model is run here, not what it computes.
_RUN_FIELDS: Final = frozenset(
    {
        "kv_params",
        "devices",
        "lora_config",
        "return_logits",
        "return_hidden_states",
        "use_subgraphs",
        "data_parallel_degree",
    }
)
_FROM_TENSORS: Final = frozenset(
    {
        "dtype",
        "model_quantization_encoding",
        "norm_dtype",
        "stacked_mlp",
        "stacked_qkv",
        "attention_output_bias",
        "mlp_bias",
    }
)
_FROM_FAMILY: Final = frozenset({"norm_method", "attention_bias", "interleaved_rope_weights"})
# Keys that are called otherwise in a checkpoint's configuration.
_CONFIG_KEYS: Final = {
    "max_seq_len": "max_position_embeddings",
    "rope_scaling_params": "rope_scaling",
    "longrope_scaling_params": "rope_scaling",
}


@dataclass(frozen=True, slots=True)
class Knob:
    """One number or switch of a model.

    Attributes:
        name: Its name.
        value: What the model sets it to.
        source: Where it was read: a file, its tensors, the family, or a `default`.
        cost: What ignoring it would cost; None where it is what Llama has.
    """

    name: str
    value: Any
    source: str
    cost: str | None


@dataclass(frozen=True, slots=True)
class StoredClass:
    """Tensors of one class in one encoding.

    Attributes:
        tensor_class: `embedding`, `attention`, `mlp`, `norms`, `output` or `other`.
        encoding: Their encoding, by GGUF's, DType's or the quantization method's name.
        computed_as: The format that kernels read them in: another one where codes and scales are tensors of their own.
        tensors: How many there are.
        elements: Their elements together.
        size_bytes: Their bytes together, as stored.
        packed_bytes: Their bytes together, as kernels read them.
    """

    tensor_class: str
    encoding: str
    computed_as: str
    tensors: int
    elements: int
    size_bytes: int
    packed_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that a model takes, by part.

    Attributes:
        weights: Packed weights.
        kv_cache_per_token: Cached keys and values of one token.
        kv_cache: Those of a request of the full context.
        activations: Scratch of a step of one request, and its logits.
        available: What this process could have now.
    """

    weights: int
    kv_cache_per_token: int
    kv_cache: int
    activations: int
    available: int


@dataclass(frozen=True, slots=True)
class SpeedEstimate:
    """What this machine's measured limits allow: a bound, which kernels come near to and never pass.

    Attributes:
        read_gbps: Memory bandwidth of all threads, in GB/s.
        f32_gflops: Float32 multiply-adds, counted as two operations each, in GFLOP/s.
        int8_gops: 8-bit integer multiply-adds, likewise.
        prompt_tokens_per_s: Prompt tokens per second: bound by arithmetic.
        generation_tokens_per_s: Generated tokens per second at the beginning of a text: bound by reading weights.
    """

    read_gbps: float
    f32_gflops: float
    int8_gops: float
    prompt_tokens_per_s: float
    generation_tokens_per_s: float


@dataclass(frozen=True)
class ModelHeader:
    """A model whose headers were read and whose weights were not.

    Attributes:
        name: The name that was given.
        files: Where it is.
        config: Options and files.
        architecture: Its family.
        arch_config: Its numbers.
        state_dict: Its weights by the graph's names, mapped and not read.
    """

    name: str
    files: ModelFiles
    config: MAXModelConfig
    architecture: SupportedArchitecture
    arch_config: Any
    state_dict: dict[str, WeightData]

    def knobs(self) -> list[Knob]:
        """Every number and switch that shapes the computation, with the place it was read from."""
        spec = self.arch_config.decoder_spec()
        found: list[Knob] = []
        for item in fields(self.arch_config):
            value = getattr(self.arch_config, item.name)
            if item.name not in _RUN_FIELDS and value is not None:
                found.append(Knob(item.name, _plain(value), self._source(item.name), cost_of(item.name, spec)))
        shown = {knob.name for knob in found}
        for name in FAMILY_SWITCHES:
            cost = cost_of(name, spec)
            if name not in shown and cost is not None:
                found.append(Knob(name, _plain(getattr(spec, name)), self.architecture.name, cost))
        return found

    def _source(self, knob: str) -> str:
        if knob in _FROM_TENSORS:
            return "tensors"
        if knob in _FROM_FAMILY:
            return self.architecture.name
        key = _CONFIG_KEYS.get(knob, knob)
        origin = str(self.config.huggingface_config.origin(key))
        if self.files.kind == "gguf" and origin != "default":
            origin = "metadata"
        return f"{origin}: {key}" if origin != "default" and key != knob else origin

    def stored_classes(self) -> list[StoredClass]:
        """Tensors by class and encoding, in the order of a pass."""
        totals: dict[tuple[str, str, str], list[int]] = {}
        for name, tensor in self.config.weights.items():
            total = totals.setdefault((_class_of(name), *_encodings_of(tensor)), [0, 0, 0, 0])
            total[0] += 1
            total[1] += _elements(tensor.shape)
            total[2] += tensor.nbytes
            total[3] += stored_bytes(tensor.shape, tensor.dtype, tensor.quantization_encoding)
        order = [name for name, _pattern in _CLASSES] + ["other"]
        keys = sorted(totals, key=lambda key: (order.index(key[0]), *key[1:]))
        return [StoredClass(*key, *totals[key]) for key in keys]

    def memory(self, step_tokens: int, machine: MachineMemory) -> MemoryPlan:
        """What the model takes with a step of `step_tokens` tokens."""
        params = self.arch_config.kv_params
        config = self.arch_config
        arena = plan_activations(build_decoder_graph(config.decoder_spec(), self.state_dict), self.state_dict)
        return MemoryPlan(
            weights=sum(item.packed_bytes for item in self.stored_classes()),
            kv_cache_per_token=params.bytes_per_token,
            kv_cache=params.num_blocks_for(config.max_seq_len) * params.bytes_per_block,
            activations=arena.bytes_of(step_tokens, 1) + 4 * config.vocab_size,
            available=machine.available,
        )

    def speed(self, limits: Mapping[str, float]) -> SpeedEstimate:
        """Bounds for prompt and generation.

        A generated token reads every matrix once; of the embedding only when it is the output matrix too. A prompt
        token takes two operations per element of the matrices, the output's left out.

        Args:
            limits: What `puna._native.measure_limits` measured.
        """
        stored = self.stored_classes()
        has_output = any(item.tensor_class == "output" for item in stored)
        read = 0
        seconds = 0.0
        for item in stored:
            if item.tensor_class == "embedding" and has_output:
                continue
            read += item.packed_bytes
            if item.tensor_class in ("attention", "mlp", "other"):
                format = item.computed_as
                is_integer = format in _native.FORMATS and _native.format_info(format)[2] == "a8"
                rate = limits["int8_gops"] if is_integer else limits["f32_gflops"]
                seconds += 2 * item.elements / (rate * 1e9)
        return SpeedEstimate(
            read_gbps=limits["read_gbps"],
            f32_gflops=limits["f32_gflops"],
            int8_gops=limits["int8_gops"],
            prompt_tokens_per_s=1 / seconds if seconds else 0.0,
            generation_tokens_per_s=limits["read_gbps"] * 1e9 / read if read else 0.0,
        )


def open_header(model: str, *, revision: str | None = None, kv_cache_dtype: str = "auto") -> ModelHeader:
    """Reads a model's headers.

    Raises:
        ModelNotFoundError: There is no such model.
        UnsupportedModelError: It is of a kind that is not run.
        WeightsError: Its files are damaged.
    """
    register_all_models()
    files = find_model(model, revision=revision)
    config = MAXModelConfig(
        model_path=str(files.path), served_model_name=model, kv_cache=KVCacheConfig(kv_cache_format=kv_cache_dtype)
    )
    pipeline_config = PipelineConfig(model=config)
    architecture = PIPELINE_REGISTRY.retrieve(pipeline_config)
    arch_config: Any = architecture.config.initialize(pipeline_config)
    state_dict = _finalize(arch_config, architecture, config, pipeline_config)
    return ModelHeader(model, files, config, architecture, arch_config, state_dict)


def _finalize(
    arch_config: Any, architecture: SupportedArchitecture, config: MAXModelConfig, pipeline_config: PipelineConfig
) -> dict[str, WeightData]:
    """Settles what follows from the names and shapes of the tensors; their data are mapped, not read."""
    tensors: Any = dict(config.weights.items())
    adapter = None if config.weights_format is None else architecture.weight_adapters.get(config.weights_format)
    if adapter is None:
        state_dict = {name: tensor.data() for name, tensor in tensors.items()}
    else:
        state_dict = adapter(tensors, huggingface_config=config.huggingface_config, pipeline_config=pipeline_config)
    model: Any = architecture.pipeline_model
    arch_config.finalize(
        huggingface_config=config.huggingface_config,
        state_dict=state_dict,
        return_logits=ReturnLogits.LAST_TOKEN,
        norm_method=model.norm_method,
        attention_bias=model.attention_bias,
    )
    # What a load would refuse is refused here: numbers that the tensors contradict make no estimate.
    bind_weights(build_decoder_graph(arch_config.decoder_spec(), state_dict), state_dict)
    return dict(state_dict)


def open_tokenizer(model: str, *, revision: str | None = None, chat_template: Path | None = None) -> Tokenizer:
    """Loads a model's tokenizer, without its weights.

    Raises:
        As `open_header`.
    """
    files = find_model(model, revision=revision)
    config = MAXModelConfig(model_path=str(files.path), served_model_name=model, chat_template=chat_template)
    return tokenizer_of(config)


def tokenizer_of(config: MAXModelConfig) -> Tokenizer:
    """The tokenizer of a model whose files were found."""
    template = config.read_chat_template()
    weights: Weights = config.weights
    if isinstance(weights, GGUFWeights):
        return load_tokenizer(weights.metadata, chat_template=template, name=config.files.path.name)
    return load_tokenizer(config.files.path, chat_template=template)


def _class_of(name: str) -> str:
    return next((label for label, pattern in _CLASSES if pattern.search(name)), "other")


def _encodings_of(tensor: Weights) -> tuple[str, str]:
    """The encoding of a tensor, and the format that it is computed in."""
    encoding = tensor.quantization_encoding
    format = encoding.value if encoding is not None else _GGML_NAMES.get(tensor.dtype, str(tensor.dtype))
    is_own = tensor.stored_as == (encoding.name if encoding is not None else str(tensor.dtype))
    return format if is_own else tensor.stored_as, format


_GGML_NAMES: Final = {DType.float32: "F32", DType.float16: "F16", DType.bfloat16: "BF16"}


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _plain(value: Any) -> Any:
    """A value that JSON knows."""
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) else value.name
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__} | {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
