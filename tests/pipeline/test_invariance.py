"""A request's logits have the same bits however it is computed: alone or in a batch, whole or in chunks, by any number
of threads, in pages in any order, preempted or not. Per KV type and per variant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.entrypoints.llm import LLM
from puna.models import DEFAULT_MODEL
from puna.pipelines.scheduler import SchedulerLimits
from support.checkpoints import BLOCK_256, tiny_config, tiny_tensors, write_huggingface
from support.family_model import random_prompt
from support.gguf_checkpoints import random_blocks, write_gguf
from support.real_loop import Outcome, RealLoop, request
from support.tiny_tokenizers import byte_level_tokenizer_json
from support.variants import SCALAR_IS_SLOW, VARIANTS

KV_TYPES = ["float32", "float16", "bfloat16", "int8"]
PAGE_SIZES, THREADS = (1, 7, 16), (1, 2, 5)
LENGTHS = (37, 1, 12, 64)
NEW_TOKENS = 5


@dataclass
class Subject:
    """One model under one variant and KV type, loaded once per page size and number of threads."""

    path: str
    kv_type: str
    lengths: tuple[int, ...] = LENGTHS
    new_tokens: int = NEW_TOKENS

    def __post_init__(self) -> None:
        self.load = cache(self._load)
        self.alone = cache(self._alone)

    def _load(self, page_size: int, threads: int) -> LLM:
        return LLM(
            self.path, kv_cache_dtype=self.kv_type, block_size=page_size, threads=threads, max_num_seqs=4
        )

    def requests(self) -> list[Any]:
        size = self.load(16, 1).model.config.vocab_size
        return [request(random_prompt(size, length, seed=length), self.new_tokens) for length in self.lengths]

    def _alone(self, index: int) -> Outcome:
        """A request by itself: whole, one thread, pages in order."""
        limits = SchedulerLimits(max_step_tokens=4096)
        (outcome,) = RealLoop(self.load(16, 1), 256, limits).run([self.requests()[index]])
        assert len(outcome.logits) == self.new_tokens
        return outcome

    def check(self, way: dict[str, Any]) -> int:
        """Computes requests in some way and compares with each of them alone; returns the number of preemptions."""
        chosen = way["order"][: way["count"]]
        page_size = way["page_size"]
        needed = max(-(-(self.lengths[index] + self.new_tokens) // page_size) for index in chosen)
        limits = SchedulerLimits(
            max_batch_size=way["batch"], max_step_tokens=max(way["step"], way["batch"]), admission_watermark=1.0
        )
        loop = RealLoop(
            self.load(page_size, way["threads"]), needed + way["spare"] * 16 // page_size, limits, way["shuffle"]
        )
        asked = self.requests()
        for index, outcome in zip(chosen, loop.run([asked[index] for index in chosen]), strict=True):
            expected = self.alone(index)
            assert outcome.tokens == expected.tokens
            assert outcome.logits == expected.logits
        return loop.scheduler.num_preemptions


def ways(page_sizes: tuple[int, ...] = PAGE_SIZES) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({
        "order": st.permutations(range(len(LENGTHS))),
        "count": st.integers(1, len(LENGTHS)),
        "batch": st.integers(1, 4),
        "step": st.sampled_from([1, 7, 64, 512]),
        "page_size": st.sampled_from(page_sizes),
        "spare": st.integers(0, 6),
        "threads": st.sampled_from(THREADS),
        "shuffle": st.integers(0, 1 << 30),
    })  # fmt: skip


@pytest.fixture(scope="module")
def models() -> Any:
    """`float`: float32 weights, exact products; `coded`: quantized weights, activations of 8 bits."""
    with TemporaryDirectory() as root:
        directory = Path(root) / "float"
        config = tiny_config("llama", "llama3")
        write_huggingface(directory, config, tiny_tensors(config))
        (directory / "tokenizer.json").write_text(byte_level_tokenizer_json(900))
        config = tiny_config("llama", **BLOCK_256)
        tensors, blocks = random_blocks(tiny_tensors(config), "Q4_K")
        coded = write_gguf(Path(root) / "coded.gguf", config, tensors, blocks=blocks)
        yield {"float": str(directory), "coded": str(coded)}


@pytest.fixture(scope="module")
def subjects(models: Any) -> Any:
    return cache(lambda name, kv_type, _variant: Subject(models[name], kv_type))


@pytest.mark.parametrize("variant", SCALAR_IS_SLOW)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("name", ["float", "coded"])
def test_bits_do_not_depend_on_how_a_request_is_computed(
    subjects: Any, monkeypatch: pytest.MonkeyPatch, name: str, kv_type: str, variant: str
) -> None:
    monkeypatch.setenv("PUNA_VARIANT", variant)
    subject = subjects(name, kv_type, variant)

    @settings(max_examples=6, deadline=None, database=None)
    @given(ways())
    def check(way: dict[str, Any]) -> None:
        subject.check(way)

    check()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["float", "coded"])
def test_preemption_changes_no_bit(subjects: Any, monkeypatch: pytest.MonkeyPatch, name: str, variant: str) -> None:
    monkeypatch.setenv("PUNA_VARIANT", variant)
    # the shortest prompt fits beside the longer one, but not both texts
    way = {"order": [0, 1, 2], "count": 3, "batch": 4, "step": 64, "page_size": 1, "spare": 0, "threads": 2}
    assert subjects(name, "float16", variant).check(way | {"shuffle": 3}) > 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_bits_of_the_default_model(monkeypatch: pytest.MonkeyPatch, kv_type: str, variant: str) -> None:
    monkeypatch.setenv("PUNA_VARIANT", variant)
    is_scalar = variant == "scalar"  # fifty times slower
    lengths, examples = ((20, 1, 9, 14), 2) if is_scalar else ((150, 1, 37, 64), 8)
    subject = Subject(DEFAULT_MODEL, kv_type, lengths, new_tokens=2 if is_scalar else 4)

    @settings(max_examples=examples, deadline=None, database=None)
    @given(ways((7, 16)))
    def check(way: dict[str, Any]) -> None:
        subject.check(way)

    check()
