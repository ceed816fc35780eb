"""Whole Llama models from seeded weights, with the page tables of a step written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from puna.driver import CPU, Buffer
from puna.engine import InferenceSession
from puna.engine import Model as EngineModel
from puna.graph import Graph
from puna.graph.weights import WeightData, load_weights
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.nn.kv_cache import KVCacheInputs, KVCacheInputsPerDevice, KVCacheParams
from puna.pipelines.architectures.llama3 import Llama3Config, Llama3Inputs, Llama3Model
from puna.pipelines.context import TextContext, TokenBuffer
from puna.pipelines.lib import KVCacheConfig, ModelOutputs
from support.llama_config import hf_config, model_config, pipeline_config, random_weights

FLOAT32_CACHE = KVCacheConfig(kv_cache_page_size=4, kv_cache_format="float32")


class ReferenceSession(InferenceSession):
    """Loads everything into the NumPy executor."""

    def load(self, graph: Graph, weights_registry: Any = None, **_: Any) -> EngineModel:
        return super().load(graph, weights_registry, executor="reference")


def session(executor: str = "reference", num_devices: int = 1) -> InferenceSession:
    """A session of one executor, float32 throughout: `reference`, `native`, or the name of a variant of kernels."""
    devices = [CPU(number) for number in range(num_devices)]
    if executor == "reference":
        return ReferenceSession(devices, precision="float32", num_threads=2)
    variant = None if executor == "native" else executor
    return InferenceSession(devices, precision="float32", num_threads=2, variant=variant)


def write_checkpoint(directory: Path, weights: dict[str, WeightData], prefix: str = "") -> Path:
    """A safetensors file of these weights."""
    path = directory / "model.safetensors"
    save_file({prefix + name: np.ascontiguousarray(data.data) for name, data in weights.items()}, path)
    return path


def make_model(
    directory: Path,
    config: Any = None,
    *,
    weights: dict[str, WeightData] | None = None,
    executor: str = "reference",
    model_class: type[Llama3Model] = Llama3Model,
    options: dict[str, Any] | None = None,
    num_devices: int = 1,
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN,
    return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE,
) -> Llama3Model:
    """A loaded model. `weights` default to seeded ones that fit `config` (without stacking and biases)."""
    config = config if config is not None else hf_config()
    described = model_config(config, **{"kv_cache": FLOAT32_CACHE, **(options or {})})
    pipeline = pipeline_config(model=described)
    if weights is None:
        sizes = Llama3Config.initialize(pipeline)
        sizes.tie_word_embeddings = config.tie_word_embeddings
        sizes.norm_method = model_class.norm_method
        weights = random_weights(sizes)
    path = write_checkpoint(directory, weights)
    return model_class(
        pipeline,
        session(executor, num_devices),
        [CPU(number) for number in range(num_devices)],
        described.kv_cache,
        load_weights([path]),
        None,
        return_logits,
        return_hidden_states,
    )


def contexts(prompts: Sequence[Sequence[int]], max_length: int = 64) -> list[TextContext]:
    """One request per prompt."""
    return [
        TextContext(tokens=TokenBuffer(np.array(prompt, dtype=np.int64)), max_length=max_length) for prompt in prompts
    ]


class Cache:
    """A page pool whose requests own shuffled pages for good."""

    def __init__(self, params: KVCacheParams, num_requests: int, max_length: int = 64) -> None:
        per_request = params.num_blocks_for(max_length)
        shape = (num_requests * per_request + 1, *params.shape_per_block)
        self.blocks = Buffer.zeros(shape, params.dtype)
        pages = np.random.default_rng(7).permutation(num_requests * per_request).astype(np.uint32)
        self.table = pages.reshape(num_requests, per_request)

    def inputs(self, rows: Sequence[TextContext], num_steps: int = 1) -> KVCacheInputs[Buffer, Buffer]:
        """The inputs of a step over all requests, in order."""
        cached = [context.tokens.processed_length for context in rows]
        totals = [context.tokens.current_position for context in rows]
        new = max((t - c for t, c in zip(totals, cached, strict=True)), default=0)
        lengths = [(new if step == 0 else 1, max(totals, default=0) + step) for step in range(num_steps)]
        device = KVCacheInputsPerDevice(
            kv_blocks=self.blocks,
            cache_lengths=Buffer.from_numpy(np.array(cached, dtype=np.uint32)),
            lookup_table=Buffer.from_numpy(self.table[: len(rows)].copy()),
            max_lengths=Buffer.from_numpy(np.array(lengths, dtype=np.uint32)),
        )
        return KVCacheInputs([device])


def step(
    model: Llama3Model, rows: Sequence[TextContext], cache: Cache, n: int = 1
) -> tuple[Llama3Inputs, ModelOutputs]:
    """One step over the active tokens of all requests."""
    inputs = model.prepare_initial_token_inputs([rows], cache.inputs(rows), n)
    return inputs, model.execute(inputs)


def greedy(outputs: ModelOutputs) -> npt.NDArray[np.int64]:
    """The likeliest token of each request, int64 `[B]`."""
    assert outputs.next_token_logits is not None
    return outputs.next_token_logits.to_numpy().argmax(-1).astype(np.int64)
