"""Puna and llama.cpp in turn, in one run, on the same files.

    python benchmarks/versus_llamacpp.py                    all lines; the table on standard output
    python benchmarks/versus_llamacpp.py --only tg32        lines whose title or test has this in it
    python benchmarks/versus_llamacpp.py --large            8B lines too
    python benchmarks/versus_llamacpp.py --variant avx2     kernels of older processors, and a llama.cpp built for them

Each side is a process with the model loaded, told when to run. They take turns, and change who begins; a ratio is that
of two neighbours, and what is stated is the median. Turns during which something else ran are taken again. llama.cpp
gets, for each line, the flash-attention setting that was faster. The table, everything measured, and a picture go into
a directory (`--out`); publish.py takes them into the docs.
"""

from __future__ import annotations

import argparse
import json
import os
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
from environments import FLAVOURS, llamacpp_python
from lines import LARGE_LINES, LINES, Line, work_of
from machine import Bystanders, kind_of_machine, machine_name
from puna import _native
from puna.entrypoints.benchmark.process import start_seconds
from puna.models import DEFAULT_MODEL, find_model
from results import Comparison, Measured
from turns import Turns, take_turns
from worker import Worker

HERE: Final = Path(__file__).parent
MEMORY_TITLE: Final = "1B Q4_K_M: peak memory"
START_TITLE: Final = "smollm2 Q4_1: start to first token"
_PROBE_S: Final = 1.5


class Pair:
    """Both sides, with one model loaded."""

    def __init__(self, path: Path, tests: Sequence[str], threads: int, rival: Path) -> None:
        self.ours = Worker([sys.executable, HERE / "puna_worker.py", path, str(threads), *tests])
        self.theirs = Worker([rival, HERE / "llamacpp_worker.py", path, str(threads)])

    def measure(self, line: Line, reps: int) -> tuple[dict[str, float], Turns, str]:
        """The machine's limits before and after, the better of each; values of both sides; the rival's settings."""
        common = rival_arguments(line)
        tries: dict[bool, float] = {}
        for flash in (False, True):
            self.theirs.ask("run", **common, flash=flash, is_brief=True)
            tries[flash] = self.theirs.ask("run", **common, flash=flash)["tokens_per_s"]
        flash = tries[True] > tries[False]
        self.ours.ask("warm", test=line.test)
        limits = self.ours.ask("limits", seconds=_PROBE_S)
        turns = take_turns(
            lambda: float(self.ours.ask("run", test=line.test)["tokens_per_s"]),
            lambda: float(self.theirs.ask("run", **common, flash=flash)["tokens_per_s"]),
            reps,
            Bystanders(self.ours.pid, self.theirs.pid),
        )
        self.theirs.ask("forget")
        after = self.ours.ask("limits", seconds=_PROBE_S)
        limits = {name: max(value, after[name]) for name, value in limits.items()}
        return limits, turns, f"flash attention {'on' if flash else 'off'}"

    def close(self) -> None:
        """Ends both processes."""
        self.ours.close()
        self.theirs.close()


def rival_arguments(line: Line) -> dict[str, Any]:
    """A test, as the rival's worker takes it."""
    spec = line.spec
    return {"kind": spec.kind, "tokens": spec.tokens, "depth": spec.depth, "sequences": spec.sequences}


@contextmanager
def pair(path: Path, tests: Sequence[str], threads: int, rival: Path) -> Iterator[Pair]:
    """Both sides, ended at the end."""
    both = Pair(path, tests, threads, rival)
    try:
        yield both
    finally:
        both.close()


def peak_memory(threads: int, rival: Path, reps: int) -> Measured:
    """The most memory in use, of fresh processes that load a model, read a prompt of 512 tokens and generate 32."""
    path = synthetic.cached("1B", "Q4_K_M")
    lines = [Line("1B", "Q4_K_M", test) for test in ("pp512", "tg32")]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(reps):
        with pair(path, [line.test for line in lines], threads, rival) as both:
            for line in lines:
                both.ours.ask("run", test=line.test)
                both.theirs.ask("run", **rival_arguments(line), flash=True)
                both.theirs.ask("forget")
            ours.append(both.ours.ask("peak")["bytes"] / 1e6)
            theirs.append(both.theirs.ask("peak")["bytes"] / 1e6)
    turns = Turns(tuple(ours), tuple(theirs), 0.0)  # others do not change what memory is needed
    return Measured(MEMORY_TITLE, "MB", turns, 0.0, f"file of {path.stat().st_size / 1e6:,.0f} MB, mapped")


def start(threads: int, rival: Path, reps: int) -> Measured:
    """From the start of a process to the first token of the default model, all files in memory."""
    path = find_model(DEFAULT_MODEL).path
    command = [str(part) for part in (rival, HERE / "llamacpp_worker.py", "--first-token", path, threads)]

    def ours() -> float:
        return start_seconds(DEFAULT_MODEL, threads=threads)

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

    ours()
    theirs()
    turns = take_turns(ours, theirs, reps, Bystanders(os.getpid()))
    return Measured(START_TITLE, "s", turns, 0.0, "from Python too")


