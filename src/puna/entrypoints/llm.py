"""`LLM`: a model, its tokenizer and the loop, wired together for one process.

This is where the layers meet: names become files, files become weights, weights a program; text becomes tokens, and
tokens text again. Nothing below this module knows of text, nothing above it of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from puna.driver import CPU
from puna.engine import InferenceSession
from puna.entrypoints.answer import Answer, Generation, TextDelta
from puna.entrypoints.fair_lock import FairLock
from puna.errors import InsufficientMemoryError, InvalidRequestError, UnsupportedModelError
from puna.graph.weights import GGUFWeights
from puna.models import DEFAULT_MODEL, find_model
from puna.nn.transformer import ReturnLogits
from puna.pipelines.architectures import register_all_models
from puna.pipelines.context import EOSTracker, TextContext, TokenBuffer
from puna.pipelines.kv_cache import PagedKVCacheManager, machine_memory, plan_num_blocks
from puna.pipelines.lib import (
    PIPELINE_REGISTRY,
    KVCacheConfig,
    MAXModelConfig,
    PipelineConfig,
    PipelineRuntimeConfig,
)
from puna.pipelines.request import GenerateRequest, RequestID, SamplingParamsInput
from puna.pipelines.sampling import Sampler
from puna.pipelines.scheduler import Scheduler, SchedulerLimits
from puna.pipelines.text_generation import TextGenerationPipeline
from puna.tokenization import Tokenizer, load_tokenizer_async

__all__ = ["LLM", "Generation", "LoadOptions", "Precision", "TextDelta", "kernel_variant"]

Precision = Literal["auto", "float32"]

_STEP_TOKENS: Final = 512  # large enough for matrix products, small enough to be interrupted soon
_MARGIN: Final = 0.95  # of the available memory that weights may take


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        dtype: `auto`: products take activations of 8 bits where the weights' format has integer kernels; `float32`:
            every product takes float32 activations.
        kv_cache_dtype: Element type of cached keys and values: `float32`, `float16`, `bfloat16`, or `auto` (float16).
        max_length: Most tokens of a request; None: what the model and the memory allow.
        num_threads: Threads that work on a step; None: as many as this process may use.
        max_batch_size: Requests in a step.
        page_size: Tokens of a page of the KV cache.
        chat_template: A file with a template that replaces the model's own.
        revision: Branch, tag or commit, for models on the hub.
        use_prefix_cache: Whether requests with equal beginnings share pages.
        max_step_tokens: Tokens in a step, over all requests; a longer prompt is read in several steps.
        max_num_steps: Forward passes between two decisions of the scheduler.
        enable_echo: Whether requests may ask for log-probabilities of their prompts; every step then makes the logits
            of all its tokens, and such prompts are read in one step.
    """

    dtype: Precision = "auto"
    kv_cache_dtype: str = "auto"
    max_length: int | None = None
    num_threads: int | None = None
    max_batch_size: int = 1
    page_size: int = 128
    chat_template: Path | None = None
    revision: str | None = None
    use_prefix_cache: bool = True
    max_step_tokens: int = _STEP_TOKENS
    max_num_steps: int = 1
    enable_echo: bool = False


