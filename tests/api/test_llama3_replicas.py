"""Data parallelism: one step of several replicas gives each request the bits that one model gives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.driver import Buffer
from puna.engine import ReplicatedModel
from puna.errors import UnsupportedModelError
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.nn.kv_cache import KVCacheInputs, increment_cache_lengths
from puna.pipelines.architectures.llama3 import Llama3Model
from support.llama_model import Cache, contexts, greedy, make_model

PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [3], [5, 8, 9, 7, 9]]
MODES = [
    (ReturnLogits.LAST_TOKEN, ReturnHiddenStates.NONE, 1),
    (ReturnLogits.VARIABLE, ReturnHiddenStates.LAST, 1),
    (ReturnLogits.ALL, ReturnHiddenStates.ALL_NORMALIZED, 1),
]


def model_of(directory: Path, degree: int, executor: str, mode: Any = MODES[0]) -> Llama3Model:
    directory.mkdir(exist_ok=True)
    return make_model(
        directory,
        executor=executor,
        options={"data_parallel_degree": degree},
        num_devices=degree,
        return_logits=mode[0],
        return_hidden_states=mode[1],
    )


def run(model: Llama3Model, sizes: list[int], n: int, steps: int = 3) -> list[list[Any]]:
    """A turn of several passes: the arrays of each pass."""
    rows = contexts(PROMPTS[: sum(sizes)])
    batches, caches, begin = [], [], 0
    for size in sizes:
        batches.append(rows[begin : begin + size])
        caches.append(Cache(model.kv_params, max(size, 1)))
        begin += size
    devices = [
        device for cache, batch in zip(caches, batches, strict=True) for device in cache.inputs(batch, num_steps=steps)
    ]
    inputs = model.prepare_initial_token_inputs(batches, KVCacheInputs(devices), n)
    passes: list[list[Any]] = []
    for _ in range(steps):
        outputs = model.execute(inputs)
        fields = (outputs.next_token_logits, outputs.logits, outputs.logit_offsets, outputs.hidden_states)
        passes.append([None if field is None else field.to_numpy() for field in fields])
        tokens = Buffer.from_numpy(greedy(outputs))
        if len(passes) < steps:
            inputs.kv_cache_inputs = increment_cache_lengths(inputs.kv_cache_inputs, inputs)
            inputs = model.prepare_next_token_inputs(tokens, inputs)
    return passes


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: str(mode[0]))
@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("sizes", [[2, 1], [3, 0], [0, 2], [2, 0, 1], [1, 2, 2]], ids=str)
def test_replicas_are_one_model(tmp_path: Path, sizes: list[int], executor: str, mode: Any) -> None:
    one = run(model_of(tmp_path, 1, executor, mode), [sum(sizes)], mode[2])
    several = run(model_of(tmp_path, len(sizes), executor, mode), sizes, mode[2])
    for expected, got in zip(one, several, strict=True):
        for left, right in zip(expected, got, strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                assert (left.dtype, left.shape) == (right.dtype, right.shape)
                if executor == "native":
                    assert left.tobytes() == right.tobytes()
                else:  # the twins' products are NumPy's, whose order depends on the number of rows
                    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_one_ascending_vector_of_offsets(tmp_path: Path) -> None:
    model = model_of(tmp_path, 2, "native", (ReturnLogits.ALL, ReturnHiddenStates.NONE, 1))
    (first,) = run(model, [2, 1], 1, steps=1)
    assert first[2].tolist() == [0, 3, 5, 9]


def test_an_empty_step(tmp_path: Path) -> None:
    model = model_of(tmp_path, 2, "native", (ReturnLogits.ALL, ReturnHiddenStates.NONE, 1))
    (first,) = run(model, [0, 0], 1, steps=1)
    assert first[0].shape[0] == 0 and first[2].tolist() == [0]


class TestWrongInputs:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Llama3Model:
        return model_of(tmp_path, 2, "native")

    def inputs(self, model: Llama3Model) -> Any:
        rows = contexts(PROMPTS[:3])
        caches = [Cache(model.kv_params, 2).inputs(batch)[0] for batch in (rows[:2], rows[2:])]
        return model.prepare_initial_token_inputs([rows[:2], rows[2:]], KVCacheInputs(caches))

    @pytest.mark.parametrize("splits", [[0, 2], [0, 1, 2], [1, 2, 3], [0, 3, 2], [0, 4, 3], [0, -1, 3]], ids=str)
    def test_splits_that_do_not_divide_the_batch(self, model: Llama3Model, splits: list[int]) -> None:
        inputs = self.inputs(model)
        inputs.data_parallel_splits = Buffer.from_numpy(np.array(splits, dtype=np.int64))
        with pytest.raises(ValueError, match="data_parallel_splits"):
            model.execute(inputs)

    def test_offsets_that_do_not_fit(self, model: Llama3Model) -> None:
        inputs = self.inputs(model)
        inputs.input_row_offsets = Buffer.from_numpy(np.array([0, 5, 3, 9], dtype=np.uint32))
        with pytest.raises(ValueError, match="input_row_offsets"):
            model.execute(inputs)

    def test_no_splits(self, model: Llama3Model) -> None:
        inputs = self.inputs(model)
        inputs.data_parallel_splits = None
        with pytest.raises(UnsupportedModelError, match="data_parallel_splits"):
            model.execute(inputs)

    def test_another_number_of_caches(self, model: Llama3Model) -> None:
        inputs = self.inputs(model)
        inputs.kv_cache_inputs = KVCacheInputs([*inputs.kv_cache_inputs][:1])
        with pytest.raises((TypeError, ValueError)):
            model.execute(inputs)

    def test_what_one_replica_refuses_is_refused_when_all_have_ended(self, model: Llama3Model) -> None:
        inputs = self.inputs(model)
        tokens = inputs.tokens.to_numpy().copy()
        tokens[-1] = 10**6
        inputs.tokens = Buffer.from_numpy(tokens)
        with pytest.raises(ValueError, match="tokens"):
            model.execute(inputs)

    def test_what_it_takes_and_that_it_is_not_traced(self, model: Llama3Model) -> None:
        engine = model.model
        assert isinstance(engine, ReplicatedModel) and not engine.is_tracing
        names = [item.name for item in engine.input_metadata]
        assert names[:5] == ["tokens", "input_row_offsets", "return_n_logits", "data_parallel_splits", "kv_blocks.0"]
        assert len(names) == 4 + 2 * 4 and len(engine.output_metadata) == 1
        with pytest.raises(ValueError, match="data_parallel_degree 1"):
            engine.is_tracing = True
        with pytest.raises(ValueError, match="data_parallel_degree 1"):
            engine.trace()

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_is_told(self, model: Llama3Model) -> None:
        inputs = self.inputs(model)
        child = os.fork()
        if child == 0:
            try:
                model.execute(inputs)
            except RuntimeError as error:
                os._exit(7 if "forked" in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
