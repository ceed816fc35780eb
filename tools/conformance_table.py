"""Writes the conformance table of docs/models.md from JUnit reports of tests/oracle/test_conformance_table.py.

Usage: python tools/conformance_table.py REPORT.xml… (see `make conformance`)
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.checkpoints import FAMILIES  # noqa: E402  # the tests' own list, importable from here on
from support.conformance import CELLS, COLUMNS, Cell, architecture_of  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- conformance: begin -->\n", "<!-- conformance: end -->\n"


def read_reports(paths: list[str]) -> dict[Cell, dict[str, str]]:
    """The properties that each passed test recorded, by cell.

    Raises:
        SystemExit: a cell is missing or failed; the message names it.
    """
    found: dict[Cell, dict[str, str]] = {}
    for case in (case for path in paths for case in ElementTree.parse(path).iter("testcase")):
        values = {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")}
        if values and case.find("failure") is None and case.find("error") is None:
            found[Cell(values["family"], values["source"], values["encoding"])] = values
    missing = ["-".join(cell) for cell in CELLS if cell not in found]
    if missing:
        sys.exit(f"there is no passed test of {', '.join(missing)}")
    return found


def table(found: dict[Cell, dict[str, str]]) -> str:
    """The table in Markdown: a row for each family."""
    headings = ["family", "oracle", *(f"{source} {encoding}" for source, encoding in COLUMNS)]
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for family in FAMILIES:
        cells = [found.get(Cell(family, source, encoding)) for source, encoding in COLUMNS]
        oracle = next(values["oracle"] for values in cells if values is not None)
        figures = [values["error"] if values is not None else "–" for values in cells]
        lines.append(f"| `{architecture_of(family)}` | {oracle} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replaces what is between the two marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}{table(read_reports(sys.argv[1:]))}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
