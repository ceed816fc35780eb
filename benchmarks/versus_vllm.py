"""Puna and vLLM for CPUs in turn, in one run, on the same bfloat16 checkpoint.

    python benchmarks/versus_vllm.py

vLLM reads safetensors only, so both read a directory that synthetic.py writes; one more line puts Puna's 4-bit prompt
beside vLLM's in bfloat16. vLLM compiles the model when it is loaded, which takes minutes. See versus_llamacpp.py for
how turns are taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

import synthetic
from environments import vllm_python
from lines import Line, work_of
from machine import Bystanders, kind_of_machine, machine_name
from puna import _native
from results import Comparison, Measured
from turns import Turns, take_turns
from worker import Worker

HERE: Final = Path(__file__).parent
TESTS: Final = ("pp512", "tg32", "tg16@b8", "tg16@b16")
_PROBE_S: Final = 1.5


def compare(threads: int, reps: int) -> Comparison:
    """Measures all lines."""
    python = vllm_python()
    directory = synthetic.cached("1B", synthetic.SAFETENSORS)
    lines = [Line("1B", "BF16", test) for test in TESTS]
    longest = max(line.spec.tokens for line in lines) + 64
    most = max(line.spec.sequences for line in lines)
    theirs = Worker([python, HERE / "vllm_worker.py", directory, str(threads), str(longest), str(most)])
    measured: list[tuple[Line, Path, Turns, str]] = []
    probes: list[dict[str, float]] = []
    ours = Worker([sys.executable, HERE / "puna_worker.py", directory, str(threads), *TESTS])
    for line in lines:
        turns = _turns(ours, theirs, line, reps, probes)
        measured.append((line, synthetic.cached("1B", "BF16"), turns, "same weights"))
    ours.close()
    line = Line("1B", "Q4_K_M", "pp512")
    path = synthetic.cached("1B", line.encoding)
    ours = Worker([sys.executable, HERE / "puna_worker.py", path, str(threads), line.test])
    measured.append((line, path, _turns(ours, theirs, line, reps, probes), "bfloat16 weights"))
    ours.close()
    theirs.close()
    limits = {name: max(probe[name] for probe in probes) for name in probes[0]}
    reads = [probe["read_gbps"] for probe in probes]
    return Comparison(
        machine_name(),
        kind_of_machine(),
        str(ours.greeting["variant"]),
        "vLLM",
        f"{theirs.greeting['version']} (bfloat16, compiled, loaded in {theirs.greeting['load_s']:.0f} s)",
        threads,
        limits,
        (min(reads), max(reads)),
        [
            Measured(line.title, "tokens/s", turns, work_of(path).best_tokens_per_s(line.spec, probe), settings)
            for (line, path, turns, settings), probe in zip(measured, probes, strict=True)
        ],
    )


def _turns(ours: Worker, theirs: Worker, line: Line, reps: int, probes: list[dict[str, float]]) -> Turns:
    spec = line.spec
    common: dict[str, Any] = {"kind": spec.kind, "tokens": spec.tokens, "sequences": spec.sequences}
    theirs.ask("run", **common)
    ours.ask("warm", test=line.test)
    probes.append(ours.ask("limits", seconds=_PROBE_S))
    turns = take_turns(
        lambda: float(ours.ask("run", test=line.test)["tokens_per_s"]),
        lambda: float(theirs.ask("run", **common)["tokens_per_s"]),
        reps,
        Bystanders(ours.pid, theirs.pid),
    )
    medians = " : ".join(f"{statistics.median(side):.1f}" for side in (turns.ours, turns.theirs))
    print(f"{line.title}: {medians} tokens/s; others had {turns.disturbance:.0%}", file=sys.stderr, flush=True)
    after = ours.ask("limits", seconds=_PROBE_S)
    probes[-1] = {name: max(value, after[name]) for name, value in probes[-1].items()}
    return turns


def main() -> int:
    """Compares, and writes what was found; status 1 if vLLM cannot be had here."""
    parser = argparse.ArgumentParser(description="Compare Puna with vLLM on this machine.")
    parser.add_argument("--threads", type=int, default=_native.cpu_info()["default_threads"])
    parser.add_argument("--reps", type=int, default=5, help="alternations per line")
    parser.add_argument("--out", type=Path, default=HERE.parent / "build" / "versus-vllm", metavar="DIRECTORY")
    arguments = parser.parse_args()
    if arguments.reps < 1 or arguments.threads < 1:
        parser.error("nothing to measure")
    try:
        result = compare(arguments.threads, arguments.reps)
    except RuntimeError as error:
        print(f"no comparison with vLLM: {error}", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "result.json").write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
    (arguments.out / "result.md").write_text(result.as_markdown() + "\n", encoding="utf-8")
    print(result.as_markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
