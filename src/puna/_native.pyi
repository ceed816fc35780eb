"""The native core: packed weights, kernels of every instruction set, and programs that run in one call.

Arrays are C-contiguous and aligned; everything with the buffer protocol is taken, and NumPy arrays of `bfloat16`.
`ValueError` says what does not fit, `TypeError` what is of another type, `RuntimeError` what cannot be done here or
now.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Final, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

_Float32Array = NDArray[np.float32]

FORMATS: Final[tuple[str, ...]]
"""Names of all storage formats, ggml's."""

PACKED_LAYOUT: Final[int]
"""Which packed bytes a format has; another number, other bytes."""

class _CpuInfo(TypedDict):
    vendor: str
    model: str
    features: list[str]
    affinity: list[int]
    physical_cores: int
    cpu_quota: float | None
    memory_limit: int | None
    memory_total: int | None
    default_threads: int

class _TraceRecord(TypedDict):
    op: str
    name: str
    layer: int
    seconds: float
    waited: float
    bytes: int
    flops: int

def compiled_variants() -> list[str]:
    """Instruction sets this build has kernels for, slowest first: `scalar`, then `avx2`, `avx512`, `amx`, or `neon`."""

def supported_variants() -> list[str]:
    """Those among them that this machine can run."""

def default_variant() -> str:
    """The fastest supported one, or what the environment variable `PUNA_VARIANT` names.

    Raises:
        RuntimeError: `PUNA_VARIANT` names one that does not exist or cannot run here.
    """

def cpu_info(root: str = "/") -> _CpuInfo:
    """The processor, and how much of the machine this process may use.

    `affinity` lists logical cores, `physical_cores` counts hardware threads of one core once, `cpu_quota` is in cores
    and `memory_limit` in bytes, each the tightest of all enclosing control groups or None; `default_threads` is what
    `threads = None` means.

    Args:
        root: Directory below which /proc and /sys are read.
    """

def measure_limits(seconds: float = 2.0, threads: int | None = None) -> dict[str, float]:
    """What this machine can do: `read_gbps` from memory, `f32_gflops` and `int8_gops` in registers, with the
    instructions of the default variant.

    Raises:
        ValueError: `seconds` is not 0.01 to 60.
    """

def format_info(format: str) -> tuple[int, int, Literal["a8", "f32"]]:
    """Values and bytes of a block, and what products with the packed format take: int8 or float32 activations."""

def a8_row_bytes(cols: int) -> int:
    """Bytes of a row of `cols` values as int8 activations: `row_bytes` of a buffer that holds them."""

def blake2bp(data: NDArray[Any] | memoryview | bytes) -> bytes:
    """The BLAKE2bp digest of some bytes, 64 bytes. The interpreter lock is free meanwhile."""

def dequantize(format: str, data: NDArray[Any], cols: int) -> _Float32Array:
    """Stored rows as float32 `[rows, cols]`, bit-equal to the gguf package.

    Args:
        format: One of `FORMATS`.
        data: Whole blocks, `[rows, bytes or elements]`.
        cols: Values of a row.
    """

