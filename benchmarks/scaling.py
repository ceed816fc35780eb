"""How speed should move with cores and memory: a model on paper, from what a comparison measured.

What it assumes: each core does what one of the measured machine does; kernels keep the shares of the limits that they
have there; a step reads all weights once; memory gives 85 % of what its channels could; every doubling of cores makes a
barrier as much slower again; on two sockets each holds half of every matrix in memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gguf.constants import GGML_QUANT_SIZES

from results import Comparison
from synthetic import SHAPES, Shape, tensors


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine on paper.

    Attributes:
        title: For people.
        cores: Cores that compute.
        read_gbps: What all of them read from memory together, in 10^9 bytes per second.
        sockets: Processors; each holds a part of the weights, and two barriers a layer cross between them.
    """

    title: str
    cores: int
    read_gbps: float
    sockets: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """What a step of a model has to do.

    Attributes:
        title: For people.
        bytes: Of weights that a step reads.
        products: Multiply-adds per token, in the layers.
        layers: Decoder layers.
    """

    title: str
    bytes: int
    products: int
    layers: int


BARRIERS_PER_LAYER: Final = 6
BARRIER_S: Final = 0.3e-6  # two cores; one more for every doubling
SOCKET_BARRIER_S: Final = 1.5e-6  # more for a barrier that crosses sockets


def load_of(shape: Shape, encoding: str = "Q4_K_M") -> Load:
    """The matrices that a step multiplies with: all but an embedding that is not the output matrix too."""
    size = products = 0
    for name, rows, columns, kind in tensors(shape, encoding):
        if rows > 1 and (shape.is_tied or name != "token_embd.weight"):
            block, block_bytes = GGML_QUANT_SIZES[kind]
            size += rows * columns // block * block_bytes
            products += rows * columns if name.startswith("blk.") else 0
    return Load(f"{shape.name} {encoding}", size, products, shape.layers)


@dataclass(frozen=True, slots=True)
class Kernels:
    """What was measured of them.

    Attributes:
        gops_per_core: int8 operations of one core, in 10^9 per second, at most.
        stream_share: Of the read bandwidth that generating text reaches.
        product_share: Of the int8 peak that a prompt reaches.
    """

    gops_per_core: float
    stream_share: float
    product_share: float

    def text_per_s(self, load: Load, machine: Machine) -> float:
        """Tokens per second of one sequence: reading the weights, and the barriers."""
        return 1 / (self._reading_s(load, machine) + load.layers * _barriers_s(machine))

    def prompt_per_s(self, load: Load, machine: Machine, tokens: int = 512) -> float:
        """Tokens per second of a prompt that is read at once: products, or the weights where those take longer."""
        products = 2 * load.products * tokens / (self.gops_per_core * 1e9 * machine.cores * self.product_share)
        return tokens / (max(products, self._reading_s(load, machine)) + load.layers * _barriers_s(machine))

    def _reading_s(self, load: Load, machine: Machine) -> float:
        return load.bytes / (machine.read_gbps * 1e9 * self.stream_share)


def _barriers_s(machine: Machine) -> float:
    """Of one layer."""
    doublings = (max(machine.cores, 2) // 2).bit_length() - 1
    crossing = SOCKET_BARRIER_S * (machine.sockets > 1)
    return BARRIERS_PER_LAYER * (BARRIER_S * (1 + doublings) + crossing)


def machines(cores: int, read_gbps: float) -> list[Machine]:
    """The machine that was measured, and larger ones."""
    return [
        Machine("as measured", cores, read_gbps),
        Machine("two channels of DDR5-5600", 8, 0.85 * 89.6),
        Machine("twelve channels of DDR5-4800", 32, 0.85 * 460.8),
        Machine("twelve channels of DDR5-4800", 64, 0.85 * 460.8),
        Machine("two sockets, twelve channels each", 128, 2 * 0.85 * 460.8, sockets=2),
    ]


def as_markdown(comparison: Comparison) -> str:
    """The table, for Q4_K_M weights, if the comparison has the 1B model's lines of these."""
    shares = {line.title: line.shares[0] for line in comparison.lines}
    needed = "1B Q4_K_M: text", "1B Q4_K_M: prompt of 512"
    if missing := [title for title in needed if title not in shares]:
        return f"No table: not among the stored results: {', '.join(missing)}."
    kernels = Kernels(comparison.limits["int8_gops"] / comparison.threads, *(shares[title] for title in needed))
    loads = [load_of(SHAPES[size]) for size in ("1B", "8B")]
    rows = [
        f"Text reaches {kernels.stream_share:.0%} of the read bandwidth, prompts {kernels.product_share:.0%} of the "
        f"int8 peak of {kernels.gops_per_core:,.0f} GOP/s per core ({comparison.machine}). Tokens per second:",
        "",
        "| memory | cores | GB/s | " + " | ".join(f"{load.title}: text · prompt of 512" for load in loads) + " |",
        "| --- | ---: | ---: | " + " | ".join("---:" for _ in loads) + " |",
    ]
    for machine in machines(comparison.threads, comparison.limits["read_gbps"]):
        cells = [
            f"{kernels.text_per_s(load, machine):,.0f} · {kernels.prompt_per_s(load, machine):,.0f}" for load in loads
        ]
        rows.append(f"| {machine.title} | {machine.cores} | {machine.read_gbps:,.0f} | {' | '.join(cells)} |")
    return "\n".join(rows)
