"""`open_checkpoint`: a model as what a GGUF file is made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from puna.conversion.agreement import differences
from puna.conversion.gguf_file import MetadataValue
from puna.conversion.metadata import model_metadata, rope_tensors
from puna.conversion.tensors import TensorSource, huggingface_sources, outline_of, sources_of_gguf
from puna.conversion.tokenizer import tokenizer_metadata
from puna.engine.registry import bind_weights
from puna.errors import UnsupportedModelError
from puna.graph.weights import GGUFWeights, WeightData, Weights, WeightsFormat
from puna.models import ModelFiles, find_model
from puna.nn.decoder_spec import DecoderSpec, ReturnLogits
from puna.nn.transformer import build_decoder_graph
from puna.pipelines.architectures import register_all_models
from puna.pipelines.architectures.llama3 import Llama3Config
from puna.pipelines.architectures.llama3.adapter_products import adapter_products
from puna.pipelines.architectures.llama3.weight_adapters import GGUFAdapter
from puna.pipelines.lib import (
    PIPELINE_REGISTRY,
    MAXModelConfig,
    PipelineConfig,
    PipelineRuntimeConfig,
    SupportedArchitecture,
    SupportedEncoding,
)
from puna.pipelines.lib.generation_config import GGUF_SAMPLING, generation_defaults
from puna.pipelines.lib.huggingface_config import HuggingFaceConfig
from puna.pipelines.lora import ModelProducts
from puna.tokenization import load_tokenizer

__all__ = ["Checkpoint", "StoredDirectory", "open_checkpoint", "open_directory"]

_STORAGE: Final = ("general.file_type", "general.quantization_version")
_DROPPED: Final = ("split.", "general.alignment", *_STORAGE)


@dataclass(frozen=True)
class Checkpoint:
    """What a GGUF file of a model is made of.

    Attributes:
        files: Where the model is.
        architecture: `general.architecture`.
        metadata: All keys, but for those that follow from how tensors are stored (`general.file_type`).
        tensors: The tensors, in the order of the file.
        products: What adapters may update; rows of GGUF layout are as in the file.
        stored_as: `general.file_type` and `general.quantization_version`, where it is a GGUF file that states them.
        notes: Sentences about what the file cannot say.
    """

    files: ModelFiles
    architecture: str
    metadata: dict[str, MetadataValue]
    tensors: tuple[TensorSource, ...]
    products: ModelProducts
    stored_as: dict[str, MetadataValue] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredDirectory:
    """A directory in Hugging Face layout as it is.

    Attributes:
        files: Where it is.
        weights: Its tensors.
        products: What adapters may update.
    """

    files: ModelFiles
    weights: Weights
    products: ModelProducts


def open_checkpoint(model: str | os.PathLike[str]) -> Checkpoint:
    """Opens a model: a directory in Hugging Face layout, a GGUF file (of a split set the first), or a name.

    Headers are read, and every number that a GGUF file of it would state is read back and compared; tensors are not
    read.

    Raises:
        ModelNotFoundError: There is no such model.
        UnsupportedModelError: It is of a kind that is not run, or GGUF cannot say what it is.
        WeightsError: Its files are damaged.
    """
    register_all_models()
    files = find_model(os.fspath(model))
    config = MAXModelConfig(model_path=str(files.path))
    if isinstance(config.weights, GGUFWeights):
        return _of_gguf(files, config, config.weights)
    return _of_directory(files, config)


def open_directory(files: ModelFiles) -> StoredDirectory:
    """Opens a directory in Hugging Face layout with float weights; tensors are not read.

    Raises:
        UnsupportedModelError: It is of a kind that is not run, or its weights are quantized.
        WeightsError: Its files are damaged.
    """
    register_all_models()
    config = MAXModelConfig(model_path=str(files.path))
    architecture = _float_architecture(config)
    products = adapter_products(_numbers(architecture, config), config, architecture)
    return StoredDirectory(files, config.weights, products)


def _of_gguf(files: ModelFiles, config: MAXModelConfig, weights: GGUFWeights) -> Checkpoint:
    architecture = PIPELINE_REGISTRY.find(config.huggingface_config)
    products = adapter_products(_numbers(architecture, config), config, architecture)
    metadata: dict[str, MetadataValue] = {
        key: value if isinstance(value, (bool, int, float, str, np.ndarray)) else list(value)
        for key, value in weights.metadata.items()
        if not key.startswith(_DROPPED)
    }
    stored_as = {key: weights.metadata[key] for key in _STORAGE if key in weights.metadata}
    name = str(metadata["general.architecture"])
    return Checkpoint(files, name, metadata, sources_of_gguf(weights), products, stored_as)


def _of_directory(files: ModelFiles, config: MAXModelConfig) -> Checkpoint:
    architecture = _float_architecture(config)
    source: HuggingFaceConfig = config.huggingface_config
    written = architecture.written_gguf_architecture or next(iter(architecture.gguf_architectures), None)
    if written is None:
        known = sorted(name for name, entry in PIPELINE_REGISTRY.architectures.items() if entry.gguf_architectures)
        raise UnsupportedModelError(
            "architectures", architecture.name, file=source.source, supported=f"{', '.join(known)}: GGUF knows no other"
        )
    target = next(entry for entry in PIPELINE_REGISTRY.architectures.values() if written in entry.gguf_architectures)
    numbers = _numbers(architecture, config)
    products = adapter_products(numbers, config, architecture)
    pairs = target.rope_type == "normal" and not numbers.interleaved_rope_weights
    sources, outline = huggingface_sources(
        config.weights,
        architecture.weight_adapters[WeightsFormat.safetensors],
        cast(GGUFAdapter, target.weight_adapters[WeightsFormat.gguf]),
        source,
        numbers,
        pairs=pairs,
    )
    products = replace(
        products,
        weight_adapters={**products.weight_adapters, WeightsFormat.gguf: target.weight_adapters[WeightsFormat.gguf]},
        interleaved_in={**products.interleaved_in, WeightsFormat.gguf: pairs or numbers.interleaved_rope_weights},
        gguf_architectures=(*products.gguf_architectures, *({written} - {*products.gguf_architectures})),
    )
    sources = (*_rope_sources(numbers), *sources)
    name = str(getattr(source, "_name_or_path", "") or "").rstrip("/").rpartition("/")[2] or files.path.name
    metadata: dict[str, MetadataValue] = {
        "general.architecture": written,
        "general.type": "model",
        "general.name": name,
        **_sampling(files.path),
        **model_metadata(written, source, numbers),
    }
    expected = _decoder(architecture, numbers, source, outline)
    _check(expected, numbers.max_seq_len, config.resolved_encoding, files, metadata, sources)
    keys, notes = tokenizer_metadata(files.path, load_tokenizer(files.path), int(source.vocab_size), name)
    metadata.update(keys)
    return Checkpoint(files, written, metadata, sources, products, notes=tuple(notes))


def _float_architecture(config: MAXModelConfig) -> SupportedArchitecture:
    architecture = PIPELINE_REGISTRY.find(config.huggingface_config)
    section = getattr(config.huggingface_config, "quantization_config", None)
    if section:
        file, supported = config.huggingface_config.source, "float weights: name the original"
        raise UnsupportedModelError("quantization_config", section, file=file, supported=supported)
    return architecture


def _numbers(architecture: SupportedArchitecture, config: MAXModelConfig) -> Llama3Config:
    if config.quantization_encoding is None:
        config.resolve(architecture)
    pipeline_config = PipelineConfig(model=config, runtime=PipelineRuntimeConfig(defer_resolve=True))
    numbers = architecture.config.initialize(pipeline_config)
    assert isinstance(numbers, Llama3Config)
    return numbers


def _decoder(
    architecture: SupportedArchitecture,
    numbers: Llama3Config,
    config: HuggingFaceConfig,
    outline: dict[str, WeightData],
) -> DecoderSpec:
    """The decoder of a checkpoint whose weights have these shapes; what a load would refuse is refused."""
    model: Any = architecture.pipeline_model
    numbers.finalize(
        huggingface_config=config,
        state_dict=outline,
        return_logits=ReturnLogits.LAST_TOKEN,
        norm_method=model.norm_method,
        attention_bias=model.attention_bias,
    )
    spec = numbers.decoder_spec()
    bind_weights(build_decoder_graph(spec, outline), outline)
    return spec


def _check(
    expected: DecoderSpec,
    length: int,
    encoding: SupportedEncoding,
    files: ModelFiles,
    metadata: Mapping[str, MetadataValue],
    sources: Iterable[TensorSource],
) -> None:
    """Reads what would be written, and compares it with the directory.

    Raises:
        UnsupportedModelError: A number that GGUF does not state.
    """
    contents = _Contents(metadata, f"GGUF metadata of {files.path.name}", tuple(sources))
    config = MAXModelConfig(weight_path=[Path("converted.gguf")], quantization_encoding=encoding)
    config.huggingface_config = HuggingFaceConfig.from_gguf(contents)
    architecture = PIPELINE_REGISTRY.find(config.huggingface_config)
    config.rope_type = architecture.rope_type
    adapter: Any = architecture.weight_adapters[WeightsFormat.gguf]
    outline = adapter(dict(contents.items()), huggingface_config=config.huggingface_config)
    spec = _decoder(architecture, _numbers(architecture, config), config.huggingface_config, outline)
    for name, wanted, read in differences(expected, spec, length):
        supported = f"{read!r}, which is all that GGUF can say"
        raise UnsupportedModelError(name, wanted, file=files.path, supported=supported)


@dataclass(frozen=True)
class _Contents:
    """What a file would hold, as the reader of GGUF configurations wants it."""

    metadata: Mapping[str, MetadataValue]
    path: str
    sources: tuple[TensorSource, ...]

    def items(self) -> Iterable[tuple[str, _Place]]:
        return [(source.name, _Place(source)) for source in self.sources]


@dataclass(frozen=True)
class _Place:
    """A tensor of such a file: its shape, and values only where a configuration follows from them."""

    source: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def data(self) -> WeightData:
        if self.source.name.startswith("rope_"):
            return self.source.load()
        return outline_of(self.source.name, self.source.shape)


def _rope_sources(numbers: Llama3Config) -> Iterable[TensorSource]:
    for name, values in rope_tensors(numbers).items():
        yield TensorSource(name, values.shape, "F32", partial(WeightData.from_numpy, values, name))


def _sampling(directory: Path) -> dict[str, MetadataValue]:
    path = directory / "generation_config.json"
    stated = generation_defaults(path).stated() if path.is_file() else {}
    return {key: stated[name] for name, key in GGUF_SAMPLING.items() if name in stated}
