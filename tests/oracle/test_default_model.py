"""The default model, a quantized file, against transformers on its dequantized weights and against llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from puna.models import find_model
from support.divergence import TEXTS, divergence
from support.family_model import all_logits, load_family
from support.gguf_reference import reference_logits, transformers_model

pytestmark = pytest.mark.oracle

Logits = np.ndarray[Any, np.dtype[np.float32]]
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Water boils at a lower temperature on a mountain because",
    "1, 1, 2, 3, 5, 8,",
    "import numpy as np\n\ndef softmax(x):\n",
)
NEW_TOKENS = 48


@pytest.fixture(scope="module")
def path() -> Path:
    return find_model("smollm2").path


@pytest.fixture(scope="module")
def reference(path: Path) -> Any:
    return transformers_model(path)


@pytest.fixture(scope="module")
def llama(path: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, logits_all=True, n_threads=2, verbose=False)


def llama_tokens(llama: llama_cpp.Llama, text: str) -> list[int]:
    return list(llama.tokenize(text.encode(), add_bos=False, special=False))


def llama_logits(llama: llama_cpp.Llama, ids: list[int]) -> Logits:
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)], dtype=np.float32)


def test_full_precision_gives_the_logits_of_transformers(path: Path, reference: Any, llama: llama_cpp.Llama) -> None:
    prompts = [llama_tokens(llama, text) for text in TEXTS]
    found = all_logits(load_family(path), prompts)
    for ids, mine in zip(prompts, found, strict=True):
        expected = reference_logits(reference, ids)
        assert np.abs(mine - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_llama_cpp_up_to_rounding(
    path: Path, reference: Any, llama: llama_cpp.Llama, prompt: str
) -> None:
    """Where the two texts part, the two tokens' margin is smaller than what the engines' rounding moves it by."""
    ids = llama_tokens(llama, prompt)
    model = load_family(path, precision="auto", kv_cache_format="float16")
    sequence = list(ids)
    theirs = llama_logits(llama, sequence)[-1]
    for _ in range(NEW_TOKENS):
        mine = all_logits(model, [sequence])[0][-1]
        ours_token, their_token = int(mine.argmax()), int(theirs.argmax())
        if ours_token != their_token:
            exact = reference_logits(reference, sequence)[-1]
            margin = abs(float(exact[ours_token] - exact[their_token]))
            moved = sum(
                float(abs((engine[ours_token] - engine[their_token]) - (exact[ours_token] - exact[their_token])))
                for engine in (mine, theirs)
            )
            assert margin <= moved, f"{margin} is more than the {moved} that rounding explains"
            return
        sequence.append(ours_token)
        llama.eval([ours_token])
        theirs = np.array(llama.scores[len(sequence) - 1], dtype=np.float32)


def test_an_int8_cache_diverges_no_more_than_is_documented(path: Path, reference: Any, llama: llama_cpp.Llama) -> None:
    """`docs/numerics.md` has the figures: of the cache alone, and of everything together."""
    prompts = [llama_tokens(llama, text)[:500] for text in TEXTS]

    def logits(cache: str, **options: Any) -> list[Logits]:
        return all_logits(load_family(path, kv_cache_format=cache, **options), prompts)

    def mean_divergence(expected: list[Logits], found: list[Logits]) -> float:
        parts = [divergence(want, mine) for want, mine in zip(expected, found, strict=True)]
        return float(np.concatenate(parts).mean())

    exact = logits("float32")
    assert 0 <= mean_divergence(exact, logits("float16")) <= 2e-6
    assert 2e-5 <= mean_divergence(exact, logits("int8")) <= 0.002  # it is in int8
    everything = [reference_logits(reference, ids) for ids in prompts]
    assert mean_divergence(everything, logits("int8", precision="auto")) <= 0.0065
