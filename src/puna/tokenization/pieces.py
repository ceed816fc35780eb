"""Ids → bytes: what each token contributes to the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from puna.errors import UnsupportedModelError
from puna.tokenization.definition import TokenizerDefinition

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, inverted.

    Printable Latin-1 characters stand for themselves, the other bytes for U+0100 and up, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    table.update((chr(0x100 + place), byte) for place, byte in enumerate(hidden))
    return table


BYTE_OF_CHARACTER: Mapping[str, int] = _byte_of_character()


def _byte_level_piece(token: str) -> bytes:
    try:
        return bytes([BYTE_OF_CHARACTER[c] for c in token])
    except KeyError:  # an added token, kept as text
        return token.encode("utf-8")


class Pieces:
    """The bytes of each token, found on demand.

    Attributes:
        strip_leading_space: One space at the very start of a text is not part of it (SentencePiece's dummy prefix).

    Args:
        definition: The tokenizer.

    Raises:
        UnsupportedModelError: The decoder section is of a kind that is not implemented.
    """

    def __init__(self, definition: TokenizerDefinition) -> None:
        self._tokens = definition.tokens
        self._bytes: list[bytes | None] = [None] * len(self._tokens)
        self._special = frozenset(token.id for token in definition.added_tokens if token.special)
        self.strip_leading_space = False
        self._convert = self._converter(definition)

    def __len__(self) -> int:
        return len(self._tokens)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out by `skip_special_tokens`."""
        return token_id in self._special

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of one token; none for an id without a token (a model's table may be padded).

        Args:
            token_id: Any id the model can give.
        """
        if not 0 <= token_id < len(self._bytes):
            return b""
        known = self._bytes[token_id]
        if known is None:
            token = self._tokens[token_id]
            known = b"" if token is None else self._convert(token)
            self._bytes[token_id] = known
        return known

    def join(self, ids: Sequence[int], *, skip_special_tokens: bool) -> bytes:
        """The bytes of a sequence, a leading dummy space removed."""
        special = self._special if skip_special_tokens else frozenset()
        data = b"".join([self.bytes_of(i) for i in ids if i not in special])
        return data[1:] if self.strip_leading_space and data.startswith(b" ") else data

    def _converter(self, definition: TokenizerDefinition) -> Callable[[str], bytes]:
        def refuse(value: object) -> UnsupportedModelError:
            return UnsupportedModelError(
                "decoder", value, file=definition.source, supported="ByteLevel, Replace, ByteFallback, Fuse, Strip"
            )

        section = definition.decoder
        if section is None:
            raise refuse(None)
        steps: Sequence[Mapping[str, Any]] = (
            section.get("decoders", ()) if section.get("type") == "Sequence" else (section,)
        )
        replacements: list[tuple[str, str]] = []
        byte_fallback = byte_level = False
        for step in steps:
            kind = step.get("type")
            if kind == "ByteLevel":
                byte_level = True
            elif kind == "ByteFallback":
                byte_fallback = True
            elif kind == "Replace" and isinstance(step.get("pattern"), dict) and "String" in step["pattern"]:
                replacements.append((step["pattern"]["String"], step["content"]))
            elif kind == "Strip" and (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0):
                self.strip_leading_space = True
            elif kind != "Fuse":
                raise refuse(step)
        if byte_level:
            if len(steps) != 1:
                raise refuse(section)
            return _byte_level_piece

        def convert(token: str) -> bytes:
            if byte_fallback and (match := _BYTE_PIECE.fullmatch(token)):
                return bytes([int(match[1], 16)])
            for old, new in replacements:
                token = token.replace(old, new)
            return token.encode("utf-8", "surrogatepass")

        return convert
