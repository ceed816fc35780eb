"""A text through a model with the output of every layer kept, for comparisons of two ways to compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from puna.engine import InferenceSession
from puna.entrypoints.model_header import ModelHeader
from puna.nn.decoder_spec import ReturnHiddenStates, ReturnLogits
from puna.nn.transformer import build_decoder_graph

__all__ = ["Agreement", "LayerRun", "LayersAgree", "compare_layers", "compare_logits", "run_layers", "text_inputs"]

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class LayerRun:
    """What a model made of a text of T tokens.

    Attributes:
        states: float32 `[L + 1, T, H]`: the output of each layer, and behind the last one that of the final norm.
        logits: float32 `[T, V]`.
    """

    states: Array
    logits: Array


@dataclass(frozen=True, slots=True)
class LayersAgree:
    """How far two runs agree, layer by layer.

    Attributes:
        largest: The largest difference of a layer, as a share of the layer's largest value.
        first: The first layer whose difference is above the limit (the number of layers: the final norm; one more: the
            logits), or None.
    """

    largest: float
    first: int | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two runs' predictions agree.

    Attributes:
        mean_kl: Mean over the text of the Kullback-Leibler divergence of the second from the first, in nats.
        largest_kl: The largest of a token.
        top1: Share of tokens behind which both find the same token the likeliest.
    """

    mean_kl: float
    largest_kl: float
    top1: float


def run_layers(
    header: ModelHeader,
    ids: Sequence[int],
    *,
    executor: Literal["native", "reference"] = "native",
    precision: Literal["auto", "float32"] = "float32",
    variant: str | None = None,
) -> LayerRun:
    """Runs a text through a model in one step, alone, over a cache of its own.

    Args:
        header: The model. Its element type of cached keys and values counts.
        ids: The text.
        executor: The kernels, or their NumPy twins.
        precision: Whether activations are rounded where the weights' format has them so.
        variant: The instruction set of the kernels; None: the best.
    """
    plain = header.arch_config.decoder_spec()
    count = plain.num_layers
    spec = replace(
        plain,
        return_logits=ReturnLogits.ALL,
        return_hidden_states=ReturnHiddenStates.EAGLE3,
        hidden_state_layers=tuple(range(count + 1)),
    )
    graph = build_decoder_graph(spec, header.state_dict)
    model = InferenceSession(precision=precision, variant=variant).load(graph, header.state_dict, executor=executor)
    outputs = model.execute(*text_inputs(spec, ids))
    states = outputs[-1].to_numpy().reshape(len(ids), count + 1, -1)
    return LayerRun(states.swapaxes(0, 1).copy(), outputs[1].to_numpy().copy())


def text_inputs(spec: Any, ids: Sequence[int]) -> list[Any]:
    """The inputs of a step that reads one request's whole text, on pages in order."""
    cache, count = spec.kv_params, len(ids)
    pages = -(-count // cache.page_size)
    shape = (pages + 1, 2, cache.num_layers, cache.page_size, cache.n_kv_heads, cache.head_dim)
    inputs: list[Any] = [
        np.array(ids, np.int64),
        np.array([0, count], np.uint32),
        np.array([1], np.int64),
        np.zeros(shape, cache.dtype.to_numpy()),
        np.zeros(1, np.uint32),
        np.arange(pages, dtype=np.uint32)[None],
        np.array([[count, count]], np.uint32),
    ]
    if cache.kvcache_quant_config is not None:
        inputs.append(np.zeros((*shape[:5], 1), np.float32))
    return inputs


def compare_layers(first: LayerRun, second: LayerRun, limit: float) -> LayersAgree:
    """Compares two runs of one text; the second is the measure."""
    shares = [_share(mine, theirs) for mine, theirs in zip(first.states, second.states, strict=True)]
    shares.append(_share(first.logits, second.logits))
    # a NaN is above every limit
    above = [place for place, share in enumerate(shares) if not share <= limit]
    return LayersAgree(max(shares, key=lambda share: (np.isnan(share), share)), above[0] if above else None)


def _share(mine: Array, theirs: Array) -> float:
    largest = float(np.abs(theirs).max())
    difference = float(np.abs(mine - theirs).max())
    return difference / largest if largest else difference


def compare_logits(first: LayerRun, second: LayerRun) -> Agreement:
    """Compares what two runs of one text predict, over the tokens that both vocabularies have."""
    count = min(first.logits.shape[1], second.logits.shape[1])
    mine, theirs = (_log_softmax(run.logits[:, :count]) for run in (first, second))
    divergences = np.sum(np.exp(theirs) * (theirs - mine), axis=1)
    same = mine.argmax(axis=1) == theirs.argmax(axis=1)
    return Agreement(float(divergences.mean()), float(divergences.max()), float(same.mean()))


def _log_softmax(logits: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    shares: np.ndarray[Any, np.dtype[np.float64]] = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return shares
