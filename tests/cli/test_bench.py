"""`puna bench`: names of tests, what is measured, the three formats, traces."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from puna import _native
from puna.engine.trace import MachineLimits, Trace
from puna.entrypoints.benchmark.process import peak_rss_bytes, start_seconds
from puna.entrypoints.benchmark.report import Report, Result
from puna.entrypoints.benchmark.runner import Runner, TracedStep
from puna.entrypoints.benchmark.specs import Spec, parse_spec
from puna.entrypoints.benchmark.tracing import summary_rows, write_chrome_trace
from puna.entrypoints.cli import run
from puna.errors import InvalidRequestError, PunaError
from support.tiny_model import write_tiny_model

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "bench.json"
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512))


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("puna.entrypoints.commands.bench._PROBE_S", 0.05)

    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(["bench", *arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("text", "spec", "name"),
    [
        ("pp512", Spec("pp", 512), "pp512"),
        ("tg128@d2048", Spec("tg", 128, depth=2048), "tg128@d2048"),
        ("tg32@b8", Spec("tg", 32, sequences=8), "tg32@b8"),
        ("tg32@a2@b8", Spec("tg", 32, sequences=8, adapters=2), "tg32@b8@a2"),
        ("tg32@b8@d16", Spec("tg", 32, depth=16, sequences=8), "tg32@d16@b8"),
        ("pp1@d0@b1", Spec("pp", 1), "pp1"),
        ("start", Spec("start"), "start"),
    ],
)
def test_names_of_tests(text: str, spec: Spec, name: str) -> None:
    assert parse_spec(text) == spec
    assert (spec.name, parse_spec(spec.name)) == (name, spec)


@pytest.mark.parametrize(
    "text",
    ["", "pp", "pp0", "pp-1", "tg1.5", "xx5", "tg5@", "tg5@b0", "tg5@b1@b2", "tg5@d", "start@b2", " pp5", "pp5\n"],
)
def test_what_is_no_name(text: str, bench: Bench) -> None:
    with pytest.raises(ValueError, match="is no test; tests are called"):
        parse_spec(text)
    status, out, err = bench("nowhere", "--test", text)
    assert (status, out) == (2, "") and "is no test" in err


def test_json(bench: Bench, tiny: str) -> None:
    asked = ["pp200", "tg3", "tg2@d130", "tg2@b3", "pp9@d128@b2", "start"]
    tests = [part for name in asked for part in ("--test", name)]
    status, out, err = bench(tiny, *tests, "--reps", "2", "--threads", "1", "--format", "json")
    assert (status, err) == (0, "")
    value = json.loads(out)
    jsonschema.validate(value, json.loads(SCHEMA.read_text()))
    assert set(value) == {"model", "variant", "threads", "load_s", "peak_rss_bytes", "results", "limits"}
    assert (value["model"], value["variant"], value["threads"]) == (tiny, _native.default_variant(), 1)
    assert [result["test"] for result in value["results"]] == asked
    for result in value["results"]:
        (values,) = (entry for key, entry in result.items() if key != "test")
        assert ("seconds" in result) == (result["test"] == "start") and len(values) == 2
    assert 0.05 < value["results"][-1]["seconds"][0] < 60  # a Python process that loads a model
    assert 10e6 < value["peak_rss_bytes"] < 10e9


def test_table_and_values_say_the_same(bench: Bench, tiny: str) -> None:
    common = [tiny, "--test", "tg2", "--reps", "3"]
    status, table, _err = bench("run", *common)
    assert status == 0
    assert re.search(r"^\| tg2 +\| +[\d.]+ \| +[\d.]+ \| tokens/s \|$", table, re.MULTILINE)
    assert "MB in use" in table and "GB/s" in table
    assert re.search(r"That allows [\d,]+ tokens/s of a prompt and [\d,.]+ tokens/s of one sequence's text", table)
    status, values, _err = bench(*common, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(values)))
    assert status == 0 and [row["repetition"] for row in rows] == ["1", "2", "3"]
    assert all(row["test"] == "tg2" and row["unit"] == "tokens_per_s" and float(row["value"]) > 0 for row in rows)


def test_report_numbers() -> None:
    results = [Result("pp4", [1.0, 5.0, 2.0]), Result("start", [0.25])]
    limits = {"read_gbps": 1.234, "f32_gflops": 2.0, "int8_gops": 3.0}
    report = Report("m", "avx2", 2, 0.12345, 1_000_000, results, limits, (1234.5, 67.89))
    assert report.as_json() == {
        "model": "m",
        "variant": "avx2",
        "threads": 2,
        "load_s": 0.1235,
        "peak_rss_bytes": 1_000_000,
        "results": [{"test": "pp4", "tokens_per_s": [1.0, 5.0, 2.0]}, {"test": "start", "seconds": [0.25]}],
        "limits": {"read_gbps": 1.23, "f32_gflops": 2.0, "int8_gops": 3.0},
    }
    lines = report.as_markdown().splitlines()
    assert lines[2] == "| pp4   |   2.00 |      2.08 | tokens/s |"
    assert lines[3] == "| start |  0.250 |     0.000 | s        |"
    assert lines[-1].startswith("That allows 1,234 tokens/s of a prompt and 67.9 tokens/s of one")
    assert report.as_csv().splitlines()[4] == "m,avx2,2,0.1235,1000000,start,1,seconds,0.25"


def test_rates_count_all_sequences_and_only_what_is_measured(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second each time it is read makes every step of the loop last one second."""
    specs = [Spec("pp", 300), Spec("tg", 4, sequences=3), Spec("tg", 5, depth=200), Spec("pp", 100, depth=256)]
    runner = Runner(tiny, specs, threads=1)
    steps = 0

    def clock() -> float:
        nonlocal steps
        steps += 1
        return float(steps)

    monkeypatch.setattr("puna.entrypoints.benchmark.runner.perf_counter", clock)
    for spec in specs:
        runner.warm(spec)
    assert runner.run(specs[0]) == 300  # one step: its budget is 512 tokens
    assert runner.run(specs[1]) == 3  # a token for each sequence
    assert runner.run(specs[2]) == 1
    assert runner.run(specs[3]) == 100


