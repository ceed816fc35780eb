"""A checkpoint of any family as the pipeline loads it, and its logits under any way of cutting a batch into steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from puna.driver import CPU
from puna.engine import InferenceSession
from puna.engine import Model as EngineModel
from puna.graph import Graph
from puna.nn.decoder_spec import ReturnLogits
from puna.pipelines.architectures import register_all_models
from puna.pipelines.architectures.llama3 import LlamaModelBase
from puna.pipelines.lib import KVCacheConfig, MAXModelConfig, PipelineConfig, PipelineRuntimeConfig
from support.tiny_decoder import TinyCache

Precision = Literal["auto", "float32"]
Array = np.ndarray[Any, Any]


class _ReferenceSession(InferenceSession):
    """Loads everything into the NumPy executor."""

    def load(self, graph: Graph, weights_registry: Any = None, **_: Any) -> EngineModel:
        return super().load(graph, weights_registry, executor="reference")


def load_family(
    path: Path,
    executor: str = "native",
    *,
    precision: Precision = "float32",
    variant: str | None = None,
    kv_cache_format: str = "float32",
    **options: Any,
) -> LlamaModelBase:
    """The model of a directory or GGUF file: pages of 4 tokens, logits of all rows."""
    register_all_models()
    cache = KVCacheConfig(kv_cache_page_size=4, kv_cache_format=kv_cache_format)
    config = PipelineConfig(
        model=MAXModelConfig(model_path=str(path), kv_cache=cache, **options),
        runtime=PipelineRuntimeConfig(defer_resolve=True, max_batch_size=8),
    )
    architecture = config.resolve()
    session = _ReferenceSession if executor == "reference" else InferenceSession
    weights_format = config.model.weights_format
    assert weights_format is not None
    model = architecture.pipeline_model(
        config,
        session(precision=precision, num_threads=2, variant=variant),
        [CPU()],
        cache,
        config.model.weights,
        architecture.weight_adapters[weights_format],
        ReturnLogits.ALL,
    )
    assert isinstance(model, LlamaModelBase)
    return model


def all_logits(
    model: LlamaModelBase,
    prompts: Sequence[Sequence[int]],
    chunk: int | None = None,
    lengths: Sequence[int] | None = None,
) -> list[Array]:
    """Logits of every token of every request, float32 `[T, V]` each, all requests in one batch.

    Args:
        model: A model of `load_family`.
        prompts: Token ids of the requests.
        chunk: Tokens of each request in a step; None: all in one step.
        lengths: What decides each request's rotary frequencies; None: all its tokens.
    """
    totals = np.array([len(prompt) for prompt in prompts])
    decisive = totals if lengths is None else np.array(lengths)
    cache = TinyCache.make(model.config.decoder_spec(), len(prompts), int(totals.max()))
    found: list[list[Array]] = [[] for _ in prompts]
    size = chunk or int(totals.max())
    for begin in range(0, int(totals.max()), size):
        active = np.flatnonzero(totals > begin)  # requests that are done leave the batch
        parts = [np.array(prompts[row][begin : begin + size], np.int64) for row in active]
        step = TinyCache(cache.blocks, cache.table[active], np.full(active.size, begin, np.uint32), cache.scales)
        # the length that decides rotary frequencies is the whole request's, from the first step on
        outputs = model.model.execute(*step.inputs(parts), decisive[active].astype(np.uint32))
        logits = outputs[1].to_numpy()
        offsets = np.cumsum([0, *(part.size for part in parts)])
        for row, (first, last) in zip(active, itertools.pairwise(offsets), strict=True):
            found[row].append(logits[first:last].copy())
    return [np.concatenate(rows) for rows in found]


def random_prompt(vocab_size: int, length: int, seed: int = 0) -> list[int]:
    """Token ids."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab_size, length)]
