"""How much a model uses each column of its matrices: what `puna quantize --importance` weighs errors by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np

from puna.engine import InferenceSession
from puna.entrypoints.layer_runs import text_inputs
from puna.entrypoints.model_header import open_header, tokenizer_of
from puna.entrypoints.quantized_loading import gguf_name
from puna.errors import InvalidRequestError, WeightsError
from puna.nn.decoder_spec import ReturnLogits
from puna.nn.transformer import build_decoder_graph

__all__ = ["measure_importance"]

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

_WINDOW: Final = 512
# A matrix that one layout stacks has the inputs of those that another layout has in its place.
_PARTS: Final = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate",)}


def measure_importance(model: str, text: str, *, revision: str | None = None) -> dict[str, Array]:
    """The mean square of what each column of a matrix is multiplied by while the model reads a text.

    The error that a weight's rounding adds to an output is the rounding times the column's input; its mean square over
    the text is what is returned here times the squared rounding. The text is read in windows of 512 tokens (or of the
    context, if that is shorter), each from position 0, by the reference executor in float32.

    Args:
        model: A file, a directory, or a model's name.
        text: What it reads.
        revision: Branch, tag or commit on the hub.

    Returns:
        float32 `[columns]` by the matrix's name in GGUF files; the embedding is there only as the output matrix.

    Raises:
        InvalidRequestError: The text has no tokens.
        WeightsError: The model's activations are not finite.
        As `puna.entrypoints.model_header.open_header`.
    """
    header = open_header(model, revision=revision, kv_cache_dtype="float32")
    ids = list(tokenizer_of(header.config).encode(text))
    if not ids:
        raise InvalidRequestError("the text has no tokens", param="importance")
    sums: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}

    def observe(name: str, x: Array) -> None:
        squares = (x.astype(np.float64) ** 2).sum(axis=0)
        sums[name] = sums[name] + squares if name in sums else squares

    spec = replace(header.arch_config.decoder_spec(), return_logits=ReturnLogits.ALL)
    graph = build_decoder_graph(spec, header.state_dict)
    session = InferenceSession(precision="float32")
    runner = session.load(graph, header.state_dict, executor="reference", observer=observe)
    width = min(_WINDOW, header.arch_config.max_seq_len)
    for begin in range(0, len(ids), width):
        runner.execute(*text_inputs(spec, ids[begin : begin + width]))
    found: dict[str, Array] = {}
    for name, total in sums.items():
        if not np.isfinite(total).all():
            raise WeightsError("is multiplied by values that are not finite", tensor=name)
        mean = (total / len(ids)).astype(np.float32)
        found[gguf_name(name)] = mean
        module = gguf_name(name).split(".")[-2]
        for part in _PARTS.get(module, ()):
            found.setdefault(gguf_name(name).replace(module, part), mean)
    return found
