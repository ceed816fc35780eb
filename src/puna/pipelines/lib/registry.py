"""Which architectures there are: `SupportedArchitecture`, and the registry that finds one for a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from puna.errors import UnsupportedModelError
from puna.graph.weights import WeightsFormat
from puna.pipelines.context import TextContext
from puna.pipelines.lib.encodings import SupportedEncoding

if TYPE_CHECKING:
    from puna.graph.weights import WeightsAdapter
    from puna.pipelines.lib.interfaces import ArchConfig, PipelineModel
    from puna.pipelines.lib.pipeline_config import PipelineConfig

__all__ = ["PIPELINE_REGISTRY", "PipelineRegistry", "PipelineTask", "RopeType", "SupportedArchitecture"]

RopeType: TypeAlias = Literal["none", "normal", "neox", "longrope", "yarn"]
"""Which elements of a head a family's GGUF files pair: `normal` is 2j with 2j+1, all others j with j + D/2."""


# Keys of kinds of models that are not run, whatever `architectures` says -> what they stand for.
_FOREIGN: Final = {
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), "latent attention (MLA)"),
    **dict.fromkeys(("alibi", "use_alibi"), "ALiBi"),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), "mixtures of experts"),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_cfg", "rescale_every"), "recurrent layers"),
}


class PipelineTask(StrEnum):
    """What a pipeline makes of its input."""

    TEXT_GENERATION = "text_generation"
    EMBEDDINGS_GENERATION = "embeddings_generation"
    PIXEL_GENERATION = "pixel_generation"
    AUDIO_GENERATION = "audio_generation"


@dataclass(frozen=True, kw_only=True)
class SupportedArchitecture:
    """One family of models.

    Attributes:
        name: The entry of `architectures` in a checkpoint's config.json.
        example_repo_ids: Checkpoints that are known to be of this family.
        pipeline_model: The model class.
        config: The configuration class.
        weight_adapters: For each kind of file what renames its tensors.
        default_encoding: Encoding that is assumed where neither the user nor the files tell one.
        supported_encodings: Encodings that are accepted.
        default_weights_format: Files that are taken where a directory has both kinds.
        task: What it does.
        tokenizer: Makes the tokenizer; None: the text tokenizer that the checkpoint describes.
        context_type: What a request is to the model.
        rope_type: Pairing of rotated elements in GGUF files of this family.
        multi_gpu_supported: Whether the original runs it on several accelerators; this engine has none.
        required_arguments: Options, by name, that must have this value.
        context_validators: Functions that refuse a request by raising.
        supports_empty_batches: Whether a step without requests may run.
        tool_parser: Name of the parser of tool calls, or None.
        reasoning_parser: Name of the parser of reasoning, or None.
        gguf_architectures: Values of `general.architecture` in GGUF files of this family.
        written_gguf_architecture: The one that its GGUF files are written with, where it is another family's; None: the
            first of `gguf_architectures`.
    """

    name: str
    example_repo_ids: Sequence[str]
    pipeline_model: type[PipelineModel[Any]]
    config: type[ArchConfig]
    weight_adapters: Mapping[WeightsFormat, WeightsAdapter]
    default_encoding: SupportedEncoding = SupportedEncoding.bfloat16
    supported_encodings: Sequence[SupportedEncoding] = tuple(SupportedEncoding)
    default_weights_format: WeightsFormat = WeightsFormat.safetensors
    task: PipelineTask = PipelineTask.TEXT_GENERATION
    tokenizer: Callable[..., Any] | None = None
    context_type: type[TextContext] = TextContext
    rope_type: RopeType = "none"
    multi_gpu_supported: bool = False
    required_arguments: Mapping[str, Any] = field(default_factory=dict)
    context_validators: Sequence[Callable[[TextContext], None]] = ()
    supports_empty_batches: bool = True
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    gguf_architectures: Sequence[str] = ()
    written_gguf_architecture: str | None = None


class PipelineRegistry:
    """Architectures by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, SupportedArchitecture] = {}

    @property
    def architectures(self) -> dict[str, SupportedArchitecture]:
        """All of them by name, in the order of registration (a copy)."""
        return dict(self._by_name)

    def register(self, architecture: SupportedArchitecture, *, allow_override: bool = False) -> None:
        """Add an architecture.

        Raises:
            ValueError: there is another one of this name (and `allow_override` is not set), or one that takes the same
                GGUF files.
        """
        known = self._by_name.get(architecture.name)
        if known is not None and known is not architecture and not allow_override:
            raise ValueError(f"architecture {architecture.name!r} is registered already")
        for other in self._by_name.values():
            shared = set(other.gguf_architectures) & set(architecture.gguf_architectures)
            if other.name != architecture.name and shared:
                raise ValueError(f"GGUF files of {sorted(shared)} belong to {other.name!r} already")
        self._by_name[architecture.name] = architecture

    def find(self, huggingface_config: Any) -> SupportedArchitecture:
        """The architecture of a checkpoint: by the config's `architectures`, else by GGUF's `general.architecture`.

        The first entry of `architectures` that is known decides.

        Raises:
            UnsupportedModelError: a key says that the model is of a kind that is not run, or neither tells a known
                one; the message lists what there is.
        """
        _refuse_foreign(huggingface_config)
        names = list(getattr(huggingface_config, "architectures", None) or ())
        for name in names:
            if name in self._by_name:
                return self._by_name[name]
        gguf_name = getattr(huggingface_config, "gguf_architecture", None)
        for architecture in self._by_name.values():
            if gguf_name is not None and gguf_name in architecture.gguf_architectures:
                return architecture
        key, value = ("architectures", names) if names or gguf_name is None else ("general.architecture", gguf_name)
        file = getattr(huggingface_config, "source", None)
        known = ", ".join(self._by_name) or "none (register_all_models() was not called)"
        raise UnsupportedModelError(key, value, file=file, supported=known)

    def retrieve(self, pipeline_config: PipelineConfig) -> SupportedArchitecture:
        """The architecture of a pipeline's main model. Raises as `find`."""
        from puna.pipelines.lib.interfaces import require_huggingface_config

        return self.find(require_huggingface_config(pipeline_config.model))


def _refuse_foreign(config: Any) -> None:
    """Names the key by which a model is of another kind; `architectures` may say little, or what it began as."""
    for key, kind in _FOREIGN.items():
        value = getattr(config, key, None)
        is_set = value not in (None, False, 0, {}) and not (kind == "mixtures of experts" and value == 1)
        if is_set:
            file = getattr(config, "source", None)
            raise UnsupportedModelError(key, value, file=file, supported=f"models without {kind}")
    value = getattr(config, "position_embedding_type", None)
    if value == "alibi":
        file = getattr(config, "source", None)
        raise UnsupportedModelError("position_embedding_type", value, file=file, supported="rotary embedding")


PIPELINE_REGISTRY = PipelineRegistry()
"""The registry of this process. `puna.pipelines.architectures.register_all_models` fills it."""
