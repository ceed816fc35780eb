"""One request, many ways to compute it, real weights: the same token ids, and the same bits of log-probabilities.

A step's twenty likeliest tokens in float64 stand for the row that they were made from; `test_invariance.py` compares
the rows themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from puna.entrypoints.llm import LLM
from puna.entrypoints.prefix_store import open_prefix_store
from puna.models import DEFAULT_MODEL
from puna.pipelines.kv_cache import BlockStore
from puna.pipelines.scheduler import SchedulerLimits
from support.family_model import random_prompt
from support.real_loop import Outcome, RealLoop, request
from support.tiny_model import write_tiny_model

PAGE = 16


class Subject:
    """A model, its prompts, and what the longest of them gets alone."""

    def __init__(self, path: str, lengths: list[int], new_tokens: int) -> None:
        self.path, self.lengths, self.new_tokens = path, lengths, new_tokens
        self.load = cache(self._load)
        self.alone = cache(self._alone)

    def _load(self, threads: int = 2, replicas: int = 1) -> LLM:
        return LLM(
            self.path, block_size=PAGE, threads=threads, max_num_seqs=32, max_model_len=256,
            kv_cache_memory=1 << 30, data_parallel_degree=replicas,
        )  # fmt: skip

    def contexts(self, order: list[int]) -> list[Any]:
        size = self.load().model.config.vocab_size
        return [
            request(
                random_prompt(size, self.lengths[index], seed=index),
                self.new_tokens,
                record=False,
                params={"temperature": 0.9, "seed": index, "logprobs": 20},
            )
            for index in order
        ]

    def _alone(self, index: int) -> list[bytes]:
        (outcome,) = RealLoop(self.load(), 64, SchedulerLimits(max_step_tokens=4096)).run(self.contexts([index]))
        return facts(outcome, self.new_tokens)

    def check(self, order: list[int], loop: RealLoop) -> None:
        for index, outcome in zip(order, loop.run(self.contexts(order)), strict=True):
            assert facts(outcome, self.new_tokens) == self.alone(index)


def facts(outcome: Outcome, count: int) -> list[bytes]:
    """Token ids and log-probabilities, bit by bit."""
    assert outcome.error is None and len(outcome.tokens) == len(outcome.log_probabilities) == count
    found = [struct.pack(f"<{count}q", *outcome.tokens)]
    for record in outcome.log_probabilities:
        for top in record.top_log_probabilities:
            assert len(top) >= 20
            found.append(b"".join(struct.pack("<qd", token, value) for token, value in sorted(top.items())))
    return found


def limits(**changes: Any) -> SchedulerLimits:
    return SchedulerLimits(**({"max_batch_size": 32, "max_step_tokens": 512, "admission_watermark": 1.0} | changes))


@pytest.fixture(
    scope="module", params=["tiny", pytest.param("default", marks=pytest.mark.slow)], ids=["tiny", "default"]
)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "default":
        yield Subject(DEFAULT_MODEL, [100, *(7 + 5 * index % 61 for index in range(31))], 6)
        return
    with TemporaryDirectory() as root:
        path = write_tiny_model(Path(root) / "tiny")
        yield Subject(str(path), [50, *(3 + 5 * index % 41 for index in range(31))], 5)


@pytest.mark.parametrize("order", ["given", "reversed"])
def test_among_thirty_one_others(subject: Subject, order: str) -> None:
    indices = list(range(32))
    subject.check(indices[::-1] if order == "reversed" else indices, RealLoop(subject.load(), 512, limits()))


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_in_chunks(subject: Subject, chunk: int) -> None:
    subject.check([0], RealLoop(subject.load(), 64, limits(max_request_tokens=chunk)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(subject: Subject, threads: int) -> None:
    subject.check([0, 1, 2, 3], RealLoop(subject.load(threads), 64, limits()))


@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas(subject: Subject, replicas: int) -> None:
    loop = RealLoop(subject.load(2, replicas), 256, limits())
    subject.check(list(range(12)), loop)
    assert all(kv.counts().cached > 0 for kv in loop.kvs)


def test_a_prefix_hit_at_every_split(subject: Subject) -> None:
    """A request for a beginning of the prompt goes before: of its pages the longer one computes nothing again."""
    (asked,) = subject.contexts([0])
    whole = asked.tokens.all.tolist()
    for pages in range(1, (len(whole) - 1) // PAGE + 1):
        loop = RealLoop(subject.load(), 64, limits())
        loop.run([request(whole[: pages * PAGE], 1, record=False)])
        (asked,) = subject.contexts([0])
        (outcome,) = loop.run([asked])
        assert asked.cached_prefix_length == pages * PAGE
        assert facts(outcome, subject.new_tokens) == subject.alone(0)


def test_preempted_four_times_over(subject: Subject) -> None:
    """The cache holds a quarter of what the requests need: same texts, and the first is never interrupted."""
    indices = list(range(16))
    needed = sum(-(-(subject.lengths[index] + subject.new_tokens) // PAGE) for index in indices)
    loop = RealLoop(subject.load(), max(needed // 4, 8), limits(max_step_tokens=64))
    subject.check(indices, loop)
    subject.check(indices[::-1], loop)


def test_preempted(subject: Subject) -> None:
    """Two requests grow into the same last page; one gives way and is read again."""
    indices = [0, 1]
    lengths, count = subject.lengths, subject.new_tokens
    llm = LLM(subject.path, block_size=1, threads=2, max_num_seqs=4, max_model_len=256, kv_cache_memory=1 << 30)
    loop = RealLoop(llm, max(lengths[0] + count, lengths[0] + lengths[1] + 1), limits())
    subject.check(indices, loop)
    assert loop.scheduler.num_preemptions > 0


def test_choices_of_one_prompt(subject: Subject) -> None:
    """Each continuation of a prompt that is read once is what it is alone."""
    size = subject.load().model.config.vocab_size
    prompt = random_prompt(size, subject.lengths[0], seed=0)
    params = {"temperature": 1.0, "seed": 5, "logprobs": 20}

    def ask(**options: Any) -> Any:
        return request(prompt, subject.new_tokens, record=False, params=params, **options)

    loop = RealLoop(subject.load(), 64, limits())
    loop.pipeline.add(ask(num_choices=3))
    together: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    while loop.pipeline.has_work:
        for delta in loop.pipeline.step():
            together[delta.choice] += zip(delta.tokens, delta.log_probabilities, strict=True)
        loop.kv.check()
    for choice, found in together.items():
        (single,) = RealLoop(subject.load(), 64, limits()).run([ask(choice=choice)])
        assert found == list(zip(single.tokens, single.log_probabilities, strict=True))
    assert len({tuple(token for token, _record in found) for found in together.values()}) > 1


def test_resumed_from_disk(subject: Subject, tmp_path: Path) -> None:
    """A prompt that another process read is continued from its files."""

    def store() -> BlockStore:
        llm = subject.load()
        return open_prefix_store(tmp_path, llm.model, llm.model.session, 1 << 30)

    expected = subject.alone(0)
    for number in range(2):
        disk = store()
        (asked,) = subject.contexts([0])
        (outcome,) = RealLoop(subject.load(), 64, limits(), store=disk).run([asked])
        assert facts(outcome, subject.new_tokens) == expected
        assert asked.cached_prefix_length == (0 if number == 0 else (subject.lengths[0] - 1) // PAGE * PAGE)
        disk.close()


def test_an_llm_with_a_directory_and_replicas(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny")
    prompt = {"prompt_token_ids": list(range(3, 60))}
    outputs = []
    for options in (
        {},
        {"prefix_cache_dir": tmp_path / "cache"},
        {"prefix_cache_dir": tmp_path / "cache", "data_parallel_degree": 2},
        {"prefix_cache_dir": tmp_path / "cache", "dtype": "float32"},
        {"prefix_cache_dir": tmp_path / "cache", "kv_cache_dtype": "float32"},
    ):
        with LLM(path, block_size=8, threads=2, seed=1, **options) as llm:  # type: ignore[arg-type]
            (output,) = llm.generate([prompt])
            store = llm.pipeline.counts().store
            outputs.append((output.outputs[0].token_ids, 0 if store is None else store.num_loaded))
    assert [loaded for _ids, loaded in outputs] == [0, 0, 7, 0, 0]  # what decides bits differs: nothing is found
    assert outputs[0][0] == outputs[1][0] == outputs[2][0]
