"""The lines of the comparison, and what the machine's limits allow for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gguf import GGMLQuantizationType, GGUFReader

from puna.entrypoints.benchmark.specs import Spec, parse_spec

_FLOATS: Final = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        model: `1B`, `8B` (random weights) or `smollm2`.
        encoding: Of the weights.
        test: As `puna bench` names it.
    """

    model: str
    encoding: str
    test: str

    @property
    def spec(self) -> Spec:
        """The test."""
        return parse_spec(self.test)

    @property
    def title(self) -> str:
        """For people."""
        spec = self.spec
        what = f"prompt of {spec.tokens}" if spec.kind == "pp" else "text"
        depth = f" at depth {spec.depth:,}" if spec.depth else ""
        several = f", {spec.sequences} at once" if spec.sequences > 1 else ""
        return f"{self.model} {self.encoding}: {what}{depth}{several}"


LINES: Final = (
    *(Line("1B", encoding, "pp512") for encoding in ("Q4_K_M", "Q4_0", "Q8_0", "BF16")),
    *(Line("1B", encoding, "tg32") for encoding in ("Q4_K_M", "Q4_0", "Q8_0", "BF16")),
    Line("1B", "Q4_K_M", "tg32@d2048"),
    Line("1B", "Q4_K_M", "tg16@b8"),
    Line("1B", "Q4_K_M", "tg16@b16"),
    Line("smollm2", "Q4_1", "pp512"),
    Line("smollm2", "Q4_1", "tg128"),
)
LARGE_LINES: Final = tuple(Line("8B", "Q4_K_M", test) for test in ("pp128", "tg16", "tg8@b8"))


@dataclass(frozen=True, slots=True)
class Work:
    """What a model's step cannot do without.

    Attributes:
        matrix_bytes: Bytes of all matrices that a step multiplies with.
        layer_products: Multiply-adds of a token in the layers.
        output_products: Multiply-adds of a row of logits.
        is_integer: Whether the products are of bytes.
        is_bfloat16: Whether they are of bfloat16, whose peak is not measured: some processors multiply pairs at once.
        width: Query heads times their width.
        cache_bytes: Bytes of keys and values (float16) per token.
        layers: Decoder layers.
    """

    matrix_bytes: int
    layer_products: int
    output_products: int
    is_integer: bool
    is_bfloat16: bool
    width: int
    cache_bytes: int
    layers: int

    def best_tokens_per_s(self, spec: Spec, limits: Mapping[str, float]) -> float:
        """Tokens per second if every byte came at the limit, and if not, every product was made at the limit.

        Prompts are read 512 tokens at a time; every step reads all matrices once. 0 where arithmetic decides and its
        peak is not known.
        """
        steps = math.ceil(spec.total_tokens / 512) if spec.kind == "pp" else spec.tokens
        tokens, rows = spec.total_tokens, spec.sequences if spec.kind == "pp" else spec.total_tokens
        context = spec.depth + spec.tokens / 2
        cache = self.cache_bytes * context * (steps if spec.kind == "pp" else tokens)
        peak = limits["int8_gops"] if self.is_integer else limits["f32_gflops"]
        products = 2 * (self.layer_products * tokens + self.output_products * rows) / peak
        attention = 4 * self.layers * self.width * context * tokens / limits["f32_gflops"]
        reading = (self.matrix_bytes * steps + cache) / limits["read_gbps"]
        if self.is_bfloat16 and products > reading:
            return 0.0
        return tokens * 1e9 / max(reading, products + attention)


def work_of(path: Path) -> Work:
    """The work of a GGUF file's model."""
    reader = GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    output = tensors.get("output.weight", tensors["token_embd.weight"])
    layers = [tensor for name, tensor in tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2]

    def number(key: str) -> int:
        return int(reader.fields[f"llama.{key}"].contents())

    width = int(tensors["blk.0.attn_q.weight"].shape[1])
    kv_width = int(tensors["blk.0.attn_k.weight"].shape[1])
    count = number("block_count")
    return Work(
        matrix_bytes=int(sum(tensor.n_bytes for tensor in layers) + output.n_bytes),
        layer_products=int(sum(tensor.n_elements for tensor in layers)),
        output_products=int(output.n_elements),
        is_integer=all(tensor.tensor_type not in _FLOATS for tensor in layers),
        is_bfloat16=any(tensor.tensor_type == GGMLQuantizationType.BF16 for tensor in layers),
        width=width,
        cache_bytes=2 * 2 * kv_width * count,
        layers=count,
    )
