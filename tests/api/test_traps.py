"""Surprises of the documented module that no other file of this folder covers, each by its number in the specification.

Elsewhere: 2, 6, 15 (knobs and chunks) and 7 to 11, 18, 29, 39, 41 in `test_llama3_model`; 12, 13 in
`test_llama3_finalize`; 25, 26 in `test_llama3_config`; 33, 34 in `test_llama3_rope`; 27 in `test_llama3_inputs`; 20,
21 in `unit/test_context`; 31 in `unit/test_log_probabilities`; 32 in `unit/test_request`; 35 in `test_llama3_config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.driver import Buffer
from puna.dtype import DType
from puna.graph.weights import WeightData
from puna.nn.decoder_spec import ReturnLogits
from puna.nn.kv_cache import increment_cache_lengths
from puna.pipelines.architectures.llama3 import Llama3Config, Llama3Model
from puna.pipelines.lib import MAXModelConfig
from support.llama_config import hf_config, llama_config, random_weights
from support.llama_model import Cache, contexts, greedy, make_model, step
from support.llama_reference import forward, rotate

PROMPTS = [[1, 2, 3], [4], [5, 6]]


def close(got: Any, expected: Any) -> bool:
    return bool(np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max())


def logits_of(model: Llama3Model) -> Any:
    _, outputs = step(model, contexts(PROMPTS), Cache(model.kv_params, 3))
    return outputs.logits.to_numpy()


def test_1_the_attention_multiplier_is_the_whole_scale(tmp_path: Path) -> None:
    """Stating `1 / sqrt(D)` changes no bit, so nothing multiplies by it a second time."""
    implied = logits_of(make_model(tmp_path, hf_config()))
    stated = logits_of(make_model(tmp_path, hf_config(attention_multiplier=(1 / 8) ** 0.5)))
    assert np.array_equal(implied, stated)


class InterleavedConfig(Llama3Config):
    """As from a GGUF file of Llama's kind."""

    @classmethod
    def is_interleaved(cls, model_config: MAXModelConfig) -> bool:
        return True


class InterleavedModel(Llama3Model):
    config_class: ClassVar[type[Llama3Config]] = InterleavedConfig


