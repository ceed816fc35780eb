"""`Llama3Model`: steps against plain NumPy, modes, inputs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.driver import CPU, Buffer
from puna.dtype import DType
from puna.errors import InvalidRequestError, ShapeError, UnsupportedModelError, WeightsError
from puna.graph import DeviceRef
from puna.graph.weights import load_weights
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.nn.kv_cache import increment_cache_lengths
from puna.pipelines.architectures.llama3 import Llama3Config, Llama3Inputs, Llama3Model, LlamaModelBase
from puna.pipelines.lib import LogProbabilitiesMixin, ModelInputs, PipelineModelWithKVCache
from support.llama_config import KNOBS, hf_config, llama_config, model_config, pipeline_config, random_weights
from support.llama_model import (
    FLOAT32_CACHE,
    Cache,
    contexts,
    greedy,
    make_model,
    session,
    step,
    write_checkpoint,
)
from support.llama_reference import forward

PROMPTS = [[1, 2, 3], [4], [5, 6]]


@pytest.fixture
def model(tmp_path: Path) -> Llama3Model:
    return make_model(tmp_path)


def close(got: Any, expected: Any) -> bool:
    """Float32 throughout: 1e-4 of the largest value."""
    return bool(np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max())


def reference(model: Llama3Model, tokens: list[int]) -> Any:
    return forward(model.config, model.state_dict, tokens)


class TestConstruction:
    def test_what_it_holds(self, model: Llama3Model) -> None:
        assert isinstance(model, (LogProbabilitiesMixin, PipelineModelWithKVCache))
        assert isinstance(model.config, Llama3Config)
        assert (model.max_seq_len, model.dtype, model.kv_params.page_size) == (64, DType.float32, 4)
        assert (model.signal_buffers, model.lora_manager, model.device_refs) == ([], None, [DeviceRef.CPU()])
        assert model.huggingface_config is model.pipeline_config.model.huggingface_config
        assert model.rope == model.config.rotary_embedding()

    def test_the_bound_weights_have_internal_names(self, model: Llama3Model) -> None:
        assert set(model.state_dict) == set(random_weights(model.config))
        assert model.state_dict["layers.1.mlp.down_proj.weight"].shape == (32, 48)

    def test_the_base_alone_cannot_be_made(self, model: Llama3Model) -> None:
        arguments = (model.pipeline_config, model.session, model.devices, model.kv_cache_config, model.weights)
        with pytest.raises(TypeError, match="norm_method"):
            LlamaModelBase(*arguments)

    def test_class_methods_need_no_instance(self, model: Llama3Model) -> None:
        config, options = model.huggingface_config, model.pipeline_config
        assert Llama3Model.calculate_max_seq_len(options, config) == 64
        params = Llama3Model.get_kv_params(config, options, [DeviceRef.CPU()], FLOAT32_CACHE, DType.float32)
        assert params == model.kv_params == model.config.get_kv_params()
        options.model.max_length = 65
        with pytest.raises(ValueError, match="max_position_embeddings"):
            Llama3Model.calculate_max_seq_len(options, config)

    def test_an_adapter_is_called_with_both_configurations(self, tmp_path: Path) -> None:
        weights = random_weights(_sizes())
        path = write_checkpoint(tmp_path, weights, prefix="model.")
        options = pipeline_config(model=model_config(kv_cache=FLOAT32_CACHE))
        seen: dict[str, Any] = {}

        def adapter(state_dict: Any, /, **kwargs: Any) -> Any:
            seen.update(kwargs)
            return {name.removeprefix("model."): tensor.data() for name, tensor in state_dict.items()}

        made = Llama3Model(
            options, session("reference"), [CPU()], options.model.kv_cache, load_weights([path]), adapter
        )
        assert set(made.state_dict) == set(weights)
        assert seen == {"huggingface_config": options.model.huggingface_config, "pipeline_config": options}

    def test_without_an_adapter_names_are_taken_as_they_are(self, tmp_path: Path) -> None:
        weights = {"model." + name: data for name, data in random_weights(_sizes()).items()}
        with pytest.raises(WeightsError, match=r"embed_tokens\.weight"):
            make_model(tmp_path, weights=weights)

    @pytest.mark.parametrize("missing", ["lm_head.weight", "layers.1.self_attn.o_proj.weight", "norm.weight"])
    def test_a_missing_weight_is_an_error(self, tmp_path: Path, missing: str) -> None:
        weights = random_weights(_sizes())
        del weights[missing]
        with pytest.raises(WeightsError, match=missing):
            make_model(tmp_path, weights=weights)

    def test_a_weight_without_use_is_an_error(self, tmp_path: Path) -> None:
        weights = random_weights(_sizes())
        weights["layers.0.self_attn.gate.weight"] = weights["norm.weight"]
        with pytest.raises(WeightsError, match="gate"):
            make_model(tmp_path, weights=weights)

    def test_known_leftovers_are_harmless(self, tmp_path: Path) -> None:
        weights = random_weights(_sizes())
        weights["rope_freqs.weight"] = weights["norm.weight"]
        assert "rope_freqs.weight" not in make_model(tmp_path, weights=weights).state_dict

    def test_the_batch_size_must_be_resolved(self, model: Llama3Model) -> None:
        model.pipeline_config.runtime.max_batch_size = None
        with pytest.raises(ValueError, match="max_batch_size"):
            model.load_model(model.session)

    @pytest.mark.parametrize(
        ("options", "name"),
        [({"devices": "cpu:0,1"}, "devices"), ({"data_parallel_degree": 2}, "more than the 1 devices")],
    )
    def test_devices_that_do_not_fit_are_refused(self, tmp_path: Path, options: dict[str, Any], name: str) -> None:
        with pytest.raises(ValueError, match=name):
            make_model(tmp_path, options=options)


def _sizes(config: Any = None) -> Llama3Config:
    """A finished configuration, for the shapes of its weights."""
    return llama_config(config)


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_changes_logits_as_the_mathematics_says(tmp_path: Path, knob: str) -> None:
    model = make_model(tmp_path, hf_config(**KNOBS[knob]), return_logits=ReturnLogits.ALL)
    rows = contexts(PROMPTS)
    _, outputs = step(model, rows, Cache(model.kv_params, 3))
    expected = [reference(model, prompt)[0] for prompt in PROMPTS]
    assert close(outputs.logits.to_numpy(), np.concatenate(expected))
    if KNOBS[knob]:
        plain = make_model(tmp_path, hf_config(), weights=None, return_logits=ReturnLogits.ALL)
        _, before = step(plain, contexts(PROMPTS), Cache(plain.kv_params, 3))
        assert not np.array_equal(before.logits.to_numpy(), outputs.logits.to_numpy())


class TestSteps:
    """Prefill, decode, mixed and chunked batches give the reference's logits."""

    def test_prefill_then_decode_in_one_batch(self, model: Llama3Model) -> None:
        rows, cache = contexts(PROMPTS), Cache(model.kv_params, 3)
        for _ in range(6):
            _, outputs = step(model, rows, cache)
            assert outputs.next_token_logits is not None
            for row, logits in zip(rows, outputs.next_token_logits.to_numpy(), strict=True):
                assert close(logits, reference(model, row.tokens.all.tolist())[0][-1])
            for row, token in zip(rows, greedy(outputs), strict=True):
                row.update(int(token))

    def test_a_chunked_prompt_continues_at_its_position(self, model: Llama3Model) -> None:
        rows, cache = contexts([[1, 2, 3, 4, 5, 6, 7], [8, 9]]), Cache(model.kv_params, 2)
        rows[0].tokens.chunk(3)
        _, first = step(model, rows, cache)
        for row, token in zip(rows, greedy(first), strict=True):
            row.update(int(token))
        assert (rows[0].tokens.processed_length, rows[0].tokens.active_length) == (3, 4)
        _, second = step(model, rows, cache)  # four prompt rows beside one decode row
        for row, logits in zip(rows, second.logits.to_numpy(), strict=True):
            assert close(logits, reference(model, row.tokens.all.tolist())[0][-1])

    def test_an_empty_batch_does_nothing(self, model: Llama3Model) -> None:
        cache = Cache(model.kv_params, 1)
        inputs, outputs = step(model, [], cache)
        assert (inputs.tokens.shape, inputs.input_row_offsets.to_numpy().tolist()) == ((0,), [0])
        assert outputs.logits.shape == (0, 40)
        assert not cache.blocks.to_numpy().any()

    def test_subgraphs_change_nothing(self, tmp_path: Path) -> None:
        results = []
        for use_subgraphs in (True, False):
            made = make_model(tmp_path, options={"use_subgraphs": use_subgraphs})
            _, outputs = step(made, contexts(PROMPTS), Cache(made.kv_params, 3))
            results.append(outputs.logits.to_numpy())
        assert np.array_equal(*results)


