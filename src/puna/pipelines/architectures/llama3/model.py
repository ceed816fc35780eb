"""`Llama3Model`: loads a Llama-shaped checkpoint into a session and runs its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np

from puna.driver import Buffer, Device
from puna.dtype import DType
from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.graph import DeviceRef, Graph
from puna.graph.weights import DeferredQuantization, WeightData, Weights, WeightsAdapter
from puna.graph.weights.quantized import QuantizedWeight
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.nn.kv_cache import KVCacheInputs, KVCacheParams
from puna.nn.rotary_embedding import RotaryEmbedding
from puna.nn.transformer import build_decoder_graph
from puna.pipelines.architectures.llama3.adapter_products import adapter_products
from puna.pipelines.architectures.llama3.batch import initial_inputs, next_inputs, with_request_lengths
from puna.pipelines.architectures.llama3.inputs import Llama3Inputs, lora_call_order
from puna.pipelines.architectures.llama3.model_config import Llama3Config
from puna.pipelines.context import TextContext
from puna.pipelines.lib import (
    PIPELINE_REGISTRY,
    KVCacheConfig,
    LogProbabilitiesMixin,
    ModelInputs,
    ModelOutputs,
    PipelineConfig,
    PipelineModelWithKVCache,
)
from puna.pipelines.lora import LoRAAdapter, LoRAManager

if TYPE_CHECKING:
    from puna.engine import InferenceSession, Model, ReplicatedModel

__all__ = ["Llama3Model", "LlamaModelBase"]


class LlamaModelBase(LogProbabilitiesMixin, PipelineModelWithKVCache[TextContext]):
    """Base Llama pipeline model implementation. A subclass sets `norm_method`.

    Args:
        pipeline_config: Everything that was configured.
        session: Where the model is compiled.
        devices: Where it runs; one per replica.
        kv_cache_config: Options of the KV cache.
        weights: The checkpoint.
        adapter: Renames its tensors to the graph's names; None: they have these names.
        return_logits: Which rows of logits a step returns.
        return_hidden_states: Which hidden states a step returns.

    Raises:
        ValueError: no configuration, or one that does not fit together; `max_batch_size` is not resolved.
        UnsupportedModelError: something that is carried but not run: several devices per replica.
        AdapterError: an adapter of `lora_paths` cannot be loaded.
        WeightsError: a weight is missing, unexpected, or of another shape.
        TypeError: the class sets no `norm_method`.
    """

    model: Model | ReplicatedModel
    """Compiled and initialized model ready for inference."""

    norm_method: Literal["rms_norm"] | Literal["layer_norm"]
    """Normalization layer."""

    attention_bias: bool = False
    """Whether to use attention bias."""

    config_class: ClassVar[type[Llama3Config]] = Llama3Config
    """The configuration that is made of the pipeline's."""

    state_dict: dict[str, Any]
    """Weights to load into the model: name -> array, the names and the memory that the compiled model was bound to. Of
    layers whose codes and scales are tensors of their own, an object that NumPy takes for an array and that decodes the
    weight each time."""

    config: Llama3Config
    """The configuration of the loaded model, finalized."""

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: InferenceSession,
        devices: list[Device],
        kv_cache_config: KVCacheConfig,
        weights: Weights,
        adapter: WeightsAdapter | None = None,
        return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN,
        return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE,
    ) -> None:
        if getattr(self, "norm_method", None) is None:
            raise TypeError(f"{type(self).__name__} sets no norm_method and cannot be made; Llama3Model does")
        super().__init__(
            pipeline_config, session, devices, kv_cache_config, weights, adapter, return_logits, return_hidden_states
        )
        self.model = self.load_model(session)

    @property
    def rope(self) -> RotaryEmbedding:
        """The rotary embedding: what tells the loop when a request's cached keys are of no use any more."""
        return self._rope

    @classmethod
    def calculate_max_seq_len(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> int:
        """Most tokens of a sequence, from the main model's options. As `Llama3Config.calculate_max_seq_len`."""
        return cls.config_class.calculate_max_seq_len(pipeline_config, huggingface_config)

    @classmethod
    def get_kv_params(
        cls,
        huggingface_config: Any,
        pipeline_config: PipelineConfig,
        devices: list[DeviceRef],
        kv_cache_config: KVCacheConfig,
        cache_dtype: DType,
    ) -> KVCacheParams:
        """Sizes of the KV cache; needs no instance. As `Llama3Config.construct_kv_params`."""
        return cls.config_class.construct_kv_params(
            huggingface_config, pipeline_config, devices, kv_cache_config, cache_dtype
        )

    def load_model(self, session: InferenceSession) -> Model | ReplicatedModel:
        """Read the weights, finish the configuration, build the graph and compile it.

        Raises:
            As the class.
        """
        max_batch_size = self.pipeline_config.runtime.max_batch_size
        if max_batch_size is None:
            raise InvalidRequestError("is not resolved; call resolve() first", param="max_batch_size")
        degree = self.pipeline_config.model.data_parallel_degree
        if len(session.devices) != degree:
            devices = ", ".join(map(str, session.devices))
            raise UnsupportedModelError("devices of the session", devices, supported=f"one per replica ({degree})")
        state_dict = self._read_weights(is_exact=session.precision == "float32")
        config = self.config_class.initialize(self.pipeline_config)
        config.finalize(
            huggingface_config=self.huggingface_config,
            state_dict=state_dict,
            return_logits=self.return_logits,
            return_hidden_states=self.return_hidden_states,
            norm_method=self.norm_method,
            attention_bias=self.attention_bias,
        )
        config.kv_params = self.kv_params
        spec = config.decoder_spec()
        graph = build_decoder_graph(spec, state_dict)
        model = session.load(graph, weights_registry=state_dict)
        self.config = config
        self.state_dict = {name: _array_of(state_dict[name]) for name in graph.weights}
        self._rope = spec.rope
        self._further_models: dict[tuple[object, ...], Model | ReplicatedModel] = {}
        self._graph_of: Callable[..., Graph] = lambda **changes: build_decoder_graph(
            replace(spec, **changes), state_dict
        )
        lora = self.pipeline_config.lora
        self._lora_manager = None
        if lora is not None:
            architecture = PIPELINE_REGISTRY.retrieve(self.pipeline_config)
            products = adapter_products(self.config, self.pipeline_config.model, architecture)
            self._lora_manager = LoRAManager(lora, products)
        num_rows = max_batch_size * self.pipeline_config.model.data_parallel_degree  # a batch is a replica's
        self._row_offsets = Buffer.from_numpy(np.arange(num_rows + 1, dtype=np.uint32))
        return model

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Run one step. Keys and values of the new tokens are written into the pages.

        Returns:
            Logits, offsets and hidden states as the model's two modes say, float32 (see `ModelOutputs`).

        Raises:
            TypeError: the inputs are of another class.
            ValueError: no KV inputs; more rows asked for than a request has; adapters set in part.
            UnsupportedModelError: inputs that are carried but not run: adapters without `enable_lora`, splits,
                hidden states, signal buffers.
        """
        if not isinstance(model_inputs, Llama3Inputs):
            raise TypeError(f"Llama3Inputs are needed, got {type(model_inputs).__name__}")
        if model_inputs.kv_cache_inputs is None:
            raise ValueError("kv_cache_inputs is None; a step needs the KV cache")
        self._refuse_unsupported(model_inputs)
        if not _has_adapters(model_inputs):
            outputs = self.model.execute(*model_inputs.buffers)
        else:
            model = self._further_model(self.return_logits, self.return_hidden_states, None, has_adapters=True)
            outputs = model.execute(*lora_call_order(model_inputs))
        return _name_outputs(outputs, self.return_logits, self.return_hidden_states)

    def execute_for_readers(
        self, model_inputs: ModelInputs, needs_logits: bool, layers: tuple[int, ...]
    ) -> ModelOutputs:
        """Run one step and return more of it: the same bits as `execute`, from a program over the same weights.

        Args:
            model_inputs: As of `execute`.
            needs_logits: Whether `logits` are those of all rows, `[T, V]`, with `logit_offsets`.
            layers: Ascending; `hidden_states` are the outputs of these layers side by side, `[T, n * H]`. The number
                of layers stands for the output of the last norm.

        Raises:
            As `execute`.
        """
        assert isinstance(model_inputs, Llama3Inputs), "the loop makes inputs with prepare_initial_token_inputs"
        self._refuse_unsupported(model_inputs)
        logits_mode = ReturnLogits.ALL if needs_logits else ReturnLogits.LAST_TOKEN
        states_mode = ReturnHiddenStates.EAGLE3 if layers else ReturnHiddenStates.NONE
        has_adapters = _has_adapters(model_inputs)
        model = self._further_model(logits_mode, states_mode, layers or None, has_adapters=has_adapters)
        outputs = model.execute(*(lora_call_order(model_inputs) if has_adapters else model_inputs.buffers))
        return _name_outputs(outputs, logits_mode, states_mode)

    @property
    def lora_manager(self) -> LoRAManager | None:
        """The model's adapters; None: it was loaded without."""
        return self._lora_manager

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None = None,
        return_n_logits: int = 1,
    ) -> Llama3Inputs:
        """Prepare the inputs for the first pass in multistep execution.

        The arrays are fresh: inputs that were made earlier stay as they were. An empty batch gives offsets `[0]`.
        Where rotary frequencies depend on a request's length, that length is put beside the KV inputs unless it is
        there already.

        Args:
            replica_batches: One list of contexts per replica.
            kv_cache_inputs: The page pool and who owns which pages.
            return_n_logits: n of `ReturnLogits.VARIABLE`.

        Raises:
            ValueError: another number of lists than replicas, a request that is too long, n below 1, more adapters than
                `max_num_loras`, or a request with an adapter behind one without.
        """
        degree = self.pipeline_config.model.data_parallel_degree
        if len(replica_batches) != degree:
            raise ValueError(f"{len(replica_batches)} batches for {degree} replicas (data_parallel_degree)")
        cache = with_request_lengths(kv_cache_inputs, replica_batches, self._rope)
        inputs = initial_inputs(replica_batches, cache, return_n_logits, self.signal_buffers, self.max_seq_len)
        manager = self._lora_manager
        if manager is not None:
            (batch,) = replica_batches  # adapters run on one replica
            routing = manager.route([cast("LoRAAdapter | None", context.adapter) for context in batch])
            inputs.update(**routing.inputs(inputs.input_row_offsets.to_numpy(), len(manager.slots)))
        return inputs

    def prepare_next_token_inputs(self, next_tokens: Buffer, prev_model_inputs: ModelInputs) -> Llama3Inputs:
        """Prepare the inputs for the next token in multistep execution, without copies.

        Everything but tokens, offsets and hidden states (None) is carried over. The cache lengths must have been
        advanced before, with the previous inputs (`puna.nn.kv_cache.increment_cache_lengths`).

        Args:
            next_tokens: int64 `[B]`: the sampled tokens.
            prev_model_inputs: The inputs of the step that ran.

        Raises:
            TypeError: the inputs are of another class.
            ValueError: the batch is larger than `max_batch_size`, or a request reaches the length where its rotary
                frequencies change.
        """
        if not isinstance(prev_model_inputs, Llama3Inputs):
            raise TypeError(f"Llama3Inputs are needed, got {type(prev_model_inputs).__name__}")
        num_slots = 0 if self._lora_manager is None else len(self._lora_manager.slots)
        return next_inputs(next_tokens, prev_model_inputs, self._row_offsets, self._rope, num_slots)

    def _read_weights(self, *, is_exact: bool) -> dict[str, WeightData]:
        """The tensors by the graph's names, converted where another float encoding was asked for.

        With `is_exact` quantized layers that no format of the kernels holds are float32, not rounded.
        """
        if self.adapter is not None:
            state_dict = self.adapter(
                dict(self.weights.items()),
                huggingface_config=self.huggingface_config,
                pipeline_config=self.pipeline_config,
            )
        else:
            state_dict = {name: tensor.data() for name, tensor in self.weights.items()}
        if is_exact:
            state_dict = {name: _widened(data) for name, data in state_dict.items()}
        cast = self.pipeline_config.model.cast
        if cast is None:
            return state_dict
        source, target = cast
        return {
            name: data.astype(target) if data.dtype is source and data.quantization_encoding is None else data
            for name, data in state_dict.items()
        }

    def _further_model(
        self,
        return_logits: ReturnLogits,
        return_hidden_states: ReturnHiddenStates,
        layers: tuple[int, ...] | None,
        *,
        has_adapters: bool,
    ) -> Model | ReplicatedModel:
        """The program of steps that return something else, or whose rows have adapters; over the same weights."""
        key = (return_logits, return_hidden_states, layers, has_adapters)
        if key not in self._further_models:
            manager = self._lora_manager if has_adapters else None
            graph = self._graph_of(
                return_logits=return_logits,
                return_hidden_states=return_hidden_states,
                hidden_state_layers=layers,
                max_lora_rank=0 if manager is None else manager.max_rank,
            )
            slots = None if manager is None else manager.slots
            self._further_models[key] = self.model.derive(graph, slots)
        return self._further_models[key]

    def _refuse_unsupported(self, inputs: Llama3Inputs) -> None:
        if inputs.stated_lora_fields:
            lora_call_order(inputs)  # a partial set is an error of its own
            if self._lora_manager is None:
                raise UnsupportedModelError("lora_ids", "set", supported="no adapters, without enable_lora")
        degree = self.pipeline_config.model.data_parallel_degree
        if (inputs.data_parallel_splits is None) != (degree == 1):
            stated = "set" if degree == 1 else None
            raise UnsupportedModelError("data_parallel_splits", stated, supported=f"what {degree} replicas need")
        if inputs.hidden_states is not None:
            raise UnsupportedModelError("hidden_states", "set", supported="no draft models")
        if inputs.signal_buffers:
            raise UnsupportedModelError("signal_buffers", "set", supported="none, on one device")


