"""The Python examples of the pages run, one after the other, on a tiny model in place of the default one."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from puna.models import DEFAULT_MODEL
from support.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_examples_run(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny_model(tmp_path / "m", vocab_size=832)
    blocks = _BLOCK.findall((ROOT / page).read_text())
    assert blocks and any(DEFAULT_MODEL in block for block in blocks)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        code = block.replace(f'"{DEFAULT_MODEL}"', repr(str(model)))
        exec(compile(code, f"{page}, example {number + 1}", "exec"), names)
    assert capsys.readouterr().out


def test_twelve_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = runpy.run_path(str(ROOT / "examples/adapters/twelve.py"))
    program["main"](str(write_tiny_model(tmp_path / "m")), tmp_path / "adapters")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("12 adapters")
    assert len(lines) == 14
