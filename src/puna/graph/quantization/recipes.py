"""Recipes: which format each tensor of a model gets when it is quantized to `Q4_K_M` and the like.

A recipe's name is that of llama.cpp's file types, and it chooses the same formats: most matrices get the recipe's own,
those whose errors hurt more (the output matrix, values, the way down from the MLP) a larger one. Rows that are no
multiple of a format's block get another format. Source of the rules: llama.cpp, `src/llama-quant.cpp`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from puna.errors import InvalidRequestError
from puna.graph.quantization.encoding import QuantizationEncoding

__all__ = [
    "RECIPES",
    "TARGETS",
    "QuantizationOptions",
    "Recipe",
    "TensorChoice",
    "TensorOutline",
    "choose_formats",
    "fallback_sentence",
    "has_small_values",
    "recipe_of",
    "role_of",
    "target_format",
]

Role = Literal["embedding", "output", "value", "attention_output", "ffn_down", "other"]

FLOAT_FORMATS: Final = ("F32", "F16", "BF16")
TARGETS: Final = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS"),
    *FLOAT_FORMATS,
)
"""Formats that weights can be quantized to."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe.

    Attributes:
        name: Its name.
        file_type: `general.file_type` of a GGUF file made by it.
        format: The format of most matrices.
    """

    name: str
    file_type: int
    format: str


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType({
    recipe.name: recipe
    for recipe in (
        Recipe("Q2_K", 10, "Q2_K"),
        Recipe("Q3_K_S", 11, "Q3_K"),
        Recipe("Q3_K_M", 12, "Q3_K"),
        Recipe("Q3_K_L", 13, "Q3_K"),
        Recipe("Q4_0", 2, "Q4_0"),
        Recipe("Q4_1", 3, "Q4_1"),
        Recipe("Q4_K_S", 14, "Q4_K"),
        Recipe("Q4_K_M", 15, "Q4_K"),
        Recipe("Q5_0", 8, "Q5_0"),
        Recipe("Q5_1", 9, "Q5_1"),
        Recipe("Q5_K_S", 16, "Q5_K"),
        Recipe("Q5_K_M", 17, "Q5_K"),
        Recipe("Q6_K", 18, "Q6_K"),
        Recipe("Q8_0", 7, "Q8_0"),
        Recipe("IQ4_NL", 25, "IQ4_NL"),
        Recipe("IQ4_XS", 30, "IQ4_XS"),
        Recipe("F16", 1, "F16"),
        Recipe("BF16", 32, "BF16"),
    )
})
"""All recipes by name."""


@dataclass(frozen=True, slots=True)
class TensorOutline:
    """A tensor to be quantized.

    Attributes:
        name: As GGUF files call it, `blk.0.attn_q.weight`.
        shape: Logical, outermost axis first.
        format: As it is stored.
    """

    name: str
    shape: tuple[int, ...]
    format: str


@dataclass(frozen=True, slots=True)
class QuantizationOptions:
    """What is asked for.

    Attributes:
        recipe: The recipe.
        num_layers: Layers of the model.
        query_group: Query heads per KV head.
        has_small_values: See the function.
        overrides: Patterns (regular expressions, searched in GGUF names) and formats; the first that fits counts.
        token_embedding_format: The embedding's format; None: as the recipe says.
        output_format: The output matrix's format; None: as the recipe says.
        is_pure: Every matrix gets the recipe's own format.
        has_importance: Whether the importance of columns is known.
        may_requantize: Whether quantized tensors are quantized again.
    """

    recipe: Recipe
    num_layers: int
    query_group: int
    has_small_values: bool = False
    overrides: tuple[tuple[re.Pattern[str], str], ...] = ()
    token_embedding_format: str | None = None
    output_format: str | None = None
    is_pure: bool = False
    has_importance: bool = False
    may_requantize: bool = False


@dataclass(frozen=True, slots=True)
class TensorChoice:
    """A tensor and the format it gets.

    Attributes:
        outline: The tensor.
        format: Its format.
        wanted: The format it would have, were its rows a multiple of that one's block; None: it has it.
    """

    outline: TensorOutline
    format: str
    wanted: str | None = None


def recipe_of(name: str, param: str) -> Recipe:
    """The recipe called `name`, in any case.

    Raises:
        InvalidRequestError: There is none; `param` is who asked.
    """
    found = RECIPES.get(name.upper())
    if found is None:
        raise InvalidRequestError(f"{name!r} is no recipe; there is: {', '.join(RECIPES)}", param=param)
    return found


def has_small_values(architecture: str, num_layers: int, query_group: int) -> bool:
    """Whether a model is of the size of Llama 2 70B, whose small value matrices get more bits.

    Args:
        architecture: As GGUF files call it.
        num_layers: Layers.
        query_group: Query heads per KV head.
    """
    return num_layers == 80 and query_group > 1 and architecture in ("llama", "qwen2")


def target_format(name: str, param: str) -> str:
    """The format called `name`, in any case, that weights can be quantized to.

    Raises:
        InvalidRequestError: There is none.
    """
    if name.upper() not in TARGETS:
        raise InvalidRequestError(f"{name!r} is no format to quantize to; there is: {', '.join(TARGETS)}", param=param)
    return name.upper()


def choose_formats(tensors: Sequence[TensorOutline], options: QuantizationOptions) -> list[TensorChoice]:
    """The format of every tensor of a model, in the order given.

    Vectors become F32, matrices that are not weights of products keep their format.

    Raises:
        InvalidRequestError: A quantized tensor would be quantized again and may not.
    """
    is_tied = not any(tensor.name == "output.weight" for tensor in tensors)
    places = {role: _places(tensors, role) for role in ("value", "ffn_down")}
    chosen = []
    for tensor in tensors:
        if not _is_matrix(tensor):
            is_float = tensor.format in FLOAT_FORMATS and len(tensor.shape) < 2
            chosen.append(TensorChoice(tensor, "F32" if is_float else tensor.format))
            continue
        place = places.get(role_of(tensor.name), {}).get(tensor.name, 0)
        count = len(places["value"]) if role_of(tensor.name) == "value" else options.num_layers
        wanted = _wanted(tensor, options, is_tied, place, count)
        format = _fitting(wanted, tensor.shape[-1])
        if tensor.format not in FLOAT_FORMATS and format != tensor.format and not options.may_requantize:
            raise InvalidRequestError(
                f"{tensor.name} is {tensor.format} already; as {format} it would lose more than float weights do "
                "(`puna quantize --allow-requantize` does it all the same)",
                param=f"quantization to {options.recipe.name}",
            )
        chosen.append(TensorChoice(tensor, format, None if format == wanted else wanted))
    return chosen


def fallback_sentence(choices: Sequence[TensorChoice]) -> str | None:
    """What a person should know about rows that are no multiple of a block; None: there are none."""
    counts = Counter((choice.outline.shape[-1], choice.wanted, choice.format) for choice in choices if choice.wanted)
    if not counts:
        return None
    parts = [f"{count} × {got} instead of {wanted} ({width} columns)" for (width, wanted, got), count in counts.items()]
    return f"tensors whose rows are no whole number of blocks have another format: {', '.join(parts)}"


def role_of(name: str) -> Role:
    """What part of a model a tensor is, by its GGUF name."""
    if name in ("token_embd.weight", "output.weight"):
        return "embedding" if name == "token_embd.weight" else "output"
    for part, role in _ROLES.items():
        if part in name:
            return role
    return "other"


_ROLES: Final[Mapping[str, Role]] = MappingProxyType({
    "attn_qkv.weight": "value",
    "attn_v.weight": "value",
    "attn_output.weight": "attention_output",
    "ffn_down": "ffn_down",
})
_LAYER: Final = re.compile(r"blk\.(\d+)\.")
_BLOCKS: Final = MappingProxyType({str(e): e.elements_per_block for e in QuantizationEncoding if e.is_gguf})
# What rows get that are no multiple of 256.
_SMALLER: Final = MappingProxyType({
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL",
})  # fmt: skip


def _is_matrix(tensor: TensorOutline) -> bool:
    return len(tensor.shape) > 1 and tensor.name.endswith("weight") and not tensor.name.endswith("_norm.weight")


def _places(tensors: Sequence[TensorOutline], role: str) -> dict[str, int]:
    """The tensors of a role, numbered in the order of their layers."""
    found = [(int(match[1]), tensor.name) for tensor in tensors if (match := _LAYER.match(tensor.name))]
    return {name: place for place, (_, name) in enumerate(sorted(f for f in found if role_of(f[1]) == role))}


def _wanted(tensor: TensorOutline, options: QuantizationOptions, is_tied: bool, place: int, count: int) -> str:
    """The format that a matrix should have."""
    role, base = role_of(tensor.name), options.recipe.format
    if role == "embedding" and options.token_embedding_format:
        return options.token_embedding_format
    if role == "output" and options.output_format:
        return options.output_format
    for pattern, format in options.overrides:
        if pattern.search(tensor.name):
            return format
    if options.is_pure or base in FLOAT_FORMATS:
        return base
    if role == "output" or (role == "embedding" and is_tied):
        if options.output_format:
            return options.output_format
        is_whole = tensor.shape[-1] % _BLOCKS[base] == 0
        return "Q6_K" if is_whole and base != "Q8_0" else "Q8_0"
    rule = _RULES.get(role)
    return (rule and rule(options, place, count)) or base


def _needs_more_bits(place: int, count: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return place < count // 8 or place >= 7 * count // 8 or (place - count // 8) % 3 == 2


def _value(options: QuantizationOptions, place: int, count: int) -> str | None:
    is_grouped = options.query_group >= 4
    match options.recipe.name:
        case "Q2_K":
            format = "Q4_K" if is_grouped else "Q3_K"
        case "Q3_K_M":
            format = "Q5_K" if place < 2 else "Q4_K"
        case "Q3_K_L":
            format = "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if is_grouped:
            format = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _needs_more_bits(place, count):
            format = "Q6_K"
        case "Q4_K_S" if place < 4:
            format = "Q5_K"
        case _:
            format = options.recipe.format
    return "Q5_K" if options.has_small_values and format in ("Q3_K", "Q4_K") else format


def _ffn_down(options: QuantizationOptions, place: int, count: int) -> str | None:
    is_early = place < count // 8
    match options.recipe.name:
        case "Q2_K":
            return "Q3_K"
        case "Q3_K_M":
            return "Q5_K" if place < count // 16 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _needs_more_bits(place, count):
            return "Q6_K"
        case "IQ4_NL" | "IQ4_XS" if is_early and not options.has_importance:
            return "Q5_K"
        case "Q4_K_S" if is_early:
            return "Q5_K"
        case "Q4_0" | "Q5_0" if is_early and options.has_importance:
            return "Q4_1" if options.recipe.name == "Q4_0" else "Q5_1"
    return None


def _attention_output(options: QuantizationOptions, place: int, count: int) -> str | None:
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(options.recipe.name)


_RULES: Final[Mapping[str, Callable[[QuantizationOptions, int, int], str | None]]] = MappingProxyType({
    "value": _value,
    "ffn_down": _ffn_down,
    "attention_output": _attention_output,
})


def _fitting(format: str, columns: int) -> str:
    """The format, or the one for rows that are no whole number of its blocks."""
    if columns % _BLOCKS.get(format, 1) == 0:
        return format
    smaller = _SMALLER.get(format, format)
    return smaller if columns % _BLOCKS[smaller] == 0 else "F16"
