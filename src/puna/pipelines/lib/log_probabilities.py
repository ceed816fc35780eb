"""Log-probabilities of the tokens that were chosen, and of those that were likeliest.

For a logits row z the log-probability of token i is `z_i - max(z) - ln(sum_j exp(z_j - max(z)))`, computed in float64
from the float32 row that the model returned: before temperature, penalties and filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from puna.driver import Buffer
from puna.errors import InvalidRequestError, ShapeError
from puna.pipelines.context import LogProbabilities
from puna.pipelines.lib.interfaces import ModelInputs, ModelOutputs
from puna.pipelines.sampling_ranges import MAX_LOGPROBS

if TYPE_CHECKING:
    from puna.engine import InferenceSession

__all__ = ["MAX_TOP_N", "LogProbabilities", "LogProbabilitiesMixin", "log_softmax", "token_log_probabilities"]

MAX_TOP_N: Final = MAX_LOGPROBS
"""How many likeliest tokens can be asked for (what the OpenAI interface allows; the original stops at 7)."""

_GROUP: Final = 64

_Array: TypeAlias = npt.NDArray[Any]


def log_softmax(logits: _Array) -> npt.NDArray[np.float64]:
    """Natural logarithm of the softmax along the last axis, float64 arithmetic, shape as `logits`."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    normalizer = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    result: npt.NDArray[np.float64] = shifted - normalizer
    return result


def token_log_probabilities(logits: _Array, tokens: _Array, top_n: int, also: Sequence[int] = ()) -> LogProbabilities:
    """The record of one request.

    Tokens of equal logits are ordered by id.

    Args:
        logits: float32 or float64 `[n, V]`: the rows that the positions' tokens were chosen from.
        tokens: integers `[n]`: the token that stands at each position.
        top_n: How many likeliest tokens to report, from 0.
        also: Further tokens to report; ids outside the vocabulary are left out.
    """
    token_values: list[float] = []
    top_values: list[dict[int, float]] = []
    ranks: list[dict[int, int]] = []
    for scores, token in zip(logits, tokens.tolist(), strict=True):
        row = _LogSoftmax(scores)
        best = _best(scores, min(top_n, len(scores)))
        top = {i: row[i] for i in best}
        places = {token_id: place for place, token_id in enumerate(best, 1)}
        for token_id in (token, *(i for i in also if i < len(scores))):
            if token_id not in top:
                top[token_id] = row[token_id]
                places[token_id] = _rank(scores, token_id)
        token_values.append(row[token])
        top_values.append(top)
        ranks.append(places)
    return LogProbabilities(token_values, top_values, ranks)


class _LogSoftmax:
    """`log_softmax` of one row, of which few values are needed; the same bits."""

    def __init__(self, scores: _Array) -> None:
        self._scores = scores
        self._largest = float(scores.max())
        shifted = scores.astype(np.float64)
        shifted -= self._largest
        self._normalizer = float(np.log(np.exp(shifted, out=shifted).sum()))

    def __getitem__(self, token: int) -> float:
        return float(self._scores[token]) - self._largest - self._normalizer


def _best(scores: _Array, count: int) -> list[int]:
    """The likeliest tokens, likeliest first."""
    if count == 0:
        return []
    # Everything at least as likely as the n-th best, so that ties are cut by id and not by a partition's whim. The n-th
    # largest of the maxima of groups is a bound that n tokens reach.
    groups = len(scores) // _GROUP
    maxima = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0) if groups >= count else scores
    threshold = np.partition(maxima, -count)[-count]
    candidates = np.flatnonzero(scores >= threshold)
    order = np.lexsort((candidates, -scores[candidates]))[:count]
    best: list[int] = candidates[order].tolist()
    return best


def _rank(scores: _Array, token: int) -> int:
    """1 for the likeliest token."""
    value = scores[token]
    return 1 + int(np.count_nonzero(scores > value)) + int(np.count_nonzero(scores[:token] == value))


