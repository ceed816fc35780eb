"""Encodings by name, by file name and by what a file holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from puna.dtype import DType
from puna.errors import InvalidRequestError, UnsupportedModelError
from puna.graph.quantization import QuantizationEncoding
from puna.pipelines.lib import RUNNABLE_ENCODINGS, SupportedEncoding, infer_encoding_from_name
from puna.pipelines.lib.encoding_resolution import check_stored, stored_encodings
from puna.pipelines.lib.encodings import require_runnable

E = SupportedEncoding


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("model-F32.gguf", E.float32),
        ("model.fp32.safetensors", E.float32),
        ("x-float32.gguf", E.float32),
        ("x-BF16.gguf", E.bfloat16),
        ("x-bfloat16.safetensors", E.bfloat16),
        ("x-fp16.gguf", E.float16),
        ("x-float16.gguf", E.float16),
        ("x-Q4_K_M.gguf", E.q4_k),
        ("x-Q4_0.gguf", E.q4_0),
        ("x-Q6_K.gguf", E.q6_k),
        ("x-GPTQ-Int4.safetensors", E.gptq),
        ("x-fp8.safetensors", E.float8_e4m3fn),
        ("x-float6.safetensors", E.float6_e2m3fn),
        ("x-nvfp4.safetensors", E.float4_e2m1fnx2),
        # beyond the documentation
        ("x-f16.gguf", E.float16),
        ("x-Q4_K_S.gguf", E.q4_k),
        ("x-q4_1.gguf", E.q4_1),
        ("x-Q8_0.gguf", E.q8_0),
        ("x-Q5_K_M.gguf", E.q5_k),
        ("x-IQ4_NL.gguf", E.iq4_nl),
        ("x-IQ2_XXS.gguf", E.iq2_xxs),
        ("x-IQ2_XS.gguf", E.iq2_xs),
        ("x-MXFP4.gguf", E.mxfp4),
        ("model.safetensors", None),
        ("directory-Q4_0/model.gguf", None),
    ],
)
def test_names_of_files(name: str, encoding: SupportedEncoding | None) -> None:
    assert infer_encoding_from_name(name) is encoding


def test_what_an_encoding_implies() -> None:
    assert (E.float32.dtype, E.float32.quantization_encoding) == (DType.float32, None)
    assert (E.bfloat16.dtype, E.bfloat16.is_gguf_block) == (DType.bfloat16, False)
    assert (E.q4_k.dtype, E.q4_k.quantization_encoding) == (DType.uint8, QuantizationEncoding.Q4_K)
    assert (E.gptq.dtype, E.gptq.quantization_encoding) == (DType.uint8, QuantizationEncoding.GPTQ)
    assert not E.gptq.is_gguf_block
    assert (E.float8_e4m3fn.dtype, E.float8_e4m3fn.quantization_encoding) == (DType.float8_e4m3fn, None)
    assert (E.float4_e2m1fnx2.dtype, E.float4_e2m1fnx2.quantization_encoding) == (DType.uint8, None)


def test_every_block_format_has_a_name_and_runs() -> None:
    for encoding in QuantizationEncoding:
        name = SupportedEncoding.of_tensor(encoding.name)
        assert name in RUNNABLE_ENCODINGS
        assert name.quantization_encoding is encoding


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(InvalidRequestError, match="q9_z") as error:
        SupportedEncoding.parse("q9_z")
    assert "bfloat16" in str(error.value)


def test_what_does_not_run_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="float6_e2m3fn") as error:
        require_runnable(E.float6_e2m3fn, tuple(SupportedEncoding), "LlamaForCausalLM")
    assert "q4_k" in str(error.value)


def test_an_architecture_may_list_less() -> None:
    with pytest.raises(UnsupportedModelError, match="MistralForCausalLM"):
        require_runnable(E.q4_k, (E.bfloat16,), "MistralForCausalLM")
    require_runnable(E.bfloat16, (E.bfloat16,), "MistralForCausalLM")


class Tensors:
    """Stands for a checkpoint: shapes, bytes and encodings."""

    def __init__(self, *tensors: tuple[tuple[int, ...], int, str]) -> None:
        self.tensors = tensors

    def items(self) -> Any:
        for shape, nbytes, stored_as in self.tensors:
            yield "t", SimpleNamespace(shape=shape, nbytes=nbytes, stored_as=stored_as)


def test_most_bytes_come_first_and_vectors_do_not_count() -> None:
    checkpoint = Tensors(
        ((100_000,), 400_000, "float32"),
        ((8, 256), 1680, "q6_k"),
        ((64, 256), 9216, "q4_k"),
        ((64, 256), 1000, "gptq"),
        ((8, 8), 10_000, "int32"),
    )
    assert stored_encodings(checkpoint) == [E.gptq, E.q4_k, E.q6_k]  # type: ignore[arg-type]


def test_only_float32_and_bfloat16_are_converted_into_each_other() -> None:
    files = [Path("a.safetensors")]
    assert check_stored(E.q4_k, [E.q6_k, E.q4_k], files) is None
    assert check_stored(E.gptq, [E.gptq, E.float16], files) is None
    assert check_stored(E.float16, [E.gptq, E.float16], files) is None
    assert check_stored(E.bfloat16, [E.float32], files) == (DType.float32, DType.bfloat16)
    assert check_stored(E.float32, [E.bfloat16], files) == (DType.bfloat16, DType.float32)
    assert check_stored(E.float32, [E.bfloat16, E.float32], files) == (DType.bfloat16, DType.float32)
    assert check_stored(E.float32, [E.float32, E.bfloat16], files) is None
    refused = [
        (E.float32, [E.float16]),
        (E.float32, [E.bfloat16, E.q4_k]),
        (E.float32, []),
        (E.float16, [E.float32]),
        (E.q4_0, [E.q4_k]),
    ]
    for asked, stored in refused:
        with pytest.raises(InvalidRequestError, match=r"a\.safetensors"):
            check_stored(asked, stored, files)
