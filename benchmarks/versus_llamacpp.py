"""Puna and llama.cpp in turn, in one run, on the same files.

    python benchmarks/versus_llamacpp.py                    all lines; the table on standard output
    python benchmarks/versus_llamacpp.py --only tg32        lines whose title or test has this in it
    python benchmarks/versus_llamacpp.py --large            8B lines too

Each side is a process with the model loaded, told when to run. They take turns, and change who begins; a ratio is that
of two neighbours, and what is stated is the median. For each line llama.cpp gets the flash-attention setting that was
faster. The table, everything measured, and a picture go into a directory (`--out`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import synthetic
from lines import LARGE_LINES, LINES, Line, work_of
from results import Comparison, Measured
from worker import Worker

from puna import _native
from puna.entrypoints.benchmark.process import start_seconds
from puna.models import DEFAULT_MODEL, find_model

HERE: Final = Path(__file__).parent
_PROBE_S: Final = 1.5
_PACKAGES: Final = ("numpy", "typing_extensions", "diskcache", "jinja2")


def rival_python() -> Path:
    """The interpreter of an environment with llama-cpp-python, made first unless it is there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = cache / "puna" / "benchmarks" / "llamacpp-env"
    done = environment / ".done"
    if not done.exists():
        note("making an environment for llama.cpp ...")
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        python = environment / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "cmake", "ninja", *_PACKAGES], check=True)
        subprocess.run([HERE.parent / "tools" / "llama_cpp.sh", environment], check=True)
        done.touch()
    return environment / "bin" / "python"


class Pair:
    """Both sides, with one model loaded."""

    def __init__(self, path: Path, lines: Sequence[Line], threads: int, rival: Path) -> None:
        tests = [line.test for line in lines]
        specs = [line.spec for line in lines]
        self.ours = Worker([sys.executable, HERE / "puna_worker.py", path, str(threads), *tests])
        longest, most = max(s.depth + s.tokens for s in specs), max(s.sequences for s in specs)
        self.theirs = Worker([rival, HERE / "llamacpp_worker.py", path, str(threads), str(longest), str(most)])

    def measure(self, line: Line, reps: int) -> tuple[list[float], list[float], str]:
        """Values of both sides, and the rival's settings."""
        spec = line.spec
        common = {"kind": spec.kind, "tokens": spec.tokens, "depth": spec.depth, "sequences": spec.sequences}
        best = {flash: self._try(common, flash) for flash in (False, True)}
        flash = best[True] > best[False]
        self.theirs.ask("warm", **common, flash=flash)  # at a depth, the last settings' cache is gone
        self.ours.ask("warm", test=line.test)
        ours: list[float] = []
        theirs: list[float] = []
        for rep in range(reps):
            for is_ours in (True, False) if rep % 2 == 0 else (False, True):
                if is_ours:
                    ours.append(self.ours.ask("run", test=line.test)["tokens_per_s"])
                else:
                    theirs.append(self.theirs.ask("run", **common, flash=flash)["tokens_per_s"])
        return ours, theirs, f"flash attention {'on' if flash else 'off'}"

    def close(self) -> None:
        """Ends both processes."""
        self.ours.close()
        self.theirs.close()

    def _try(self, common: dict[str, Any], flash: bool) -> float:
        self.theirs.ask("warm", **common, flash=flash)
        values = [self.theirs.ask("run", **common, flash=flash)["tokens_per_s"] for _ in range(2)]
        return float(max(values))


@contextmanager
def pair(path: Path, lines: Sequence[Line], threads: int, rival: Path) -> Iterator[Pair]:
    """Both sides, ended at the end."""
    both = Pair(path, lines, threads, rival)
    try:
        yield both
    finally:
        both.close()


def peak_memory(path: Path, threads: int, rival: Path, reps: int) -> Measured:
    """The most memory in use, of fresh processes that load a model, read a prompt of 512 tokens and generate 32."""
    lines = [Line("1B", "Q4_K_M", test) for test in ("pp512", "tg32")]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(reps):
        with pair(path, lines, threads, rival) as both:
            for line in lines:
                spec = line.spec
                both.ours.ask("run", test=line.test)
                both.theirs.ask("run", kind=spec.kind, tokens=spec.tokens, depth=0, sequences=1, flash=True)
            ours.append(both.ours.ask("peak")["bytes"] / 1e6)
            theirs.append(both.theirs.ask("peak")["bytes"] / 1e6)
    size = path.stat().st_size / 1e6
    return Measured("1B Q4_K_M: peak memory", "MB", tuple(ours), tuple(theirs), 0.0, f"file of {size:,.0f} MB, mapped")


