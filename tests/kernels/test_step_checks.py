"""What an execution refuses: every input is checked before anything is computed, whatever Python passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from puna import _native
from support.native_steps import VARIANTS, Cache, Request, random_rows

Array = NDArray[Any]
REQUESTS = [Request(5, 2), Request(0, 3)]


def make_program() -> _native.Program:
    """A program that needs every input: 10 tokens, 2 layers, 1 KV head of 8."""
    program = _native.Program(VARIANTS[-1])
    x, out, angles = program.buffer("T", 96), program.buffer("T", 32), program.buffer("T", 32)
    last, some = program.buffer("B", 32), program.buffer("R", 32)
    table = _native.PackedMatrix("F32", random_rows(10, 24), 10, 24, threads=1)
    rope = program.rope("fixed", {"inv_freq": np.ones(4, np.float32), "attention_factor": 1.0})
    sizes = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 8, "layer": 1}
    columns = {"q_col": 0, "k_col": 8, "v_col": 16, "rot_dim": 8, "interleaved": False}
    program.emit("embed", weight=program.weight(table), out=x, scale=1.0)
    program.emit("rope_angles", rope=rope, out=angles)
    program.emit("rope_kv", x=x, angles=angles, **columns, **sizes)
    program.emit("attention", x=x, q_col=0, out=out, scale=1.0, window=0, softcap=0.0, **sizes)
    program.emit("gather_rows", x=out, out=last, width=8, mode="last")
    program.emit("gather_rows", x=out, out=some, width=8, mode="variable")
    program.emit("copy_out", x=last, col=0, width=8, output=0, out_col=0, rows="B")
    program.emit("copy_out", x=some, col=0, width=8, output=1, out_col=0, rows="R")
    program.emit("offsets_out", output=2, mode="variable")
    program.finish()
    return program


PROGRAM = make_program()


def good_step() -> tuple[dict[str, Any], list[Any]]:
    cache = Cache(REQUESTS, layers=2, page_size=4, head_dim=8)
    inputs = {
        **cache.inputs(),
        "tokens": np.array([0, 9, 3, 3, 1], np.int64),
        "return_n_logits": np.array([2], np.int64),
        "max_lengths": np.array([[3, 7]], np.uint32),
        "request_lengths": np.array([7, 3], np.uint32),
    }
    outputs = [np.empty((2, 8), np.float32), np.empty((4, 8), np.float32), np.empty(3, np.int64)]
    return inputs, outputs


def test_the_base_of_the_refusals_is_fine() -> None:
    inputs, outputs = good_step()
    PROGRAM.execute(inputs, outputs, 2)
    assert np.isfinite(outputs[0]).all()
    assert list(outputs[2]) == [0, 2, 4]


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda inputs: inputs.update({name: value})


def at(name: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(inputs: dict[str, Any]) -> None:
        inputs[name] = inputs[name].copy()
        inputs[name][index] = value

    return change


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda inputs: inputs.pop(name)


def int8_cache(scales: Any) -> Callable[[dict[str, Any]], None]:
    return lambda inputs: inputs.update(kv_blocks=np.zeros((5, 2, 2, 4, 1, 8), np.int8), kv_scales=scales)


@pytest.mark.parametrize("name", ["input_row_offsets", "tokens", "return_n_logits", "kv_blocks", "cache_lengths"])
def test_missing_inputs_are_named(name: str) -> None:
    inputs, outputs = good_step()
    del inputs[name]
    with pytest.raises(ValueError, match=f"input '{name}' is missing"):
        PROGRAM.execute(inputs, outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("token", np.zeros(5, np.int64)), "unknown input 'token'"),
        (at("tokens", 1, 10), "'tokens' holds 10 at 1; the embedding has 10 rows"),
        (at("tokens", 1, -1), "'tokens' holds -1"),
        (put("tokens", np.zeros(4, np.int64)), "'tokens' must have length 5, got 4"),
        (put("tokens", np.zeros(5, np.int32)), "'tokens' must be int64, got int32"),
        (put("tokens", np.zeros((5, 1), np.int64)), r"'tokens' must have 1 dimensions, got shape \[5, 1\]"),
        (put("tokens", np.zeros(10, np.int64)[::2]), "'tokens' must be C-contiguous"),
        (put("input_row_offsets", np.zeros(0, np.uint32)), "at least one number"),
        (at("input_row_offsets", 0, 1), "must start with 0, got 1"),
        (at("input_row_offsets", 1, 9), "must not descend, but has 9 before 5"),
        (at("input_row_offsets", 1, 0), "gives request 0 no tokens"),
        (at("input_row_offsets", 2, 2**32 - 1), "'tokens' must have length 4294967295"),
        (put("input_row_offsets", np.zeros(3, np.int64)), "must be uint32, got int64"),
        (at("return_n_logits", 0, 0), "must be 1 or more, got 0"),
        (at("return_n_logits", 0, 3), "'return_n_logits' is 3, but a request has 2 tokens"),
        (put("return_n_logits", np.ones(2, np.int64)), "must have length 1"),
        (put("cache_lengths", np.zeros(1, np.uint32)), "'cache_lengths' must have length 2"),
        (at("cache_lengths", 0, 7), r"'lookup_table' has room for 2 pages; request 0 with 9 tokens needs 3"),
        (at("cache_lengths", 0, 2**32 - 1), "'lookup_table' has room for 2 pages"),
        (put("lookup_table", np.zeros((1, 2), np.uint32)), "'lookup_table' must have length 2"),
        (put("lookup_table", np.zeros((2, 0), np.uint32)), "room for 0 pages"),
        (at("lookup_table", (1, 0), 99), "names page 99 for request 1; 'kv_blocks' has 5"),
        (at("lookup_table", (0, 0), 2**32 - 1), "names page 4294967295 for request 0"),
        (
            put("lookup_table", np.zeros((2, 2), np.uint32)),
            "names page 0 twice among the pages that this step writes to",
        ),
        (put("kv_blocks", np.zeros((5, 2, 1, 4, 1, 8), np.float32)), "layers >= 2"),
        (put("kv_blocks", np.zeros((5, 2, 2, 4, 2, 8), np.float32)), r"page_size, 1, 8\], got \[5, 2, 2, 4, 2, 8\]"),
        (put("kv_blocks", np.zeros((5, 2, 2, 4, 8), np.float32)), "must have the shape"),
        (put("kv_blocks", np.zeros((5, 2, 2, 4, 1, 8), np.float64)), "must be float32, float16, bfloat16 or int8"),
        (put("kv_blocks", np.zeros((5, 2, 2, 0, 1, 8), np.float32)), "must have the shape"),
        (put("kv_blocks", np.zeros((5, 2, 2, 4, 1, 8), np.int8)), "input 'kv_scales' is missing"),
        (int8_cache(np.zeros((5, 2, 2, 4, 1, 8), np.float32)), r"one scale for each head of 'kv_blocks'"),
        (int8_cache(np.zeros((5, 2, 2, 4, 1), np.float32)), "'kv_scales' must have 6 dimensions"),
        (int8_cache(np.zeros((5, 2, 2, 4, 1, 1), np.float16)), "'kv_scales' must be float32, got float16"),
        (put("kv_scales", np.zeros((5, 2, 2, 4, 1, 1), np.float32)), "belongs to 'kv_blocks' of int8, got float32"),
        (put("max_lengths", np.array([[2, 7]], np.uint32)), "request 1 has 3 and 3"),
        (put("max_lengths", np.array([[3, 6]], np.uint32)), "request 0 has 2 and 7"),
        (put("max_lengths", np.array([[3, 7, 1]], np.uint32)), r"must have the shape \[steps, 2\]"),
        (put("request_lengths", np.zeros(3, np.uint32)), "'request_lengths' must have length 2"),
    ],
)
def test_wrong_inputs_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    inputs, outputs = good_step()
    change(inputs)
    with pytest.raises(ValueError, match=message):
        PROGRAM.execute(inputs, outputs)


def test_what_is_no_array_is_a_type_error() -> None:
    inputs, outputs = good_step()
    with pytest.raises(TypeError, match="input 'tokens' must be an array, got list"):
        PROGRAM.execute({**inputs, "tokens": [1, 2, 3, 4, 5]}, outputs)
    with pytest.raises(TypeError, match="output 0 must be an array, got NoneType"):
        PROGRAM.execute(inputs, [None, *outputs[1:]])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="inputs must be a mapping"):
        PROGRAM.execute(3, outputs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs must be named by strings"):
        PROGRAM.execute({1: inputs["tokens"]}, outputs)  # type: ignore[dict-item]


def test_memory_that_cannot_be_written_is_refused() -> None:
    inputs, outputs = good_step()
    inputs["kv_blocks"].flags.writeable = False
    with pytest.raises(ValueError, match="input 'kv_blocks' must be C-contiguous and writable"):
        PROGRAM.execute(inputs, outputs)
    inputs, outputs = good_step()
    outputs[1].flags.writeable = False
    with pytest.raises(ValueError, match="output 1 must be C-contiguous and writable"):
        PROGRAM.execute(inputs, outputs)


def test_memory_that_is_not_aligned_is_refused() -> None:
    inputs, outputs = good_step()
    raw = np.zeros(4 * 16 + 1, np.uint8)
    outputs[0] = raw[1:].view(np.float32).reshape(2, 8)
    with pytest.raises(ValueError, match="output 0 must be aligned to its elements"):
        PROGRAM.execute(inputs, outputs)


@pytest.mark.parametrize(
    ("index", "output", "message"),
    [
        (0, np.empty((3, 8), np.float32), r"output 0 must be float32 \[2, 8\], got float32 \[3, 8\]"),
        (0, np.empty((2, 9), np.float32), r"output 0 must be float32 \[2, 8\]"),
        (1, np.empty((4, 8), np.float16), r"output 1 must be float32 \[4, 8\], got float16 \[4, 8\]"),
        (2, np.empty(3, np.uint32), r"output 2 must be int64 \[3\], got uint32 \[3\]"),
    ],
)
def test_wrong_outputs_are_refused(index: int, output: Array, message: str) -> None:
    inputs, outputs = good_step()
    outputs[index] = output
    with pytest.raises(ValueError, match=message):
        PROGRAM.execute(inputs, outputs)


@pytest.mark.parametrize("count", [2, 4])
def test_the_number_of_outputs_is_checked(count: int) -> None:
    inputs, outputs = good_step()
    with pytest.raises(ValueError, match=f"the program has 3 outputs, got {count} arrays"):
        PROGRAM.execute(inputs, [*outputs, np.empty(1)][:count])


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**40])
def test_impossible_numbers_of_threads(threads: int) -> None:
    inputs, outputs = good_step()
    with pytest.raises((ValueError, TypeError), match="threads must be"):
        PROGRAM.execute(inputs, outputs, threads)


def test_a_refused_step_changes_nothing() -> None:
    inputs, outputs = good_step()
    before = inputs["kv_blocks"].copy()
    outputs[0][:] = 7
    with pytest.raises(ValueError, match="holds 10"):
        PROGRAM.execute({**inputs, "tokens": np.array([0, 1, 2, 3, 10])}, outputs)
    np.testing.assert_array_equal(inputs["kv_blocks"], before)
    assert (outputs[0] == 7).all()


small_arrays = st.builds(
    lambda shape, dtype, value: np.full(shape, min(value, np.iinfo(dtype).max) if dtype(0.5) == 0 else 1, dtype),
    st.lists(st.integers(0, 4), max_size=6),
    st.sampled_from([np.int64, np.uint32, np.float32, np.float16, np.int8, np.float64]),
    st.sampled_from([0, 1, 2, 5, 255, 2**31 - 1, 2**32 - 1]),
)


@given(
    changes=st.dictionaries(st.sampled_from(sorted(good_step()[0])), small_arrays, min_size=1, max_size=3),
    outputs=st.none() | st.lists(small_arrays, max_size=4),
    threads=st.integers(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_nothing_that_is_passed_can_do_harm(
    changes: dict[str, Array], outputs: list[Array] | None, threads: int
) -> None:
    """Any arrays at all: either the step runs, or it is a ValueError; and the program still works afterwards."""
    inputs, good_outputs = good_step()
    with suppress(ValueError):
        PROGRAM.execute({**inputs, **changes}, good_outputs if outputs is None else outputs, threads)
    inputs, good_outputs = good_step()
    PROGRAM.execute(inputs, good_outputs, threads)
