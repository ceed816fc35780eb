"""Reasoning: the part of an answer between `<think>` and `</think>` that comes before what the user is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from puna.tokenization import StopStringChecker

__all__ = ["REASONING_FORMATS", "ReasoningFormat", "ReasoningSplitter", "detect_reasoning"]


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a family marks its reasoning.

    Attributes:
        begin: Its first marker. Some templates write it, so that the answer begins behind it.
        end: Its last marker.
    """

    begin: str
    end: str


REASONING_FORMATS: Final = (ReasoningFormat("<think>", "</think>"), ReasoningFormat("[THINK]", "[/THINK]"))


def detect_reasoning(templates: Iterable[str]) -> ReasoningFormat | None:
    """The format that chat templates speak of; None: the model does not reason aloud."""
    texts = list(templates)
    return next((known for known in REASONING_FORMATS if any(known.end in text for text in texts)), None)


class ReasoningSplitter:
    """Tells reasoning from answer as text comes. How the text is cut into pieces makes no difference.

    White space around the markers belongs to neither part.

    Args:
        known: The markers.
        is_open: Whether the prompt ends behind the first marker.
    """

    def __init__(self, known: ReasoningFormat, is_open: bool) -> None:
        self._begin = known.begin
        self._end = StopStringChecker([known.end])
        self._seen: str | None = None if is_open else ""  # at the beginning: what may become the first marker
        self._space: str | None = None  # held until more comes; None: nothing came yet
        self.is_reasoning = is_open
        self.is_done = False

    def add(self, text: str) -> tuple[str, str]:
        """Takes a piece of text; gives what is new of the reasoning and of the answer."""
        if self._seen is not None:
            self._seen += text
            text = self._seen.lstrip()
            if not text.startswith(self._begin):
                if self._begin.startswith(text):
                    return "", ""
                return "", self._decide_against()
            text, self._seen, self.is_reasoning = text[len(self._begin) :], None, True
        reasoning = ""
        for place, character in enumerate(text):
            if self.is_done:
                # White space behind the last marker is dropped, up to the first text.
                if not character.isspace() or not self.is_reasoning:
                    self.is_reasoning = False
                    return reasoning, text[place:]
                continue
            result = self._end.add(character)
            reasoning += self._told(result.text)
            self.is_done = result.stop is not None
        return reasoning, ""

    def flush(self) -> tuple[str, str]:
        """What was held back, when the end came."""
        if self._seen is not None:
            return "", self._decide_against()
        return ("", "") if self.is_done else (self._told(self._end.flush()), "")

    def _decide_against(self) -> str:
        text, self._seen, self.is_done = self._seen or "", None, True
        return text

    def _told(self, text: str) -> str:
        """Reasoning without the white space at its ends."""
        if self._space is None:
            text = text.lstrip()
            if not text:
                return ""
        text = (self._space or "") + text
        told = text.rstrip()
        self._space = text[len(told) :]
        return told