class Llama3Model(LlamaModelBase):
    """Llama 3 pipeline model implementation. The arguments are those of `LlamaModelBase`."""

    norm_method: Literal["rms_norm"] | Literal["layer_norm"] = "rms_norm"
    """Normalization layer."""

    config_class: ClassVar[type[Llama3Config]] = Llama3Config


def _widened(data: WeightData) -> WeightData:
    return data.widened() if isinstance(data, QuantizedWeight) else data


def _array_of(data: WeightData) -> Any:
    """A weight's memory; of one that is decoded when it is packed, what decodes it anew."""
    return data if isinstance(data, (QuantizedWeight, DeferredQuantization)) else data.data


def _has_adapters(inputs: Llama3Inputs) -> bool:
    """Whether any row of a step has an adapter."""
    return inputs.lora_ids is not None and inputs.lora_ids.shape[0] > 0


def _name_outputs(outputs: list[Buffer], logits_mode: ReturnLogits, states_mode: ReturnHiddenStates) -> ModelOutputs:
    """The graph's outputs by name: the last rows first, then logits and offsets, then hidden states."""
    has_rows = logits_mode is not ReturnLogits.LAST_TOKEN
    has_states = states_mode is not ReturnHiddenStates.NONE
    expected = 1 + 2 * has_rows + has_states
    assert len(outputs) == expected, f"the graph returns {len(outputs)} outputs, {expected} are expected"
    next_token_logits = outputs[0]
    logits, offsets = (outputs[1], outputs[2]) if has_rows else (next_token_logits, None)
    return ModelOutputs(
        logits=logits,
        next_token_logits=next_token_logits,
        logit_offsets=offsets,
        hidden_states=outputs[-1] if has_states else None,
    )
