"""The table in docs/models.md is that of the tests: every family of the registry, every cell that is compared."""

from __future__ import annotations

import re
from pathlib import Path

from puna.pipelines.architectures import register_all_models
from puna.pipelines.lib import PIPELINE_REGISTRY
from support.checkpoints import FAMILIES
from support.conformance import CELLS, COLUMNS, Cell, architecture_of, oracle_of

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
_FIGURE = re.compile(r"0e\+00|[1-9]e-\d\d")


def rows() -> dict[str, list[str]]:
    block = PAGE.split("<!-- conformance: begin -->")[1].split("<!-- conformance: end -->")[0]
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in block.strip().splitlines()]
    assert lines[0][2:] == [f"{source} {encoding}" for source, encoding in COLUMNS]
    return {line[0].strip("`"): line[1:] for line in lines[2:]}


def test_every_family_has_a_row_and_every_comparison_a_figure() -> None:
    register_all_models()
    found = rows()
    aliases = {"BaiChuanForCausalLM"}  # Baichuan 1 wrote it so
    assert found.keys() == PIPELINE_REGISTRY.architectures.keys() - aliases
    for family in FAMILIES:
        oracle, *figures = found[architecture_of(family)]
        assert oracle == oracle_of(family)
        for (source, encoding), figure in zip(COLUMNS, figures, strict=True):
            is_compared = Cell(family, source, encoding) in CELLS
            assert bool(_FIGURE.fullmatch(figure)) is is_compared, (family, source, encoding, figure)