def permute_rows(weights: dict[str, WeightData], config: Llama3Config) -> dict[str, WeightData]:
    """Q and K as GGUF stores them: row j of a head's first half beside row j of its second half."""
    permuted = dict(weights)
    for name, data in weights.items():
        if "q_proj" in name or "k_proj" in name:
            rows = data.data.reshape(-1, 2, config.head_dim // 2, *data.shape[1:])
            permuted[name] = WeightData.from_numpy(np.ascontiguousarray(rows.swapaxes(1, 2).reshape(data.shape)), name)
    return permuted


class Test3TwoRopeLayouts:
    def test_the_documented_rotation(self) -> None:
        inv_freq, at_1 = np.array([1.0, 0.01]), np.array([1.0])
        x = np.array([[1.0, 2.0, 3.0, 4.0]])
        split = rotate(x, at_1, inv_freq, 1.0, interleaved=False)[0]
        assert split == pytest.approx([-1.984111, 1.959901, 2.462378, 4.019800], abs=1e-6)
        pairs = rotate(x, at_1, inv_freq, 1.0, interleaved=True)[0]
        assert pairs == pytest.approx([-1.142640, 1.922076, 2.959851, 4.029800], abs=1e-6)
        permuted = rotate(x[:, [0, 2, 1, 3]], at_1, inv_freq, 1.0, interleaved=True)[0]
        assert permuted == pytest.approx([-1.984111, 2.462378, 1.959901, 4.019800], abs=1e-6)

    def test_permuted_rows_with_neighbours_equal_halves(self, tmp_path: Path) -> None:
        config = llama_config()
        weights = random_weights(config)
        halves = make_model(tmp_path, weights=weights)
        neighbours = make_model(tmp_path, weights=permute_rows(weights, config), model_class=InterleavedModel)
        assert neighbours.config.interleaved_rope_weights
        assert close(logits_of(neighbours), logits_of(halves))
        wrong = make_model(tmp_path, weights=permute_rows(weights, config))
        assert not close(logits_of(wrong), logits_of(halves))

    @pytest.mark.parametrize(("rope_type", "expected"), [(None, True), ("normal", True), ("neox", False)])
    def test_files_and_rope_type_choose(self, rope_type: Any, expected: bool) -> None:
        gguf = MAXModelConfig(weight_path=[Path("model.gguf")], rope_type=rope_type)
        assert Llama3Config.is_interleaved(gguf) is expected
        safetensors = MAXModelConfig(weight_path=[Path("model.safetensors")], rope_type=rope_type)
        assert Llama3Config.is_interleaved(safetensors) is False


def test_4_clip_qkv_clamps_activations_not_weights(tmp_path: Path) -> None:
    """All weights are far inside the bound, so clamping them would change nothing; the projections are not."""
    config = hf_config(clip_qkv=0.4)
    weights = random_weights(llama_config())
    weights = {
        name: WeightData.from_numpy(np.clip(data.data, -0.39, 0.39), name) if "_proj" in name else data
        for name, data in weights.items()
    }
    clipped = make_model(tmp_path, config, weights=weights)
    expected = [forward(clipped.config, clipped.state_dict, prompt)[0][-1] for prompt in PROMPTS]
    assert close(logits_of(clipped), np.stack(expected))
    assert not close(logits_of(make_model(tmp_path, hf_config(), weights=weights)), np.stack(expected))


LONGROPE = {
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 3.0, 5.0, 9.0]},
    "original_max_position_embeddings": 8,
}


class Test5LongRope:
    """One factor list per request, chosen by its whole length; cosine and sine carry the attention factor."""

    def model(self, directory: Path) -> Llama3Model:
        return make_model(directory, hf_config(**LONGROPE), return_logits=ReturnLogits.ALL)

    def test_each_request_has_its_own_list(self, tmp_path: Path) -> None:
        model = self.model(tmp_path)
        prompts = [list(range(1, 13)), [4, 5, 6], list(range(20, 28))]
        inputs, outputs = step(model, contexts(prompts), Cache(model.kv_params, 3))
        assert inputs.kv_cache_inputs is not None
        lengths = inputs.kv_cache_inputs[0].request_lengths
        assert lengths is not None
        assert lengths.to_numpy().tolist() == [12, 3, 8]
        expected = np.concatenate([forward(model.config, model.state_dict, prompt)[0] for prompt in prompts])
        assert close(outputs.logits.to_numpy(), expected)

    def test_chunks_use_the_list_of_the_whole_prompt(self, tmp_path: Path) -> None:
        model = self.model(tmp_path)
        rows, prompt = contexts([list(range(1, 13))]), list(range(1, 13))
        rows[0].tokens.chunk(3)
        cache = Cache(model.kv_params, 1)
        _, first = step(model, rows, cache)
        rows[0].update(0)
        _, second = step(model, rows, cache)
        got = np.concatenate([first.logits.to_numpy(), second.logits.to_numpy()])
        assert close(got, forward(model.config, model.state_dict, prompt)[0])

    def test_a_request_that_crosses_must_be_read_again(self, tmp_path: Path) -> None:
        model = self.model(tmp_path)
        rows, cache = contexts([[1, 2, 3, 4, 5, 6, 7]]), Cache(model.kv_params, 1)
        inputs = model.prepare_initial_token_inputs([rows], cache.inputs(rows, num_steps=3))
        tokens = Buffer.from_numpy(greedy(model.execute(inputs)))
        assert inputs.kv_cache_inputs is not None
        inputs.kv_cache_inputs = increment_cache_lengths(inputs.kv_cache_inputs, inputs)
        inputs = model.prepare_next_token_inputs(tokens, inputs)  # the eighth token is the last short one
        assert inputs.kv_cache_inputs is not None
        assert inputs.kv_cache_inputs[0].request_lengths is None
        inputs.kv_cache_inputs = increment_cache_lengths(inputs.kv_cache_inputs, inputs)
        with pytest.raises(ValueError, match="grows to 9 tokens"):
            model.prepare_next_token_inputs(tokens, inputs)

    def test_lengths_that_are_there_are_left_alone(self, tmp_path: Path) -> None:
        model = self.model(tmp_path)
        rows = contexts([[1, 2, 3]])
        cache_inputs = Cache(model.kv_params, 1).inputs(rows)
        stated = Buffer.from_numpy(np.array([50], dtype=np.uint32))
        cache_inputs[0].request_lengths = stated
        inputs = model.prepare_initial_token_inputs([rows], cache_inputs)
        assert inputs.kv_cache_inputs is not None
        assert inputs.kv_cache_inputs[0].request_lengths is stated
        expected = forward(model.config, model.state_dict, [1, 2, 3], rope_length=50)[0]
        assert close(model.execute(inputs).logits.to_numpy(), expected)