def test_depth_is_in_the_cache_before(tiny: str) -> None:
    spec = Spec("tg", 2, depth=200, sequences=2)
    runner = Runner(tiny, [spec], threads=1)
    runner.warm(spec)
    (step,) = runner.trace(spec)
    assert step.seconds > step.trace.seconds > 0
    attention = [record for record in step.trace.records if record.op == "attention"]
    shallow = Spec("tg", 2, sequences=2)
    (other,) = runner.trace(shallow)
    assert attention[0].bytes > 10 * next(r.bytes for r in other.trace.records if r.op == "attention")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test", "pp5", "--test", "pp5"], "given twice"),
        (["--test", "pp600"], "512"),
        (["--test", "pp5@d100"], "the depth of pp5@d100 must be a multiple of 128"),
        (["--reps", "0"], "--reps"),
        (["--trace", "/nonexistent/trace.json"], "/nonexistent is no directory"),
    ],
)
def test_wrong_use(bench: Bench, tiny: str, arguments: list[str], message: str) -> None:
    status, out, err = bench(tiny, *arguments)
    assert (status, out) == (2, "") and message in err


def test_trace_file(bench: Bench, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    tests = ["--test", "pp20", "--test", "tg2"]
    status, out, err = bench(tiny, *tests, "--reps", "1", "--trace", str(path), "--format", "json")
    assert status == 0 and json.loads(out)
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}
    assert names == {"pp20": 1, "tg2": 2}
    for process in names.values():
        own = [event for event in events if event["pid"] == process and event["ph"] == "X"]
        (step,) = [event for event in own if event["tid"] == 1]
        inner = [event for event in own if event["tid"] == 2]
        assert inner and {event["cat"] for event in inner} >= {"matmul", "attention", "norm"}
        assert sum(event["dur"] for event in inner) <= step["dur"]
        assert max(event["ts"] + event["dur"] for event in inner) <= step["ts"] + step["dur"] + 1e-6
    assert "pp20: 1 step in" in err and "tg2: 1 step in" in err and re.search(r"% +loop$", err, re.MULTILINE)


def test_summary_adds_up() -> None:
    common = {"bytes": 1000, "flops": 4000, "seconds": 1e-6}
    records = [
        {**common, "op": "matmul", "name": "up", "layer": 0, "waited": 1e-7},
        {**common, "op": "norm", "name": "", "layer": 0},
        {**common, "op": "matmul", "name": "up", "layer": 1, "waited": 2e-7},
    ]
    trace = Trace.from_program(records, MachineLimits(read_gbps=2.0, f32_gflops=40.0, int8_gops=1.0))
    rows = summary_rows([TracedStep(4.5e-6, trace)])
    assert [(row.name, row.count) for row in rows] == [("matmul up", 2), ("loop", 1), ("norm", 1)]
    assert [row.seconds for row in rows] == pytest.approx([2e-6, 1.5e-6, 1e-6])
    assert rows[0].waited == pytest.approx(3e-7)
    assert (rows[0].gbps, rows[0].gflops, rows[0].share_of_limit) == pytest.approx((1.0, 4.0, 0.5))


def test_chrome_trace_puts_steps_one_after_the_other(tmp_path: Path) -> None:
    record = {"op": "norm", "name": "", "layer": 0, "bytes": 1, "flops": 1, "seconds": 1e-6}
    step = TracedStep(3e-6, Trace.from_program([record], MachineLimits(1.0, 1.0, 1.0)))
    write_chrome_trace(tmp_path / "t.json", {"pp1": [step, step]})
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    starts = {row: [e["ts"] for e in events if e["ph"] == "X" and e["tid"] == row] for row in (1, 2)}
    assert starts == {1: [0.0, pytest.approx(3.0)], 2: [0.0, pytest.approx(3.0)]}


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="no such file"):
        start_seconds(str(tmp_path / "nothing.gguf"))


def test_peak_memory_is_that_of_this_process() -> None:
    code = (
        "from puna.entrypoints.benchmark.process import peak_rss_bytes; a = peak_rss_bytes(); "
        "b = bytearray(200_000_000); b[::4096] = b'1' * len(b[::4096]); del b; print(a, peak_rss_bytes())"
    )
    ballast = bytearray(300_000_000)  # the child begins as a copy of this process, which must not count
    ballast[::4096] = b"1" * len(ballast[::4096])
    before, after = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    assert before < 150e6 and 195e6 <= after - before < 260e6
    assert peak_rss_bytes() > 300e6


def test_bench_help_names_the_default_command(bench: Bench) -> None:
    status, out, _err = bench("--help")
    assert status == 0 and "`puna bench MODEL` is `puna bench run MODEL`" in out
    assert bench("run", "--help")[1].startswith("Usage: puna bench run [OPTIONS] MODEL")


def test_model_too_short_for_a_test_is_named(tiny: str) -> None:
    with pytest.raises(InvalidRequestError, match="max_length"):
        Runner(tiny, [Spec("pp", 600)])
