"""How families of models write tool calls, and which of these ways a chat template speaks of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["FORMATS", "Marker", "ToolCallFormat", "detect_format"]

Payload = Literal["json", "named", "tagged"]
"""`json`: an object with a name and arguments, or a list of them; `named`: the name, a marker, and the arguments;
`tagged`: as `json`, or `name.call(argument="value")`, which is the rest of the message.
"""


@dataclass(frozen=True, slots=True)
class Marker:
    """What begins calls in a text.

    Attributes:
        begin: The text; empty: the calls are the whole message, from its first character on.
        end: What closes them; empty: nothing.
        payload: What stands between.
    """

    begin: str
    end: str = ""
    payload: Payload = "json"


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """One way to write tool calls.

    Attributes:
        name: For people and errors.
        markers: What calls may begin with; the first one is what grammars write.
        arguments: The name of the arguments in a call.
        separator: What stands between several calls of one message, in grammars.
        is_list: Whether grammars write several calls as a list.
        further: Markers within calls.
    """

    name: str
    markers: tuple[Marker, ...]
    arguments: str = "arguments"
    separator: str = "\n"
    is_list: bool = False
    further: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that mark something; as control tokens they must be seen in the text."""
        found = [text for marker in self.markers for text in (marker.begin, marker.end)]
        return tuple(text for text in (*found, *self.further) if text)


HERMES: Final = ToolCallFormat("hermes", (Marker("<tool_call>", "</tool_call>"),))
LLAMA: Final = ToolCallFormat(
    "llama", (Marker(""), Marker("<|python_tag|>", payload="tagged")), arguments="parameters", separator="; "
)
MISTRAL: Final = ToolCallFormat("mistral", (Marker("[TOOL_CALLS]"),), is_list=True)
MISTRAL_NAMED: Final = ToolCallFormat(
    "mistral-v11", (Marker("[TOOL_CALLS]", payload="named"),), separator="", further=("[ARGS]", "[CALL_ID]")
)
GRANITE: Final = ToolCallFormat("granite", (Marker("<|tool_call|>"), Marker("<tool_call>")), is_list=True)
PHI: Final = ToolCallFormat("phi", (Marker("<|tool_call|>", "<|/tool_call|>"), Marker("functools")), is_list=True)

_SIGNS: Final[tuple[tuple[ToolCallFormat, Callable[[str], bool]], ...]] = (  # the first one that fits
    (MISTRAL_NAMED, lambda text: "[TOOL_CALLS]" in text and "[ARGS]" in text),
    (MISTRAL, lambda text: "[TOOL_CALLS]" in text),
    (PHI, lambda text: "<|tool|>" in text or "<|/tool_call|>" in text),
    (GRANITE, lambda text: "<|tool_call|>" in text),
    (HERMES, lambda text: "<tool_call>" in text and "<function=" not in text),
    (GRANITE, lambda text: "<|start_of_role|>" in text and "tools" in text),  # whose templates don't write calls
    (LLAMA, lambda text: "<|python_tag|>" in text or ('"parameters"' in text and "<|start_header_id|>" in text)),
)

FORMATS: Final = {known.name: known for known, _ in _SIGNS}


def detect_format(templates: Iterable[str]) -> ToolCallFormat | None:
    """The format that chat templates speak of, in their instructions or where they write earlier calls; None: none."""
    texts = list(templates)
    return next((known for known, fits in _SIGNS if any(fits(text) for text in texts)), None)
