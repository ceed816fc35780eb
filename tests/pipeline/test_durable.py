"""Blocks on disk: found again by the next process, never a wrong one, and never in the way."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.errors import InvalidRequestError
from puna.pipelines.kv_cache import BlockHash, BlockStore, CacheKey, cache_identity
from puna.pipelines.scheduler import SchedulerLimits
from support.fake_loop import Rig, context, one_regime
from support.fake_model import expected_greedy

IDENTITY = cache_identity(model="a model", variant="scalar", page_size=4)
DIGEST = BlockHash(bytes(range(16)))
TOKENS = np.arange(8, dtype=np.int64)


def planes(seed: int = 0) -> list[np.ndarray[Any, Any]]:
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((2, 3, 4)).astype(np.float16), draw.standard_normal(5).astype(np.float32)]


def empty() -> list[np.ndarray[Any, Any]]:
    return [np.zeros_like(plane) for plane in planes()]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Any]:
    opened: list[BlockStore] = []

    def make(identity: str = IDENTITY, **options: Any) -> BlockStore:
        opened.append(BlockStore(tmp_path / "cache", identity, **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*/*.kv"))


def written(store: BlockStore, digest: BlockHash = DIGEST, seed: int = 0) -> BlockStore:
    assert store.put(digest, TOKENS, planes(seed))
    assert store.flush()
    return store


class TestBlocks:
    def test_the_next_process_reads_the_same_bits(self, open_store: Any) -> None:
        written(open_store()).close()
        store, found = open_store(), empty()
        assert store.contains(DIGEST) and store.load(DIGEST, TOKENS, found)
        for got, expected in zip(found, planes(), strict=True):
            assert got.tobytes() == expected.tobytes()
        assert (store.counts().num_blocks, store.counts().num_loaded) == (1, 1)

    def test_it_is_written_once_and_from_a_copy(self, open_store: Any) -> None:
        store, mine = open_store(), planes()
        assert store.put(DIGEST, TOKENS, mine)
        mine[0][:] = 0
        assert store.flush() and not store.put(DIGEST, TOKENS, mine)
        found = empty()
        assert store.load(DIGEST, TOKENS, found) and found[0].tobytes() == planes()[0].tobytes()

    @pytest.mark.parametrize(
        "facts",
        [{"model": "another"}, {"variant": "avx2"}, {"page_size": 8}, {"dtype": "float16"}],
    )
    def test_another_model_variant_or_size_finds_nothing(
        self, open_store: Any, tmp_path: Path, facts: dict[str, object]
    ) -> None:
        written(open_store()).close()
        other = open_store(cache_identity(**({"model": "a model", "variant": "scalar", "page_size": 4} | facts)))
        assert not other.contains(DIGEST)
        # not even where somebody moves the file
        (path,) = files(tmp_path)
        target = other._path(DIGEST)
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())
        assert not other.load(DIGEST, TOKENS, empty())

    def test_hash_keys_differ_by_directory_and_by_model(self, open_store: Any, tmp_path: Path) -> None:
        keys = {open_store().hash_key, open_store().hash_key, open_store(cache_identity(model="b")).hash_key}
        elsewhere = BlockStore(tmp_path / "other", IDENTITY)
        assert len(keys | {elsewhere.hash_key}) == 3
        elsewhere.close()

    def test_only_the_owner_reads_it(self, open_store: Any, tmp_path: Path) -> None:
        written(open_store())
        for path in [tmp_path / "cache" / "secret", *files(tmp_path)]:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(files(tmp_path)[0].parent.stat().st_mode) == 0o700

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_a_damaged_file_is_skipped_with_a_line(
        self, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture, data: st.DataObject
    ) -> None:
        directory = tmp_path_factory.mktemp("damaged")
        store = written(BlockStore(directory, IDENTITY))
        path = store._path(DIGEST)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "grow", "empty"])):
            case "flip":
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del content[place:]
            case "grow":
                content += b"x"
            case "empty":
                content.clear()
        path.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert not store.load(DIGEST, TOKENS, empty())
        assert [str(path) in record.getMessage() for record in caplog.records] == [True]
        assert not path.exists() and not store.contains(DIGEST)
        assert (store.counts().num_damaged, store.counts().num_bytes) == (1, 0)
        assert store.put(DIGEST, TOKENS, planes())  # and may be written again
        store.close()

    def test_other_tokens_of_the_same_hash_are_no_hit(self, open_store: Any) -> None:
        store = written(open_store())
        assert not store.load(DIGEST, TOKENS[::-1].copy(), empty())
        assert not written(store).load(DIGEST, np.arange(12, dtype=np.int64), empty())

    def test_a_file_that_another_process_removed_is_no_damage(self, open_store: Any, tmp_path: Path) -> None:
        store = written(open_store())
        files(tmp_path)[0].unlink()
        assert not store.load(DIGEST, TOKENS, empty())
        assert store.counts().num_damaged == 0 and not store.contains(DIGEST)


class TestLimits:
    def test_the_least_recently_used_files_make_room(self, open_store: Any, tmp_path: Path) -> None:
        size = written(open_store()).counts().num_bytes
        store = open_store(max_bytes=3 * size)
        digests = [BlockHash(bytes([number]) * 16) for number in range(1, 6)]
        for number, digest in enumerate(digests):
            written(store, digest)
            os.utime(store._path(digest), (number + 1000, number + 1000))
            if number == 2:
                assert store.load(digests[0], TOKENS, empty())
        assert [store.contains(digest) for digest in digests] == [True, False, False, True, True]
        assert store.counts().num_bytes == 3 * size == sum(path.stat().st_size for path in files(tmp_path))
        store.close()
        assert open_store(max_bytes=size).counts().num_blocks == 1  # the last one that was used
        assert len(files(tmp_path)) == 1

    def test_a_writer_that_falls_behind_drops_and_does_not_wait(
        self, open_store: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = threading.Event()
        write = BlockStore._write
        monkeypatch.setattr(BlockStore, "_write", lambda self, job: (gate.wait(20), write(self, job)))
        nbytes = sum(plane.nbytes for plane in planes()) + TOKENS.nbytes
        store = open_store(max_queue_bytes=2 * nbytes)
        taken = [store.put(BlockHash(bytes([number]) * 16), TOKENS, planes()) for number in range(5)]
        assert taken == [True, True, False, False, False]
        assert not store.flush(0.01)
        gate.set()
        assert store.flush()
        assert (store.counts().num_written, store.counts().num_dropped) == (2, 3)

    def test_a_full_disk_leaves_no_half_file_and_stops_nobody(
        self, open_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(self: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device")

        store = open_store()
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(Path, "replace", full)
            assert store.put(DIGEST, TOKENS, planes()) and store.flush()
        assert "No space left" in caplog.text and "not written for 30 s" in caplog.text
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [tmp_path / "cache" / "secret"]
        assert not store.put(DIGEST, TOKENS, planes())  # it does not try each time
        store._resume_s = 0.0
        written(store)

    def test_what_a_dead_writer_left_is_removed(self, open_store: Any) -> None:
        store = written(open_store())
        old, fresh = (store._path(DIGEST).with_name(f"{name}.partial") for name in ("old", "fresh"))
        for path in (old, fresh):
            path.write_bytes(b"half")
        os.utime(old, (1000, 1000))
        assert open_store().counts().num_blocks == 1
        assert fresh.exists() and not old.exists()

    def test_a_directory_that_cannot_be_used_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidRequestError, match=r"prefix_cache_dir: .*file cannot be used"):
            BlockStore(tmp_path / "file", IDENTITY)
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "secret").write_bytes(b"short")
        with pytest.raises(InvalidRequestError, match="secret has 5 bytes, expected 32"):
            BlockStore(tmp_path / "cache", IDENTITY)


class TestInTheLoop:
    """Resumed from disk = computed, through the scheduler, for every split of a prompt."""

    LIMITS = SchedulerLimits(max_batch_size=2)

    def rig(self, store: BlockStore, num_blocks: int = 64) -> Rig:
        return Rig(num_blocks=num_blocks, store=store, limits=self.LIMITS)

    def test_a_restart_finds_the_prompt_and_what_was_generated(self, open_store: Any) -> None:
        first = open_store()
        tokens = self.rig(first).tokens([context(list(range(10)), 10)])[0]
        first.close()
        rig = self.rig(open_store())
        asked = context([*range(10), *tokens, 7], 5)
        assert rig.tokens([asked]) == [expected_greedy([*range(10), *tokens, 7], 5, 50, one_regime)]
        assert asked.cached_prefix_length == 16  # 19 tokens were computed: four full pages
        assert rig.model.steps[0] == [5]
        rig.check()
        again = context([*range(10), 3], 1)  # now they are in memory too
        rig.tokens([again])
        assert again.cached_prefix_length == 8 and rig.pipeline.counts().store.num_loaded == 4

    @pytest.mark.parametrize("split", range(1, 18))
    def test_every_split(self, open_store: Any, split: int) -> None:
        prompt = list(range(18))
        first = open_store()
        self.rig(first).tokens([context(prompt[:split], 1)])
        first.close()
        asked = context(prompt, 4)
        assert self.rig(open_store()).tokens([asked]) == [expected_greedy(prompt, 4, 50, one_regime)]
        assert asked.cached_prefix_length == split // 4 * 4

    def test_a_damaged_block_in_the_middle_is_computed(self, open_store: Any, tmp_path: Path) -> None:
        first = open_store()
        rig = self.rig(first)
        rig.tokens([context(list(range(21)), 1)])
        links = rig.kv.match(np.arange(21, dtype=np.int64), CacheKey()).links
        path = first._path(links[2][0])
        first.close()
        path.write_bytes(b"nothing")
        rig, asked = self.rig(open_store()), context(list(range(21)), 4)
        assert rig.tokens([asked]) == [expected_greedy(list(range(21)), 4, 50, one_regime)]
        assert asked.cached_prefix_length == 8

    def test_tenants_are_apart_on_disk_too(self, open_store: Any) -> None:
        first = open_store()
        self.rig(first).tokens([context(list(range(10)), 1, cache_salt="a")])
        first.close()
        for salt, cached in (("b", 0), (None, 0), ("a", 8)):
            asked = context(list(range(10)), 1, cache_salt=salt)
            self.rig(open_store()).tokens([asked])
            assert asked.cached_prefix_length == cached

    def test_a_small_cache_is_refilled_from_disk(self, open_store: Any) -> None:
        rig = self.rig(open_store(), num_blocks=9)
        prompts = [[number] * 20 for number in range(6)]
        for _ in range(3):
            for prompt in prompts:
                assert rig.tokens([context(prompt, 5)]) == [expected_greedy(prompt, 5, 50, one_regime)]
                assert rig.kv._store is not None and rig.kv._store.flush()
        assert rig.pipeline.counts().store.num_loaded > 20
