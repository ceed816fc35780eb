"""Encodings: the documented members and block figures, and those of the format's own package."""

from __future__ import annotations

import gguf
import pytest

from puna.graph.quantization import BlockParameters, QuantizationEncoding


@pytest.mark.parametrize(
    ("name", "elements", "size", "bits"),
    [("Q4_0", 32, 18, 4.5), ("Q4_K", 256, 144, 4.5), ("Q5_K", 256, 176, 5.5), ("Q6_K", 256, 210, 6.5625)],
)
def test_documented_members(name: str, elements: int, size: int, bits: float) -> None:
    encoding = QuantizationEncoding[name]
    assert encoding.value == name
    assert encoding is QuantizationEncoding(name) is QuantizationEncoding.from_name(name.lower())
    assert encoding.name == name.lower()
    assert encoding.is_gguf
    assert encoding.block_parameters == BlockParameters(elements, size)
    assert (encoding.elements_per_block, encoding.block_size) == (elements, size)
    assert encoding.block_parameters.bits_per_element == bits


@pytest.mark.parametrize("encoding", [e for e in QuantizationEncoding if e.is_gguf])
def test_block_figures_equal_the_gguf_packages(encoding: QuantizationEncoding) -> None:
    expected = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding.value]]
    assert (encoding.elements_per_block, encoding.block_size) == expected


def test_gptq_has_no_blocks() -> None:
    assert not QuantizationEncoding.GPTQ.is_gguf
    assert QuantizationEncoding.GPTQ.name == "gptq"
    with pytest.raises(ValueError, match="GPTQ has no blocks"):
        QuantizationEncoding.GPTQ.block_parameters  # noqa: B018 - the property is what raises


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'q9_z' is unknown.*q4_0"):
        QuantizationEncoding.from_name("q9_z")