class TestModes:
    @pytest.mark.parametrize("mode", list(ReturnLogits))
    def test_logits(self, tmp_path: Path, mode: ReturnLogits) -> None:
        prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
        model = make_model(tmp_path, return_logits=mode)
        _, outputs = step(model, contexts(prompts), Cache(model.kv_params, 3), n=2)
        full = [reference(model, prompt)[0] for prompt in prompts]
        assert outputs.next_token_logits is not None
        assert close(outputs.next_token_logits.to_numpy(), np.stack([rows[-1] for rows in full]))
        assert outputs.logits.dtype is DType.float32
        if mode is ReturnLogits.LAST_TOKEN:
            assert outputs.logits is outputs.next_token_logits
            assert outputs.logit_offsets is None
            return
        assert outputs.logit_offsets is not None
        offsets, dtype = ([0, 2, 4, 6], DType.int64) if mode is ReturnLogits.VARIABLE else ([0, 3, 5, 9], DType.uint32)
        assert (outputs.logit_offsets.to_numpy().tolist(), outputs.logit_offsets.dtype) == (offsets, dtype)
        expected = np.concatenate([rows[-2:] if mode is ReturnLogits.VARIABLE else rows for rows in full])
        assert outputs.logits.shape == expected.shape
        assert close(outputs.logits.to_numpy(), expected)

    @pytest.mark.parametrize("mode", [m for m in ReturnHiddenStates if m is not ReturnHiddenStates.EAGLE3])
    @pytest.mark.parametrize("logits", list(ReturnLogits))
    def test_hidden_states(self, tmp_path: Path, mode: ReturnHiddenStates, logits: ReturnLogits) -> None:
        model = make_model(tmp_path, return_hidden_states=mode, return_logits=logits)
        _, outputs = step(model, contexts(PROMPTS), Cache(model.kv_params, 3))
        full = [reference(model, prompt) for prompt in PROMPTS]
        if mode is ReturnHiddenStates.NONE:
            assert outputs.hidden_states is None
            return
        assert isinstance(outputs.hidden_states, Buffer)
        expected = {
            ReturnHiddenStates.LAST: np.stack([before[-1] for _, before, _ in full]),
            ReturnHiddenStates.LAST_PER_DEVICE: np.stack([before[-1] for _, before, _ in full]),
            ReturnHiddenStates.ALL: np.concatenate([before for _, before, _ in full]),
            ReturnHiddenStates.ALL_NORMALIZED: np.concatenate([after for _, _, after in full]),
        }[mode]
        assert close(outputs.hidden_states.to_numpy(), expected)

    def test_more_rows_than_a_request_has_would_be_its_neighbours(self, tmp_path: Path) -> None:
        model = make_model(tmp_path, return_logits=ReturnLogits.VARIABLE)
        with pytest.raises(InvalidRequestError, match="return_n_logits"):
            step(model, contexts([[1, 2], [3]]), Cache(model.kv_params, 2), n=2)

    def test_n_travels_in_every_mode(self, model: Llama3Model) -> None:
        inputs = model.prepare_initial_token_inputs([contexts(PROMPTS)])
        assert (inputs.return_n_logits.dtype, inputs.return_n_logits.to_numpy().tolist()) == (DType.int64, [1])
        assert inputs.return_n_logits.is_host
        with pytest.raises(ValueError, match="return_n_logits"):
            model.prepare_initial_token_inputs([contexts(PROMPTS)], return_n_logits=0)


