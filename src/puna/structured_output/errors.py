"""What is wrong with a grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from puna.errors import InvalidRequestError

__all__ = ["GrammarError", "json_path"]

_NAME: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")


class GrammarError(InvalidRequestError):
    """A schema, a regular expression or a grammar that is not served, in part or at all.

    Attributes:
        reason: What is wrong.
        path: Where in a JSON schema, as `$.properties.name`; None: elsewhere.
    """

    def __init__(self, reason: str, *, param: str | None = None, path: str | None = None) -> None:
        self.reason = reason
        self.path = path
        super().__init__(f"at {path}: {reason}" if path is not None else reason, param=param)


def json_path(parts: Sequence[str | int]) -> str:
    """The JSON path of a place in a document."""
    text = "$"
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _NAME.fullmatch(part):
            text += f".{part}"
        else:
            text += f"[{part!r}]"
    return text
