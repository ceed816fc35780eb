"""Beam search: the likeliest texts, found step by step among the likeliest beginnings.

Every beginning is a request in the loop that shares the pages of its tokens with the others; a step continues each of
them by one token. Candidates are ranked by log-probability, ties by the order of beginnings and token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.entrypoints.answer import Answer
from puna.entrypoints.loop_driver import LoopDriver
from puna.entrypoints.outputs import BeamSearchOutput, BeamSequence
from puna.errors import InvalidRequestError
from puna.pipelines.batch import FinishReason
from puna.pipelines.beam_search_params import BeamSearchParams
from puna.pipelines.context import TextContext, TokenBuffer
from puna.pipelines.lib.log_probabilities import log_softmax
from puna.pipelines.sampling_params import SamplingParams

__all__ = ["search"]


class _Candidates:
    """A logits processor that changes nothing and keeps the likeliest continuations of its first row.

    Args:
        count: How many.
        vocab_size: Ids from here on are padding.
    """

    def __init__(self, count: int, vocab_size: int) -> None:
        self._count = count
        self._vocab_size = vocab_size
        self.found: list[tuple[int, float]] | None = None

    def __call__(self, logits: npt.NDArray[np.float32], _context: Any) -> None:
        if self.found is None:
            scores = log_softmax(logits[0])[: self._vocab_size]
            best = np.argsort(-scores, kind="stable")[: self._count]
            self.found = list(zip(best.tolist(), scores[best].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Beam:
    """A beginning, or a finished text.

    Attributes:
        tokens: Its tokens behind the prompt.
        logprob: Their log-probability.
        parent: The request of the beginning that it continues; None: the prompt alone.
    """

    tokens: tuple[int, ...]
    logprob: float
    parent: Answer | None = field(default=None, compare=False)

    def score(self, length_penalty: float, length: int | None = None) -> float:
        divisor: float = (len(self.tokens) if length is None else length) ** length_penalty
        return self.logprob / divisor


class _Search:
    """The requests of one search.

    Args:
        driver: The loop that they run in.
        prompt: Token ids.
        count: How many continuations of each beginning are looked at.
        vocab_size: Ids from here on are padding.
        max_length: Most tokens of a request.
    """

    def __init__(
        self, driver: LoopDriver, prompt: Sequence[int], count: int, vocab_size: int, max_length: int
    ) -> None:
        self._driver = driver
        self._prompt = prompt
        self._count = count
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._running: list[tuple[_Beam, Answer, _Candidates]] = []

    def begin(self, beams: Sequence[_Beam]) -> None:
        """Makes these the beginnings that run; those that ran before end."""
        before, self._running = self._running, []
        try:
            for beam in beams:
                candidates = _Candidates(self._count, self._vocab_size)
                answer = Answer(self._context([*self._prompt, *beam.tokens], candidates), None, ())
                self._driver.begin([answer], beam.parent)
                self._running.append((beam, answer, candidates))
        finally:
            self._driver.end([answer for _beam, answer, _candidates in before])

    def step(self) -> list[_Beam]:
        """The likeliest ways to go on, likeliest first."""
        extended: list[_Beam] = []
        for beam, answer, candidates in self._running:
            self._driver.advance(answer)
            error = answer.output().error
            if error is not None:
                raise error
            for token, logprob in candidates.found or ():
                extended.append(_Beam((*beam.tokens, token), beam.logprob + logprob, answer))
        return sorted(extended, key=lambda beam: -beam.logprob)[: self._count]

    def _context(self, tokens: list[int], candidates: _Candidates) -> TextContext:
        return TextContext(
            tokens=TokenBuffer(np.array(tokens, dtype=np.int64)),
            max_length=self._max_length,
            sampling_params=SamplingParams(temperature=0, detokenize=False, logits_processors=(candidates,)),
            vocab_size=self._vocab_size,
        )


def search(
    driver: LoopDriver,
    prompt: Sequence[int],
    params: BeamSearchParams,
    *,
    ends: frozenset[int],
    vocab_size: int,
    max_length: int,
    detokenize: Callable[[Sequence[int]], str],
) -> BeamSearchOutput:
    """The likeliest continuations of a prompt.

    Args:
        driver: The loop.
        prompt: Token ids.
        params: How far and how wide.
        ends: End-of-sequence tokens.
        vocab_size: Ids from here on are padding.
        max_length: Most tokens of prompt and text.
        detokenize: Token ids to text.

    Raises:
        InvalidRequestError: the prompt does not fit.
        PunaError: a step failed.
    """
    finishing = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else ends)
    length = min(params.max_tokens, max_length - len(prompt))
    if length < 1:
        raise InvalidRequestError(f"it has {len(prompt)} tokens, the context holds {max_length}", param="prompt")
    beams, finished = [_Beam((), 0.0)], list[_Beam]()
    steps = _Search(driver, prompt, 2 * params.beam_width, vocab_size, max_length)
    try:
        for _step in range(length):
            steps.begin(beams)
            beams = []
            for place, candidate in enumerate(steps.step()):
                if candidate.tokens[-1] in finishing:
                    if place < params.beam_width:  # what is too unlikely to go on is too unlikely to end
                        finished.append(candidate)
                elif len(beams) < params.beam_width:
                    beams.append(candidate)
            finished = sorted(finished, key=lambda beam: -beam.score(params.length_penalty))[: params.beam_width]
            if not beams or _is_done(beams, finished, params, length):
                break
    finally:
        steps.begin([])
    ranked = [(beam, FinishReason.STOP) for beam in finished]
    if len(finished) < params.beam_width:
        ranked += [(beam, FinishReason.LENGTH) for beam in beams]
    ranked.sort(key=lambda pair: -pair[0].score(params.length_penalty))
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
