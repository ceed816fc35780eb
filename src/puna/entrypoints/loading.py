"""From a model's name to a loop that runs: names become files, files weights, weights a program.

This is where the layers meet. Nothing below knows of text, nothing above of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from puna.driver import CPU, Device
from puna.engine import InferenceSession
from puna.entrypoints.prefix_store import open_prefix_store
from puna.entrypoints.quantized_loading import QuantizingAdapter
from puna.entrypoints.weight_cache import weight_cache
from puna.errors import InsufficientMemoryError, InvalidRequestError, UnsupportedModelError
from puna.graph.quantization import recipe_of
from puna.graph.weights import GGUFWeights
from puna.graph.weights.quantized import QuantizedWeight
from puna.graph.weights.weight_data import stored_bytes
from puna.models import find_model
from puna.pipelines.architectures import register_all_models
from puna.pipelines.kv_cache import BlockStore, MachineMemory, PagedKVCacheManager, machine_memory, plan_num_blocks
from puna.pipelines.lib import (
    PIPELINE_REGISTRY,
    KVCacheConfig,
    LoRAConfig,
    MAXModelConfig,
    PipelineConfig,
    PipelineRuntimeConfig,
)
from puna.pipelines.sampling import Sampler
from puna.pipelines.sampling_params import SamplingParamsInput
from puna.pipelines.scheduler import Scheduler, SchedulerLimits
from puna.pipelines.text_generation import TextGenerationPipeline
from puna.tokenization import Tokenizer, load_tokenizer_async

__all__ = ["EngineOptions", "GenerationConfig", "LoadedModel", "Precision", "kernel_variant", "load_model"]

Precision = Literal["auto", "float32"]
GenerationConfig = Literal["auto", "none"]

_MARGIN: Final = 0.95  # of the available memory that weights may take
_NUM_LORAS: Final = 8  # slots for adapters, which cost nothing while they are empty
_LOGIT_BYTES: Final = 64 << 20  # that a step may spend on the logits of all its tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a model is loaded and run; `puna.LLM` describes the values.

    Raises:
        InvalidRequestError: a value is outside its range (`param` names it).
    """

    dtype: Precision = "auto"
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    max_num_steps: int = 1
    kv_cache_memory: int | None = None
    block_size: int = 128
    enable_prefix_caching: bool = True
    enable_weight_cache: bool = True
    quantize: str | None = None
    prefix_cache_dir: str | Path | None = None
    prefix_cache_bytes: int = 10 << 30
    data_parallel_degree: int = 1
    threads: int | None = None
    seed: int | None = None
    generation_config: GenerationConfig = "auto"
    chat_template: str | Path | None = None
    revision: str | None = None
    enable_lora: bool = False
    lora_paths: Sequence[str] = ()
    max_lora_rank: int = 16
    max_num_loras: int | None = None
    lora_memory: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low = 0 if field.name == "seed" else 1
            is_number = field.type in ("int", "int | None")
            if is_number and value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InvalidRequestError(f"must be an integer, got {value!r}", param=field.name)
            if is_number and value is not None and value < low:
                raise InvalidRequestError(f"must be at least {low}, got {value}", param=field.name)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidRequestError(
                f"{self.max_num_batched_tokens} is below max_num_seqs ({self.max_num_seqs}): every sequence of a step "
                "has at least one token",
                param="max_num_batched_tokens",
            )
        if self.lora_paths and not self.enable_lora:
            raise InvalidRequestError("needs enable_lora", param="lora_paths")
        for name, kinds in (("dtype", Precision), ("generation_config", GenerationConfig)):
            if getattr(self, name) not in get_args(kinds):
                expected = " or ".join(get_args(kinds))
                raise InvalidRequestError(f"must be {expected}, got {getattr(self, name)!r}", param=name)
        if self.quantize is not None:
            recipe_of(self.quantize, "quantize")


    @property
    def lora(self) -> LoRAConfig | None:
        """The options of adapters, or None."""
        if not self.enable_lora:
            return None
        return LoRAConfig(
            enable_lora=True,
            lora_paths=list(self.lora_paths),
            max_lora_rank=self.max_lora_rank,
            max_num_loras=max(_NUM_LORAS, len(self.lora_paths)) if self.max_num_loras is None else self.max_num_loras,
            lora_memory=self.lora_memory,
        )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer and the loop over it.

    Attributes:
        name: What it was asked for by.
        model: The pipeline model.
        pipeline: The loop.
        tokenizer: Text to tokens and back, or the reason why there is none.
        sampling_defaults: What the checkpoint states about sampling, unless that was switched off.
        max_model_len: Most tokens of a request, prompt and output together.
        notices: What a person should know about how it was loaded.
        store: Where prefixes are kept beyond the life of the process, or None.
    """

    name: str
    model: Any
    pipeline: TextGenerationPipeline
    tokenizer: Tokenizer | UnsupportedModelError
    sampling_defaults: SamplingParamsInput
    max_model_len: int
    notices: tuple[str, ...]
    store: BlockStore | None = None

    def close(self) -> None:
        """Writes what the store was given and ends its thread."""
        if self.store is not None:
            self.store.close()


def load_model(name: str, options: EngineOptions) -> LoadedModel:
    """Loads a model.

    Raises:
        ModelNotFoundError: there is no such model.
        UnsupportedModelError: it is of a kind that is not run.
        WeightsError: its files are damaged.
        InsufficientMemoryError: it does not fit.
    """
    register_all_models()
    config = _model_config(name, options)
    tokenizer = _start_tokenizer(config)
    pipeline_config = PipelineConfig(
        model=config,
        lora=options.lora,
        runtime=PipelineRuntimeConfig(
            max_batch_size=options.max_num_seqs,
            max_batch_input_tokens=options.max_num_batched_tokens,
            max_num_steps=options.max_num_steps,
        ),
    )
    model, pipeline, cache_tokens, store = _load_pipeline(pipeline_config, options)
    max_model_len = min(model.max_seq_len, cache_tokens)
    notices: tuple[str, ...] = ()
    if max_model_len < model.max_seq_len:
        notices = (f"memory holds a context of {max_model_len} tokens, the model would take {model.max_seq_len}",)
    if isinstance(model.adapter, QuantizingAdapter) and model.adapter.notice is not None:
        notices = (*notices, model.adapter.notice)
    return LoadedModel(
        name,
        model,
        pipeline,
        _tokenizer_or_reason(tokenizer.result),
        config.sampling_params_defaults if options.generation_config == "auto" else SamplingParamsInput(),
        max_model_len,
        notices,
        store,
    )


def kernel_variant() -> str:
    """The kernels that this process uses.

    Raises:
        InvalidRequestError: `PUNA_VARIANT` names kernels that this machine cannot run.
    """
    from puna import _native

    try:
        return str(_native.default_variant())
    except RuntimeError as error:
        raise InvalidRequestError(str(error)) from error  # the message begins with the variable's name


def _model_config(name: str, options: EngineOptions) -> MAXModelConfig:
    files = find_model(name, revision=options.revision)
    return MAXModelConfig(
        model_path=str(files.path),
        served_model_name=name,
        max_length=options.max_model_len,
        chat_template=Path(options.chat_template) if options.chat_template is not None else None,
        data_parallel_degree=options.data_parallel_degree,
        kv_cache=KVCacheConfig(
            kv_cache_page_size=options.block_size,
            kv_cache_format=options.kv_cache_dtype,
            enable_prefix_caching=options.enable_prefix_caching,
        ),
    )


def _start_tokenizer(config: MAXModelConfig) -> Future[Tokenizer]:
    """Loads the tokenizer beside the weights."""
    template = config.read_chat_template()
    weights = config.weights
    if isinstance(weights, GGUFWeights):
        return load_tokenizer_async(weights.metadata, chat_template=template, name=config.files.path.name)
    return load_tokenizer_async(config.files.path, chat_template=template)


def _tokenizer_or_reason(result: Callable[[], Tokenizer]) -> Tokenizer | UnsupportedModelError:
    """A model whose tokenizer is missing or of an unknown kind still runs on token ids."""
    try:
        return result()
    except UnsupportedModelError as error:
        return error


def _load_pipeline(
    config: PipelineConfig, options: EngineOptions
) -> tuple[Any, TextGenerationPipeline, int, BlockStore | None]:
    """The loaded model, the loop over it, how many tokens of one request its cache holds, and its store."""
    architecture = PIPELINE_REGISTRY.retrieve(config)
    model_config = config.model
    weights_format = model_config.weights_format
    assert weights_format is not None, "a resolved model has weights"
    adapter = architecture.weight_adapters.get(weights_format)
    if options.quantize is None:
        _require_room_for_weights(_decoded_bytes(model_config, is_exact=options.dtype == "float32"))
    else:
        adapter = QuantizingAdapter(options.quantize, adapter)
        tensors = dict(model_config.weights.items())
        named = adapter(tensors, huggingface_config=model_config.huggingface_config, pipeline_config=config)
        _require_room_for_weights(sum(weight.nbytes for weight in named.values()))
    devices: list[Device] = [CPU(number) for number in range(options.data_parallel_degree)]
    session = InferenceSession(
        devices,
        num_threads=options.threads,
        precision=options.dtype,
        variant=kernel_variant(),
        weight_cache=weight_cache() if options.enable_weight_cache else None,
    )
    model: Any = architecture.pipeline_model(
        config,
        session,
        devices,
        model_config.kv_cache,
        model_config.weights,
        adapter=adapter,
        return_logits=config.return_logits,
    )
    store = None
    if options.prefix_cache_dir is not None:
        directory = Path(options.prefix_cache_dir)
        store = open_prefix_store(directory, model, session, options.prefix_cache_bytes)
    num_blocks = _num_blocks(model, config, options)
    kv_managers = [PagedKVCacheManager(model.kv_params, num_blocks, store) for _device in devices]
    runtime = config.runtime
    limits = SchedulerLimits(
        max_batch_size=options.max_num_seqs,
        max_step_tokens=runtime.max_batch_input_tokens,
        max_request_tokens=runtime.max_request_input_tokens,
        max_logit_tokens=max(16, _LOGIT_BYTES // (4 * model.config.vocab_size)),
        max_num_steps=runtime.num_steps,
        max_num_loras=1 if config.lora is None else config.lora.max_num_loras,
        use_chunks=runtime.enable_chunked_prefill,
        admission_watermark=runtime.kvcache_ce_watermark,
    )
    rope = model.rope
    scheduler = Scheduler(kv_managers, limits, rope if rope.depends_on_length else None)
    return model, TextGenerationPipeline(model, scheduler, Sampler()), kv_managers[0].max_tokens, store


def _num_blocks(model: Any, config: PipelineConfig, options: EngineOptions) -> int:
    """Pages of a replica's KV cache: its part of `kv_cache_memory`, else of the machine's memory."""
    asked = options.kv_cache_memory
    memory = machine_memory().less(model.model.report.mapped_bytes + _adapter_reserve(model))
    if asked is not None and asked > memory.available:
        raise InsufficientMemoryError("the KV cache (kv_cache_memory)", asked, memory.available, "ask for less")
    return plan_num_blocks(
        model.kv_params,
        MachineMemory(memory.total, (memory.available if asked is None else asked) // options.data_parallel_degree),
        max_seq_len=model.max_seq_len,
        max_batch_size=options.max_num_seqs,
        utilization=config.model.kv_cache.device_memory_utilization if asked is None else 1.0,
        may_shrink=options.max_model_len is None,
    )


def _decoded_bytes(config: MAXModelConfig, *, is_exact: bool) -> int:
    """Bytes of the weights in the formats that kernels read: narrow floats are larger there than in their files."""
    weights = [tensor.data() for _name, tensor in config.weights.items()]
    if is_exact:
        weights = [data.widened() if isinstance(data, QuantizedWeight) else data for data in weights]
    return sum(stored_bytes(data.shape, data.dtype, data.quantization_encoding) for data in weights)


def _adapter_reserve(model: Any) -> int:
    """What adapters may still take of `lora_memory`, where that is stated."""
    manager = model.lora_manager
    if manager is None or manager.memory is None:
        return 0
    return max(int(manager.memory) - int(manager.resident_bytes), 0)


def _require_room_for_weights(needed: int) -> None:
    """Weights are packed into memory of their own; refuse before the machine starts to swap or kills the process."""
    memory = machine_memory()
    if needed > memory.available * _MARGIN:
        raise InsufficientMemoryError(
            "the model's weights", needed, int(memory.available * _MARGIN), "use a smaller model or quantization"
        )
