"""`MAXModelConfig`: options of one model, and what its files say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from puna.driver import DeviceSpec
from puna.dtype import DType
from puna.errors import InvalidRequestError, ModelNotFoundError
from puna.pipelines.lib.encoding_resolution import check_stored, stored_encodings
from puna.pipelines.lib.encodings import SupportedEncoding, infer_encoding_from_name, require_runnable
from puna.pipelines.lib.generation_config import generation_defaults, gguf_generation_defaults
from puna.pipelines.lib.kv_cache_config import KVCacheConfig
from puna.pipelines.lib.quantization import with_quantized_layers
from puna.pipelines.lib.registry import RopeType, SupportedArchitecture
from puna.pipelines.sampling_params import SamplingParamsInput

if TYPE_CHECKING:
    from puna.graph.weights import Weights, WeightsFormat
    from puna.models import ModelFiles

__all__ = ["MAXModelConfig", "parse_devices"]

_CONFIG_NAME: Final = "config.json"
_GENERATION_CONFIG_NAME: Final = "generation_config.json"


def parse_devices(devices: str | Sequence[str] | None) -> list[DeviceSpec]:
    """The devices that an option names: `cpu`, `cpu:0`, `cpu:0,1`, or a list of such texts. None is `cpu`.

    Raises:
        InvalidRequestError: an accelerator, an unknown kind, or a number that is none.
    """
    texts = ["cpu"] if devices is None else [devices] if isinstance(devices, str) else list(devices)
    specs: list[DeviceSpec] = []
    for text in texts:
        kind, _, numbers = text.partition(":")
        if kind == "gpu":
            raise InvalidRequestError(f"{text!r} is an accelerator; there is: cpu", param="devices")
        if kind != "cpu":
            raise InvalidRequestError(f"{text!r} is unknown; there is: cpu, cpu:0", param="devices")
        for number in (numbers or "0").split(","):
            if not (number.isascii() and number.isdigit()):
                raise InvalidRequestError(f"{number!r} in {text!r} is not a device number", param="devices")
            specs.append(DeviceSpec.cpu(int(number)))
    if not specs or len(set(specs)) < len(specs):
        raise InvalidRequestError(f"{devices!r} names no device, or one of them twice", param="devices")
    return specs


@dataclass(kw_only=True)
class MAXModelConfig:
    """Options of one model.

    Files are looked at when they are needed first, and only then. `resolve` settles what depends on them.

    Attributes:
        model_path: A directory in Hugging Face layout, a `.gguf` file, or any name `puna.models.find_model` knows.
        served_model_name: The name clients use; None: `model_path`.
        weight_path: Weight files, instead of those that `model_path` leads to.
        quantization_encoding: Which stored encoding to run; None: what the files hold.
        max_length: Most tokens of a sequence, prompt and output; None: what the model allows.
        huggingface_model_revision: Branch, tag or commit on the hub.
        huggingface_weight_revision: The same for weights; the two must be equal.
        trust_remote_code: Refused: code of a checkpoint never runs.
        subfolder: Where config and weights lie below the directory.
        devices: Devices as text (see `parse_devices`), instead of `device_specs`.
        device_specs: Devices; empty: one CPU per replica.
        rope_type: Pairing of rotated elements in GGUF files; None: the architecture's. All but `normal` pair halves.
        use_subgraphs: Whether equal layers are built once. Results are the same.
        data_parallel_degree: Replicas of the model.
        enable_echo: Whether steps return all logits, for log-probabilities of prompts.
        chat_template: A file with a Jinja template, or with a JSON object that has a `chat_template`.
        pool_embeddings: Whether embeddings are pooled (embeddings are not made here; must stay True).
        force_download: Refused: `puna rm` and `puna pull` fetch a model anew.
        sliding_window: Overrides the attention window of architectures that have one, in tokens.
        kv_cache: Options of the KV cache.

    Raises:
        InvalidRequestError: a value is out of range, unknown, contradicts another one, or needs an accelerator.
    """

    model_path: str = ""
    served_model_name: str | None = None
    weight_path: list[Path] = field(default_factory=list)
    quantization_encoding: SupportedEncoding | None = None
    max_length: int | None = None
    huggingface_model_revision: str = "main"
    huggingface_weight_revision: str = "main"
    trust_remote_code: bool = False
    subfolder: str | None = None
    devices: str | Sequence[str] | None = None
    device_specs: list[DeviceSpec] = field(default_factory=list)
    rope_type: RopeType | None = None
    use_subgraphs: bool = True
    data_parallel_degree: int = 1
    enable_echo: bool = False
    chat_template: Path | None = None
    pool_embeddings: bool = True
    force_download: bool = False
    sliding_window: int | None = None
    kv_cache: KVCacheConfig = field(default_factory=KVCacheConfig)

    _files: ModelFiles | None = field(init=False, default=None, repr=False, compare=False)
    _weights: Weights | None = field(init=False, default=None, repr=False, compare=False)
    _huggingface_config: Any = field(init=False, default=None, repr=False, compare=False)
    _cast: tuple[DType, DType] | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.quantization_encoding is not None:
            self.quantization_encoding = SupportedEncoding.parse(self.quantization_encoding)
        self.weight_path = [Path(path) for path in self.weight_path]
        self.chat_template = Path(self.chat_template) if self.chat_template is not None else None
        self._check_numbers()
        self._check_refused()
        self._settle_devices()

    @property
    def model_name(self) -> str:
        """The name clients use."""
        return self.served_model_name or self.model_path

    @property
    def files(self) -> ModelFiles:
        """Where the model's files are. Raises as `puna.models.find_model`."""
        if self._files is None:
            from puna.models import find_model

            revision = None if self.huggingface_model_revision == "main" else self.huggingface_model_revision
            name = self.model_path
            if self.subfolder is not None:
                name = str(find_model(name, revision=revision).path / self.subfolder)
                revision = None
            self._files = find_model(name, revision=revision)
        return self._files

    @property
    def weight_files(self) -> list[Path]:
        """The weight files: `weight_path`, else those that `model_path` leads to (of a split GGUF set the first).

        Raises:
            ModelNotFoundError: a file of `weight_path` does not exist, or the model has none.
        """
        for path in self.weight_path:
            if not path.is_file():
                raise ModelNotFoundError(str(path), "there is no such weight file")
        if self.weight_path:
            return self.weight_path
        return [self.files.path] if self.files.kind == "gguf" else self.files.weight_paths

    @property
    def weights(self) -> Weights:
        """The checkpoint, opened once, with one weight for the codes and scales of each quantized layer.

        Raises:
            As `puna.graph.weights.load_weights` and `puna.pipelines.lib.quantization.with_quantized_layers`.
        """
        if self._weights is None:
            from puna.graph.weights import SafetensorWeights, load_weights

            weights = load_weights(self.weight_files)
            if isinstance(weights, SafetensorWeights):
                weights = with_quantized_layers(weights, self.huggingface_config)
            self._weights = weights
        return self._weights

    @property
    def weights_format(self) -> WeightsFormat | None:
        """Kind of the weight files; None where neither a model nor a file is named."""
        from puna.graph.weights import weights_format

        if not self.weight_path and not self.model_path:
            return None
        return weights_format(self.weight_path or self.weight_files)

    @property
    def is_gguf(self) -> bool:
        """Whether the weight files are GGUF."""
        from puna.graph.weights import WeightsFormat

        return self.weights_format is WeightsFormat.gguf

    @property
    def huggingface_config(self) -> Any:
        """The checkpoint's configuration, from `config.json` or from GGUF metadata; None where there is neither.

        Any object with the attributes of a transformers config may be assigned instead.
        """
        if self._huggingface_config is None:
            self._huggingface_config = self._load_huggingface_config()
        return self._huggingface_config

    @huggingface_config.setter
    def huggingface_config(self, config: Any) -> None:
        self._huggingface_config = config

    @property
    def sampling_params_defaults(self) -> SamplingParamsInput:
        """What the checkpoint states about sampling, in its `generation_config.json` or in the keys of a GGUF file;
        nothing where there is neither.

        Raises:
            WeightsError: the file is not a JSON object, or a value in it has the wrong type.
        """
        from puna.graph.weights import GGUFWeights

        directory = self._directory
        path = directory / _GENERATION_CONFIG_NAME if directory is not None else None
        if path is not None and path.is_file():
            return generation_defaults(path)
        if self.weights_format is not None and self.is_gguf and isinstance(self.weights, GGUFWeights):
            return gguf_generation_defaults(self.weights.metadata, self.weights.path)
        return SamplingParamsInput()

    @property
    def resolved_encoding(self) -> SupportedEncoding:
        """The encoding that runs.

        Raises:
            InvalidRequestError: it is not resolved yet and was not given.
        """
        if self.quantization_encoding is None:
            raise InvalidRequestError("is not resolved; call resolve() first", param="quantization_encoding")
        return self.quantization_encoding

    @property
    def cast(self) -> tuple[DType, DType] | None:
        """(from, to): weights of the first type are converted to the second at load; None: nothing is converted."""
        return self._cast

    def resolve(self, architecture: SupportedArchitecture) -> None:
        """Settle encoding and rope type, from the files and the architecture.

        Raises:
            UnsupportedModelError: the architecture, or this engine, does not run the encoding.
            InvalidRequestError: the files do not hold the encoding that was asked for.
        """
        asked = self.quantization_encoding
        if asked is not None:
            require_runnable(asked, architecture.supported_encodings, architecture.name)
        self._cast = None
        stored = stored_encodings(self.weights)
        if asked is not None:
            self._cast = check_stored(asked, stored, self.weight_files)
        else:
            named = (infer_encoding_from_name(path) for path in self.weight_files)
            found = next((encoding for encoding in named if encoding in stored), None)
            self.quantization_encoding = found or next(iter(stored), architecture.default_encoding)
        require_runnable(self.resolved_encoding, architecture.supported_encodings, architecture.name)
        if self.rope_type is None:
            self.rope_type = architecture.rope_type
        for name, value in architecture.required_arguments.items():
            given = getattr(self, name)
            if given != value:
                raise InvalidRequestError(f"{architecture.name} needs {value!r}, got {given!r}", param=name)

    def read_chat_template(self) -> str | None:
        """The text of `chat_template`: the file itself, or the `chat_template` of the JSON object in it.

        Raises:
            InvalidRequestError: there is no such file, it is no text, or its JSON object has no `chat_template` text.
        """
        if self.chat_template is None:
            return None
        if not self.chat_template.is_file():
            raise InvalidRequestError(f"there is no file {self.chat_template}", param="chat_template")
        try:
            text = self.chat_template.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            message = f"{self.chat_template} is not UTF-8 (byte {error.start})"
            raise InvalidRequestError(message, param="chat_template") from error
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            return text
        template = value.get("chat_template") if isinstance(value, dict) else None
        if not isinstance(template, str):
            raise InvalidRequestError("the JSON file has no text under `chat_template`", param="chat_template")
        return template

    @property
    def _directory(self) -> Path | None:
        """The directory of the model's side files, where it is in Hugging Face layout."""
        if not self.model_path:
            return None
        local = Path(self.model_path).expanduser() / (self.subfolder or "")
        if local.is_dir():
            return local
        return self.files.path if self.files.kind == "huggingface" else None

    def _load_huggingface_config(self) -> Any:
        from puna.graph.weights import GGUFWeights
        from puna.pipelines.lib.huggingface_config import HuggingFaceConfig

        directory = self._directory
        if directory is not None and (directory / _CONFIG_NAME).is_file():
            return HuggingFaceConfig.from_directory(directory)
        if directory is not None and not self.weight_path and not any(directory.glob("*.gguf")):
            return None
        if self.is_gguf and isinstance(self.weights, GGUFWeights):
            return HuggingFaceConfig.from_gguf(self.weights)
        return None

    def _check_numbers(self) -> None:
        if self.max_length is not None and self.max_length < 0:
            raise InvalidRequestError(f"must be at least 0, got {self.max_length}", param="max_length")
        for name in ("data_parallel_degree", "sliding_window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequestError(f"must be at least 1, got {value}", param=name)
        if self.rope_type is not None and self.rope_type not in get_args(RopeType):
            known = ", ".join(get_args(RopeType))
            raise InvalidRequestError(f"{self.rope_type!r} is unknown; there is: {known}", param="rope_type")

    def _check_refused(self) -> None:
        if self.trust_remote_code:
            raise InvalidRequestError("code of a checkpoint is never run", param="trust_remote_code")
        if self.force_download:
            raise InvalidRequestError("is not implemented; remove the model and pull it again", param="force_download")
        if not self.pool_embeddings:
            raise InvalidRequestError("is not implemented: no embeddings are made", param="pool_embeddings")
        if self.huggingface_weight_revision != self.huggingface_model_revision:
            raise InvalidRequestError(
                f"{self.huggingface_weight_revision!r} differs from the model's "
                f"({self.huggingface_model_revision!r}); config and weights come from one revision",
                param="huggingface_weight_revision",
            )

    def _settle_devices(self) -> None:
        if self.devices is not None and self.device_specs:
            raise InvalidRequestError("is given beside device_specs; one of the two is enough", param="devices")
        if self.devices is None and not self.device_specs:
            self.device_specs = [DeviceSpec.cpu(number) for number in range(self.data_parallel_degree)]
        self.device_specs = list(self.device_specs) or parse_devices(self.devices)
        for spec in self.device_specs:
            if spec.device_type != "cpu":
                text = f"{spec.device_type}:{spec.id}"
                raise InvalidRequestError(f"{text!r} is an accelerator; there is: cpu", param="devices")
