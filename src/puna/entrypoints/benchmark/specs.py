"""Names of tests: `pp512`, `tg128@d2048`, `tg32@b8`, `tg32@b8@a8`, `start`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Kind", "Spec", "parse_spec"]

Kind = Literal["pp", "tg", "start"]

_NAME: Final = re.compile(r"(?P<kind>pp|tg)(?P<tokens>[1-9]\d{0,6})(?P<rest>(?:@[abd]\d{1,7})*)")


@dataclass(frozen=True, slots=True)
class Spec:
    """One test.

    Attributes:
        kind: `pp` reads a prompt, `tg` generates text, `start` starts a process and waits for its first token.
        tokens: Tokens read or generated, per sequence.
        depth: Tokens that each sequence has in the cache before.
        sequences: Sequences at once.
        adapters: How many adapters the sequences have, in turn; 0: none.
    """

    kind: Kind
    tokens: int = 0
    depth: int = 0
    sequences: int = 1
    adapters: int = 0

    @property
    def name(self) -> str:
        """Its name, with parts that say nothing left out."""
        if self.kind == "start":
            return self.kind
        depth = f"@d{self.depth}" if self.depth else ""
        sequences = f"@b{self.sequences}" if self.sequences > 1 else ""
        return f"{self.kind}{self.tokens}{depth}{sequences}" + (f"@a{self.adapters}" if self.adapters else "")

    @property
    def total_tokens(self) -> int:
        """Tokens that a repetition reads or generates, over all sequences."""
        return self.tokens * self.sequences


def parse_spec(text: str) -> Spec:
    """A test by its name: `start`, or `pp` or `tg` with a count and, in any order, `@d` (depth), `@b`
    (sequences) and `@a` (adapters).

    Raises:
        ValueError: It is no name of a test.
    """
    if text == "start":
        return Spec("start")
    match = _NAME.fullmatch(text)
    parts = [] if match is None else match["rest"].split("@")[1:]
    values = {part[0]: int(part[1:]) for part in parts}
    if match is None or len(values) < len(parts) or values.get("b", 1) < 1:
        raise ValueError(f"{text!r} is no test; tests are called pp512, tg128, tg128@d2048, tg32@b8, tg32@b8@a8, start")
    kind: Kind = "pp" if match["kind"] == "pp" else "tg"
    return Spec(kind, int(match["tokens"]), values.get("d", 0), values.get("b", 1), values.get("a", 0))