def quantize(
    format: str,
    x: _Float32Array,
    importance: _Float32Array | None = None,
    first_row: int = 0,
    variant: str = "",
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """Rows as a format stores them, uint8 `[rows, row bytes]`: F32, F16, BF16, or blocks whose scales and codes make
    the squared error of the values small.

    The bytes depend on neither variant nor threads.

    Args:
        format: One of `FORMATS` that has a quantizer.
        x: `[rows, cols]`, whole blocks.
        importance: `[cols]`, what the squared error of a column is multiplied by; None: 1. Only ratios matter; less
            than a thousandth of the mean counts as that.
        first_row: The number of the first row, for messages.
        variant: Which kernels; none: the default ones.
        threads: How many work at once; None: as many as this process should use.

    Raises:
        ValueError: A value is not finite, or too large for the format (rows and columns are named); there is no
            quantizer for the format; sizes do not fit together; an importance is negative or not finite.
    """

def quantize_a8(x: _Float32Array, variant: str) -> tuple[NDArray[np.int8], _Float32Array, NDArray[np.int32]]:
    """Rows as int8 per 32 values: codes `[M, K]`, scales `[M, K / 32]`, and sums of the codes `[M, K / 32]`."""

def matmul(
    matrices: list[PackedMatrix], x: _Float32Array, variant: str, threads: int | None = None, two_terms: bool = False
) -> _Float32Array:
    """`x @ concat(matrices).T` as programs compute it: float32 `[M, sum of rows]`.

    With `two_terms`, int8 activations are codes and the codes of what these leave: about 15 bits instead of 7.
    """

class MappedFile:
    """A regular file, mapped read-only. It has the buffer protocol itself.

    A file may be cut while it is mapped: what is missing then reads as zeros and `damaged` becomes True.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is empty or no regular file.
    """

    def __init__(self, path: str | PathLike[str]) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def release(self) -> None:
        """Lets all pages go that were read; they come back, from the system's cache, when they are read again."""

    @property
    def data(self) -> memoryview: ...
    @property
    def size(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def damaged(self) -> bool: ...

class PackedMatrix:
    """A weight matrix in the form that kernels read; keeps nothing of `data`. Its packed bytes are its buffer.

    Where `data` is a view of a `MappedFile`, the pages of the file are let go while it is packed.

    Args:
        format: One of `FORMATS`.
        data: Its stored blocks, `rows * cols` values in all.
        rows: Outputs.
        cols: Inputs, whole blocks.
        precision: `"auto"`; or `"float32"`, which makes products take float32 activations, whatever the format.
        threads: How many pack at once; None: as many as this process should use.

    Raises:
        ValueError: The sizes do not fit together, or a name is unknown.
    """

    def __init__(
        self,
        format: str,
        data: NDArray[Any] | memoryview | bytes,
        rows: int,
        cols: int,
        precision: str = "auto",
        threads: int | None = None,
    ) -> None: ...
    @staticmethod
    def mapped(
        format: str, file: MappedFile, offset: int, rows: int, cols: int, precision: str = "auto"
    ) -> PackedMatrix:
        """A matrix whose packed bytes are in a file, from `offset` on; it keeps the mapping, and reads when it must.

        Raises:
            ValueError: The file is too short, the offset no multiple of 64, or as for the class.
        """

    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def digest(self) -> bytes:
        """64 bytes that tell the stored blocks apart: BLAKE2bp over the digests of pieces of rows. Zeros if mapped."""

    @property
    def format(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def partner(self) -> Literal["a8", "f32"]: ...
    def rows_f32(self, ids: NDArray[np.int64]) -> _Float32Array:
        """Rows as float32 `[n, cols]`, bit-equal to `dequantize` of the stored rows."""

class Adapter:
    """What an adapter adds to products, `scale * B (A x)` each. Filled once, then read by any number of programs."""

    def __init__(self) -> None: ...
    def set(self, layer: int, target: int, a: PackedMatrix, b: PackedMatrix, scale: float) -> None:
        """The update of one product.

        Args:
            layer: Its layer, -1 outside of layers.
            target: Its number within the layer, 0 to 15.
            a: `[rank, inputs]`; of a look-up `[vocabulary, rank]`.
            b: `[outputs, rank]`.
            scale: The factor.

        Raises:
            ValueError: A matrix takes int8 activations, the factor is not finite, or there is an update already.
        """

    @property
    def rank(self) -> int:
        """The largest rank of its updates."""

    @property
    def nbytes(self) -> int: ...

class AdapterSlots:
    """The adapters that a step can name. A slot may be changed at any time; a step that has begun keeps what it has.

    Args:
        count: How many, from 1.
    """

    def __init__(self, count: int) -> None: ...
    @property
    def count(self) -> int: ...
    def set(self, slot: int, adapter: Adapter | None) -> None:
        """Put an adapter into a slot, or empty it.

        Raises:
            ValueError: There is no such slot.
        """

class Program:
    """Instructions over an arena of buffers, executed in one call by all threads.

    Buffers, weights and rope specifications are declared first, then subprograms, then the main program is emitted;
    `finish` checks everything and freezes it. Instructions and their fields are described in docs/program.md.

    Args:
        variant: One of `supported_variants()`.
        group: Which group of cores runs it, 0 to 63: one run at a time in a group, several in different ones.
    """

    def __init__(self, variant: str, group: int = 0) -> None: ...
    @property
    def variant(self) -> str: ...
    def buffer(self, rows: Literal["T", "B", "R"], row_bytes: int) -> int:
        """Rows of memory: one per token, per request, or per row of `gather_rows` in mode `"variable"`."""

    def weight(self, weight: PackedMatrix | _Float32Array) -> int:
        """A matrix, or a vector of float32."""

    def rope(self, kind: str, parameters: Mapping[str, object]) -> int:
        """Rotary frequencies of kind `"fixed"`, `"longrope"` or `"dynamic"`."""

    def adapters(self, slots: AdapterSlots) -> None:
        """Where the adapters come from that steps name."""

    def begin_sub(self, name: str) -> None:
        """What is emitted until `end_sub` is a subprogram: its weights and layers count from those of each call."""

    def end_sub(self) -> int:
        """The number of the subprogram, for the instruction `call`."""

    def emit(self, op: str, **fields: object) -> int:
        """Append an instruction; an optional field `name` appears in the trace.

        Raises:
            ValueError: There is no such instruction, or a field is missing, unknown or out of its range.
        """

    def finish(self) -> None:
        """Check buffers, widths and weights of every instruction in every call.

        Raises:
            ValueError: Something does not fit; the message names the instruction.
        """

    def execute(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[NDArray[Any]], threads: int | None = None
    ) -> None:
        """Run one step. The interpreter lock is released; one run at a time computes in a group.

        Args:
            inputs: `tokens` int64 [T], `input_row_offsets` uint32 [B + 1], `return_n_logits` int64 [1], `kv_blocks`
                [pages, 2, layers, page_size, kv_heads, head_dim] (written to), with int8 blocks `kv_scales` float32
                [pages, 2, layers, page_size, kv_heads, 1] (written to), `cache_lengths` uint32 [B],
                `lookup_table` uint32 [B, max_pages], `max_lengths` uint32 [steps, 2], `request_lengths` uint32 [B]:
                those that the instructions need; and the eight inputs of adapters (docs/lora.md) if it has any.
            outputs: Arrays that are written to, in the order of the program's outputs.
            threads: None: as many as this process should use.

        Raises:
            ValueError: An input or output does not fit; the message names it. Nothing was computed.
            RuntimeError: The program is not finished, or the process was forked after threads had been used.
        """

    def trace(self, is_on: bool) -> None:
        """Whether executions note the time of each instruction."""

    def trace_records(self) -> list[_TraceRecord]:
        """One record per instruction of the last execution that was traced, in order of running."""
