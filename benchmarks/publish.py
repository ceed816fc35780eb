"""Takes results into the repository: `benchmarks/results`, the tables of docs/performance.md, the README's picture.

    python benchmarks/publish.py build/versus-llamacpp/result.json
    python benchmarks/publish.py --replace RESULT.json      forgets lines of earlier runs, which are kept otherwise
    python benchmarks/publish.py                            writes tables and picture anew

Lines of a run replace lines of an earlier one of the same name; each keeps the limits that were measured around it.
Lines during which other processes had more than a fifth of the cores are left out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import scaling
from results import Comparison

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"
PAGE: Final = ROOT / "docs" / "performance.md"
PICTURE: Final = ROOT / "docs" / "speed.svg"
DISTURBED: Final = 0.2  # lines during which others had more of the cores are not taken
# The table of larger machines comes from the first of these that there is; the picture is the one with most lines.
_RICHEST_FIRST: Final = ("llamacpp-amx", "llamacpp-avx512", "llamacpp-avx2")


def between(text: str, name: str, new: str) -> str:
    """The text with `new` between the markers `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
        ValueError: The markers are not there.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, found, rest = text.partition(begin)
    _old, also_found, tail = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{begin} … {end} not found")
    return f"{head}{begin}\n\n{new.strip()}\n\n{end}{tail}"


def stored() -> dict[str, Comparison]:
    """All comparisons of the repository, by name, in the order in which they are shown."""
    files = sorted(RESULTS.glob("*-*.json"))
    return {file.stem: Comparison.from_json(json.loads(file.read_text(encoding="utf-8"))) for file in files}


def calm(comparison: Comparison) -> tuple[Comparison, list[str]]:
    """The lines that others left alone, and the titles of the rest."""
    lines = [line for line in comparison.lines if line.turns.disturbance <= DISTURBED]
    left_out = [line.title for line in comparison.lines if line not in lines]
    return replace(comparison, lines=lines), left_out


def tables(comparisons: dict[str, Comparison]) -> str:
    """The generated part of the page."""
    parts = []
    for comparison in comparisons.values():
        kernels = "" if comparison.variant == comparison.kind else f", kernels for {comparison.variant} only"
        parts.append(f"### Beside {comparison.rival}, machine with {comparison.kind}{kernels}")
        parts.append(comparison.as_markdown())
    return "\n\n".join(parts)


def richest_first(comparisons: dict[str, Comparison]) -> list[Comparison]:
    """The comparisons with llama.cpp, by kind of machine."""
    return [comparisons[name] for name in _RICHEST_FIRST if name in comparisons]


def shown(comparisons: dict[str, Comparison]) -> Comparison:
    """The comparison that is the README's picture."""
    return max(richest_first(comparisons), key=lambda comparison: len(comparison.lines))


def page(text: str, comparisons: dict[str, Comparison]) -> str:
    """docs/performance.md with its generated parts."""
    text = between(text, "measured", tables(comparisons))
    return between(text, "on paper", scaling.as_markdown(richest_first(comparisons)[0]))


def main() -> None:
    """Stores results and writes what is made of all of them."""
    parser = argparse.ArgumentParser(description="Take results of a comparison into the repository.")
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT.json")
    parser.add_argument("--replace", action="store_true", help="forget lines of earlier runs")
    arguments = parser.parse_args()
    for file in arguments.results:
        comparison = Comparison.from_json(json.loads(file.read_text(encoding="utf-8")))
        comparison, left_out = calm(comparison)
        for title in left_out:
            print(f"{title}: left out, other processes had more than {DISTURBED:.0%} of the cores")
        if not comparison.lines:
            continue
        target = RESULTS / f"{comparison.name}.json"
        if target.exists() and not arguments.replace:
            comparison = stored()[comparison.name].with_lines_of(comparison)
        RESULTS.mkdir(exist_ok=True)
        target.write_text(json.dumps(comparison.as_json(), indent=1) + "\n", encoding="utf-8")
        print(target.relative_to(ROOT))
    comparisons = stored()
    PICTURE.write_text(shown(comparisons).as_svg(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), comparisons), encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
