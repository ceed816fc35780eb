"""The native program gives the reference's logits for every knob, and its own bits however requests are batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna._native import supported_variants
from puna.driver import Buffer
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.nn.kv_cache import increment_cache_lengths
from puna.pipelines.architectures.llama3 import Llama3Model
from support.llama_config import KNOBS, hf_config
from support.llama_model import Cache, contexts, greedy, make_model, step

PROMPTS = [[1, 2, 3], [4], [5, 6], list(range(7, 20))]
NUM_STEPS = 3


def run(model: Llama3Model, prompts: list[list[int]], num_steps: int = NUM_STEPS) -> list[Any]:
    """Logits of all steps, greedy, the whole batch together."""
    rows, cache, results = contexts(prompts), Cache(model.kv_params, len(prompts)), []
    for _ in range(num_steps):
        _, outputs = step(model, rows, cache)
        results.append(outputs.logits.to_numpy())
        for row, token in zip(rows, greedy(outputs), strict=True):
            row.update(int(token))
    return results


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("mode", [ReturnLogits.LAST_TOKEN, ReturnLogits.ALL])
def test_native_equals_the_reference_executor(tmp_path: Path, knob: str, mode: ReturnLogits) -> None:
    config = hf_config(**KNOBS[knob])
    native, reference = (
        run(make_model(tmp_path, config, executor=executor, return_logits=mode), PROMPTS, 2)
        for executor in ("native", "reference")
    )
    for got, expected in zip(native, reference, strict=True):
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("states", [ReturnHiddenStates.LAST, ReturnHiddenStates.ALL, ReturnHiddenStates.ALL_NORMALIZED])
@pytest.mark.parametrize("mode", list(ReturnLogits))
def test_modes_do_not_change_the_next_token(tmp_path: Path, mode: ReturnLogits, states: ReturnHiddenStates) -> None:
    plain = make_model(tmp_path, executor="native")
    _, expected = step(plain, contexts(PROMPTS), Cache(plain.kv_params, 4))
    model = make_model(tmp_path, executor="native", return_logits=mode, return_hidden_states=states)
    _, outputs = step(model, contexts(PROMPTS), Cache(model.kv_params, 4))
    assert outputs.next_token_logits is not None
    assert np.array_equal(outputs.next_token_logits.to_numpy(), expected.logits.to_numpy())


@pytest.fixture(scope="module", params=supported_variants())
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Llama3Model:
    return make_model(tmp_path_factory.mktemp("native"), executor=request.param)


@pytest.fixture(scope="module")
def alone(model: Llama3Model) -> dict[int, list[Any]]:
    return {index: run(model, [prompt]) for index, prompt in enumerate(PROMPTS)}


def test_all_variants_give_equal_bits(model: Llama3Model, alone: Any, tmp_path: Path) -> None:
    scalar = make_model(tmp_path, executor="scalar")
    for index, prompt in enumerate(PROMPTS):
        assert all(np.array_equal(*pair) for pair in zip(run(scalar, [prompt]), alone[index], strict=True))


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(len(PROMPTS))), count=st.integers(1, len(PROMPTS)))
def test_alone_equals_any_batch(model: Llama3Model, alone: Any, order: list[int], count: int) -> None:
    chosen = order[:count]
    together = run(model, [PROMPTS[index] for index in chosen])
    for turn in range(NUM_STEPS):
        for row, index in enumerate(chosen):
            assert np.array_equal(together[turn][row], alone[index][turn][0])


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 12)))
def test_whole_equals_any_chunks(model: Llama3Model, alone: Any, cuts: set[int]) -> None:
    prompt = PROMPTS[3]
    rows, cache = contexts([prompt]), Cache(model.kv_params, 1)
    for cut in sorted(cuts):
        rows[0].tokens.chunk(cut - rows[0].tokens.processed_length)
        step(model, rows, cache)
        rows[0].update(0)
    _, outputs = step(model, rows, cache)
    assert np.array_equal(outputs.logits.to_numpy()[0], alone[3][0][0])


def test_several_steps_equal_single_steps(model: Llama3Model) -> None:
    expected = run(model, PROMPTS, 4)
    rows, cache = contexts(PROMPTS), Cache(model.kv_params, 4)
    inputs = model.prepare_initial_token_inputs([rows], cache.inputs(rows, num_steps=4))
    for turn in range(4):
        outputs = model.execute(inputs)
        assert np.array_equal(outputs.logits.to_numpy(), expected[turn])
        if turn < 3:
            assert inputs.kv_cache_inputs is not None
            inputs.kv_cache_inputs = increment_cache_lengths(inputs.kv_cache_inputs, inputs)
            inputs = model.prepare_next_token_inputs(Buffer.from_numpy(greedy(outputs)), inputs)


def test_subgraphs_change_no_bit(tmp_path: Path) -> None:
    called, inlined = (
        run(make_model(tmp_path, executor="native", options={"use_subgraphs": use_subgraphs}), PROMPTS)
        for use_subgraphs in (True, False)
    )
    assert all(np.array_equal(*pair) for pair in zip(called, inlined, strict=True))


def test_an_empty_batch_runs(model: Llama3Model) -> None:
    _, outputs = step(model, [], Cache(model.kv_params, 1))
    assert outputs.logits.shape == (0, 40)
