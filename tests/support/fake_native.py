"""A stand-in for `puna._native` that runs the flat program in NumPy, one instruction at a time, over physical buffers.

It knows what the native program promises and nothing else: buffers start as NaN, an instruction sees only its fields,
and rows of one product do not depend on what else is in the batch. It also writes down what was emitted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from puna.engine.instructions import OPERANDS
from puna.graph.ops.attention import KVStore, PagedAttention, Rope
from puna.graph.ops.elementwise import GLU, Activation
from puna.graph.ops.linear import round_operand
from puna.graph.ops.norm import LayerNorm, RMSNorm

Array = np.ndarray[Any, Any]
_TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}


class FakeMatrix:
    """A matrix that keeps its values; formats named in `code_formats` take 8-bit activations."""

    def __init__(self, format: str, data: Array, rows: int, cols: int, is_coded: bool) -> None:
        self.format, self.rows, self.cols = format, rows, cols
        self.values = data.reshape(-1).view(_TYPES[format]).reshape(rows, cols).astype(np.float32)
        self.partner = "a8" if is_coded else "f32"
        self.nbytes = data.nbytes
        self.digest = data.tobytes()[:64].ljust(64)


class FakeNative:
    """The module. `programs` and `matrices` list what was made."""

    def __init__(self, code_formats: tuple[str, ...] = ()) -> None:
        self.code_formats = code_formats
        self.programs: list[FakeProgram] = []
        self.matrices: list[FakeMatrix] = []

    def PackedMatrix(self, format: str, data: Array, rows: int, cols: int, precision: str, threads: int) -> FakeMatrix:
        matrix = FakeMatrix(format, data, rows, cols, precision == "auto" and format in self.code_formats)
        self.matrices.append(matrix)
        return matrix

    PACKED_LAYOUT = 0

    def blake2bp(self, data: Array) -> bytes:
        return data.tobytes()[:64].ljust(64)

    def a8_row_bytes(self, cols: int) -> int:
        return cols + cols // 32 * 8

    def Program(self, variant: str, group: int = 0) -> FakeProgram:
        self.programs.append(FakeProgram())
        return self.programs[-1]


class FakeProgram:
    """Buffers, weights, and lists of instructions; `execute` interprets them."""

    def __init__(self) -> None:
        self.buffers: list[tuple[str, int]] = []
        self.weights: list[FakeMatrix | Array] = []
        self.ropes: list[tuple[str, dict[str, Any]]] = []
        self.main: list[tuple[str, dict[str, Any]]] = []
        self.subs: list[list[tuple[str, dict[str, Any]]]] = []
        self._open: list[tuple[str, dict[str, Any]]] | None = None
        self._finished = False
        self.slots: dict[int, Any] = {}

    def adapters(self, slots: dict[int, Any]) -> None:
        """What the slots hold: (layer, target) -> A, B and scale."""
        self.slots = slots

    def buffer(self, rows: str, row_bytes: int) -> int:
        self.buffers.append((rows, row_bytes))
        return len(self.buffers) - 1

    def weight(self, weight: FakeMatrix | Array) -> int:
        self.weights.append(weight)
        return len(self.weights) - 1

    def rope(self, kind: str, parameters: dict[str, Any]) -> int:
        self.ropes.append((kind, parameters))
        return len(self.ropes) - 1

    def begin_sub(self, name: str) -> None:
        assert self._open is None
        self._open = []

    def end_sub(self) -> int:
        assert self._open is not None
        self.subs.append(self._open)
        self._open = None
        return len(self.subs) - 1

    def emit(self, op: str, **fields: Any) -> None:
        assert not self._finished
        assert op in OPERANDS or op == "call", op
        (self.main if self._open is None else self._open).append((op, fields))

    def finish(self) -> None:
        self._finished = True

    def execute(self, inputs: dict[str, Array], outputs: list[Array], threads: int) -> None:
        assert self._finished
        _Run(self, inputs, outputs).run(self.main, 0, 0)


class _Run:
    def __init__(self, program: FakeProgram, inputs: dict[str, Array], outputs: list[Array]) -> None:
        self.program, self.inputs, self.outputs = program, inputs, outputs
        self.n = int(inputs["return_n_logits"][0]) if "return_n_logits" in inputs else 0
        batch = inputs["input_row_offsets"].shape[0] - 1
        self.rows = {"T": inputs["tokens"].shape[0], "B": batch, "R": batch * self.n}
        self.floats = [
            np.full((self.rows[rows], row_bytes // 4), np.nan, np.float32) for rows, row_bytes in program.buffers
        ]
        self.codes: dict[int, Array] = {}

    def run(self, instructions: list[tuple[str, dict[str, Any]]], base: int, layer: int) -> None:
        self.base, self.layer = base, layer
        for op, fields in instructions:
            if op == "call":
                self.run(self.program.subs[fields["sub"]], fields["weight_base"], fields["layer"])
                self.base, self.layer = base, layer
            else:
                _check_in_place(op, fields)
                getattr(self, f"_{op}")(**fields)

    def _w(self, index: int) -> Any:
        return None if index < 0 else self.program.weights[self.base + index]

    def _read(self, buffer: int, width: int, col: int = 0) -> Array:
        values = self.floats[buffer][:, col : col + width].copy()
        assert values.shape[1] == width
        assert not np.isnan(values).any(), "read of what nobody wrote"
        return values

    def _write(self, buffer: int, values: Array, col: int = 0) -> None:
        assert self.floats[buffer].shape[0] == values.shape[0]
        assert col + values.shape[1] <= self.floats[buffer].shape[1]
        self.codes.pop(buffer, None)
        self.floats[buffer][:, col : col + values.shape[1]] = values

    def _write_forms(self, values: Array, out: int, out_a8: int, two_terms: bool = False) -> None:
        if out >= 0:
            self._write(out, values)
        if out_a8 >= 0:
            self.codes[out_a8] = round_operand(values, two_terms=two_terms)

    def _embed(self, weight: int, out: int, scale: float) -> None:
        self._write(out, self._w(weight).values[self.inputs["tokens"]] * np.float32(scale))

    def _norm(self, x: int, out: int, out_a8: int, kind: str, eps: float, weight: int, bias: int, width: int) -> None:
        rows = self._read(x, width)
        op = RMSNorm(None, eps) if kind == "rms" else LayerNorm(None, None, eps)
        (values,) = op.evaluate([rows], None)  # type: ignore[arg-type]
        values = values if weight < 0 else values * self._w(weight)
        self._write_forms(values if bias < 0 else values + self._w(bias), out, out_a8)

    def _head_norm(self, x: int, col: int, width: int, parts: int, eps: float, weight: int) -> None:
        rows = self._read(x, width * parts, col)
        (values,) = RMSNorm(None, eps).evaluate([rows.reshape(-1, width)], None)  # type: ignore[arg-type]
        self._write(x, (values * self._w(weight)).reshape(rows.shape), col)

    def _quantize(self, x: int, col: int, width: int, out_a8: int, two_terms: bool) -> None:
        self._write_forms(self._read(x, width, col), -1, out_a8, two_terms)

    def _matmul(
        self, x: int, width: int, weights: list[int], out: int, out_col: int, biases: list[int], clip: float,
        residual: int, multiplier: float, two_terms: bool,
    ) -> None:  # fmt: skip
        y = self._products(x, width, weights, biases, clip, two_terms)
        if residual >= 0:
            y = _fused(self._read(residual, y.shape[1]), multiplier, y)
        self._write(out, y, out_col)

    def _matmul_out(
        self, x: int, width: int, weights: list[int], output: int, out_col: int, biases: list[int], clip: float,
        multiplier: float, two_terms: bool,
    ) -> None:  # fmt: skip
        assert multiplier == 1
        y = self._products(x, width, weights, biases, clip, two_terms)
        self.outputs[output][:, out_col : out_col + y.shape[1]] = y

    def _products(
        self, x: int, width: int, weights: list[int], biases: list[int], clip: float, two_terms: bool
    ) -> Array:
        matrices = [self._w(index) for index in weights]
        (partner,) = {matrix.partner for matrix in matrices}
        rows = self.codes[x] if partner == "a8" else self._read(x, width)
        parts = []
        for matrix, bias in zip(matrices, biases, strict=True):
            assert rows.shape[1] == matrix.cols == width
            part = np.einsum("tk,nk->tn", rows, matrix.values, optimize=False)
            parts.append(part if bias < 0 else part + self._w(bias))
        y = np.concatenate(parts, axis=1)
        return np.clip(y, -np.float32(clip), np.float32(clip)) if clip else y

    def _lora(self, x: int, width: int, **fields: Any) -> None:
        self._update(self._read(x, width), **fields)

    def _lora_embed(self, **fields: Any) -> None:
        self._update(None, **fields)

    def _update(
        self, x: Array | None, out: int, low: int, rank: int, layer: int, targets: list[int], columns: list[int],
        widths: list[int],
    ) -> None:  # fmt: skip
        kind = self.program.buffers[out][0]
        borders = self.inputs["lora_grouped_offsets"].astype(np.int64)
        if kind != "T":
            borders = np.searchsorted(self.inputs["input_row_offsets"], borders) * (1 if kind == "B" else self.n)
        self.floats[low][:] = np.nan
        for group, slot in enumerate(self.inputs["lora_ids"].tolist()):
            rows = slice(int(borders[group]), int(borders[group + 1]))
            for target, col, width in zip(targets, columns, widths, strict=True):
                update = self.program.slots[slot].get((-1 if layer < 0 else layer + self.layer, target))
                if update is not None:
                    a, b, scale = update
                    assert b.shape[1] <= rank <= self.floats[low].shape[1] // len(targets)
                    inner = a[self.inputs["tokens"][rows]] if x is None else np.einsum("tk,nk->tn", x[rows], a)
                    y = self.floats[out][rows, col : col + width]
                    y[:] = _fused(y, scale, np.einsum("tk,nk->tn", inner, b))
                    self.floats[low][rows, 0] = 0

    def _softcap(self, x: int, col: int, width: int, cap: float) -> None:
        self._write(x, np.float32(cap) * np.tanh(self._read(x, width, col) / np.float32(cap)), col)

    def _glu(self, x: int, width: int, out: int, out_a8: int, activation: Activation) -> None:
        rows = [self._read(x, width), self._read(x, width, width)]
        (values,) = GLU(activation).evaluate(rows, None)  # type: ignore[arg-type]
        self._write_forms(values, out, out_a8)

    def _rope_angles(self, rope: int, out: int) -> None:
        kind, facts = self.program.ropes[rope]
        offsets, cached = self.inputs["input_row_offsets"], self.inputs["cache_lengths"]
        for request, begin in enumerate(cached.tolist()):
            rows = slice(int(offsets[request]), int(offsets[request + 1]))
            positions = np.arange(begin, begin + rows.stop - rows.start)
            lengths = self.inputs.get("request_lengths")
            length = begin + positions.size if lengths is None else int(lengths[request])
            freqs = _frequencies(kind, facts, length)
            angles = positions.astype(np.float32)[:, None] * freqs
            values = np.concatenate([np.cos(np.float64(angles)), np.sin(np.float64(angles))], axis=1)
            factor = np.float32(facts["attention_factor"])
            self.floats[out][rows, : values.shape[1]] = values.astype(np.float32) * factor

    def _rope_kv(
        self, x: int, q_col: int, k_col: int, v_col: int, num_heads: int, num_kv_heads: int, head_dim: int,
        rot_dim: int, interleaved: bool, angles: int, layer: int,
    ) -> None:  # fmt: skip
        turn = self._read(angles, rot_dim)
        width, kv_width = num_heads * head_dim, num_kv_heads * head_dim
        (q,) = Rope(num_heads, head_dim, rot_dim, interleaved).evaluate([self._read(x, width, q_col), turn], None)  # type: ignore[arg-type]
        (k,) = Rope(num_kv_heads, head_dim, rot_dim, interleaved).evaluate([self._read(x, kv_width, k_col), turn], None)  # type: ignore[arg-type]
        self._write(x, q, q_col)
        store = KVStore(layer + self.layer, num_kv_heads, head_dim)
        store.evaluate([k, self._read(x, kv_width, v_col), *self._cache()], _AtLayerZero())  # type: ignore[arg-type]

    def _cache(self) -> list[Array]:
        names = ("input_row_offsets", "kv_blocks", "cache_lengths", "lookup_table", "kv_scales")
        return [self.inputs[name] for name in names if name in self.inputs]

    def _attention(
        self, x: int, q_col: int, out: int, num_heads: int, num_kv_heads: int, head_dim: int, layer: int, scale: float,
        window: int,
        softcap: float,
    ) -> None:  # fmt: skip
        op = PagedAttention(layer + self.layer, num_heads, num_kv_heads, head_dim, scale, window, softcap)
        q = self._read(x, num_heads * head_dim, q_col)
        (mixed,) = op.evaluate([q, *self._cache()], _AtLayerZero())  # type: ignore[arg-type]
        self._write(out, mixed)

    def _gather_rows(self, x: int, out: int, width: int, mode: str) -> None:
        ends = self.inputs["input_row_offsets"][1:].astype(np.int64)
        n = 1 if mode == "last" else self.n
        self._write(out, self._read(x, width)[(ends[:, None] + np.arange(-n, 0)).reshape(-1)])

    def _add(self, a: int, b: int, out: int, width: int, multiplier: float) -> None:
        self._write(out, _fused(self._read(a, width), multiplier, self._read(b, width)))

    def _scale(self, x: int, out: int, width: int, multiplier: float, divide: bool) -> None:
        values, factor = self._read(x, width), np.float32(multiplier)
        self._write(out, values / factor if divide else values * factor)

    def _clamp(self, x: int, col: int, width: int, limit: float) -> None:
        self._write(x, np.clip(self._read(x, width, col), -np.float32(limit), np.float32(limit)), col)

    def _copy(self, x: int, col: int, out: int, out_col: int, width: int) -> None:
        self._write(out, self._read(x, width, col), out_col)

    def _copy_out(self, x: int, col: int, width: int, output: int, out_col: int, rows: str) -> None:
        assert self.outputs[output].shape[0] == self.rows[rows]
        self.outputs[output][:, out_col : out_col + width] = self._read(x, width, col)

    def _offsets_out(self, output: int, mode: str) -> None:
        offsets = self.inputs["input_row_offsets"]
        self.outputs[output][...] = offsets if mode == "all" else np.arange(offsets.shape[0]) * self.n


def _check_in_place(op: str, fields: dict[str, Any]) -> None:
    """What is written is not read, but for sums over their terms, and what has only one buffer."""
    in_place = {"add": ("a", "b"), "scale": ("x",), "matmul": ("residual",)}
    reads = {fields[name] for name in OPERANDS[op].reads if name not in in_place.get(op, ())}
    writes = {fields[name] for name in OPERANDS[op].writes if name not in OPERANDS[op].reads}
    assert not (reads & writes) - {-1}, f"{op} writes over its operand: {fields}"


class _AtLayerZero:
    layer = 0


def _fused(residual: Array, multiplier: float, y: Array) -> Array:
    """One rounding, as a fused multiply-add has."""
    return (residual.astype(np.float64) + np.float64(np.float32(multiplier)) * y).astype(np.float32)


def _frequencies(kind: str, facts: dict[str, Any], length: int) -> Array:
    if kind == "fixed":
        return np.asarray(facts["inv_freq"])
    if kind == "longrope":
        is_long = length > facts["original_max_position"]
        return np.asarray(facts["long_inv_freq" if is_long else "short_inv_freq"])
    effective = max(length, facts["original_max_position"])
    dim, factor = facts["rot_dim"], facts["factor"]
    stretch = factor * effective / facts["original_max_position"] - (factor - 1)
    base = facts["theta"] * stretch ** (dim / (dim - 2))
    return np.float32(1 / base ** (np.arange(0, dim, 2) / dim))