class TestInputs:
    def test_ragged_rows(self, model: Llama3Model) -> None:
        inputs = model.prepare_initial_token_inputs([contexts([[7, 8, 9], [4], [5, 6]])])
        assert (inputs.tokens.dtype, inputs.tokens.to_numpy().tolist()) == (DType.int64, [7, 8, 9, 4, 5, 6])
        assert inputs.input_row_offsets.dtype is DType.uint32
        assert inputs.input_row_offsets.to_numpy().tolist() == [0, 3, 4, 6]
        assert (inputs.data_parallel_splits, inputs.kv_cache_inputs) == (None, None)

    def test_only_active_tokens_count(self, model: Llama3Model) -> None:
        rows = contexts([[7, 8, 9]])
        rows[0].tokens.skip_processing(1)
        rows[0].tokens.chunk(1)
        assert model.prepare_initial_token_inputs([rows]).tokens.to_numpy().tolist() == [8]

    @pytest.mark.parametrize("batches", [[], [[], []]])
    def test_another_number_of_replicas_is_an_error(self, model: Llama3Model, batches: Any) -> None:
        with pytest.raises(ValueError, match="data_parallel_degree"):
            model.prepare_initial_token_inputs(batches)

    def test_a_request_beyond_the_models_length_is_refused(self, model: Llama3Model) -> None:
        with pytest.raises(InvalidRequestError, match="65 tokens"):
            model.prepare_initial_token_inputs([contexts([[1] * 65], max_length=100)])

    def test_earlier_inputs_stay_as_they_were(self, model: Llama3Model) -> None:
        first = model.prepare_initial_token_inputs([contexts([[1, 2]])])
        second = model.prepare_initial_token_inputs([contexts([[3, 4]])])
        assert first.tokens.to_numpy().tolist() == [1, 2]
        assert second.tokens.to_numpy().tolist() == [3, 4]


