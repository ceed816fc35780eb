"""Quantizers and recipes beside llama.cpp's own, on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_cpp import Llama
from numpy.typing import NDArray

from puna import _native
from puna.conversion import open_checkpoint, options_for, quantized_tensors, write_gguf
from puna.graph.quantization import RECIPES, recipe_of
from puna.models import DEFAULT_MODEL, find_model
from support import ggml_blocks
from support.converted import VOCABULARY, convert, write_model
from support.family_model import all_logits, load_family, random_prompt
from support.ggml_quantizer import quantize_file, quantize_rows
from support.llama_cpp_limits import FLOAT32

pytestmark = pytest.mark.oracle

FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
Floats = NDArray[np.float32]


def drawn(kind: str) -> Floats:
    random = np.random.default_rng(11)
    shape = (64, 1024)
    values = {
        "normal": lambda: random.standard_normal(shape),
        "heavy": lambda: random.standard_t(3, shape),
        "laplace": lambda: random.laplace(size=shape),
        "shifted": lambda: random.standard_normal(shape) + 2.5,
        "uniform": lambda: random.uniform(-1, 1, shape),
    }[kind]()
    return (values * 0.02).astype(np.float32)


def error(format: str, x: Floats, blocks: NDArray[np.uint8], importance: Floats | None = None) -> float:
    """The mean squared error of blocks, by the columns' importance."""
    square = (ggml_blocks.dequantized(format, blocks, x.shape[1]).astype(np.float64) - x) ** 2
    return float((square if importance is None else square * importance).mean())


@pytest.mark.parametrize("kind", ["normal", "heavy", "laplace", "shifted", "uniform"])
@pytest.mark.parametrize("format", FORMATS)
def test_error_of_drawn_weights(format: str, kind: str) -> None:
    x = drawn(kind)
    assert error(format, x, _native.quantize(format, x)) <= 0.975 * error(format, x, quantize_rows(format, x))


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("format", FORMATS)
def test_error_by_importance(format: str, kind: str) -> None:
    x = drawn(kind)
    importance = np.random.default_rng(12).exponential(size=x.shape[1]).astype(np.float32)
    mine = error(format, x, _native.quantize(format, x, importance), importance)
    assert mine <= 0.99 * error(format, x, quantize_rows(format, x, importance), importance)


@pytest.fixture(scope="module")
def real() -> dict[str, Floats]:
    """Matrices of the default model, which is a Q4_1 file; rows of 576 are put together to rows of 2304."""
    reader = gguf.GGUFReader(find_model(DEFAULT_MODEL).path)
    modules = ("attn_q", "attn_v", "ffn_up", "ffn_down")
    names = [f"blk.{layer}.{module}.weight" for layer in (0, 14, 29) for module in modules]
    found = {}
    for tensor in reader.tensors:
        if tensor.name in names:
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            found[tensor.name] = np.ascontiguousarray(values.reshape(-1, 2304 if values.shape[1] == 576 else 1536))
    assert len(found) == len(names)
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_error_of_every_real_tensor(format: str, real: dict[str, Floats]) -> None:
    for name, x in real.items():
        mine, theirs = error(format, x, _native.quantize(format, x)), error(format, x, quantize_rows(format, x))
        assert mine <= theirs, (name, mine / theirs)


SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 16, "head_dim": 32}
MODELS: dict[str, dict[str, Any]] = {
    "grouped": {"family": "llama", "num_attention_heads": 8, "num_key_value_heads": 2},
    "tied": {"family": "llama", "num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "odd rows": {"family": "llama", "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 288},
    "small rows": {"family": "qwen2", "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 520},
    "stacked": {"family": "phi3", "num_attention_heads": 8, "num_key_value_heads": 4},
}


@pytest.fixture(scope="module", params=MODELS)
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("model")
    changes = SHAPE | MODELS[request.param]
    if changes["family"] != "llama":
        del changes["head_dim"]
    convert(write_model(directory / "hf", changes.pop("family"), **changes), directory / "full.gguf")
    yield directory / "full.gguf"


def quantized(full: Path, target: Path, recipe: str) -> Path:
    checkpoint = open_checkpoint(full)
    result = quantized_tensors(checkpoint, options_for(checkpoint, recipe_of(recipe, "to")))
    write_gguf(target, result.metadata, result.tensors)
    return target


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_choose_what_llama_cpp_chooses(full: Path, tmp_path: Path, recipe: str) -> None:
    mine = gguf.GGUFReader(quantized(full, tmp_path / "mine.gguf", recipe))
    theirs = gguf.GGUFReader(quantize_file(full, tmp_path / "theirs.gguf", RECIPES[recipe].file_type))
    chosen = {tensor.name: tensor.tensor_type.name for tensor in mine.tensors}
    assert chosen == {tensor.name: tensor.tensor_type.name for tensor in theirs.tensors}
    for key in ("general.file_type", "general.quantization_version"):
        assert mine.fields[key].contents() == theirs.fields[key].contents()
    other = {tensor.name: tensor for tensor in theirs.tensors}
    truths = {tensor.name: tensor.data for tensor in gguf.GGUFReader(full).tensors}
    for tensor in mine.tensors:
        both = [gguf.dequantize(t.data, t.tensor_type).astype(np.float64) for t in (tensor, other[tensor.name])]
        truth = truths[tensor.name]
        errors = [((values.reshape(truth.shape) - truth) ** 2).mean() for values in both]
        assert errors[0] <= errors[1] * 1.0001, (tensor.name, chosen[tensor.name])


@pytest.mark.parametrize("recipe", RECIPES)
def test_files_run_in_llama_cpp(tmp_path: Path, recipe: str) -> None:
    changes = SHAPE | {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 3}
    convert(write_model(tmp_path / "hf", "llama", **changes), tmp_path / "full.gguf")
    path = quantized(tmp_path / "full.gguf", tmp_path / "out.gguf", recipe)
    prompt = random_prompt(VOCABULARY, 33)
    cache = {"type_k": FLOAT32, "type_v": FLOAT32, "flash_attn": False}
    model = Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False, **cache)
    model.eval(prompt)
    theirs = np.array(model.scores[: len(prompt)])
    model.close()
    mine = all_logits(load_family(path), [prompt])[0]
    # llama.cpp rounds activations to 8 bits, one scale per 256 for K-quants.
    assert np.linalg.norm(mine - theirs) <= 0.06 * np.linalg.norm(theirs)
