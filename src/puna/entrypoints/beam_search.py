"""Beam search: the likeliest texts, found step by step among the likeliest beginnings.

Every step continues each beginning by one token, all of them in one batch; the pages of their common tokens are found
in the cache. A beginning's candidates are ranked by log-probability, ties by the order of beginnings and token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from puna.entrypoints.outputs import BeamSearchOutput, BeamSequence, RequestOutput
from puna.pipelines.batch import FinishReason
from puna.pipelines.lib.log_probabilities import log_softmax
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import BeamSearchParams, SamplingParams

__all__ = ["search"]

_Answer: TypeAlias = Callable[[Sequence[GenerateRequest]], Sequence[RequestOutput]]


@dataclass(frozen=True, slots=True)
class _Beam:
    """A beginning, or a finished text."""

    tokens: tuple[int, ...]
    logprob: float

    def score(self, length_penalty: float, length: int | None = None) -> float:
        divisor: float = (len(self.tokens) if length is None else length) ** length_penalty
        return self.logprob / divisor


class _Candidates:
    """A logits processor that changes nothing and keeps the likeliest continuations.

    Args:
        count: How many.
        vocab_size: Ids from here on are padding.
    """

    def __init__(self, count: int, vocab_size: int) -> None:
        self._count = count
        self._vocab_size = vocab_size
        self.tokens: list[int] = []
        self.logprobs: list[float] = []

    def __call__(self, logits: npt.NDArray[np.float32], _context: Any) -> None:
        scores = log_softmax(logits[0, : self._vocab_size])
        best = np.argsort(-scores, kind="stable")[: self._count]
        self.tokens, self.logprobs = best.tolist(), scores[best].tolist()


def search(
    answer: _Answer,
    prompt: Sequence[int],
    params: BeamSearchParams,
    *,
    ends: frozenset[int],
    vocab_size: int,
    room: int,
    detokenize: Callable[[Sequence[int]], str],
) -> BeamSearchOutput:
    """The likeliest continuations of a prompt.

    Args:
        answer: Answers requests.
        prompt: Token ids.
        params: How far and how wide.
        ends: End-of-sequence tokens.
        vocab_size: Ids from here on are padding.
        room: Tokens that the context has left behind the prompt.
        detokenize: Token ids to text.

    Raises:
        InvalidRequestError: the prompt does not fit.
        PunaError: a step failed.
    """
    finishing = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else ends)
    length = min(params.max_tokens, max(room, 1))
    beams, finished = [_Beam((), 0.0)], list[_Beam]()
    for _step in range(length):
        candidates = _extend(answer, prompt, beams, 2 * params.beam_width, vocab_size)
        beams = []
        for place, candidate in enumerate(candidates):
            if candidate.tokens[-1] in finishing:
                if place < params.beam_width:  # what is too unlikely to go on is too unlikely to end
                    finished.append(candidate)
            elif len(beams) < params.beam_width:
                beams.append(candidate)
        finished = sorted(finished, key=lambda beam: -beam.score(params.length_penalty))[: params.beam_width]
        if not beams or _is_done(beams, finished, params, length):
            break
    ended = [(beam, FinishReason.STOP) for beam in finished]
    cut = [(beam, FinishReason.LENGTH) for beam in beams] if len(finished) < params.beam_width else []
    ranked = sorted(ended + cut, key=lambda pair: -pair[0].score(params.length_penalty))
    return BeamSearchOutput(
        prompt_token_ids=tuple(prompt),
        sequences=[
            BeamSequence(
                text=detokenize(beam.tokens),
                token_ids=beam.tokens,
                cumulative_logprob=beam.logprob,
                score=beam.score(params.length_penalty),
                finish_reason=reason,
            )
            for beam, reason in ranked[: params.beam_width]
        ],
    )


def _extend(
    answer: _Answer, prompt: Sequence[int], beams: Sequence[_Beam], count: int, vocab_size: int
) -> list[_Beam]:
    """The `count` likeliest ways to go on, likeliest first."""
    processors = [_Candidates(count, vocab_size) for _ in beams]
    outputs = answer([
        GenerateRequest(
            token_ids=[*prompt, *beam.tokens],
            sampling_params=SamplingParams(
                temperature=0, max_tokens=1, detokenize=False, logits_processors=(processor,)
            ),
        )
        for beam, processor in zip(beams, processors, strict=True)
    ])
    for output in outputs:
        if output.error is not None:
            raise output.error
    extended = [
        _Beam((*beam.tokens, token), beam.logprob + logprob)
        for beam, processor in zip(beams, processors, strict=True)
        for token, logprob in zip(processor.tokens, processor.logprobs, strict=True)
    ]
    return sorted(extended, key=lambda beam: -beam.logprob)[:count]


def _is_done(beams: Sequence[_Beam], finished: Sequence[_Beam], params: BeamSearchParams, length: int) -> bool:
    """Whether no beginning can become better than the worst of enough finished texts."""
    if len(finished) < params.beam_width:
        return False
    if params.early_stopping:
        return True
    # Log-probabilities only fall; a longer text is divided by more, so the best it can become is at one of the ends.
    best = beams[0]
    reachable = max(best.score(params.length_penalty, n) for n in (len(best.tokens) + 1, length))
    return reachable <= finished[-1].score(params.length_penalty)
