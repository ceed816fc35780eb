"""What an architecture has to offer: its configuration, its model, the records that go in and come out.

These are contracts; `puna.pipelines.architectures` keeps them and the text pipeline relies on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, runtime_checkable

from puna.driver import Buffer, Device
from puna.dtype import DType
from puna.errors import UnsupportedModelError
from puna.graph import DeviceRef
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.nn.kv_cache import KVCacheInputs, KVCacheParams

if TYPE_CHECKING:
    from puna.engine import InferenceSession
    from puna.graph.weights import Weights, WeightsAdapter
    from puna.pipelines.context import LogProbabilities
    from puna.pipelines.lib.kv_cache_config import KVCacheConfig
    from puna.pipelines.lib.max_model_config import MAXModelConfig
    from puna.pipelines.lib.pipeline_config import PipelineConfig

__all__ = [
    "ArchConfig",
    "ArchConfigWithKVCache",
    "ModelInputs",
    "ModelOutputs",
    "PipelineModel",
    "PipelineModelWithKVCache",
    "require_huggingface_config",
    "upper_bounded_default",
]

ContextT = TypeVar("ContextT")


def upper_bounded_default(upper_bound: int, default: int | None) -> int:
    """`default` where it is given, else `upper_bound`.

    Raises:
        ValueError: `default` is above `upper_bound`.
    """
    if default is None:
        return upper_bound
    if default > upper_bound:
        raise ValueError(f"{default} is above the upper bound of {upper_bound}")
    return default


def require_huggingface_config(model_config: MAXModelConfig) -> Any:
    """The checkpoint's configuration.

    Raises:
        UnsupportedModelError: there is none; a `ValueError` that names the model's path.
    """
    config = model_config.huggingface_config
    if config is None:
        raise UnsupportedModelError(
            "config.json", None, file=model_config.model_path, supported="a model with a valid config.json"
        )
    return config


@runtime_checkable
class ArchConfig(Protocol):
    """The configuration of an architecture."""

    @classmethod
    def initialize(cls, pipeline_config: PipelineConfig, model_config: MAXModelConfig | None = None) -> Self:
        """The configuration that follows from a pipeline's (from `model_config`, else from the main model's)."""
        ...

    def get_max_seq_len(self) -> int:
        """Most tokens of one sequence, prompt and output together."""
        ...


@runtime_checkable
class ArchConfigWithKVCache(ArchConfig, Protocol):
    """The configuration of an architecture that keeps keys and values."""

    def get_kv_params(self) -> KVCacheParams:
        """Sizes of the KV cache."""
        ...


@dataclass
class ModelInputs:
    """What goes into one step.

    Attributes:
        kv_cache_inputs: The page pool and who owns which pages.
        lora_ids: Slot of each group of requests with the same adapter.
        lora_ranks: Rank of each group's adapter.
        hidden_states: Hidden states of a previous model, for drafts.
    """

    _: KW_ONLY
    kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None = None
    lora_ids: Buffer | None = None
    lora_ranks: Buffer | None = None
    hidden_states: Buffer | list[Buffer] | None = None

    def update(self, **kwargs: Any) -> None:
        """Assign fields that exist, from values that are not None; everything else is left alone."""
        names = {f.name for f in fields(self)}
        for name, value in kwargs.items():
            if name in names and value is not None:
                setattr(self, name, value)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The model's positional inputs, in order."""
        raise NotImplementedError(f"{type(self).__name__} does not define buffers")


@dataclass(frozen=True)
class ModelOutputs:
    """What comes out of one step (`B` requests, `T` tokens, `V` vocabulary, `H` hidden size).

    Attributes:
        logits: float32: `[B, V]`, `[B * n, V]` or `[T, V]` as `ReturnLogits` says.
        next_token_logits: float32 `[B, V]`: the last row of each request. In `LAST_TOKEN` mode the same buffer as
            `logits`.
        logit_offsets: `[B + 1]`, int64 (`VARIABLE`) or uint32 (`ALL`): request b owns the rows from entry b up to entry
            b + 1 of `logits`. None in `LAST_TOKEN` mode.
        hidden_states: float32, as `ReturnHiddenStates` says, or None.
    """

    logits: Buffer
    next_token_logits: Buffer | None = None
    logit_offsets: Buffer | None = None
    hidden_states: Buffer | list[Buffer] | None = None


