"""What adapters cost, beside a model with one of them in its weights, and beside llama.cpp with one.

    python benchmarks/adapters.py

One model (random weights, Llama 3.2 1B's sizes, bfloat16), adapters of rank 16 on the attention's products or on all: a
step of 8 sequences and a prompt of 256 without adapters, with one, with 8 different ones; the same of the model that
`puna merge` made with one; and llama.cpp, which can have one for all sequences, without and with it. All take turns; a
ratio is that to the first line of the same turn. Files are kept in the user's cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import gguf
import ml_dtypes
import numpy as np

import synthetic
from environments import benchmarks_cache, llamacpp_python
from machine import Bystanders, machine_name
from puna import _native
from puna.entrypoints.benchmark.runner import Runner
from puna.entrypoints.benchmark.specs import Spec, parse_spec
from worker import Worker

HERE: Final = Path(__file__).parent
RANK: Final = 16
ADAPTERS: Final = 8
TURNS: Final = 5
ATTENTION: Final = ("attn_q", "attn_k", "attn_v", "attn_output")
TARGETS: Final = {"q, k, v, o": ATTENTION, "all products": (*ATTENTION, "ffn_gate", "ffn_up", "ffn_down")}
TESTS: Final = {"text of 8 sequences": "tg8@b8", "prompt of 256": "pp256"}


def write_adapter(path: Path, base: Path, targets: Sequence[str], seed: int) -> Path:
    """Writes an adapter of random bfloat16 numbers for a GGUF file, unless it is there."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path.with_suffix(".part"), "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", RANK)
    for tensor in gguf.GGUFReader(base).tensors:
        name = tensor.name.removesuffix(".weight")
        if name.rpartition(".")[2] not in targets:
            continue
        inputs, outputs = (int(size) for size in tensor.shape)
        for kind, shape in (("lora_a", (RANK, inputs)), ("lora_b", (outputs, RANK))):
            values = draw.standard_normal(shape, np.float32) * np.float32(shape[1] ** -0.5)
            writer.add_tensor(
                f"{tensor.name}.{kind}",
                values.astype(ml_dtypes.bfloat16).view(np.uint8),
                raw_dtype=gguf.GGMLQuantizationType.BF16,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)
    return path


def merged(base: Path, adapter: Path) -> Path:
    """The model with an adapter in its weights, as `puna merge` writes it."""
    out = adapter.with_name("merged.gguf")
    if not out.exists():
        command = [Path(sys.executable).with_name("puna"), "merge", base, adapter, out]
        subprocess.run([str(part) for part in command], check=True)
    return out


def rival_run(worker: Worker, spec: Spec, has_adapter: bool) -> Callable[[], float]:
    """Tokens per second of llama.cpp."""
    settings = {"kind": spec.kind, "tokens": spec.tokens, "depth": 0, "sequences": spec.sequences, "flash": True}
    return lambda: float(worker.ask("run", **settings, has_adapter=has_adapter)["tokens_per_s"])


def measure(base: Path, adapters: Sequence[Path], threads: int) -> None:
    """Prints the lines of one kind of adapters."""
    tests = {title: [parse_spec(f"{name}{more}") for more in ("", "@a1", "@a8")] for title, name in TESTS.items()}
    specs = [spec for group in tests.values() for spec in group]
    paths = [f"{number}={path}" for number, path in enumerate(adapters)]
    runner = Runner(str(base), specs, threads=threads, lora_paths=paths)
    merged_model = merged(base, adapters[0])
    ours = Worker([sys.executable, HERE / "puna_worker.py", merged_model, str(threads), *TESTS.values()])
    theirs = Worker([llamacpp_python("native"), HERE / "llamacpp_worker.py", base, str(threads), adapters[0]])
    others = Bystanders(os.getpid(), ours.pid, theirs.pid)
    for title, (bare, one, many) in tests.items():
        sides: dict[str, Callable[[], float]] = {
            "none": lambda spec=bare: runner.run(spec),  # type: ignore[misc]
            "one": lambda spec=one: runner.run(spec),  # type: ignore[misc]
            "8 different ones": lambda spec=many: runner.run(spec),  # type: ignore[misc]
            "one, merged": lambda name=bare.name: float(ours.ask("run", test=name)["tokens_per_s"]),  # type: ignore[misc]
            "llama.cpp, none": rival_run(theirs, bare, has_adapter=False),
            "llama.cpp, one": rival_run(theirs, bare, has_adapter=True),
        }
        for run in sides.values():
            run()  # warm
        others.share()
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(TURNS):
            for side, run in sides.items():
                found[side].append(run())
        for side, rates in found.items():
            ratios = [bare_rate / rate for bare_rate, rate in zip(found["none"], rates, strict=True)]
            rate, ratio = statistics.median(rates), statistics.median(ratios)
            print(f"| {title} | {side} | {rate:.1f} | {ratio:.2f} |", flush=True)
        print(f"(others had {others.share():.0%} of the processors)")
    ours.close()
    theirs.close()


def main() -> None:
    """Writes what is missing, measures, prints a table."""
    base, threads = synthetic.cached("1B", "BF16"), _native.cpu_info()["default_threads"]
    print(f"{base.stem}, rank {RANK}, {threads} threads of {machine_name()}")
    for kind, targets in TARGETS.items():
        folder = benchmarks_cache() / f"{base.stem}-adapters" / targets[-1]
        paths = [write_adapter(folder / f"{number}.gguf", base, targets, number) for number in range(ADAPTERS)]
        print(f"\nAdapters on {kind}\n\n| test | adapters | tokens/s | time, of none |\n| --- | --- | ---: | ---: |")
        measure(base, paths, threads)


if __name__ == "__main__":
    main()
