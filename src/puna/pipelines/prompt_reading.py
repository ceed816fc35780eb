"""What is read from the rows of prompts: log-probabilities, logits, hidden states, pooled embeddings.

A reader takes the rows of one request, chunk by chunk, and keeps only what it was made for: of a long prompt no array
of tokens times vocabulary is ever made, unless all logits are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from puna.errors import InvalidRequestError
from puna.pipelines.batch import ScheduledBatch
from puna.pipelines.context import LogProbabilities
from puna.pipelines.lib.log_probabilities import token_log_probabilities
from puna.pipelines.prompt_rows import PromptRows
from puna.pipelines.sampling import NonFiniteLogitsError

__all__ = ["HiddenStateReader", "LogitReader", "LogprobReader", "Pooling", "PoolingReader", "hand_out_rows"]

Float32Array: TypeAlias = npt.NDArray[np.float32]
Pooling = Literal["mean", "last", "cls"]



def hand_out_rows(batch: ScheduledBatch, outputs: Any, layers: Sequence[int]) -> None:
    """Gives each reader of a step its rows.

    Args:
        batch: The step.
        outputs: Its `ModelOutputs`: `logits` `[T, V]` where a reader needs them, `hidden_states` `[T, n * H]`.
        layers: The n layers, ascending.
    """
    logits = outputs.logits.to_numpy() if outputs.logit_offsets is not None else None
    states = outputs.hidden_states.to_numpy() if outputs.hidden_states is not None else None
    width = states.shape[1] // len(layers) if states is not None else 0
    begin = 0
    for row in batch.rows:
        end = begin + row.cache.num_new
        reader = row.context.reader
        if reader is not None and row.context.needs_prompt_rows:
            of_layers: dict[int, Float32Array] = {}
            for place, layer in enumerate(layers):
                if layer in reader.layers:
                    assert states is not None
                    of_layers[layer] = states[begin:end, place * width : (place + 1) * width]
            rows = logits[begin:end] if logits is not None and reader.needs_logits else None
            reader.read(PromptRows(row.cache.num_cached, rows, of_layers))
        begin = end


class _Reader:
    """Takes each position once: rows that come again after a preemption are passed over."""

    needs_logits = False
    layers: tuple[int, ...] = ()

    def __init__(self, first_position: int = 0) -> None:
        self.first_position = first_position
        self._next = first_position

    def read(self, rows: PromptRows) -> None:
        """Takes the rows of a step."""
        arrays = [*([rows.logits] if rows.logits is not None else []), *rows.layers.values()]
        count = len(arrays[0])
        known = self._next - rows.position
        assert known >= 0, "rows are missing"
        for array in arrays:
            if not (np.isfinite(array.max()) and np.isfinite(array.min())):  # extremes hand NaN on
                raise NonFiniteLogitsError(rows.position + count)
        if known < count:
            self._take(
                self._next,
                rows.logits[known:] if rows.logits is not None else None,
                {layer: states[known:] for layer, states in rows.layers.items()},
            )
            self._next = rows.position + count

    def _take(self, position: int, logits: Float32Array | None, layers: dict[int, Float32Array]) -> None:
        raise NotImplementedError


class LogprobReader(_Reader):
    """Log-probabilities of a prompt's tokens.

    Args:
        tokens: The prompt, int64 `[T]`.
        top_n: How many likeliest tokens are reported at each position, from 0.
        also: Further tokens that are reported at each position.
        first_token: The first token that is reported, from 1: the first one of a prompt has none.

    Attributes:
        records: One position each, for the tokens `first_token`, `first_token + 1`, ….
    """

    needs_logits = True

    def __init__(
        self,
        tokens: npt.NDArray[np.int64],
        top_n: int = 0,
        also: Sequence[int] = (),
        first_token: int = 1,
    ) -> None:
        super().__init__(first_token - 1)
        self._tokens = tokens
        self._top_n = top_n
        self._also = also
        self.records: list[LogProbabilities] = []

    def _take(self, position: int, logits: Float32Array | None, layers: dict[int, Float32Array]) -> None:
        assert logits is not None
        following = self._tokens[position + 1 : position + 1 + len(logits)]
        for row, token in zip(logits, following, strict=False):  # nothing follows the last one
            self.records.append(token_log_probabilities(row[None], np.array([token]), self._top_n, self._also))


class LogitReader(_Reader):
    """All logits of a prompt.

    Attributes:
        chunks: float32 `[n, V]` each.
    """

    needs_logits = True

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[Float32Array] = []

    def _take(self, position: int, logits: Float32Array | None, layers: dict[int, Float32Array]) -> None:
        assert logits is not None
        self.chunks.append(logits.copy())


class HiddenStateReader(_Reader):
    """The outputs of some layers for all tokens of a prompt.

    Args:
        layers: Which ones, from 0; -1 stands for the embeddings, the number of layers for the output of the last norm.

    Attributes:
        chunks: Layer -> float32 `[n, H]` each.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.chunks: dict[int, list[Float32Array]] = {layer: [] for layer in self.layers}

    def _take(self, position: int, logits: Float32Array | None, layers: dict[int, Float32Array]) -> None:
        for layer, states in layers.items():
            self.chunks[layer].append(states.copy())


class PoolingReader(_Reader):
    """One vector for a prompt: the mean over its tokens, its last token's or its first token's hidden state.

    Sums are float64, one token after the other, so that chunks do not show in them.

    Args:
        pooling: `mean`, `last` or `cls`.
        layer: Whose outputs, from 0; -1: the embeddings; the number of layers: the output of the last norm.

    Raises:
        InvalidRequestError: there is no such pooling.
    """

    def __init__(self, pooling: Pooling, layer: int) -> None:
        if pooling not in get_args(Pooling):
            expected = ", ".join(get_args(Pooling))
            raise InvalidRequestError(f"must be one of {expected}, got {pooling!r}", param="pooling")
        super().__init__()
        self.layers = (layer,)
        self._pooling = pooling
        self._sum: npt.NDArray[np.float64] | None = None
        self._count = 0

    def vector(self, normalize: bool) -> Float32Array:
        """The pooled vector, float32 `[H]`; `normalize`: of length 1."""
        assert self._sum is not None, "nothing was read"
        pooled = self._sum / self._count
        length = float(np.sqrt((pooled * pooled).sum()))
        return (pooled / length if normalize and length > 0 else pooled).astype(np.float32)

    def _take(self, position: int, logits: Float32Array | None, layers: dict[int, Float32Array]) -> None:
        (states,) = layers.values()
        if self._pooling == "last":
            self._sum, self._count = states[-1].astype(np.float64), 1
        elif self._pooling == "cls":
            if position == 0:
                self._sum, self._count = states[0].astype(np.float64), 1
        else:
            before = np.zeros((1, states.shape[1])) if self._sum is None else self._sum[None]
            self._sum = np.cumsum(np.concatenate([before, states]), axis=0)[-1]
            self._count += len(states)
