"""`StructuredOutputsParams`: what a text must look like."""

from __future__ import annotations

import copy
import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from puna.structured_output.errors import GrammarError

__all__ = ["MAX_SOURCE_BYTES", "StructuredOutputsParams"]

MAX_SOURCE_BYTES: Final = 1 << 18
"""The largest schema, expression or grammar, in bytes of UTF-8."""

_KINDS: Final = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """What a text must look like: exactly one of the first six. See docs/structured-output.md.

    Attributes:
        json: A JSON schema, as text or parsed; the text is a value that it accepts.
        json_object: The text is a JSON object.
        regex: The text matches this expression from its beginning to its end.
        choice: The text is one of these.
        grammar: A context-free grammar in the Lark, GBNF or EBNF notation; its rule `start` (`root`) is the text.
        structural_tag: Free text with tagged parts in it: `{"structures": [{"begin", "schema", "end"}], "triggers"}`,
            as text or parsed.
        disable_any_whitespace: JSON without spaces and line breaks between its parts.
        whitespace_pattern: What may stand between the parts of JSON, as a regular expression; None: up to 64 spaces,
            tabs and line breaks.
        source: What errors call this; None: `structured_outputs` and the kind.

    Raises:
        GrammarError: not exactly one kind is stated, or its value is of a wrong type or too large.
    """

    json: str | Mapping[str, Any] | bool | None = field(default=None, hash=False)
    json_object: bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    structural_tag: str | Mapping[str, Any] | None = field(default=None, hash=False)
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None
    source: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        stated = [name for name in _KINDS if getattr(self, name) is not None]
        if len(stated) != 1:
            raise GrammarError(
                f"exactly one of {', '.join(_KINDS)} is needed, got {' and '.join(stated) or 'none'}",
                param=self.source or "structured_outputs",
            )
        object.__setattr__(self, "_kind", stated[0])
        if self.json_object is not None and self.json_object is not True:
            raise self._error("must be true")
        for name in ("regex", "grammar"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise self._error("must be text")
        if self.choice is not None:
            self._set_choice()
        for name, types in (("json", Mapping | bool), ("structural_tag", Mapping)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._parsed(getattr(self, name), types))
        if not isinstance(cast(object, self.disable_any_whitespace), bool):
            raise GrammarError("must be true or false", param="structured_outputs.disable_any_whitespace")
        if self.whitespace_pattern is not None:
            if not isinstance(cast(object, self.whitespace_pattern), str) or not self.whitespace_pattern:
                raise GrammarError("must be text that is not empty", param="structured_outputs.whitespace_pattern")
            if self.disable_any_whitespace:
                raise GrammarError(
                    "does not go together with disable_any_whitespace", param="structured_outputs.whitespace_pattern"
                )
        if self.size > MAX_SOURCE_BYTES:
            raise self._error(f"has {self.size} bytes, at most {MAX_SOURCE_BYTES} are compiled")

    @property
    def kind(self) -> str:
        """Which of the six is stated."""
        return cast(str, self.__dict__["_kind"])

    @property
    def value(self) -> Any:
        """Its value; JSON as it was parsed."""
        return getattr(self, self.kind)

    @property
    def param(self) -> str:
        """What errors call this."""
        return self.source or f"structured_outputs.{self.kind}"

    @property
    def size(self) -> int:
        """How large the value is, in bytes of UTF-8."""
        value = self.value
        text = value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)
        return len(text.encode("utf-8", "surrogatepass"))

    def _set_choice(self) -> None:
        choice = cast(object, self.choice)
        if isinstance(choice, str) or not isinstance(choice, Sequence) or not choice:
            raise self._error("must be a list of texts that is not empty")
        if not all(isinstance(text, str) and text for text in choice):
            raise self._error("must hold texts that are not empty")
        object.__setattr__(self, "choice", tuple(choice))

    def _parsed(self, value: Any, types: Any) -> Any:
        """JSON of a text; a copy of what was parsed, so that nobody changes it later."""
        if isinstance(value, str):
            try:
                value = json_module.loads(value, parse_constant=_refuse_constant)
            except RecursionError:
                raise self._error("is nested too deeply") from None
            except ValueError as error:
                raise self._error(f"is not JSON: {error}") from error
        if not isinstance(value, types):
            expected = "an object" if types is Mapping else "an object, true or false"
            raise self._error(f"must be {expected}, got {type(value).__name__}")
        try:
            value = copy.deepcopy(value)
            json_module.dumps(value, allow_nan=False)
        except RecursionError:
            raise self._error("is nested too deeply") from None
        except (TypeError, ValueError) as error:
            raise self._error(f"is not JSON: {error}") from error
        return value

    def _error(self, reason: str) -> GrammarError:
        return GrammarError(reason, param=self.param)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
