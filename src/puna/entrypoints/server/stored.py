"""Stored responses: in memory, bounded, each tenant's own."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

__all__ = ["ResponseStore", "StoredResponse"]


@dataclass(frozen=True)
class StoredResponse:
    """A response that can be asked for again, and gone on with.

    Attributes:
        tenant: Whose it is.
        body: The response.
        input_items: What it answered, as items.
        messages: The whole conversation so far, its answer included, as messages of a chat.
    """

    tenant: str
    body: dict[str, Any]
    input_items: list[dict[str, Any]]
    messages: list[dict[str, Any]]


class ResponseStore:
    """The latest responses.

    Args:
        max_bytes: What they may take, as JSON; the oldest make room.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._kept: OrderedDict[str, tuple[int, StoredResponse]] = OrderedDict()

    def put(self, stored: StoredResponse) -> None:
        """Keeps a response."""
        size = len(json.dumps([stored.body, stored.input_items, stored.messages]))
        self._kept[stored.body["id"]] = (size, stored)
        self._size += size
        while self._size > self._max_bytes:
            self._size -= self._kept.popitem(last=False)[1][0]

    def find(self, name: str, tenant: str) -> StoredResponse | None:
        """A tenant's response, if it is kept."""
        _, stored = self._kept.get(name, (0, None))
        return stored if stored is not None and stored.tenant == tenant else None

    def delete(self, name: str) -> None:
        """Forgets a response."""
        self._size -= self._kept.pop(name)[0]