class TestMultistep:
    def test_next_inputs_carry_everything_else_over(self, model: Llama3Model) -> None:
        rows, cache = contexts(PROMPTS), Cache(model.kv_params, 3)
        first = model.prepare_initial_token_inputs([rows], cache.inputs(rows, 2))
        first.hidden_states = first.tokens
        tokens = Buffer.from_numpy(np.array([9, 8, 7], dtype=np.int64))
        second = model.prepare_next_token_inputs(tokens, first)
        assert second.tokens is tokens
        assert second.input_row_offsets.to_numpy().tolist() == [0, 1, 2, 3]
        assert second.kv_cache_inputs is first.kv_cache_inputs
        assert second.return_n_logits is first.return_n_logits
        assert second.signal_buffers is first.signal_buffers
        assert second.hidden_states is None

    def test_offsets_are_a_view_of_one_vector(self, model: Llama3Model) -> None:
        first = model.prepare_initial_token_inputs([contexts(PROMPTS)])
        tokens = Buffer.from_numpy(np.zeros(3, dtype=np.int64))
        views = [model.prepare_next_token_inputs(tokens, first).input_row_offsets.to_numpy() for _ in range(2)]
        assert np.shares_memory(*views)

    def test_several_steps_equal_single_steps(self, model: Llama3Model) -> None:
        single, cache = contexts(PROMPTS), Cache(model.kv_params, 3)
        expected = []
        for _ in range(4):
            _, outputs = step(model, single, cache)
            expected.append(outputs.logits.to_numpy())
            for row, token in zip(single, greedy(outputs), strict=True):
                row.update(int(token))
        rows, cache = contexts(PROMPTS), Cache(model.kv_params, 3)
        inputs = model.prepare_initial_token_inputs([rows], cache.inputs(rows, num_steps=4))
        for turn in range(4):
            outputs = model.execute(inputs)
            assert np.array_equal(outputs.logits.to_numpy(), expected[turn])
            if turn < 3:
                assert inputs.kv_cache_inputs is not None
                inputs.kv_cache_inputs = increment_cache_lengths(inputs.kv_cache_inputs, inputs)
                inputs = model.prepare_next_token_inputs(Buffer.from_numpy(greedy(outputs)), inputs)

    def test_what_does_not_fit_is_refused(self, model: Llama3Model) -> None:
        first = model.prepare_initial_token_inputs([contexts(PROMPTS)])
        with pytest.raises(ShapeError, match="next_tokens"):
            model.prepare_next_token_inputs(Buffer.from_numpy(np.zeros(2, dtype=np.int64)), first)
        many = model.prepare_initial_token_inputs([contexts([[1]] * 9)])
        with pytest.raises(ValueError, match="max_batch_size"):
            model.prepare_next_token_inputs(Buffer.from_numpy(np.zeros(9, dtype=np.int64)), many)
        with pytest.raises(TypeError, match="Llama3Inputs"):
            model.prepare_next_token_inputs(first.tokens, ModelInputs())


