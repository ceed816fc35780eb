"""The KV manager's five verbs, the books of its pool, and the memory it plans with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.dtype import DType
from puna.errors import InsufficientBlocksError, InsufficientMemoryError
from puna.graph import DeviceRef
from puna.nn.kv_cache import KVCacheParams
from puna.pipelines.kv_cache import (
    BlockHash,
    BlockHasher,
    BlockPool,
    CacheKey,
    CacheRow,
    MachineMemory,
    PagedKVCacheManager,
    machine_memory,
    plan_num_blocks,
)
from puna.pipelines.kv_cache.blocks import ROOT
from puna.pipelines.request import RequestID
from support.fake_model import fake_params

KEY = CacheKey()
A, B, C = RequestID("a"), RequestID("b"), RequestID("c")


def ids(*values: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(values, dtype=np.int64)


def manager(num_blocks: int = 6, page_size: int = 4) -> PagedKVCacheManager:
    return PagedKVCacheManager(fake_params(page_size), num_blocks)


def test_tables_name_pages_in_order_and_the_null_page_elsewhere() -> None:
    kv = manager()
    kv.reserve(A, 9, KEY)
    kv.reserve(B, 2, KEY)
    (inputs,) = kv.inputs([CacheRow(B, 0, 2), CacheRow(A, 8, 1)])
    assert inputs.lookup_table.to_numpy().tolist() == [[3, 6, 6], [0, 1, 2]]
    assert inputs.cache_lengths.to_numpy().tolist() == [0, 8]
    assert inputs.max_lengths.to_numpy().tolist() == [[2, 9]]
    assert inputs.kv_blocks.shape == (7, 2, 2, 4, 1, 2)
    assert inputs.request_lengths is None
    assert {inputs.lookup_table.dtype, inputs.cache_lengths.dtype, inputs.max_lengths.dtype} == {DType.uint32}


def test_multistep_lengths() -> None:
    kv = manager(num_blocks=8)
    kv.reserve(A, 13, KEY)
    kv.reserve(B, 6, KEY)
    (inputs,) = kv.inputs([CacheRow(A, 10, 1), CacheRow(B, 0, 4)], num_steps=3)
    assert inputs.max_lengths.to_numpy().tolist() == [[4, 11], [1, 12], [1, 13]]


def test_lengths_that_decide_frequencies_travel_with_the_tables() -> None:
    kv = manager()
    kv.reserve(A, 4, KEY)
    (inputs,) = kv.inputs([CacheRow(A, 0, 2, 17)])
    assert inputs.request_lengths is not None and inputs.request_lengths.to_numpy().tolist() == [17]
    kv.reserve(B, 4, KEY)
    with pytest.raises(ValueError, match="or none"):
        kv.inputs([CacheRow(A, 0, 2, 17), CacheRow(B, 0, 2)])


def test_empty_step() -> None:
    (inputs,) = manager().inputs([])
    assert inputs.lookup_table.shape == (0, 1)
    assert inputs.max_lengths.to_numpy().tolist() == [[0, 0]]


def test_step_without_pages_is_refused() -> None:
    kv = manager()
    kv.reserve(A, 4, KEY)
    with pytest.raises(ValueError, match="pages for 4 tokens, the step needs 5"):
        kv.inputs([CacheRow(A, 4, 1)])
    with pytest.raises(ValueError, match="pages for 0 tokens"):
        kv.inputs([CacheRow(B, 0, 1)])


def test_failed_reserve_leaves_everything_as_it_was() -> None:
    kv = manager()
    kv.reserve(A, 8, KEY)
    kv.commit(A, ids(*range(8)), 8)
    kv.release(A)
    kv.reserve(B, 12, KEY)
    prefix = kv.match(ids(*range(20)), KEY)
    assert prefix.num_tokens == 8
    with pytest.raises(InsufficientBlocksError) as error:
        kv.reserve(C, 40, KEY, prefix)
    assert (error.value.needed, error.value.free, error.value.total) == (8, 1, 6)
    assert not kv.contains(C)
    assert kv.counts().free == 3
    assert kv.match(ids(*range(20)), KEY) == prefix
    kv.check()


@pytest.mark.parametrize(("length", "pages"), [(127, 0), (128, 0), (129, 1), (256, 1), (257, 2)])
def test_last_token_is_never_part_of_a_hit(length: int, pages: int) -> None:
    kv = manager(num_blocks=6, page_size=128)
    tokens = np.arange(300, dtype=np.int64)
    kv.reserve(A, 300, KEY)
    kv.commit(A, tokens, 300)
    assert kv.match(tokens[:length], KEY).num_tokens == 128 * pages


def test_only_computed_pages_are_published() -> None:
    kv = manager()
    tokens = ids(*range(12))
    kv.reserve(A, 12, KEY)
    kv.commit(A, tokens, 7)
    assert kv.match(tokens, KEY).num_tokens == 4
    kv.commit(A, tokens, 8)
    assert kv.match(tokens, KEY).num_tokens == 8


@pytest.mark.parametrize("key", [CacheKey(rope_regime=1), CacheKey(adapter="x"), CacheKey(salt="x"), CacheKey(salt="")])
def test_keys_separate_equal_tokens(key: CacheKey) -> None:
    kv = manager()
    tokens = ids(*range(9))
    kv.reserve(A, 9, KEY)
    kv.commit(A, tokens, 9)
    assert kv.match(tokens, KEY).num_tokens == 8
    assert kv.match(tokens, key).num_tokens == 0


def test_keys_cannot_be_confused() -> None:
    keys = [CacheKey(), CacheKey(adapter="ab"), CacheKey(adapter="a", salt="b"), CacheKey(salt="ab"), CacheKey(12)]
    hasher = BlockHasher()
    assert len({hasher.root(key) for key in [*keys, CacheKey(1, adapter="2")]}) == 6


def test_hashes_are_a_secret_of_the_process() -> None:
    assert BlockHasher().root(KEY) != BlockHasher().root(KEY)
    assert BlockHasher(b"key").root(KEY) == BlockHasher(b"key").root(KEY)


def test_equal_hash_of_other_tokens_is_no_hit() -> None:
    pool = BlockPool(2)
    first, second = pool.take(2)
    digest = BlockHash(b"the same for all")
    serial = pool.publish(first, digest, b"tokens", ROOT).serial
    assert pool.find(digest, b"others", ROOT) is None
    assert pool.find(digest, b"tokens", serial) is None
    assert pool.find(digest, b"tokens", ROOT) == (first, serial)
    assert pool.publish(second, digest, b"others", ROOT).block == second
    assert pool.find(digest, b"tokens", ROOT) is None
    pool.check([[first, second]])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=12), st.integers(3, 8))
def test_colliding_hashes_never_give_a_wrong_page(prompts: list[list[int]], num_blocks: int) -> None:
    kv = manager(num_blocks, page_size=2)
    kv._hasher.block = lambda parent, tokens: BlockHash(b"the same for all")  # type: ignore[method-assign]
    contents: dict[int, tuple[int, ...]] = {}  # of each block: all tokens up to its end
    for number, tokens in enumerate(prompts):
        prefix = kv.match(ids(*tokens), KEY)
        for index, block in enumerate(prefix.blocks):
            assert contents[block] == tuple(tokens[: 2 * index + 2])
        name = RequestID(str(number))
        try:
            kv.reserve(name, len(tokens), KEY, prefix)
        except InsufficientBlocksError:
            continue
        (inputs,) = kv.inputs([CacheRow(name, prefix.num_tokens, len(tokens) - prefix.num_tokens)])
        for index, block in enumerate(inputs.lookup_table.to_numpy()[0].tolist()):
            if index >= len(prefix.blocks):
                contents[block] = tuple(tokens[: 2 * index + 2])
        kv.commit(name, ids(*tokens), len(tokens))
        kv.check()
        kv.release(name)
        kv.check()


class TestForks:
    """Two sequences over the same pages: what is full is shared for good, what is open is copied when it is written."""

    def test_the_open_page_is_copied_by_whoever_goes_on_first(self) -> None:
        kv = manager(page_size=4)
        kv.reserve(A, 6, KEY)
        kv._pages[kv._claims[A].blocks[1]] = 7
        kv.fork(A, B, 6)
        assert kv.counts().used == 2
        with pytest.raises(ValueError, match="others hold"):
            kv.inputs([CacheRow(A, 6, 1)])
        kv.reserve(B, 7, KEY, num_cached=6)
        assert kv.counts().used == 3
        first, second = kv._claims[A].blocks, kv._claims[B].blocks
        assert first[0] == second[0] and first[1] != second[1]
        assert (kv._pages[second[1]] == 7).all()
        kv.reserve(A, 7, KEY, num_cached=6)  # nobody else holds it any more
        assert kv._claims[A].blocks == first
        kv.inputs([CacheRow(A, 6, 1), CacheRow(B, 6, 1)])
        kv.check()

    def test_a_full_page_is_never_copied(self) -> None:
        kv = manager(page_size=4)
        kv.reserve(A, 8, KEY)
        kv.fork(A, B, 8)
        kv.reserve(A, 9, KEY, num_cached=8)
        kv.reserve(B, 9, KEY, num_cached=8)
        assert kv.counts().used == 4
        assert kv._claims[A].blocks[:2] == kv._claims[B].blocks[:2]

    def test_pages_that_nobody_wrote_yet_are_not_shared(self) -> None:
        kv = manager(page_size=4)
        kv.reserve(A, 12, KEY)
        kv.fork(A, B, 5)
        assert len(kv._claims[B].blocks) == 2
        kv.reserve(A, 12, KEY, num_cached=5)
        kv.inputs([CacheRow(A, 5, 7)])
        kv.check()

    def test_a_copy_that_does_not_fit_changes_nothing(self) -> None:
        kv = manager(num_blocks=2, page_size=4)
        kv.reserve(A, 6, KEY)
        kv.fork(A, B, 6)
        with pytest.raises(InsufficientBlocksError):
            kv.reserve(B, 7, KEY, num_cached=6)
        kv.check()
        kv.release(A)
        kv.reserve(B, 7, KEY, num_cached=6)
        kv.check()

    def test_a_fork_in_the_middle_of_a_full_page_goes_on_as_its_own(self) -> None:
        kv = manager(num_blocks=8, page_size=4)
        tokens, other = ids(*range(8)), ids(0, 1, 2, 3, 4, 5, 9, 9, 9)
        kv.reserve(A, 8, KEY)
        kv.commit(A, tokens, 8)
        kv.fork(A, B, 6)
        kv.reserve(B, 9, KEY, num_cached=6)
        assert kv._claims[A].blocks[0] == kv._claims[B].blocks[0]
        assert kv._claims[A].blocks[1] != kv._claims[B].blocks[1]
        kv.commit(B, other, 9)
        kv.check()
        assert kv.match(other, KEY).blocks == tuple(kv._claims[B].blocks[:2])
        assert kv.match(ids(*range(9)), KEY).blocks == tuple(kv._claims[A].blocks)

    def test_a_published_page_is_not_written_when_its_parent_has_gone(self) -> None:
        kv = manager(num_blocks=8, page_size=4)
        tokens = ids(*range(5))
        kv.reserve(A, 5, KEY)
        kv.fork(A, B, 2)
        kv.commit(A, tokens, 4)
        kv.release(A)
        with pytest.raises(ValueError, match="can find"):
            kv.inputs([CacheRow(B, 2, 1)])
        kv.reserve(B, 3, KEY, num_cached=2)
        kv.inputs([CacheRow(B, 2, 1)])
        assert kv.match(tokens, KEY).num_tokens == 4
        kv.check()

    def test_several_forks_at_several_places(self) -> None:
        kv = manager(num_blocks=8, page_size=4)
        kv.reserve(A, 7, KEY)
        kv.fork(A, B, 7)
        kv.fork(A, C, 2)
        kv.reserve(A, 8, KEY, num_cached=7)
        kv.inputs([CacheRow(A, 7, 1)])
        kv.reserve(C, 3, KEY, num_cached=2)
        kv.reserve(B, 8, KEY, num_cached=7)
        kv.inputs([CacheRow(A, 7, 1), CacheRow(B, 7, 1), CacheRow(C, 2, 1)])
        kv.check()

    def test_wrong_forks_are_refused(self) -> None:
        kv = manager(page_size=4)
        kv.reserve(A, 4, KEY)
        for parent, child, computed in ((B, C, 1), (A, B, 5), (A, A, 1)):
            with pytest.raises(ValueError, match="holds"):
                kv.fork(parent, child, computed)


def test_two_requests_with_equal_pages_keep_one() -> None:
    kv = manager()
    tokens = ids(*range(8))
    for request in (A, B):
        kv.reserve(request, 8, KEY)
    assert kv.counts().free == 2
    kv.commit(A, tokens, 8)
    kv.commit(B, tokens, 8)
    assert kv.counts().free == 4
    kv.check()
    kv.release(A)
    (inputs,) = kv.inputs([CacheRow(B, 8, 0)])
    assert inputs.lookup_table.to_numpy().tolist() == [[0, 1]]
    kv.release(B)
    assert kv.counts().used == 0


def test_ends_of_prefixes_are_forgotten_before_their_beginnings() -> None:
    kv = manager(num_blocks=4)
    tokens = ids(*range(16))
    kv.reserve(A, 16, KEY)
    kv.commit(A, tokens, 16)
    kv.release(A)
    kv.reserve(B, 5, KEY)
    assert kv.match(ids(*range(17)), KEY).num_tokens == 8


def test_pages_without_a_hash_go_first() -> None:
    kv = manager(num_blocks=3)
    kv.reserve(A, 4, KEY)
    kv.commit(A, ids(0, 1, 2, 3), 4)
    kv.reserve(B, 8, KEY)
    kv.release(A)
    kv.release(B)
    kv.reserve(C, 8, KEY)
    assert kv.match(ids(0, 1, 2, 3, 4), KEY).num_tokens == 4


def test_reset_forgets_prefixes_and_keeps_requests() -> None:
    kv = manager()
    tokens = ids(*range(12))
    kv.reserve(A, 12, KEY)
    kv.commit(A, tokens, 8)
    kv.reset()
    assert kv.match(tokens, KEY).num_tokens == 0
    assert kv.contains(A) and kv.counts().used == 3
    kv.commit(A, tokens, 12)
    assert kv.match(tokens, KEY).num_tokens == 8
    kv.check()


def test_wrong_use_is_refused() -> None:
    kv = manager()
    kv.reserve(A, 4, KEY)
    with pytest.raises(ValueError, match="another key"):
        kv.reserve(A, 8, CacheKey(rope_regime=1))
    with pytest.raises(ValueError, match="holds no pages"):
        kv.release(B)
    with pytest.raises(ValueError, match="at least one block"):
        manager(num_blocks=0)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_books_balance(data: st.DataObject) -> None:
    kv = manager(num_blocks=8, page_size=2)
    held: dict[RequestID, tuple[int, ...]] = {}
    for step in range(data.draw(st.integers(1, 40))):
        if held and data.draw(st.booleans()):
            victim = data.draw(st.sampled_from(sorted(held)))
            tokens = held.pop(victim)
            kv.commit(victim, ids(*tokens), data.draw(st.integers(0, len(tokens))))
            kv.release(victim)
        else:
            tokens = tuple(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=9)))
            prefix = kv.match(ids(*tokens), KEY)
            try:
                kv.reserve(RequestID(str(step)), len(tokens), KEY, prefix)
            except InsufficientBlocksError:
                continue
            held[RequestID(str(step))] = tokens
        kv.check()


def llama_params(num_layers: int = 32) -> KVCacheParams:
    return KVCacheParams(
        dtype=DType.bfloat16, n_kv_heads=8, head_dim=128, num_layers=num_layers, devices=[DeviceRef.CPU()]
    )


def test_pages_of_a_budget() -> None:
    params = llama_params()
    memory = MachineMemory(total=64 << 30, available=(40 << 30) + params.bytes_per_block)
    assert params.bytes_per_block == 16_777_216
    assert plan_num_blocks(params, memory, max_seq_len=1 << 20, max_batch_size=16, utilization=1.0) == 2560
    assert plan_num_blocks(params, memory, max_seq_len=8192, max_batch_size=16, utilization=1.0) == 1024
    assert memory.less(5).available == memory.available - 5
    assert memory.less(memory.available + 1).available == 0


def test_too_little_memory_says_by_how_much() -> None:
    memory = MachineMemory(total=8 << 30, available=1 << 30)
    assert plan_num_blocks(llama_params(), memory, max_seq_len=131072, max_batch_size=1, utilization=0.5) == 31
    with pytest.raises(InsufficientMemoryError) as error:
        plan_num_blocks(llama_params(), memory, max_seq_len=131072, max_batch_size=1, utilization=0.5, may_shrink=False)
    assert error.value.needed_bytes == 1025 * 16_777_216 and error.value.available_bytes == 1 << 29
    assert "0.50 GiB may be used (15.52 GiB too little)" in str(error.value)
    with pytest.raises(InsufficientMemoryError, match="128 tokens"):
        plan_num_blocks(llama_params(), MachineMemory(1 << 30, 1 << 20), max_seq_len=4096, max_batch_size=1)


def machine(root: Path, files: dict[str, str]) -> Path:
    files = {"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 5 kB\nMemAvailable: 800 kB\n"} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_memory_of_a_machine(tmp_path: Path) -> None:
    assert machine_memory(machine(tmp_path, {})) == MachineMemory(1024000, 819200)


def test_memory_of_a_container_v2(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": "500000\n",
        "sys/fs/cgroup/a/memory.current": "300000\n",
        "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 100000\n",
    }
    memory = machine_memory(machine(tmp_path, files))
    assert (memory.total, memory.available) == (500000, 300000)
    assert memory.limited_by.endswith("a/memory.max")


def test_memory_of_a_container_v1_whose_path_is_the_hosts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "600000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "550000\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 10000\n",
    }
    memory = machine_memory(machine(tmp_path, files))
    assert (memory.total, memory.available) == (600000, 60000)


def test_memory_without_a_limit_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    assert machine_memory(machine(tmp_path, files)) == MachineMemory(1024000, 819200)


def test_memory_of_this_machine() -> None:
    memory = machine_memory()
    assert 0 < memory.available <= memory.total
