"""What bodies say about the form of a text: OpenAI's `response_format`, vLLM's and llama.cpp's fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from puna.errors import InvalidRequestError
from puna.structured_output.params import StructuredOutputsParams

__all__ = ["STRUCTURE_FIELDS", "read_structure"]

_VLLM: Final = frozenset({
    *("json", "json_object", "regex", "choice", "grammar", "structural_tag"),
    *("disable_any_whitespace", "whitespace_pattern"),
})


def read_structure(stated: dict[str, Any]) -> StructuredOutputsParams | None:
    """What the text must look like; takes the fields that say so out of a body.

    Raises:
        GrammarError: a schema or a grammar is of a wrong form.
        InvalidRequestError: a field is, or two of them are stated.
    """
    found = [(name, stated.pop(name)) for name in STRUCTURE_FIELDS if name in stated]
    read = [(name, _READERS[name](value)) for name, value in found]
    forms = [(name, params) for name, params in read if params is not None]
    if len(forms) > 1:
        raise InvalidRequestError(f"does not go together with {forms[1][0]}", param=forms[0][0])
    return forms[0][1] if forms else None


def _response_format(value: Any) -> StructuredOutputsParams | None:
    name = "response_format"
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True, source=name)
    if kind == "json_schema":
        inner = value.get("json_schema")
        if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping | bool):
            raise InvalidRequestError("must be an object with a schema", param=f"{name}.json_schema")
        if unknown := sorted(inner.keys() - {"name", "description", "schema", "strict"}):
            raise InvalidRequestError("there is no such field", param=f"{name}.json_schema.{unknown[0]}")
        return StructuredOutputsParams(json=inner["schema"], source=f"{name}.json_schema.schema")
    if kind == "structural_tag":
        return StructuredOutputsParams(structural_tag=value, source=name)
    raise InvalidRequestError(
        "must be an object of type text, json_object, json_schema or structural_tag", param=name
    )


def _structured_outputs(value: Any) -> StructuredOutputsParams:
    if not isinstance(value, Mapping):
        raise InvalidRequestError("must be an object", param="structured_outputs")
    stated = {name: part for name, part in value.items() if part is not None}
    if unknown := sorted(stated.keys() - _VLLM):
        raise InvalidRequestError("there is no such field", param=f"structured_outputs.{unknown[0]}")
    return StructuredOutputsParams(**stated)


_READERS: Final[dict[str, Callable[[Any], StructuredOutputsParams | None]]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "json_schema": lambda value: StructuredOutputsParams(json=value, source="json_schema"),
    "grammar": lambda value: StructuredOutputsParams(grammar=value, source="grammar"),
}
STRUCTURE_FIELDS: Final = tuple(_READERS)
