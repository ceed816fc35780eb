"""The recorded cases: that they are what the writer writes, that they are true, and that every variant gives them."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from puna import _native
from support import exact
from support.call_programs import has_codes_only, run_call
from support.case_recorder import Call, read_calls
from support.kernel_truth import KV_TYPES, a8_blocks
from support.native_steps import attend
from support.program_cases import PROGRAMS
from support.variants import VARIANTS, is_on_tiles

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).parent / "cases"
CALLS = [call for path in sorted(CASES.glob("*.case")) for call in read_calls(path)]
Array = NDArray[Any]


def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_cases", Path(__file__).parent / "write_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_files_are_what_the_writer_writes(tmp_path: Path) -> None:
    """Whoever changes a bit has to say so by writing them again."""
    writer().write_all(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in CASES.iterdir()}
    changed = [name for name in sorted(names) if (tmp_path / name).read_bytes() != (CASES / name).read_bytes()]
    assert not changed, "other bits than recorded; if that is intended: python tests/kernels/write_cases.py"


def same(call: Call, results: dict[str, Array], variant: str) -> Iterator[str]:
    on_tiles = is_on_tiles(variant, call.fields.get("format", ""))
    for name, found in results.items():
        recorded = call.fields.get(f"{name}_on_tiles", call.fields[name]) if on_tiles else call.fields[name]
        is_same = exact.same_bits(found, recorded) if found.dtype == np.float32 else np.array_equal(found, recorded)
        if not is_same:
            yield f"{call.op} {call.fields['name']}: {name}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_give_the_recorded_bits(variant: str) -> None:
    """Through the Python module; what puna_replay adds are the ends of operands, all divisions, and other machines."""
    different = []
    for call in CALLS:
        if not has_codes_only(call):
            different += same(call, run_call(call, variant), variant)
    assert not different


@pytest.mark.parametrize("variant", VARIANTS)
def test_programs_give_the_recorded_bits(variant: str, tmp_path: Path) -> None:
    for name, write in PROGRAMS.items():
        write(variant, tmp_path / "program.case")
        assert (tmp_path / "program.case").read_bytes() == (CASES / f"{name}.case").read_bytes(), name


def calls_of(op: str) -> list[Any]:
    return [pytest.param(call.fields, id=call.fields["name"]) for call in CALLS if call.op == op]


@pytest.mark.parametrize("fields", calls_of("glu"))
def test_recorded_glu_is_close_to_float64(fields: dict[str, Any]) -> None:
    gate, up = np.split(fields["x"].reshape(-1, 2 * fields["width"]).astype(np.float64), 2, axis=1)
    with np.errstate(all="ignore"):
        x = gate if fields["activation"] == "silu" else np.sqrt(8 / np.pi) * (gate + 0.044715 * gate**3)
        wanted = gate / (1 + np.exp(-x)) * up
        # Where the exponential overflows float32, or the quotient is subnormal, the result is 0.
        wanted = np.where((x < -88.73) | (np.abs(wanted) < 1.2e-38), 0, wanted)
        limit = np.finfo(np.float32).max
        wanted = np.where(np.abs(wanted) > limit, np.copysign(np.inf, wanted), wanted)
    wanted[gate == -np.inf] = np.nan  # -inf / inf
    # the rounding of a large argument is a relative error of its exponential
    tolerance = 6e-7 if fields["activation"] == "silu" else 2e-5
    np.testing.assert_allclose(fields["out"].reshape(gate.shape), wanted, rtol=tolerance, atol=1e-36)


@pytest.mark.parametrize("fields", calls_of("softcap"))
def test_recorded_softcap_is_close_to_float64(fields: dict[str, Any]) -> None:
    x = fields["x"].astype(np.float64).reshape(-1)
    wanted = fields["cap"] * np.tanh(x / fields["cap"])
    np.testing.assert_allclose(fields["out"], wanted, rtol=3e-7, atol=1.2e-38)


@pytest.mark.parametrize("fields", calls_of("attention"))
def test_recorded_attention_is_close_to_float64(fields: dict[str, Any]) -> None:
    heads, kv_heads, dim, page_size = (fields[n] for n in ("num_heads", "num_kv_heads", "head_dim", "page_size"))
    kv = fields["kv"].view(KV_TYPES[fields["kv_type"]]).astype(np.float32)
    kv = kv.reshape(-1, 2, fields["layers"], page_size, kv_heads, dim)
    if "kv_scales" in fields:
        kv *= fields["kv_scales"].reshape(*kv.shape[:5], 1)
    kv = kv[:, :, fields["layer"]]
    rows = fields["offsets"][-1]
    q, out = (fields[name].reshape(rows, heads, dim) for name in ("q", "out"))
    table = np.array(fields["table"]).reshape(len(fields["lengths"]), -1)
    for b, cached in enumerate(fields["lengths"]):
        begin, end = fields["offsets"][b : b + 2]
        positions = np.arange(cached + end - begin)
        keys, values = (kv[table[b, positions // page_size], i, positions % page_size] for i in (0, 1))
        options = {"scale": float(np.float32(fields["scale"])), "window": fields["window"]}
        options["softcap"] = float(np.float32(fields["softcap"]))
        wanted = attend(q[begin:end], keys.astype(np.float64), values.astype(np.float64), positions[cached:], **options)
        if fields["name"] == "exponential":  # every weight by itself, those that are 0 in float32 too
            wanted = np.where(np.abs(wanted) < 1.2e-38, 0, wanted)
            np.testing.assert_allclose(out[begin:end], wanted, rtol=3e-7, atol=1e-37)
        else:
            np.testing.assert_allclose(out[begin:end], wanted, rtol=0, atol=1e-3 if "kv_scales" in fields else 1e-5)


def test_every_kernel_format_and_shape_is_there() -> None:
    """What the files are meant to cover is in them."""
    formats = {op: {call.fields["format"] for call in CALLS if call.op == op} for op in ("dequantize", "matmul")}
    assert formats["dequantize"] == formats["matmul"] == set(_native.FORMATS)
    rows = {"norm", "glu", "softcap", "add", "scale", "clamp"}
    ops = {"dequantize", "quantize", "matmul", *rows, "rope_kv", "attention"}
    assert {call.op for call in CALLS} == ops
    for op in ("rope_kv", "attention"):
        assert {call.fields["kv_type"] for call in CALLS if call.op == op} == set(KV_TYPES)
    names = [(call.op, call.fields["name"]) for call in CALLS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("fields", [case for case in calls_of("quantize") if not case.values[0]["two_terms"]])
def test_recorded_codes_are_what_the_module_returns(fields: dict[str, Any]) -> None:
    """The bytes of the files by their rule, and the codes, scales and sums of the module, are the same numbers."""
    x = fields["x"].reshape(fields["rows"], fields["cols"])
    blocks = fields["out"].reshape(fields["rows"], -1, 56)[:, : fields["cols"] // 32]
    for variant in _native.supported_variants():
        codes, scales, sums = _native.quantize_a8(x, variant)
        assert np.array_equal(blocks[..., :32].view(np.int8).reshape(codes.shape), codes)
        assert exact.same_bits(np.ascontiguousarray(blocks[..., 32:36]).view(np.float32)[..., 0], scales)
        assert exact.same_bits(np.ascontiguousarray(blocks[..., 36:40]).view(np.float32)[..., 0], sums)
    with np.errstate(all="ignore"):
        assert np.array_equal(a8_blocks(x).reshape(-1), fields["out"])


BINARIES = sorted(ROOT.glob("build/*/puna_replay"))


@pytest.mark.slow
@pytest.mark.skipif(not BINARIES, reason="no puna_replay is built (make sanitize builds one)")
@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: path.parent.name)
def test_replay(binary: Path) -> None:
    """A binary that was built here, unless it is for another machine or older than the sources."""
    if binary.parent.name == "neon":
        pytest.skip("for AArch64: make neon runs it")
    if binary.stat().st_mtime < max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*.*")):
        pytest.skip("built before the sources were changed")
    done = subprocess.run([binary, CASES], capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
