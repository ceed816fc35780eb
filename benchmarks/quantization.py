"""What recipes of `puna quantize` cost, beside llama.cpp's quantizer: the table of docs/quantize.md.

    make quantization
    python benchmarks/quantization.py Q4_K_M Q8_0      only these; the others keep their figures

All start from the same weights, those of the default model in float32, padded with zeros to hidden 768 so that K-quants
fit (tests/support/divergence.py). Puna runs all files, with float32 activations; what differs is who quantized. Load
time and memory are those of a process that packs the file and generates one token. It needs the environment of
`make oracles`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np

from publish import between
from puna.conversion import open_checkpoint, options_for, quantized_tensors, write_gguf
from puna.graph.quantization import RECIPES, Recipe
from puna.models import DEFAULT_MODEL, find_model
from puna.tokenization import load_tokenizer
from support.divergence import TEXTS, divergence, padded
from support.family_model import all_logits, load_family
from support.ggml_quantizer import quantize_file

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "quantize.md"
RESULTS: Final = ROOT / "benchmarks" / "results" / "quantization.json"
_MOST_TOKENS: Final = 500  # of a text


@dataclass(frozen=True, slots=True)
class Quality:
    """A file beside the weights that it was made of.

    Attributes:
        kl: Mean KL divergence of its next tokens, in nats.
        perplexity: Of the texts.
        file_bytes: Its size.
    """

    kl: float
    perplexity: float
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What loading a file takes."""

    load_s: float
    peak_bytes: int


def ours(source: Path, target: Path, recipe: Recipe) -> None:
    """The file that `puna quantize` writes."""
    checkpoint = open_checkpoint(source)
    result = quantized_tensors(checkpoint, options_for(checkpoint, recipe))
    write_gguf(target, result.metadata, result.tensors)


def logits_of(path: Path, prompts: list[list[int]]) -> list[Any]:
    """Logits of all tokens, with float32 activations: what differs from the original is the weights."""
    found: list[Any] = all_logits(load_family(path, precision="float32"), prompts)
    return found


def quality(path: Path, prompts: list[list[int]], expected: list[Any]) -> Quality:
    """A file's divergence from the logits of the original, and its perplexity."""
    found = logits_of(path, prompts)
    kl = np.concatenate([divergence(want, got) for want, got in zip(expected, found, strict=True)])
    return Quality(float(kl.mean()), perplexity(found, prompts), path.stat().st_size)


def perplexity(logits: list[Any], prompts: list[list[int]]) -> float:
    """Of all tokens but the first of each prompt."""
    losses = []
    for rows, ids in zip(logits, prompts, strict=True):
        shifted = rows[:-1].astype(np.float64) - rows[:-1].max(-1, keepdims=True)
        chosen = shifted[np.arange(len(ids) - 1), ids[1:]]
        losses.append(np.log(np.exp(shifted).sum(-1)) - chosen)
    return float(np.exp(np.concatenate(losses).mean()))


def cost(path: Path) -> Cost:
    """What a process of its own takes that packs the file and generates a token."""
    command = [sys.executable, "-m", "puna.entrypoints.cli", "bench", str(path)]
    command += ["--test", "tg1", "--reps", "1", "--format", "json"]
    environment = os.environ | {"PUNA_CACHE_LIMIT": "0"}
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    report = json.loads(text)
    return Cost(report["load_s"], report["peak_rss_bytes"])


def measure(source: Path, recipe: Recipe, prompts: list[list[int]], expected: list[Any]) -> tuple[Quality, Quality]:
    """Both quantizers' files of a recipe."""
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
        mine, theirs = Path(scratch) / "mine.gguf", Path(scratch) / "theirs.gguf"
        ours(source, mine, recipe)
        quantize_file(source, theirs, recipe.file_type)
        return quality(mine, prompts, expected), quality(theirs, prompts, expected)


def stored() -> dict[str, Any]:
    """What was measured so far."""
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.exists() else {"recipes": {}}


def table(results: dict[str, Any]) -> str:
    """The page's table, of all that was measured."""
    original, version = results["original_perplexity"], results["llama_cpp"]
    lines = [
        f"Perplexity of the float32 weights: {original:.3f}; llama.cpp of llama-cpp-python {version}.",
        "",
        "| recipe | MB | KL, Puna | KL, llama.cpp | perplexity, Puna | perplexity, llama.cpp |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    has_costs = all("cost" in entry for entry in results["recipes"].values())
    if has_costs:
        lines[-2:] = [lines[-2] + " load, s | memory, MB |", lines[-1] + " ---: | ---: |"]
    for name in RECIPES:
        if name not in results["recipes"]:
            continue
        mine, theirs = (results["recipes"][name][key] for key in ("puna", "llama.cpp"))
        paid = results["recipes"][name].get("cost")
        costs = f" {paid['load_s']:.2f} | {paid['peak_bytes'] / 1e6:.0f} |" if has_costs else ""
        lines.append(
            f"| {name} | {mine['file_bytes'] / 1e6:.0f} | {mine['kl']:.5f} | {theirs['kl']:.5f} | "
            f"{mine['perplexity']:.3f} | {theirs['perplexity']:.3f} |{costs}"
        )
    return "\n".join(lines)


def publish(results: dict[str, Any]) -> None:
    """Keeps the figures, and puts the table into the page."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), "recipes", table(results)), encoding="utf-8")


def measure_costs(source: Path, names: list[str]) -> None:
    """Measures load time and memory anew. Files are made first, so that the machine does nothing else meanwhile."""
    results = stored()
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
        files = {name: Path(scratch) / f"{name}.gguf" for name in names}
        for name, path in files.items():
            ours(source, path, RECIPES[name])
        for name, path in files.items():
            results["recipes"][name]["cost"] = asdict(min((cost(path) for _ in range(3)), key=lambda c: c.load_s))
    publish(results)


def main() -> None:
    """Measures the recipes that are named, or all, and publishes each as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--costs", action="store_true", help="only load time and memory, of recipes measured before")
    arguments = parser.parse_args()
    names = arguments.recipes or list(RECIPES)
    source = padded(find_model(DEFAULT_MODEL).path)
    if arguments.costs:
        measure_costs(source, names)
        return
    tokenizer = load_tokenizer(open_checkpoint(source).metadata, name=source.name)
    prompts = [list(tokenizer.encode(text, add_special_tokens=False))[:_MOST_TOKENS] for text in TEXTS]
    expected = logits_of(source, prompts)
    for name in names:
        mine, theirs = measure(source, RECIPES[name], prompts, expected)
        results = stored() | {
            "original_perplexity": perplexity(expected, prompts),
            "llama_cpp": llama_cpp.__version__,
        }
        known = results["recipes"].get(name, {})
        results["recipes"][name] = known | {"puna": asdict(mine), "llama.cpp": asdict(theirs)}
        publish(results)
        print(name, mine, theirs, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