def test_dynamic_scaling_keeps_the_base_of_the_prompt_at_admission(tmp_path: Path) -> None:
    config = hf_config(rope_scaling={"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=8)
    model = make_model(tmp_path, config, options={"max_length": 32})
    rows, cache = contexts([list(range(1, 12))]), Cache(model.kv_params, 1)
    for turn in range(3):
        if turn == 2:  # preempted: everything is read again
            rows[0].reset()
        _, outputs = step(model, rows, cache)
        expected = forward(model.config, model.state_dict, rows[0].tokens.all.tolist(), rope_length=11)[0][-1]
        assert close(outputs.logits.to_numpy()[0], expected)
        rows[0].update(int(greedy(outputs)[0]))


def test_14_activations_are_float32_so_the_norm_has_no_rounding_order(tmp_path: Path) -> None:
    """With bfloat16 norm weights the product is still exact to float32."""
    weights = random_weights(llama_config())
    bfloat16 = DType.bfloat16
    rounded = {name: data.astype(bfloat16) if "norm" in name else data for name, data in weights.items()}
    path = tmp_path / "a"
    path.mkdir()
    model = make_model(path, weights=rounded)
    assert model.config.norm_dtype is bfloat16
    plain = {name: data.astype(DType.float32) for name, data in rounded.items()}
    assert np.array_equal(logits_of(model), logits_of(make_model(tmp_path, weights=plain)))


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "q4_k", "q8_0"])
def test_22_the_cache_has_a_type_of_its_own(encoding: str) -> None:
    from support.llama_config import model_config

    assert llama_config(model=model_config(quantization_encoding=encoding)).kv_params.dtype is DType.float16


@given(st.lists(st.integers(0, 39), min_size=1, max_size=12), st.integers(0, 3))
def test_rotated_products_are_equal_under_both_layouts(values: list[int], position: int) -> None:
    """For any vectors: permute, rotate neighbours, multiply, or rotate halves and multiply."""
    rng = np.random.default_rng([*values, position])
    q, k = rng.standard_normal((2, 1, 8))
    inv_freq, order = 10000.0 ** (-np.arange(4) / 4), np.array([0, 4, 1, 5, 2, 6, 3, 7])
    here, there = np.array([float(position)]), np.array([float(len(values))])
    halves = rotate(q, here, inv_freq, 1.0, interleaved=False) @ rotate(k, there, inv_freq, 1.0, interleaved=False).T
    q, k = q[:, order], k[:, order]
    pairs = rotate(q, here, inv_freq, 1.0, interleaved=True) @ rotate(k, there, inv_freq, 1.0, interleaved=True).T
    assert pairs == pytest.approx(halves, abs=1e-9)
