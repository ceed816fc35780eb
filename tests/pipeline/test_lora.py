"""Requests with adapters: what one gets does not depend on what runs beside it, nor on what is loaded meanwhile."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from puna.entrypoints import loading
from puna.entrypoints.llm import LLM
from puna.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterNotFoundError,
    InsufficientMemoryError,
    InvalidRequestError,
)
from puna.pipelines.kv_cache import MachineMemory
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams
from puna.structured_output import StructuredOutputsParams
from support.adapters import module_shapes, random_pairs, write_peft
from support.tiny_model import CONFIG, write_tiny_model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERYTHING = (*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head")
PROMPTS = ["Hello", "The quick brown fox jumps over the lazy dog. " * 3, "Größe und Straße", "a b c d e f g h"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lora")
    write_tiny_model(root / "model")
    write_peft(root / "a", random_pairs(module_shapes(CONFIG, ATTENTION), 4, 1, ml_dtypes.bfloat16))
    write_peft(root / "b", random_pairs(module_shapes(CONFIG, EVERYTHING), 16, 2), lora_alpha=8)
    write_peft(root / "c", random_pairs(module_shapes(CONFIG, ("v_proj",), [1]), 3, 3))
    zeros = random_pairs(module_shapes(CONFIG, EVERYTHING), 4, 4)
    write_peft(root / "zero", {name: (a, b * 0) for name, (a, b) in zeros.items()})
    return root


def load(files: Path, names: str = "abc", **options: Any) -> LLM:
    paths = [f"{name}={files / name}" for name in names]
    defaults = {"enable_lora": True, "lora_paths": paths, "enable_weight_cache": False, "threads": 2}
    return LLM(files / "model", **(defaults | options))


def facts(output: Any) -> Any:
    (choice,) = output.outputs
    return choice.token_ids, [{t: e.logprob for t, e in position.items()} for position in choice.logprobs]


@pytest.fixture(scope="module")
def alone(files: Path) -> dict[Any, Any]:
    """What each prompt gets with each adapter when nothing else is there."""
    llm = load(files, enable_prefix_caching=False)
    found = {}
    for name in (None, "a", "b", "c"):
        for prompt in PROMPTS:
            found[name, prompt] = facts(llm.generate(prompt, GREEDY, adapter=name)[0])
    assert len({found[name, PROMPTS[1]][0] for name in (None, "a", "b", "c")}) == 4
    return found


MIXED = [(prompt, name) for prompt in PROMPTS for name in ("b", None, "a", "c", "a")]


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 16},
        {"max_num_batched_tokens": 20, "max_num_seqs": 20, "block_size": 4},
        {"max_num_seqs": 5, "max_num_steps": 4, "threads": 1, "block_size": 16},
        {"max_num_loras": 1, "block_size": 8},
        {"max_num_loras": 3, "max_num_seqs": 20, "kv_cache_memory": 256 * 170, "block_size": 2},
    ],
)
def test_mixed_is_alone(files: Path, alone: dict[Any, Any], options: dict[str, Any]) -> None:
    """Twice: the second time beginnings are found in the cache."""
    llm = load(files, **options)
    for _ in range(2):
        outputs = llm.generate([p for p, _ in MIXED], GREEDY, adapter=[name for _, name in MIXED])
        for (prompt, name), output in zip(MIXED, outputs, strict=True):
            assert facts(output) == alone[name, prompt]
    counts = llm.pipeline.counts()
    assert counts.num_cached_tokens > 0
    if "kv_cache_memory" in options:
        assert counts.num_preemptions > 0


def test_an_adapter_of_zeros_is_none(files: Path, alone: dict[Any, Any]) -> None:
    llm = load(files, ["zero"])  # type: ignore[arg-type]
    for prompt in PROMPTS:
        assert facts(llm.generate(prompt, GREEDY, adapter="zero")[0]) == alone[None, prompt]


def test_steps_without_adapters_run_the_plain_program(files: Path, alone: dict[Any, Any]) -> None:
    llm = load(files)
    assert facts(llm.generate(PROMPTS[0], GREEDY)[0]) == alone[None, PROMPTS[0]]
    further = llm.model._further_models
    assert not any(has_adapters for *_, has_adapters in further)
    llm.generate(PROMPTS[0], GREEDY, adapter="a")
    assert [has_adapters for *_, has_adapters in further] == [True]


def test_prompts_are_read_with_adapters(files: Path) -> None:
    llm = load(files)
    ids = [llm.tokenize(prompt) for prompt in PROMPTS]
    names = ["a", None, "b", "a"]
    together = llm.logits(ids, adapter=names)
    states = llm.encode(ids, layers=[1, 2], adapter=names)
    vectors = llm.embed(ids, adapter=names)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(together[i], llm.logits([ids[i]], adapter=name)[0])
        for layer, rows in states[i].items():
            np.testing.assert_array_equal(rows, llm.encode([ids[i]], layers=[layer], adapter=name)[0][layer])
        np.testing.assert_array_equal(vectors[i], llm.embed([ids[i]], adapter=[name])[0])
    assert not np.array_equal(together[0][-1], llm.logits([ids[0]])[0][-1])
    scores = [llm.score("Hello", [" world", " you"], adapter=name) for name in (None, "a")]
    assert scores[0][0].token_logprobs != scores[1][0].token_logprobs
    likely = [llm.token_logprobs(ids[1], adapter=name) for name in (None, "b")]
    assert not np.array_equal(*likely)
    logits = llm.logits([ids[1]], adapter="b")[0].astype(np.float64)
    wanted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(likely[1], wanted[np.arange(len(ids[1]) - 1), ids[1][1:]], atol=1e-5)


def test_texts_under_grammars(files: Path) -> None:
    """Each follows its grammar, and has the same bits alone and in a crowd of other adapters and free texts."""
    structures = [StructuredOutputsParams(regex="[a-f]{3,6}-[0-9]{2}"), None,
                  StructuredOutputsParams(choice=["Hello, world", "Hello, moon", "nobody"])]  # fmt: skip
    asked = [
        (name, replace(GREEDY, temperature=1.2, seed=i, structured_outputs=structure, ignore_eos=structure is None))
        for i, structure in enumerate(structures)
        for name in ("a", None, "b")
    ]
    lone = load(files, enable_prefix_caching=False)
    expected = [lone.generate("Hello", params, adapter=name)[0] for name, params in asked]
    for place in range(3):
        assert re.fullmatch("[a-f]{3,6}-[0-9]{2}", expected[place].outputs[0].text)
        assert expected[6 + place].outputs[0].text in ("Hello, world", "Hello, moon", "nobody")
    narrow = {"max_num_loras": 1, "max_num_seqs": 8, "max_num_batched_tokens": 16}
    for options in ({"max_num_seqs": 20, "block_size": 4}, narrow):
        crowd = load(files, **options)
        outputs = crowd.generate(["Hello"] * len(asked), [p for _, p in asked], adapter=[name for name, _ in asked])
        assert list(map(facts, outputs)) == list(map(facts, expected))


def test_a_name_gets_new_weights_while_a_request_runs(files: Path, alone: dict[Any, Any], tmp_path: Path) -> None:
    """Who began keeps what it began with; who comes later gets the new ones, and no page of the old ones."""
    shapes = module_shapes(CONFIG, ATTENTION)
    last = list(shapes)[-1]
    wide = write_peft(tmp_path / "wide", random_pairs({**shapes, last: (shapes[last][0] * 2, shapes[last][1])}, 4, 1))
    llm = load(files, "a")
    request = GenerateRequest(text=PROMPTS[1], sampling_params=GREEDY, adapter="a")
    running = llm.stream_requests([request])
    next(running)
    with pytest.raises(AdapterExistsError, match="unload it"):
        llm.load_lora_adapter("a", files / "b")
    before = llm.list_lora_adapters()
    for bad in (files / "missing", files / "model", wide):
        with pytest.raises(AdapterError):
            llm.load_lora_adapter("a", bad, load_inplace=True)
    assert llm.list_lora_adapters() == before  # nothing changes before all of it is checked
    llm.load_lora_adapter("a", files / "b", load_inplace=True)
    assert facts(llm.generate(PROMPTS[1], GREEDY, adapter="a")[0]) == alone["b", PROMPTS[1]]
    llm.unload_lora_adapter("a")
    with pytest.raises(AdapterNotFoundError, match=r"'a' not found\. None is loaded"):
        llm.generate("Hello", GREEDY, adapter="a")
    assert facts(list(running)[-1]) == alone["a", PROMPTS[1]]
    llm.load_lora_adapter("x", files / "a")
    output = llm.generate(PROMPTS[1], GREEDY, adapter="x")[0]
    assert facts(output) == alone["a", PROMPTS[1]]


def test_equal_content_shares_pages_whatever_its_name(files: Path) -> None:
    llm = load(files, "a", block_size=4)
    first = llm.generate(PROMPTS[1], GREEDY, adapter="a")[0]
    assert first.num_cached_tokens == 0
    llm.load_lora_adapter("again", files / "a")
    assert llm.generate(PROMPTS[1], GREEDY, adapter="again")[0].num_cached_tokens > 0
    assert llm.generate(PROMPTS[1], GREEDY)[0].num_cached_tokens == 0


def test_stored_pages_belong_to_the_content(files: Path, alone: dict[Any, Any], tmp_path: Path) -> None:
    options = {"prefix_cache_dir": tmp_path, "block_size": 8}
    first = load(files, "a", **options)
    first.generate(PROMPTS[1], GREEDY, adapter="a")
    first.close()
    second = load(files, "", **options)
    second.load_lora_adapter("a", files / "b")
    output = second.generate(PROMPTS[1], GREEDY, adapter="a")[0]
    assert output.num_cached_tokens == 0
    assert facts(output) == alone["b", PROMPTS[1]]
    second.load_lora_adapter("other", files / "a")
    output = second.generate(PROMPTS[1], GREEDY, adapter="other")[0]
    assert output.num_cached_tokens > 0
    assert facts(output) == alone["a", PROMPTS[1]]
    second.close()


def test_memory_holds_what_was_asked_for_last(files: Path, alone: dict[Any, Any]) -> None:
    llm = load(files)
    sizes = {info.name: info.nbytes for info in llm.list_lora_adapters()}
    llm = load(files, "ac", lora_memory=sizes["b"] + sizes["c"])
    llm.load_lora_adapter("b", files / "b")
    assert [(info.name, info.is_resident) for info in llm.list_lora_adapters()] == [
        ("a", False), ("b", True), ("c", True),
    ]  # fmt: skip
    for name in ("a", "b", "c", "a"):
        assert facts(llm.generate(PROMPTS[0], GREEDY, adapter=name)[0]) == alone[name, PROMPTS[0]]
    llm._adapters.pin_adapter("a")
    with pytest.raises(AdapterError, match="no room beside what is pinned"):
        llm.load_lora_adapter("again", files / "b")
    assert {info.name for info in llm.list_lora_adapters() if info.is_pinned} == {"a"}


def test_memory_of_adapters_is_not_given_to_the_cache(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "machine_memory", lambda: MachineMemory(1 << 30, 200 << 20))
    resident = sum(info.nbytes for info in load(files, kv_cache_memory=150 << 20).list_lora_adapters())
    load(files, lora_memory=resident, kv_cache_memory=150 << 20)  # what is loaded already is no longer available
    with pytest.raises(InsufficientMemoryError, match="KV cache"):
        load(files, lora_memory=100 << 20, kv_cache_memory=150 << 20)
    load(files, lora_memory=100 << 20, kv_cache_memory=90 << 20)


def test_a_file_that_changed_is_not_read_again_silently(files: Path, tmp_path: Path) -> None:
    shapes = module_shapes(CONFIG, ATTENTION)
    path = write_peft(tmp_path / "x", random_pairs(shapes, 4, 5))
    llm = load(files, "", lora_memory=1 << 16)
    llm.load_lora_adapter("x", path)
    llm.load_lora_adapter("b", files / "c")
    llm._adapters.memory = 1
    with pytest.raises(AdapterError):
        llm.load_lora_adapter("c", files / "c")
    llm._adapters.memory = llm.list_lora_adapters()[0].nbytes
    llm.load_lora_adapter("d", files / "c")
    write_peft(path, random_pairs(shapes, 4, 6))
    with pytest.raises(AdapterError, match="changed since it was loaded"):
        llm.generate("Hello", GREEDY, adapter="x")


def test_names(files: Path) -> None:
    llm = load(files)
    bare = LLM(files / "model", enable_weight_cache=False)
    with pytest.raises(InvalidRequestError, match="loaded without adapters"):
        bare.generate("Hello", GREEDY, adapter="a")
    with pytest.raises(InvalidRequestError, match="loaded without adapters"):
        bare.load_lora_adapter("a", files / "a")
    assert bare.list_lora_adapters() == []
    with pytest.raises(AdapterNotFoundError, match="Loaded: a, b, c"):
        llm.generate("Hello", GREEDY, adapter="d")
    with pytest.raises(InvalidRequestError, match="2 names for 1 prompts"):
        llm.generate("Hello", GREEDY, adapter=["a", "b"])
    with pytest.raises(InvalidRequestError, match="the model's own name"):
        llm.load_lora_adapter(str(files / "model"), files / "a")
    for name in ("", "a\nb", "x" * 300):
        with pytest.raises(InvalidRequestError, match="no name for an adapter"):
            llm.load_lora_adapter(name, files / "a")
    requests = [
        GenerateRequest(text="Hello", sampling_params=GREEDY, model_name="a"),
        GenerateRequest(text="Hello", sampling_params=GREEDY, adapter="a"),
        GenerateRequest(text="Hello", sampling_params=GREEDY, adapter="a", model_name=str(files / "model")),
    ]
    first, *others = [facts(output) for output in llm.answer_requests(requests)]
    assert all(other == first for other in others)
    with pytest.raises(InvalidRequestError, match=r"'d' is not loaded; there is: .*, a, b, c"):
        llm.answer_requests([GenerateRequest(text="Hello", sampling_params=GREEDY, model_name="d")])
    with pytest.raises(InvalidRequestError, match="'b' is not 'a'"):
        llm.answer_requests([GenerateRequest(text="Hello", sampling_params=GREEDY, model_name="a", adapter="b")])


def test_options_that_do_not_fit(files: Path) -> None:
    with pytest.raises(InvalidRequestError, match="lora_paths: needs enable_lora"):
        load(files, enable_lora=False)
    with pytest.raises(AdapterError, match="has rank 16, max_lora_rank is 8"):
        load(files, max_lora_rank=8)
    with pytest.raises(InvalidRequestError, match="data_parallel_degree must be 1"):
        load(files, data_parallel_degree=2)
    with pytest.raises(AdapterError, match="does not exist"):
        load(files, "d")


@pytest.mark.slow
def test_memory_stays_flat_over_many_swaps(files: Path, tmp_path: Path) -> None:
    shapes = module_shapes(CONFIG, EVERYTHING)
    for seed in range(4):
        write_peft(tmp_path / str(seed), random_pairs(shapes, 16, seed))
    llm = load(files, "", max_num_loras=2)

    def swap(times: int) -> int:
        for number in range(times):
            llm.load_lora_adapter("x", tmp_path / str(number % 4), load_inplace=True)
            llm.generate(["Hello", "a b"], SamplingParams(temperature=0, max_tokens=2), adapter=["x", None])
        llm.unload_lora_adapter("x")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    before = swap(100)
    size = 16 * sum(sum(shape) for shape in shapes.values()) * 4
    assert swap(400) - before < 20 * size  # of 400 that were loaded
