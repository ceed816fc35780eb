"""Answers of an `LLM` whose requests have one continuation each."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from puna.entrypoints.llm import LLM
from puna.entrypoints.outputs import CompletionOutput
from puna.pipelines.batch import FinishReason
from puna.pipelines.request import GenerateRequest


@dataclass(frozen=True)
class Piece:
    """What a step brought."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None


def answers(llm: LLM, requests: Sequence[GenerateRequest]) -> list[CompletionOutput]:
    """The requests' continuations."""
    return [output.outputs[0] for output in llm.answer_requests(requests)]


def growth(llm: LLM, request: GenerateRequest) -> Generator[Piece]:
    """A request's continuation, piece by piece; an error ends it."""
    text, tokens = "", 0
    stream = llm.stream_requests([request])
    try:
        for output in stream:
            (made,) = output.outputs
            if made.error is not None:
                raise made.error
            assert made.text.startswith(text)
            yield Piece(made.text[len(text) :], made.token_ids[tokens:], made.finish_reason)
            text, tokens = made.text, len(made.token_ids)
    finally:
        stream.close()  # type: ignore[attr-defined]  # it is a generator