class TestExecuteRefuses:
    def inputs(self, model: Llama3Model) -> Llama3Inputs:
        rows = contexts(PROMPTS)
        return model.prepare_initial_token_inputs([rows], Cache(model.kv_params, 3).inputs(rows))

    def test_other_inputs(self, model: Llama3Model) -> None:
        with pytest.raises(TypeError, match="ModelInputs"):
            model.execute(ModelInputs())

    def test_no_cache(self, model: Llama3Model) -> None:
        with pytest.raises(ValueError, match="kv_cache_inputs"):
            model.execute(model.prepare_initial_token_inputs([contexts(PROMPTS)]))

    @pytest.mark.parametrize("name", ["data_parallel_splits", "hidden_states"])
    def test_inputs_that_are_carried_only(self, model: Llama3Model, name: str) -> None:
        inputs = self.inputs(model)
        setattr(inputs, name, inputs.tokens)
        with pytest.raises(UnsupportedModelError, match=name):
            model.execute(inputs)

    def test_signal_buffers(self, model: Llama3Model) -> None:
        inputs = self.inputs(model)
        inputs.signal_buffers = [inputs.tokens]
        with pytest.raises(UnsupportedModelError, match="signal_buffers"):
            model.execute(inputs)

    def test_adapters_in_part_and_in_whole(self, model: Llama3Model) -> None:
        inputs = self.inputs(model)
        inputs.lora_ids = inputs.tokens
        with pytest.raises(ValueError, match="lora_ranks"):
            model.execute(inputs)
        for name in ("lora_ranks", "lora_grouped_offsets", "num_active_loras", "lora_end_idx", "batch_seq_len"):
            setattr(inputs, name, inputs.tokens)
        inputs.lora_ids_kv = inputs.lora_grouped_offsets_kv = inputs.tokens
        with pytest.raises(UnsupportedModelError, match="without enable_lora"):
            model.execute(inputs)


def test_log_probabilities_of_a_real_step(tmp_path: Path) -> None:
    model = make_model(tmp_path, return_logits=ReturnLogits.ALL)
    inputs, outputs = step(model, contexts(PROMPTS), Cache(model.kv_params, 3))
    tokens = greedy(outputs)
    records = model.compute_log_probabilities(
        model.session, inputs, outputs, Buffer.from_numpy(tokens), [3, 0, 2], [True, False, False]
    )
    assert [None if r is None else len(r) for r in records] == [3, None, 1]
    assert records[2] is not None
    assert next(iter(records[2].top_log_probabilities[0])) == tokens[2]