@dataclass(frozen=True)
class _Step:
    """The arrays of one step that log-probabilities are read from."""

    tokens: _Array
    offsets: _Array
    next_logits: _Array
    logits: _Array | None
    sampled: _Array

    def rows(self, request: int) -> tuple[int, int]:
        return int(self.offsets[request]), int(self.offsets[request + 1])

    def last(self, request: int, top_n: int) -> LogProbabilities:
        """The sampled token alone."""
        row = slice(request, request + 1)
        return token_log_probabilities(self.next_logits[row], self.sampled[row], top_n)

    def echo(self, request: int, top_n: int) -> LogProbabilities:
        """One position per active token: each row tells about the token after it, the last about the sampled one."""
        begin, end = self.rows(request)
        if self.logits is None or self.logits.shape[0] != self.tokens.shape[0]:
            raise InvalidRequestError(
                "log-probabilities of the prompt need the logits of every token; build the model with enable_echo",
                param="echo",
            )
        following = np.append(self.tokens[begin + 1 : end], self.sampled[request])
        return token_log_probabilities(self.logits[begin:end], following, top_n)


class LogProbabilitiesMixin:
    """Gives a model `compute_log_probabilities`. It stands before the model's base among the bases.

    It reads `tokens` and `input_row_offsets` of the inputs, `next_token_logits` and `logits` of the outputs.
    """

    def compute_log_probabilities(
        self,
        session: InferenceSession,
        model_inputs: ModelInputs,
        model_outputs: ModelOutputs,
        next_tokens: Buffer,
        batch_top_n: list[int],
        batch_echo: list[bool],
    ) -> list[LogProbabilities | None]:
        """Log-probabilities of one step, request by request.

        Without echo a record has one position, the sampled token. With echo it has one per active token: position j
        tells about active token j + 1, the last about the sampled token; the first token of a prompt has none.

        Args:
            session: Where the model was compiled; nothing is compiled here, the documented signature has it.
            model_inputs: The step's inputs.
            model_outputs: The step's outputs. Echo needs `logits` of every row (`ReturnLogits.ALL`).
            next_tokens: Integers `[B]`: the sampled tokens.
            batch_top_n: `[B]`: how many likeliest tokens to report, 0 (no record) to 20.
            batch_echo: `[B]`: whether prompt positions are wanted.

        Returns:
            One record per request, None where `batch_top_n` is 0.

        Raises:
            InvalidRequestError: a number outside 0 to 20, or echo without the logits of every token.
            ShapeError: a list or an array is of another number of requests.
        """
        sampled = next_tokens.to_numpy().reshape(-1)
        _check_lengths(sampled.shape[0], batch_top_n, batch_echo)
        step = _gather(model_inputs, model_outputs, sampled)
        results: list[LogProbabilities | None] = []
        for request, (top_n, echo) in enumerate(zip(batch_top_n, batch_echo, strict=True)):
            if top_n == 0:
                results.append(None)
            else:
                results.append(step.echo(request, top_n) if echo else step.last(request, top_n))
        return results


def _check_lengths(num_requests: int, batch_top_n: Sequence[int], batch_echo: Sequence[bool]) -> None:
    for name, values in (("batch_top_n", batch_top_n), ("batch_echo", batch_echo)):
        if len(values) != num_requests:
            raise ShapeError(name, (len(values),), (num_requests,))
    for top_n in batch_top_n:
        if not 0 <= top_n <= MAX_TOP_N:
            raise InvalidRequestError(f"must be from 0 to {MAX_TOP_N}, got {top_n}", param="logprobs")


def _gather(model_inputs: ModelInputs, model_outputs: ModelOutputs, sampled: _Array) -> _Step:
    arrays: dict[str, _Array] = {}
    for name in ("tokens", "input_row_offsets"):
        buffer = getattr(model_inputs, name, None)
        if not isinstance(buffer, Buffer):
            raise TypeError(f"{type(model_inputs).__name__} has no buffer {name}")
        arrays[name] = buffer.to_numpy()
    next_logits = model_outputs.next_token_logits
    if next_logits is None:
        raise TypeError("the model's outputs have no next_token_logits")
    rows = next_logits.to_numpy()
    if rows.ndim != 2 or rows.shape[0] != sampled.shape[0]:
        raise ShapeError("next_token_logits", rows.shape, (sampled.shape[0], "vocab_size"))
    if arrays["input_row_offsets"].shape[0] != sampled.shape[0] + 1:
        raise ShapeError("input_row_offsets", arrays["input_row_offsets"].shape, (sampled.shape[0] + 1,))
    every_row = model_outputs.logits.to_numpy() if model_outputs.logit_offsets is not None else None
    return _Step(arrays["tokens"], arrays["input_row_offsets"], rows, every_row, sampled)