def file_of(line: Line) -> Path:
    """The model's file."""
    if line.model == "smollm2":
        return Path(find_model(DEFAULT_MODEL).path)
    return synthetic.cached(line.model, line.encoding)


def note(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def compare(lines: Sequence[Line], threads: int, reps: int, rival: Path, flavour: str, extras: set[str]) -> Comparison:
    """Measures lines, and what `extras` names of `MEMORY_TITLE` and `START_TITLE`."""
    probes: list[dict[str, float]] = []
    pending: list[tuple[Line, Turns, str]] = []
    greetings: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for path, group in groupby(lines, file_of):
        own = list(group)
        note(f"loading {path.name}")
        with pair(path, [line.test for line in own], threads, rival) as both:
            greetings.append((both.ours.greeting, both.theirs.greeting))
            for line in own:
                limits, turns, settings = both.measure(line, reps)
                medians = " : ".join(f"{statistics.median(side):.1f}" for side in (turns.ours, turns.theirs))
                note(f"{line.title}: {medians} tokens/s, {settings}; others had {turns.disturbance:.0%}")
                probes.append(limits)
                pending.append((line, turns, settings))
    if not lines:  # memory or the start alone
        with pair(Path(find_model(DEFAULT_MODEL).path), ["tg1"], threads, rival) as both:
            greetings.append((both.ours.greeting, both.theirs.greeting))
            probes.append(both.ours.ask("limits", seconds=_PROBE_S))
    best = {name: max(probe[name] for probe in probes) for name in probes[0]}
    measured = [
        Measured(line.title, "tokens/s", turns, work_of(file_of(line)).best_tokens_per_s(line.spec, limits), settings)
        for (line, turns, settings), limits in zip(pending, probes, strict=False)
    ]
    if MEMORY_TITLE in extras:
        note(MEMORY_TITLE)
        measured.append(peak_memory(threads, rival, 2))
    if START_TITLE in extras:
        note(START_TITLE)
        measured.append(start(threads, rival, reps))
    reads = [probe["read_gbps"] for probe in probes]
    ours_greeting, theirs_greeting = greetings[0]
    return Comparison(
        machine_name(),
        kind_of_machine(),
        str(ours_greeting["variant"]),
        "llama.cpp",
        f"{theirs_greeting['version']} (llama-cpp-python, {flavour_text(flavour, theirs_greeting['features'])})",
        threads,
        best,
        (min(reads), max(reads)),
        measured,
    )


def flavour_text(flavour: str, features: Sequence[str]) -> str:
    """How the rival was built, by what it says of itself."""
    widest = "AMX" if "AMX_INT8" in features else "AVX-512" if "AVX512" in features else "AVX2"
    repack = ", repack" if "REPACK" in features else ""
    return f"{flavour} build, {widest}{repack}"


def main() -> None:
    """Compares, and writes what was found."""
    parser = argparse.ArgumentParser(description="Compare Puna with llama.cpp on this machine.")
    parser.add_argument("--threads", type=int, default=_native.cpu_info()["default_threads"])
    parser.add_argument("--reps", type=int, default=5, help="alternations per line")
    parser.add_argument("--only", metavar="TEXT", help="the line of this title, or all with this in title or test")
    parser.add_argument("--large", action="store_true", help="8B lines too (a file of 5 GB)")
    runnable = [name for name in _native.supported_variants() if name != "scalar"]
    parser.add_argument("--variant", choices=runnable, help="Puna's kernels (default: the best of this machine)")
    parser.add_argument("--rival", choices=FLAVOURS, help="llama.cpp's build (default: native, or that of --variant)")
    parser.add_argument("--out", type=Path, default=HERE.parent / "build" / "versus-llamacpp", metavar="DIRECTORY")
    arguments = parser.parse_args()
    variant = arguments.variant or _native.default_variant()
    os.environ["PUNA_VARIANT"] = variant  # for the processes that are started
    best = kind_of_machine()
    flavour = arguments.rival or ("native" if variant == best or variant not in FLAVOURS else variant)
    lines = [*LINES, *(LARGE_LINES if arguments.large else ())]
    extras = {MEMORY_TITLE, START_TITLE}
    if arguments.only:
        whole = [line for line in lines if line.title == arguments.only]
        lines = whole or [line for line in lines if arguments.only in line.title or arguments.only in line.test]
        extras = {title for title in extras if arguments.only in title}
    if not (lines or extras) or arguments.reps < 1 or arguments.threads < 1:
        parser.error("nothing to measure")
    lines.sort(key=lambda line: (line.model, line.encoding))  # one model at a time
    result = compare(lines, arguments.threads, arguments.reps, llamacpp_python(flavour), flavour, extras)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "result.json").write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
    (arguments.out / "result.md").write_text(result.as_markdown() + "\n", encoding="utf-8")
    (arguments.out / "result.svg").write_text(result.as_svg(), encoding="utf-8")
    print(result.as_markdown())


if __name__ == "__main__":
    main()
