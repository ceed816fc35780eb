"""What happened to requests, and when: numbers and times, never text."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Timeline", "Timelines"]


@dataclass
class Timeline:
    """One request.

    Attributes:
        request_id: Its id, as `X-Request-Id` has it.
        tenant: Whose it is.
        route: What was asked.
        created: When it came, in seconds since 1970.
        marks: What happened -> when, in seconds of `time.monotonic`: `received`, `prepared`, `admitted`,
            `first_token`, `last_token`, `finished`.
        num_prompt_tokens: Tokens of its prompts.
        num_cached_tokens: Of these found in the prefix cache.
        num_generated_tokens: Tokens of its answers so far.
        finish_reasons: How its answers ended.
        status: The response's status, when it is known.
    """

    request_id: str
    tenant: str
    route: str
    created: float = field(default_factory=time.time)
    marks: dict[str, float] = field(default_factory=dict)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    status: int | None = None

    def mark(self, name: str) -> None:
        """Notes that something happened now, once."""
        self.marks.setdefault(name, time.monotonic())

    def body(self) -> dict[str, Any]:
        """What `/v1/requests/{id}` answers: times in seconds since it came."""
        begin = self.marks.get("received", 0.0)
        return {
            "id": self.request_id,
            "object": "request.timeline",
            "route": self.route,
            "created": round(self.created, 3),
            "status": self.status,
            "events_s": {name: round(value - begin, 6) for name, value in sorted(self.marks.items(), key=_second)},
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_cached_tokens": self.num_cached_tokens,
            "num_generated_tokens": self.num_generated_tokens,
            "finish_reasons": self.finish_reasons,
        }


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


class Timelines:
    """The latest requests.

    Args:
        most: How many are remembered.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_id: OrderedDict[str, Timeline] = OrderedDict()

    def begin(self, request_id: str, tenant: str, route: str) -> Timeline:
        """A new request."""
        timeline = Timeline(request_id, tenant, route)
        timeline.mark("received")
        self._by_id[request_id] = timeline
        self._by_id.move_to_end(request_id)
        while len(self._by_id) > self._most:
            self._by_id.popitem(last=False)
        return timeline

    def find(self, request_id: str, tenant: str) -> Timeline | None:
        """A tenant's request, if it is remembered."""
        found = self._by_id.get(request_id)
        return found if found is not None and found.tenant == tenant else None
