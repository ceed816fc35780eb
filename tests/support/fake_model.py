"""A model without weights whose next token depends on every page, offset and length that it is given.

It stores each token's id, and the length that decides its frequencies, in the pages of the KV cache, and answers with a
hash of all that it reads back through the tables. A wrong page, a stale one, a wrong hit or a wrong position changes
the hash, hence the next token: mistakes of the scheduler and of the cache become unequal texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.driver import Buffer
from puna.dtype import DType
from puna.graph import DeviceRef
from puna.nn.kv_cache import KVCacheInputs, KVCacheInputsPerDevice, KVCacheParams
from puna.pipelines.context import TextContext

_MODULUS = (1 << 61) - 1
Regime = Callable[[int], int]


def fake_params(page_size: int = 4, enable_prefix_caching: bool = True) -> KVCacheParams:
    """A cache whose every token has room for two numbers per layer."""
    return KVCacheParams(
        dtype=DType.float32,
        n_kv_heads=1,
        head_dim=2,
        num_layers=2,
        devices=[DeviceRef.CPU()],
        page_size=page_size,
        enable_prefix_caching=enable_prefix_caching,
    )


@dataclass(frozen=True)
class FakeAdapter:
    """An adapter, from 1; it changes what is stored and what is answered."""

    number: int

    @property
    def content_id(self) -> str:
        return str(self.number)


@dataclass
class FakeInputs:
    """What `Llama3Inputs` holds, as far as the loop looks at it."""

    tokens: Buffer
    input_row_offsets: Buffer
    splits: list[int]
    kv_cache_inputs: KVCacheInputs[Buffer, Buffer]
    adapters: list[int]


@dataclass
class FakeOutputs:
    """Logits of the last token of each request."""

    next_token_logits: Buffer


@dataclass
class FakeModel:
    """Answers the loop's three calls.

    Attributes:
        vocab_size: Width of the logits.
        regime: From the length that decides a request's frequencies to what its keys are stored under.
        poison: A token; a request that holds it gets NaN for logits.
        explosive: A token; a step in which a request holds it raises an error, after it wrote all of its keys.
        num_faults: How many of the next steps raise an error, whoever takes part.
        max_num_loras: How many adapters the requests of a replica may have in a step.
        steps: For each step the new tokens of each request.
    """

    vocab_size: int = 50
    regime: Regime = lambda length: 0
    poison: int = -1
    explosive: int = -1
    num_faults: int = 0
    max_num_loras: int = 1

    def __post_init__(self) -> None:
        self.steps: list[list[int]] = []

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: KVCacheInputs[Buffer, Buffer] | None = None,
        return_n_logits: int = 1,
    ) -> FakeInputs:
        assert kv_cache_inputs is not None and return_n_logits == 1
        assert len(kv_cache_inputs) == len(replica_batches)
        contexts = [context for batch in replica_batches for context in batch]
        tokens = np.concatenate([context.tokens.active for context in contexts])
        offsets = np.cumsum([0, *(context.tokens.active_length for context in contexts)]).astype(np.uint32)
        splits = [0, *np.cumsum([len(batch) for batch in replica_batches]).tolist()]
        adapters = [0 if context.adapter is None else context.adapter.number for context in contexts]
        for begin, end in pairwise(splits):
            self._check_order(adapters[begin:end])
        return FakeInputs(Buffer.from_numpy(tokens), Buffer.from_numpy(offsets), splits, kv_cache_inputs, adapters)

    def prepare_next_token_inputs(self, next_tokens: Buffer, prev_model_inputs: FakeInputs) -> FakeInputs:
        offsets = np.arange(len(next_tokens) + 1, dtype=np.uint32)
        previous = prev_model_inputs
        cache = previous.kv_cache_inputs
        return FakeInputs(next_tokens, Buffer.from_numpy(offsets), previous.splits, cache, previous.adapters)

    def _check_order(self, adapters: Sequence[int]) -> None:
        """Rows of one adapter lie side by side, those without one are last, and there are not too many adapters."""
        groups = [adapter for i, adapter in enumerate(adapters) if i == 0 or adapters[i - 1] != adapter]
        assert len(set(groups)) == len(groups), adapters
        assert 0 not in groups[:-1], adapters
        assert len(set(groups) - {0}) <= self.max_num_loras, adapters

    def execute(self, model_inputs: FakeInputs) -> FakeOutputs:
        offsets = model_inputs.input_row_offsets.to_numpy()
        tokens = model_inputs.tokens.to_numpy()
        self.steps.append([int(count) for count in np.diff(offsets)])
        logits = np.empty((len(offsets) - 1, self.vocab_size), dtype=np.float32)
        splits = model_inputs.splits
        for replica, cache in enumerate(model_inputs.kv_cache_inputs):
            begin, end = splits[replica], splits[replica + 1]
            adapters = model_inputs.adapters[begin:end]
            self._execute_replica(cache, tokens, offsets[begin : end + 1], logits[begin:end], adapters)
        if self.num_faults > 0:
            self.num_faults -= 1
            raise RuntimeError("the next steps fail")
        if np.isnan(logits).all(axis=1).any() and self.explosive >= 0:
            raise RuntimeError("a step exploded")
        return FakeOutputs(Buffer.from_numpy(logits))

    def _execute_replica(
        self,
        cache: KVCacheInputsPerDevice[Buffer, Buffer],
        tokens: npt.NDArray[Any],
        offsets: npt.NDArray[Any],
        logits: npt.NDArray[Any],
        adapters: Sequence[int],
    ) -> None:
        pages = cache.kv_blocks.to_numpy()
        null_page = pages.shape[0] - 1
        cached = cache.cache_lengths.to_numpy()
        tables = cache.lookup_table.to_numpy()
        most_new, most_total = cache.max_lengths.to_numpy()[0]
        new = np.diff(offsets)
        assert len(cached) == len(tables) == len(new)
        assert most_new == new.max(initial=0) and most_total == (cached + new).max(initial=0)
        for row, table in enumerate(tables):
            total = int(cached[row] + new[row])
            length = total if cache.request_lengths is None else int(cache.request_lengths.to_numpy()[row])
            regime = self.regime(length) + 1000 * adapters[row]  # its weights make other keys
            for index, token in enumerate(tokens[offsets[row] : offsets[row + 1]]):
                page, offset = self._locate(pages, table, int(cached[row]) + index, null_page)
                pages[page, 0, :, offset, 0, :] = [token + 1, regime + 1]
            stored = []
            for position in range(total):
                page, offset = self._locate(pages, table, position, null_page)
                token, its_regime = pages[page, 0, 0, offset, 0, :]
                assert its_regime == regime + 1, f"position {position} was stored under another regime"
                stored.append(int(token) - 1)
            is_bad = self.poison in stored or self.explosive in stored
            logits[row] = np.nan if is_bad else logits_for(stored, regime, self.vocab_size)

    @staticmethod
    def _locate(pages: npt.NDArray[Any], table: npt.NDArray[Any], position: int, null_page: int) -> tuple[int, int]:
        page_size = pages.shape[3]
        page = int(table[position // page_size])
        assert page != null_page, f"position {position} is on the null page"
        return page, position % page_size


def logits_for(tokens: Sequence[int], regime: int, vocab_size: int) -> npt.NDArray[np.float32]:
    """Logits that a request with these tokens must get, float32 `[vocab_size]`."""
    state = regime + 7
    for position, token in enumerate(tokens):
        state = (state * 1_000_003 + (token + 1) * (position + 11)) % _MODULUS
    return np.random.default_rng(state).standard_normal(vocab_size).astype(np.float32) * np.float32(3)


def expected_greedy(prompt: Sequence[int], count: int, vocab_size: int, regime_of: Callable[[int], int]) -> list[int]:
    """What greedy decoding must give: `regime_of(total length)` is the regime of a pass over that many tokens."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_for(tokens, regime_of(len(tokens)), vocab_size).argmax()))
    return tokens[len(prompt) :]