class PipelineModel(ABC, Generic[ContextT]):
    """A model as the text pipeline sees it.

    Args:
        pipeline_config: Everything that was configured.
        session: Where the model is compiled.
        devices: Where it runs.
        kv_cache_config: Options of the KV cache.
        weights: The checkpoint.
        adapter: Renames the checkpoint's tensors to the graph's names; None: they have these names.
        return_logits: Which rows of logits a step returns.
        return_hidden_states: Which hidden states a step returns.

    Raises:
        UnsupportedModelError: the model has no configuration (a `ValueError` with the model's path).
    """

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
        self.pipeline_config = pipeline_config
        self.session = session
        self.devices = devices
        self.device_refs = [DeviceRef.from_device(device) for device in devices]
        self.kv_cache_config = kv_cache_config
        self.weights = weights
        self.adapter = adapter
        self.return_logits = return_logits
        self.return_hidden_states = return_hidden_states
        self.huggingface_config: Any = require_huggingface_config(pipeline_config.model)
        self._max_seq_len: int | None = None

    @property
    def max_seq_len(self) -> int:
        """Most tokens of one sequence, prompt and output together."""
        if self._max_seq_len is None:
            self._max_seq_len = self.calculate_max_seq_len(self.pipeline_config, self.huggingface_config)
        return self._max_seq_len

    @property
    def dtype(self) -> DType:
        """Element type of the stored weights; `uint8` for packed encodings."""
        return self.pipeline_config.model.resolved_encoding.dtype

    @property
    def signal_buffers(self) -> list[Buffer]:
        """Scratch memory of collectives, one per device; none on a single device."""
        return []

    @property
    def lora_manager(self) -> Any:
        """The manager of adapters, or None."""
        return None

    @classmethod
    @abstractmethod
    def calculate_max_seq_len(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> int:
        """Most tokens of one sequence, from what the user asked for and what the model allows.

        Raises:
            ValueError: the user asked for more than the model allows.
        """

    @abstractmethod
    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Run one step."""

    @abstractmethod
    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[ContextT]],
        kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None = None,
        return_n_logits: int = 1,
    ) -> ModelInputs:
        """The inputs of a step over the active tokens of these requests, one list per replica."""

    @abstractmethod
    def prepare_next_token_inputs(self, next_tokens: Buffer, prev_model_inputs: ModelInputs) -> ModelInputs:
        """The inputs of the following step, when each request goes on with one token."""

    def compute_log_probabilities(
        self,
        session: InferenceSession,
        model_inputs: ModelInputs,
        model_outputs: ModelOutputs,
        next_tokens: Buffer,
        batch_top_n: list[int],
        batch_echo: list[bool],
    ) -> list[LogProbabilities | None]:
        """Log-probabilities of the tokens that were chosen.

        Raises:
            NotImplementedError: this model gives none.
        """
        raise NotImplementedError(f"{type(self).__name__} does not compute log-probabilities")


class PipelineModelWithKVCache(PipelineModel[ContextT]):
    """A model that keeps keys and values. The arguments are those of `PipelineModel`."""

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
        super().__init__(
            pipeline_config,
            session,
            devices,
            kv_cache_config,
            weights,
            adapter,
            return_logits,
            return_hidden_states,
        )
        self.kv_params = self.get_kv_params(
            self.huggingface_config, pipeline_config, self.device_refs, kv_cache_config, kv_cache_config.cache_dtype
        )

    @classmethod
    @abstractmethod
    def get_kv_params(
        cls,
        huggingface_config: Any,
        pipeline_config: PipelineConfig,
        devices: list[DeviceRef],
        kv_cache_config: KVCacheConfig,
        cache_dtype: DType,
    ) -> KVCacheParams:
        """Sizes of the KV cache; needs no instance, so that memory can be planned before a model is loaded."""