class LLM:
    """A loaded model that answers requests.

    Several threads may use it at once; their requests share its steps.

    Args:
        model: A `.gguf` file, a directory, a name on the hub, or `smollm2`.
        options: How it is loaded.

    Attributes:
        tokenizer: Text to tokens and back.
        sampling_defaults: What the checkpoint states about sampling; empty: nothing.
        max_length: Most tokens of a request, prompt and output together.
        notices: What a person should know about how it was loaded.
        load_seconds: How long loading took.
    """

    def __init__(self, model: str = DEFAULT_MODEL, options: LoadOptions | None = None) -> None:
        begin = time.perf_counter()
        self.options = options = options or LoadOptions()
        self._turn = FairLock()  # whoever has it may use the loop
        self._answers: dict[RequestID, Answer] = {}
        self.name = model
        register_all_models()
        config = _model_config(model, options)
        tokenizer = _start_tokenizer(config)
        pipeline_config = PipelineConfig(
            model=config,
            runtime=PipelineRuntimeConfig(
                max_batch_size=options.max_batch_size,
                max_batch_input_tokens=options.max_step_tokens,
                max_num_steps=options.max_num_steps,
            ),
        )
        self.sampling_defaults: SamplingParamsInput = config.sampling_params_defaults
        self._model, self._pipeline, cache_tokens = _load_pipeline(pipeline_config, options)
        max_seq_len = self._model.max_seq_len
        self.max_length = min(max_seq_len, cache_tokens)
        self.notices: tuple[str, ...] = ()
        if self.max_length < max_seq_len:
            self.notices = (f"memory holds a context of {self.max_length} tokens, the model would take {max_seq_len}",)
        self.tokenizer: Tokenizer = tokenizer.result()
        self.load_seconds = time.perf_counter() - begin

    @property
    def model(self) -> Any:
        """The loaded pipeline model."""
        return self._model

    @property
    def pipeline(self) -> TextGenerationPipeline:
        """The loop, for benchmarks: they take its steps themselves, and answer no requests meanwhile."""
        return self._pipeline

    def encode(self, request: GenerateRequest) -> list[int]:
        """The prompt's tokens.

        Raises:
            UnsupportedModelError: Messages were given and the model has no chat template.
            InvalidRequestError: The prompt is empty, or holds what is no text or no token.
        """
        if request.token_ids is not None:
            ids = [int(token) for token in request.token_ids]
        elif request.messages is not None:
            template = self.tokenizer.chat_template
            if template is None:
                raise UnsupportedModelError(
                    "chat template", None, file=self.name, supported="a plain prompt, or a template of your own"
                )
            text = template.render(request.messages, variables=request.chat_template_kwargs)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = self.tokenizer.encode(request.text or "")
        if not ids:
            raise InvalidRequestError("is empty, and this model has no token that begins a text", param="prompt")
        return ids

    def stream(self, request: GenerateRequest, prompt_ids: Sequence[int] | None = None) -> Iterator[TextDelta]:
        """Answers one request; text comes as it is made. An iterator that is dropped ends the request.

        Args:
            request: The prompt and how to answer it.
            prompt_ids: The prompt's tokens, when `encode` made them already.

        Raises:
            InvalidRequestError: The prompt does not fit.
            PunaError: The request failed while it ran.
        """
        answer = self._begin(request, prompt_ids)
        try:
            while answer.deltas or not answer.is_finished:
                self._advance(answer)
                while answer.deltas:
                    delta = answer.deltas.popleft()
                    if delta.error is not None:
                        raise delta.error
                    yield delta
        finally:
            self._end([answer])

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Answers several requests together, in the order in which they were given.

        A request that fails while it runs does not touch the others: its generation has the `error`.

        Raises:
            InvalidRequestError: A prompt does not fit; nothing was answered.
        """
        answers: list[Answer] = []
        try:
            for request in requests:
                answers.append(self._begin(request, None))
            for answer in answers:
                while not answer.is_finished:
                    answer.deltas.clear()  # nobody reads them one by one
                    self._advance(answer)
        finally:
            self._end(answers)
        return [answer.whole() for answer in answers]

    def _begin(self, request: GenerateRequest, prompt_ids: Sequence[int] | None) -> Answer:
        ids = list(prompt_ids) if prompt_ids is not None else self.encode(request)
        if request.model_name not in (None, self.name):
            raise InvalidRequestError(f"{request.model_name!r} is not loaded; there is: {self.name}", param="model")
        params = request.sampling_params
        if len(ids) >= self.max_length:
            raise InvalidRequestError(
                f"it has {len(ids)} tokens, {len(ids) - self.max_length + 1} more than the context of "
                f"{self.max_length} tokens leaves room for",
                param="prompt",
            )
        # Rows beyond the tokenizer are padding; tokens beyond the rows cannot be read.
        vocab_size = min(self.tokenizer.vocab_size, self._model.config.vocab_size)
        room = self.max_length - len(ids)
        ends = frozenset(self.tokenizer.eos_token_ids) | frozenset(params.stop_token_ids or ())
        context = TextContext(
            tokens=TokenBuffer(np.array(ids, dtype=np.int64)),
            max_length=len(ids) + min(room, params.max_new_tokens or room),
            request_id=request.request_id,
            eos_tracker=EOSTracker(ends, eos_stop_strings=params.stop or ()),
            sampling_params=params,
            model_name=request.model_name,
            log_probabilities=request.logprobs,
            log_probabilities_echo=request.echo,
            vocab_size=vocab_size,
        )
        # An answer is a text of its own; a continuation goes on where the prompt ends.
        answer = Answer(context, self.tokenizer, [] if request.messages is not None else ids)
        with self._turn:
            self._pipeline.add(context)
            self._answers[context.request_id] = answer
        return answer

    def _advance(self, answer: Answer) -> None:
        """Makes a step for all requests, unless another thread's step brought something for this one already."""
        with self._turn:
            if answer.deltas or answer.is_finished:
                return
            for delta in self._pipeline.step():
                # A stop string ends its request, as a message from here back to the loop.
                if self._answers[delta.request_id].take(delta):
                    self._pipeline.abort(delta.request_id)

    def _end(self, answers: Sequence[Answer]) -> None:
        with self._turn:
            for answer in answers:
                self._pipeline.abort(answer.context.request_id)
                del self._answers[answer.context.request_id]


