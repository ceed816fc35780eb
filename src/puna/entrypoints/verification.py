"""What `puna verify` finds out: whether two ways to the same model agree, check by check.

A check compares two things that must be the same and are computed apart. It says whether they agree, and of what does
not the first place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from puna import _native
from puna.conversion import TensorSource, open_checkpoint
from puna.conversion.agreement import differences
from puna.conversion.tensor_check import TensorDifference, compare_tensors, rounding_of
from puna.conversion.tokenizer import compare_tokenizers
from puna.entrypoints.layer_runs import LayerRun, compare_layers, compare_logits, run_layers
from puna.entrypoints.model_header import ModelHeader, tokenizer_of
from puna.errors import InvalidRequestError, PunaError
from puna.tokenization import Tokenizer
from puna.tokenization.gguf_source import END_OF_TURN_TEXTS
from puna.tokenization.rule_names import probe_texts

__all__ = ["DEFAULT_TEXT", "Check", "verify"]

DEFAULT_TEXT: Final = (
    "The river rises in the hills, where rain falls on most days of the year, and reaches the sea some 340 kilometres "
    "further south. On its way it passes three towns; the largest has a bridge of 1894, a market, and a school. "
    "def area(width: float, height: float) -> float:\n    return width * height  # in square metres\n"
    "Größe und Gewicht sind 3,5 m und 120 kg. 今天的天气很好。"
)
_KERNEL_LIMIT: Final = 1e-3
"""Of a layer's largest value: float32 sums in another order come to some 1e-5 in deep models, a wrong kernel to 1."""
_ROUNDED_KL: Final = 0.01
"""Nats: where activations are rounded, a last bit can move one to the next code."""
_FLOAT_KL: Final = 1e-3
_PROBE_STRIDE: Final = 7
_CONVERSATIONS: Final[tuple[tuple[Mapping[str, Any], ...], ...]] = (
    ({"role": "user", "content": "Name three rivers."},),
    (
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "Say it in French:  'two  spaces'\n"},
    ),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}),
)


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: `numbers`, `tensors`, `tokenizer`, `template`, `kernels`, `rounding`, `variants` or `predictions`.
        agrees: Whether the two sides agree.
        detail: A sentence: what was compared, and the first place that differs.
        values: What was measured.
    """

    name: str
    agrees: bool
    detail: str
    values: dict[str, Any] = field(default_factory=dict)


def verify(
    model: ModelHeader,
    against: ModelHeader | None,
    text: str,
    num_tokens: int,
    *,
    max_kl: float | None = None,
    on_check: Callable[[str], None] = lambda name: None,
) -> Iterator[Check]:
    """Makes all checks that apply, the quick ones first.

    Args:
        model: The model; its cache holds float32.
        against: The same model from elsewhere, or None.
        text: What predictions are compared on.
        num_tokens: Most tokens of it.
        max_kl: Nats of mean divergence up to which predictions agree; None: 0.001 between float weights, and else ten
            times the squared rounding of the coarser encoding.
        on_check: Told the name of each check before it begins.

    Raises:
        InvalidRequestError: The text has less than two tokens.
        UnsupportedModelError: A model has no tokenizer, or one that is not run.
    """
    tokenizer = tokenizer_of(model.config)
    other = tokenizer_of(against.config) if against is not None else None
    ids = tokenizer.encode(text)[: min(num_tokens, model.arch_config.max_seq_len)]
    if len(ids) < 2:
        raise InvalidRequestError(f"has {len(ids)} tokens, at least 2 are needed", param="text")
    if against is not None and other is not None:
        on_check("numbers")
        yield _numbers(model, against)
        on_check("tensors")
        yield _tensors(model, against)
        on_check("tokenizer")
        yield _tokenizers(tokenizer, other, text)
        on_check("template")
        yield _templates(tokenizer, other)
    elif model.files.kind == "huggingface" and tokenizer.definition.library_json is not None:
        on_check("tokenizer")
        yield _library(tokenizer, text)
    on_check("kernels")
    native = run_layers(model, ids)
    yield _kernels(native, run_layers(model, ids, executor="reference"))
    on_check("rounding")
    yield _rounding(model, ids, native)
    on_check("variants")
    yield _variants(model, ids, native)
    if against is not None:
        on_check("predictions")
        yield _predictions(native, model, against, ids, max_kl)


def _numbers(model: ModelHeader, against: ModelHeader) -> Check:
    mine, theirs = (header.arch_config.decoder_spec() for header in (model, against))
    length = min(model.arch_config.max_seq_len, against.arch_config.max_seq_len)
    # whether the output matrix is stored apart or tied is a question of the tensors
    found = [item for item in differences(mine, theirs, length) if item[0] != "tie_word_embeddings"]
    if not found:
        return Check("numbers", True, "all numbers of the decoder are equal")
    name, left, right = found[0]
    values = {"differ": [{"name": key, "first": str(a), "second": str(b)} for key, a, b in found]}
    return Check("numbers", False, f"{name} is {left} in the first model, {right} in the second", values)


def _tensors(model: ModelHeader, against: ModelHeader) -> Check:
    first, second = _sources(model, against), _sources(against, model)
    found = list(compare_tensors(first, second))
    wrong = [item for item in found if not item.agrees]
    worst = max((item for item in found if item.agrees), key=lambda item: item.error, default=None)
    values = {
        "tensors": len(found),
        "equal": sum(item.error == 0 for item in found),
        "largest_explained_error": worst.error if worst is not None else None,
        "differ": [item.name for item in wrong],
    }
    if wrong:
        return Check("tensors", False, f"{wrong[0].name} {wrong[0].message} ({len(wrong)} of {len(found)})", values)
    return Check("tensors", True, _explained(found, worst), values)


def _explained(found: Sequence[TensorDifference], worst: TensorDifference | None) -> str:
    equal = sum(item.error == 0 for item in found)
    if equal == len(found) or worst is None:
        return f"all {len(found)} tensors are equal"
    return (
        f"{equal} of {len(found)} tensors are equal, the others within what their encodings round away "
        f"(at most {worst.error:.2g}, {worst.name})"
    )


def _sources(model: ModelHeader, other: ModelHeader) -> tuple[TensorSource, ...]:
    """The tensors by names that both have: the graph's within one kind of file, else a GGUF file's."""
    if model.files.kind != other.files.kind:
        return open_checkpoint(model.files.path).tensors
    return tuple(
        TensorSource(name, data.shape, data.format, lambda data=data: data)  # type: ignore[misc]  # its own data
        for name, data in model.state_dict.items()
    )


def _tokenizers(first: Tokenizer, second: Tokenizer, text: str) -> Check:
    texts = [text, *probe_texts()[::_PROBE_STRIDE]]
    texts += [f"a {token.content} b{token.content}c" for token in first.definition.added_tokens]
    different = compare_tokenizers(first, second, texts)
    if different is not None:
        where, mine, theirs = different
        return Check(
            "tokenizer", False, f"{where[:60]!r} is {mine[:12]} in the first model, {theirs[:12]} in the second"
        )
    plain = [tokenizer.encode("a") for tokenizer in (first, second)]
    if plain[0] != plain[1]:
        return Check(
            "tokenizer", False, f"a plain prompt 'a' is {plain[0]} in the first model, {plain[1]} in the second"
        )
    ends = [set(tokenizer.eos_token_ids) for tokenizer in (first, second)]
    # GGUF files name one or two; the reader adds the known ends of a turn
    if any(first.id_to_token(number) not in END_OF_TURN_TEXTS for number in ends[0] ^ ends[1]):
        parts = [sorted(numbers) for numbers in ends]
        return Check("tokenizer", False, f"a text ends with {parts[0]} in the first model, {parts[1]} in the second")
    return Check("tokenizer", True, f"{len(texts)} texts have the same tokens", {"texts": len(texts)})


def _library(tokenizer: Tokenizer, text: str) -> Check:
    """The tokenizer against the tokenizers library, given the whole `tokenizer.json`."""
    from tokenizers import Tokenizer as Library

    assert tokenizer.definition.library_json is not None
    library = Library.from_buffer(tokenizer.definition.library_json)
    texts = [text, *probe_texts()[::_PROBE_STRIDE]]
    for where in texts:
        mine = tokenizer.encode(where, add_special_tokens=False)
        theirs = library.encode(where, add_special_tokens=False).ids
        if mine != theirs:
            return Check("tokenizer", False, f"{where[:60]!r} is {mine[:12]}, {theirs[:12]} by tokenizer.json")
    return Check("tokenizer", True, f"{len(texts)} texts have the tokens of tokenizer.json", {"texts": len(texts)})


def _templates(first: Tokenizer, second: Tokenizer) -> Check:
    for messages in _CONVERSATIONS:
        mine, theirs = (_rendered(tokenizer, messages) for tokenizer in (first, second))
        if mine != theirs:
            place = next((i for i, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), 0)
            parts = [repr(text[max(0, place - 10) : place + 30]) for text in (mine, theirs)]
            said = json.dumps([message["role"] for message in messages])
            return Check("template", False, f"messages of {said} become …{parts[0]} and …{parts[1]}")
    return Check("template", True, f"{len(_CONVERSATIONS)} conversations become the same text")


def _rendered(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> str:
    if tokenizer.chat_template is None:
        return "no template"
    try:
        return tokenizer.chat_template.render(messages)
    except PunaError as error:  # a refusal is an answer too, as long as both give it
        return f"refused: {type(error).__name__}"


def _kernels(native: LayerRun, reference: LayerRun) -> Check:
    found = compare_layers(native, reference, _KERNEL_LIMIT)
    variant = str(_native.default_variant())
    values = {"largest_difference": found.largest, "limit": _KERNEL_LIMIT, "variant": variant, "first": found.first}
    if found.first is not None:
        place = _place(found.first, len(native.states) - 1)
        return Check("kernels", False, f"{variant} and NumPy differ in {place} first, by {found.largest:.2g}", values)
    layers = len(native.states) - 1
    detail = f"{variant} and NumPy agree in {layers} layers, final norm and logits (within {found.largest:.1e})"
    return Check("kernels", True, detail, values)


def _place(number: int, layers: int) -> str:
    return f"layer {number}" if number < layers else "the final norm" if number == layers else "the logits"


def _rounding(model: ModelHeader, ids: Sequence[int], exact: LayerRun) -> Check:
    """What runs by default, with rounded activations, against its NumPy twin; and what the rounding costs."""
    usual = run_layers(model, ids, precision="auto")
    twin = compare_logits(usual, run_layers(model, ids, precision="auto", executor="reference"))
    cost = compare_logits(usual, exact)
    values = {
        "mean_kl": twin.mean_kl,
        "top1": twin.top1,
        "mean_kl_of_rounding": cost.mean_kl,
        "top1_of_rounding": cost.top1,
    }
    detail = (
        f"the default arithmetic and its NumPy twin: KL {twin.mean_kl:.2g}, top-1 {twin.top1:.1%}; "
        f"against float32 activations: KL {cost.mean_kl:.2g}, top-1 {cost.top1:.1%}"
    )
    return Check("rounding", twin.mean_kl <= _ROUNDED_KL, detail, values)


def _variants(model: ModelHeader, ids: Sequence[int], native: LayerRun) -> Check:
    used = str(_native.default_variant())
    others = [name for name in map(str, _native.supported_variants()) if name != used]
    for name in others:
        run = run_layers(model, ids, variant=name)
        if not (np.array_equal(run.states, native.states) and np.array_equal(run.logits, native.logits)):
            layers = len(native.states) - 1
            first = compare_layers(run, native, 0.0).first
            place = _place(layers + 1 if first is None else first, layers)
            return Check("variants", False, f"{name} and {used} differ in {place} first", {"variants": [used, name]})
    names = ", ".join([used, *others])
    return Check("variants", True, f"the same bits from {names}", {"variants": [used, *others]})


def _predictions(
    native: LayerRun, model: ModelHeader, against: ModelHeader, ids: Sequence[int], max_kl: float | None
) -> Check:
    vocabulary = against.arch_config.vocab_size
    if max(ids) >= vocabulary:
        return Check("predictions", False, f"token {max(ids)} is beyond the second model's {vocabulary} tokens")
    sizes = [header.arch_config.decoder_spec() for header in (model, against)]
    if (sizes[0].num_layers, sizes[0].hidden_size) != (sizes[1].num_layers, sizes[1].hidden_size):
        return Check("predictions", False, "layers and hidden size differ: these are different models")
    run = run_layers(against, ids)
    found = compare_logits(native, run)
    rounding = max(_coarsest(model), _coarsest(against))
    limit = max_kl if max_kl is not None else max(_FLOAT_KL, 10 * rounding**2)
    layers = compare_layers(native, run, max(_KERNEL_LIMIT, 4 * rounding))
    place = "" if layers.first is None else f"; {_place(layers.first, sizes[0].num_layers)} differs first"
    values = {
        "tokens": len(ids),
        "mean_kl": found.mean_kl,
        "largest_kl": found.largest_kl,
        "top1": found.top1,
        "limit": limit,
        "first": layers.first,
    }
    detail = f"over {len(ids)} tokens KL {found.mean_kl:.2g} (at most {limit:.2g} is allowed), top-1 {found.top1:.1%}"
    agrees = found.mean_kl <= limit
    return Check("predictions", agrees, detail + ("" if agrees else place), values)


def _coarsest(model: ModelHeader) -> float:
    """The largest rounding of a matrix of the model."""
    return max(rounding_of(data.format) for data in model.state_dict.values() if len(data.shape) > 1)
