"""Divergence from float32 logits, beside llama.cpp's on the same file, in several encodings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.models import find_model
from support.divergence import ENCODINGS, measure, padded, quantized
from support.gguf_reference import reference_logits, transformers_model

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def source() -> Path:
    return Path(find_model("smollm2").path)


def test_padding_keeps_the_function(source: Path) -> None:
    ids = [int(token) for token in np.random.default_rng(0).integers(0, 40000, 80)]
    expected = reference_logits(transformers_model(source), ids)
    found = reference_logits(transformers_model(padded(source)), ids)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("encoding", ["as it is", *ENCODINGS])
def test_divergence_is_no_larger_than_that_of_llama_cpp(source: Path, encoding: str, record_property: Any) -> None:
    found = measure(source if encoding == "as it is" else quantized(source, encoding))
    ours, theirs = float(found.ours.mean()), float(found.theirs.mean())
    record_property("kl_puna", ours)
    record_property("kl_llama_cpp", theirs)
    assert found.ours.size > 600 and 0 < ours <= theirs