def _model_config(model: str, options: LoadOptions) -> MAXModelConfig:
    files = find_model(model, revision=options.revision)
    return MAXModelConfig(
        model_path=str(files.path),
        served_model_name=model,
        max_length=options.max_length,
        chat_template=options.chat_template,
        enable_echo=options.enable_echo,
        kv_cache=KVCacheConfig(
            kv_cache_page_size=options.page_size,
            kv_cache_format=options.kv_cache_dtype,
            enable_prefix_caching=options.use_prefix_cache,
        ),
    )


def _start_tokenizer(config: MAXModelConfig) -> Future[Tokenizer]:
    """Loads the tokenizer beside the weights."""
    template = config.read_chat_template()
    weights = config.weights
    if isinstance(weights, GGUFWeights):
        return load_tokenizer_async(weights.metadata, chat_template=template, name=config.files.path.name)
    return load_tokenizer_async(config.files.path, chat_template=template)


def _load_pipeline(config: PipelineConfig, options: LoadOptions) -> tuple[Any, TextGenerationPipeline, int]:
    """The loaded model, the loop over it, and how many tokens of one request its cache holds."""
    architecture = PIPELINE_REGISTRY.retrieve(config)
    model_config = config.model
    _require_room_for_weights(model_config.files.size_bytes)
    session = InferenceSession(num_threads=options.num_threads, precision=options.dtype, variant=kernel_variant())
    weights_format = model_config.weights_format
    assert weights_format is not None, "a resolved model has weights"
    model: Any = architecture.pipeline_model(
        config,
        session,
        [CPU()],
        model_config.kv_cache,
        model_config.weights,
        adapter=architecture.weight_adapters.get(weights_format),
        return_logits=config.return_logits,
    )
    num_blocks = plan_num_blocks(
        model.kv_params,
        machine_memory(),
        max_seq_len=model.max_seq_len,
        max_batch_size=options.max_batch_size,
        utilization=model_config.kv_cache.device_memory_utilization,
        may_shrink=options.max_length is None,
    )
    kv = PagedKVCacheManager(model.kv_params, num_blocks)
    runtime = config.runtime
    limits = SchedulerLimits(
        max_batch_size=options.max_batch_size,
        max_step_tokens=runtime.max_batch_input_tokens,
        max_request_tokens=runtime.max_request_input_tokens,
        max_num_steps=runtime.num_steps,
        use_chunks=runtime.enable_chunked_prefill,
        admission_watermark=runtime.kvcache_ce_watermark,
    )
    rope = model.rope
    scheduler = Scheduler([kv], limits, rope if rope.depends_on_length else None)
    pipeline = TextGenerationPipeline(
        model, scheduler, Sampler(), session, has_all_logits=config.return_logits is ReturnLogits.ALL
    )
    return model, pipeline, kv.max_tokens


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


def _require_room_for_weights(needed: int) -> None:
    """Weights are packed into memory of their own; refuse before the machine starts to swap or kills the process."""
    memory = machine_memory()
    if needed > memory.available * _MARGIN:
        raise InsufficientMemoryError(
            "the model's weights", needed, int(memory.available * _MARGIN), "use a smaller model or quantization"
        )
