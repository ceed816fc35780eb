"""What must hold for every architecture in the registry, on tiny random checkpoints. A new family adds no test here:
it adds its configuration to `support.checkpoints`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from puna import _native
from puna.pipelines.architectures import register_all_models
from puna.pipelines.architectures.llama3 import LlamaModelBase
from puna.pipelines.lib import PIPELINE_REGISTRY
from puna.pipelines.lib.huggingface_config import HuggingFaceConfig
from support.checkpoints import (
    BLOCK_256,
    FAMILIES,
    GGUF_FAMILIES,
    LENGTH,
    ROPE_KINDS,
    WINDOW,
    tiny_config,
    tiny_tensors,
    write_huggingface,
)
from support.family_model import all_logits, load_family, random_prompt
from support.gguf_checkpoints import random_blocks, write_gguf
from support.variants import is_on_tiles

CASES = (
    [(family, "none") for family in FAMILIES]
    + [("llama", rope) for rope in ROPE_KINDS if rope != "none"]
    + [("phi3", "longrope")]
)
GGUF_CASES = [case for case in CASES if case[1] != "dynamic" and case[0] in GGUF_FAMILIES]
LENGTHS = (37, 1, WINDOW + 1, 25)

Logits = list[np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def checkpoints() -> Any:
    """Writes each checkpoint once; `checkpoints(family, rope)` is the directory that holds `hf` and `model.gguf`."""
    with TemporaryDirectory() as root:

        @cache
        def write(family: str, rope: str) -> Path:
            directory = Path(root) / f"{family}-{rope}"
            config = config_of(family, rope)
            tensors = tiny_tensors(config)
            write_huggingface(directory / "hf", config, tensors)
            if (family, rope) in GGUF_CASES:
                write_gguf(directory / "model.gguf", config, tensors)
            return directory

        yield write


@pytest.fixture(scope="module")
def models(checkpoints: Any) -> Any:
    """Loads each checkpoint once per executor."""

    @cache
    def load(family: str, rope: str, executor: str = "native") -> LlamaModelBase:
        return load_family(checkpoints(family, rope) / "hf", executor)

    return load


def config_of(family: str, rope: str) -> dict[str, Any]:
    # GGUF has no key for Qwen's windows
    return tiny_config(family, rope, **({"use_sliding_window": False} if family in ("qwen2", "qwen3") else {}))


def prompts() -> list[list[int]]:
    return [random_prompt(131, length, seed=length) for length in LENGTHS]


def assert_same_bits(got: Logits, expected: Logits) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def assert_close(got: Logits, expected: Logits, tolerance: float) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        assert np.abs(mine - theirs).max() <= tolerance * np.abs(theirs).max()


def test_every_architecture_has_a_checkpoint() -> None:
    register_all_models()
    tried = {tiny_config(family)["architectures"][0] for family in FAMILIES}
    aliases = {"BaiChuanForCausalLM"}  # Baichuan 1 wrote it so
    assert tried == set(PIPELINE_REGISTRY.architectures) - aliases


@pytest.mark.parametrize(("family", "rope"), GGUF_CASES)
def test_gguf_says_what_the_directory_says(checkpoints: Any, models: Any, family: str, rope: str) -> None:
    """The same configuration but for float32 rounding, how rotary factors are written, and where pairs lie."""
    directory = checkpoints(family, rope)
    from_gguf, from_json = load_family(directory / "model.gguf", "reference").config, models(family, rope).config
    differing = {"interleaved_rope_weights", "rope_scaling_params", "longrope_scaling_params", "norm_dtype"}
    if family == "baichuan":
        differing.add("stacked_qkv")  # in the directory only
    for name in vars(from_json).keys() - differing:
        mine, theirs = getattr(from_gguf, name), getattr(from_json, name)
        assert mine == (pytest.approx(theirs, rel=1e-6) if isinstance(theirs, float) else theirs), name
    neighbours = ("cohere", "cohere2", "glm", "glm4", "ernie4_5")  # in both kinds of file
    assert from_json.interleaved_rope_weights is (family in neighbours)
    pairs = (*neighbours, "llama", "mistral", "granite", "olmo", "smollm3", "internlm2", "minicpm", "baichuan")
    assert from_gguf.interleaved_rope_weights is (family in pairs)
    mine, theirs = from_gguf.rotary_embedding(), from_json.rotary_embedding()
    for length in (1, LENGTH):
        np.testing.assert_allclose(mine.inv_freq(length), theirs.inv_freq(length), rtol=1e-6)
        assert mine.attention_factor(length) == pytest.approx(theirs.attention_factor(length), rel=1e-6)
        assert mine.regime(length) == theirs.regime(length)


@pytest.mark.parametrize("family", FAMILIES)
def test_configuration_round_trip(checkpoints: Any, family: str) -> None:
    config = HuggingFaceConfig.from_directory(checkpoints(family, "none") / "hf")
    assert HuggingFaceConfig(config.to_dict()) == config


@pytest.mark.parametrize(("family", "rope"), GGUF_CASES)
def test_gguf_computes_what_the_directory_computes(checkpoints: Any, models: Any, family: str, rope: str) -> None:
    from_gguf = load_family(checkpoints(family, rope) / "model.gguf")
    assert_close(all_logits(from_gguf, prompts()), all_logits(models(family, rope), prompts()), 1e-4)


@pytest.mark.parametrize(("family", "rope"), CASES)
def test_native_computes_what_the_reference_computes(models: Any, family: str, rope: str) -> None:
    native, reference = models(family, rope), models(family, rope, "reference")
    assert_close(all_logits(native, prompts()), all_logits(reference, prompts()), 1e-5)


@pytest.mark.parametrize(("family", "rope"), CASES)
def test_batched_is_alone(models: Any, family: str, rope: str) -> None:
    model = models(family, rope)
    alone = [all_logits(model, [prompt])[0] for prompt in prompts()]
    assert_same_bits(all_logits(model, prompts()), alone)


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize(("family", "rope"), CASES)
def test_chunked_and_cached_are_whole(models: Any, family: str, rope: str, chunk: int) -> None:
    model = models(family, rope)
    assert_same_bits(all_logits(model, prompts(), chunk), all_logits(model, prompts()))


@pytest.mark.parametrize("family", FAMILIES)
def test_subgraphs_change_no_bit(checkpoints: Any, models: Any, family: str) -> None:
    inlined = load_family(checkpoints(family, "none") / "hf", use_subgraphs=False)
    assert_same_bits(all_logits(inlined, prompts()), all_logits(models(family, "none"), prompts()))


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_change_no_bit(tmp_path: Path, models: Any, family: str) -> None:
    config = config_of(family, "none")
    write_huggingface(tmp_path, config, tiny_tensors(config), shards=4)
    assert_same_bits(all_logits(load_family(tmp_path), prompts()), all_logits(models(family, "none"), prompts()))


def test_split_gguf_files_change_no_bit(tmp_path: Path, checkpoints: Any) -> None:
    config = config_of("llama", "longrope")
    path = write_gguf(tmp_path / "model.gguf", config, tiny_tensors(config), tensors_per_file=7)
    assert path.name == "model-00001-of-00005.gguf"
    whole = load_family(checkpoints("llama", "longrope") / "model.gguf")
    assert_same_bits(all_logits(load_family(path), prompts()), all_logits(whole, prompts()))


VARIANTS = _native.supported_variants()


@pytest.mark.parametrize(("family", "rope"), CASES)
def test_variants_change_no_bit(checkpoints: Any, models: Any, family: str, rope: str) -> None:
    expected = all_logits(models(family, rope), prompts())
    for variant in VARIANTS:
        other = load_family(checkpoints(family, rope) / "hf", variant=variant)
        assert_same_bits(all_logits(other, prompts()), expected)


@pytest.mark.parametrize(
    "encoding", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "MXFP4", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_quantized_files(tmp_path: Path, encoding: str) -> None:
    """With quantized activations too, the result of a request depends on nothing but the request."""
    config = tiny_config("llama", **BLOCK_256)
    tensors = tiny_tensors(config)
    blocks = None
    if encoding not in ("F16", "BF16"):
        tensors, blocks = random_blocks(tensors, encoding)
    path = write_gguf(tmp_path / "model.gguf", config, tensors, encoding=encoding, blocks=blocks)
    model = load_family(path, precision="auto")
    whole = all_logits(model, prompts())
    assert_same_bits([all_logits(model, [prompt])[0] for prompt in prompts()], whole)
    assert_same_bits(all_logits(model, prompts(), 7), whole)
    on_tiles = is_on_tiles(_native.default_variant(), encoding)
    for variant in VARIANTS:
        if is_on_tiles(variant, encoding) == on_tiles:
            assert_same_bits(all_logits(load_family(path, precision="auto", variant=variant), prompts()), whole)
    # where activations are rounded, a last bit between native and NumPy can move one to the next code or bfloat16
    step = {"a8": 1 / 127, "f32": 1 / 256 if encoding == "BF16" else 0}[_native.format_info(encoding)[2]]
    reference = all_logits(load_family(path, "reference", precision="auto"), prompts())
    assert_close(whole, reference, 4 * step or 1e-5)