def start(threads: int, rival: Path, reps: int) -> Measured:
    """From the start of a process to the first token of the default model, all files in memory."""
    path = find_model(DEFAULT_MODEL).path
    command = [rival, HERE / "llamacpp_worker.py", "--first-token", path, str(threads)]

    def theirs() -> float:
        begin = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            seconds = time.perf_counter() - begin
            process.stdout.read()  # or the process would die of a closed pipe
        if process.returncode != 0:
            raise RuntimeError(f"llama.cpp's first token: status {process.returncode}")
        return seconds

    start_seconds(DEFAULT_MODEL, threads=threads)
    theirs()
    values = [(start_seconds(DEFAULT_MODEL, threads=threads), theirs()) for _ in range(reps)]
    mine, others = zip(*values, strict=True)
    return Measured("smollm2 Q4_1: start to first token", "s", mine, others, 0.0, "from Python too")


def machine() -> str:
    """The processor, and which kind of machine it is."""
    cpu = _native.cpu_info()
    features = set(cpu["features"])
    runnable = _native.supported_variants()
    kind = (
        "AVX2" if "avx512" not in runnable else "AVX-512 VNNI and AMX" if "amx" in runnable else "AVX-512 VNNI, no AMX"
    )
    if platform.machine() != "x86_64":
        kind = platform.machine()
    assert features, "a processor has features"
    return f"{cpu['model'] or cpu['vendor']} ({kind}, {len(cpu['affinity'])} cores)"


def file_of(line: Line) -> Path:
    """The model's file."""
    if line.model == "smollm2":
        return Path(find_model(DEFAULT_MODEL).path)
    return synthetic.cached(line.model, line.encoding)


def note(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def compare(lines: Sequence[Line], threads: int, reps: int, extras: bool) -> Comparison:
    """Measures everything."""
    rival = rival_python()
    load = os.getloadavg()[0]
    if load > 0.5:
        note(f"the load is {load:.2f}: something else is running, and these figures will be noisy")
    probes: list[dict[str, float]] = []
    pending: list[tuple[Line, list[float], list[float], str]] = []
    version = ""
    for path, group in groupby(lines, file_of):
        own = list(group)
        note(f"loading {path.name}")
        with pair(path, own, threads, rival) as both:
            version = f"{both.theirs.greeting['version']}"
            for line in own:
                probes.append(both.ours.ask("limits", seconds=_PROBE_S))
                ours, theirs, settings = both.measure(line, reps)
                medians = " : ".join(f"{statistics.median(side):.1f}" for side in (ours, theirs))
                note(f"{line.title}: {medians} tokens/s, {settings}")
                pending.append((line, ours, theirs, settings))
    limits = {name: max(probe[name] for probe in probes) for name in probes[0]}
    measured = [
        Measured(
            line.title,
            "tokens/s",
            tuple(ours),
            tuple(theirs),
            work_of(file_of(line)).best_tokens_per_s(line.spec, limits),
            settings,
        )
        for line, ours, theirs, settings in pending
    ]
    if extras:
        note("peak memory, start")
        measured += [peak_memory(synthetic.cached("1B", "Q4_K_M"), threads, rival, 2), start(threads, rival, reps)]
    reads = [probe["read_gbps"] for probe in probes]
    variant = _native.default_variant()
    return Comparison(machine(), variant, version, threads, load, limits, (min(reads), max(reads)), measured)


def main() -> None:
    """Compares, and writes what was found."""
    parser = argparse.ArgumentParser(description="Compare Puna with llama.cpp on this machine.")
    parser.add_argument("--threads", type=int, default=_native.cpu_info()["default_threads"])
    parser.add_argument("--reps", type=int, default=5, help="alternations per line")
    parser.add_argument("--only", metavar="TEXT", help="lines with this in their title or test; no memory, no start")
    parser.add_argument("--large", action="store_true", help="8B lines too (a file of 5 GB)")
    parser.add_argument("--out", type=Path, default=HERE.parent / "build" / "versus-llamacpp", metavar="DIRECTORY")
    arguments = parser.parse_args()
    lines = [*LINES, *(LARGE_LINES if arguments.large else ())]
    if arguments.only:
        lines = [line for line in lines if arguments.only in line.title or arguments.only in line.test]
    if not lines or arguments.reps < 1 or arguments.threads < 1:
        parser.error("nothing to measure")
    lines.sort(key=lambda line: (line.model, line.encoding))  # one model at a time
    result = compare(lines, arguments.threads, arguments.reps, extras=not arguments.only)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "result.json").write_text(json.dumps(result.as_json(), indent=2) + "\n", encoding="utf-8")
    (arguments.out / "result.md").write_text(result.as_markdown() + "\n", encoding="utf-8")
    (arguments.out / "result.svg").write_text(result.as_svg(), encoding="utf-8")
    print(result.as_markdown())


if __name__ == "__main__":
    main()
