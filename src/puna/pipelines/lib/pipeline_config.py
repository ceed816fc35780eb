"""`PipelineConfig`: everything that is configured before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from puna.errors import InvalidRequestError
from puna.nn.decoder_spec import ReturnLogits
from puna.pipelines.lib.kv_cache_config import KVCacheConfig
from puna.pipelines.lib.lora_config import LoRAConfig
from puna.pipelines.lib.max_model_config import MAXModelConfig
from puna.pipelines.lib.registry import PIPELINE_REGISTRY, PipelineTask, SupportedArchitecture
from puna.pipelines.lib.runtime_config import PipelineRuntimeConfig
from puna.pipelines.lib.sampling_config import SamplingConfig
from puna.pipelines.lib.speculative_config import SpeculativeConfig
from puna.pipelines.sampling_params import SamplingParamsInput

__all__ = ["PipelineConfig", "ProfilingConfig"]


@dataclass(kw_only=True)
class ProfilingConfig:
    """Options of accelerator profilers.

    Attributes:
        gpu_profiling: Must stay `off`; `Model.trace()` measures programs on CPU.

    Raises:
        InvalidRequestError: any other value.
    """

    gpu_profiling: str = "off"

    def __post_init__(self) -> None:
        if self.gpu_profiling != "off":
            value = self.gpu_profiling
            raise InvalidRequestError(f"{value!r} needs an accelerator; there is: off", param="gpu_profiling")


@dataclass(kw_only=True)
class PipelineConfig:
    """Everything that is configured before a model is loaded.

    Making one resolves and checks it, unless `runtime.defer_resolve` is set; then `resolve` does.

    Attributes:
        model: The model.
        draft_model: A smaller model that drafts for it, or None.
        sampling: Abilities of the sampler.
        profiling: Options of profilers.
        lora: Options of adapters. None unless `enable_lora` is set: its other options alone have no effect.
        speculative: Options of speculative decoding, or None.
        runtime: Options of scheduling.
        task: What is made; text.
        debug_verify_replay: Refused: it compares captured accelerator graphs.

    Raises:
        InvalidRequestError: values contradict each other, need an accelerator, or are not implemented.
        UnsupportedModelError: the model's architecture or encoding is not run.
        ModelNotFoundError: the model's files are not there.
    """

    model: MAXModelConfig
    draft_model: MAXModelConfig | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    profiling: ProfilingConfig = field(default_factory=ProfilingConfig)
    lora: LoRAConfig | None = None
    speculative: SpeculativeConfig | None = None
    runtime: PipelineRuntimeConfig = field(default_factory=PipelineRuntimeConfig)
    task: PipelineTask = PipelineTask.TEXT_GENERATION
    debug_verify_replay: bool = False

    def __post_init__(self) -> None:
        self.task = PipelineTask(self.task)
        if self.lora is not None and not self.lora.enable_lora:
            self.lora = None
        if self.draft_model is not None:
            # Drafts and penalties disagree about which tokens were seen, so a draft switches penalties off.
            self.sampling.enable_penalties = False
        self._check_combinations()
        if not self.runtime.defer_resolve:
            self.resolve()

    @property
    def kv_cache(self) -> KVCacheConfig:
        """Options of the main model's KV cache."""
        return self.model.kv_cache

    @property
    def return_logits(self) -> ReturnLogits:
        """Which rows of logits the model is built to return: all with `enable_echo`, else the last of each request."""
        return ReturnLogits.ALL if self.model.enable_echo else ReturnLogits.LAST_TOKEN

    @property
    def sampling_params_defaults(self) -> SamplingParamsInput:
        """Defaults of requests: what the runtime options state, else what the checkpoint's generation config states."""
        runtime = self.runtime
        stated = SamplingParamsInput(
            temperature=runtime.temperature, top_k=runtime.top_k, thinking_temperature=runtime.thinking_temperature
        )
        return stated.over(self.model.sampling_params_defaults)

    def resolve(self) -> SupportedArchitecture:
        """Settle what depends on the files, and refuse what is carried but not run.

        Returns:
            The main model's architecture.

        Raises:
            As the class.
        """
        self._require_implemented()
        architecture = PIPELINE_REGISTRY.retrieve(self)
        self.model.resolve(architecture)
        length = architecture.pipeline_model.calculate_max_seq_len(self, self.model.huggingface_config)
        self.runtime.resolve(length)
        return architecture

    def _check_combinations(self) -> None:
        if self.debug_verify_replay:
            raise InvalidRequestError("cannot be used: it compares accelerator graphs", param="debug_verify_replay")
        if self.draft_model is not None and self.runtime.num_steps > 1:
            raise InvalidRequestError("must be 1 with a draft model", param="max_num_steps")
        if self.lora is not None:
            self._check_lora()

    def _check_lora(self) -> None:
        if self.model.data_parallel_degree > 1 or len(self.model.device_specs) > 1:
            raise InvalidRequestError(
                "adapters run on one replica, data_parallel_degree must be 1", param="enable_lora"
            )

    def _require_implemented(self) -> None:
        if self.task is not PipelineTask.TEXT_GENERATION:
            raise InvalidRequestError(f"{self.task} is not implemented; there is: text_generation", param="task")
        if self.draft_model is not None:
            raise InvalidRequestError("is not implemented: no model drafts for another", param="draft_model")
        if self.speculative is not None:
            method = self.speculative.speculative_method
            raise InvalidRequestError(f"{method!r} is not implemented", param="speculative_method")
        num_devices, degree = len(self.model.device_specs), self.model.data_parallel_degree
        if num_devices != degree:
            raise InvalidRequestError(
                f"{num_devices} devices for {degree} replicas: tensor parallelism is not implemented, each replica has "
                "one device",
                param="devices",
            )
        self.sampling.require_implemented()
