"""How far the logits of Puna and of llama.cpp are from float32, per encoding: the table of docs/numerics.md.

    make divergence

It needs the environment of `make oracles` (torch, transformers, llama.cpp); see tests/support/divergence.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import llama_cpp

from publish import between
from puna.models import DEFAULT_MODEL, find_model
from support.divergence import ENCODINGS, Divergence, measure, quantized

PAGE: Final = Path(__file__).parent.parent / "docs" / "numerics.md"


def table(measured: dict[str, Divergence], version: str) -> str:
    """Mean divergence by encoding."""
    rows = [f"| encoding | Puna, `auto` | llama.cpp ({version}) | ratio |", "| --- | ---: | ---: | ---: |"]
    for name, value in measured.items():
        ours, theirs = value.ours.mean(), value.theirs.mean()
        rows.append(f"| {name} | {ours:.6f} | {theirs:.6f} | {ours / theirs:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Measures, prints the table and puts it into the page."""
    source = find_model(DEFAULT_MODEL).path
    measured: dict[str, Divergence] = {}
    for name in ("Q4_1 (as it is)", *ENCODINGS):
        path = source if name not in ENCODINGS else quantized(source, name)
        measured[name] = measure(path)
        mine, rival = measured[name].ours.mean(), measured[name].theirs.mean()
        print(f"{name}: {mine:.6f}, llama.cpp {rival:.6f}", file=sys.stderr, flush=True)
    text = table(measured, f"llama-cpp-python {llama_cpp.__version__}")
    print(text)
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), "divergence", text), encoding="utf-8")


if __name__ == "__main__":
    main()
