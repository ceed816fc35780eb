"""docs/reliability.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tests_that_are_named_exist() -> None:
    named = re.findall(r"`([a-z]+/[a-z_]+\.py)(?:::(test_\w+))?`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 30
    missing = []
    for file, test in named:
        path = ROOT / "tests" / file
        if not path.exists() or (test and f"def {test}(" not in path.read_text()):
            missing.append((file, test))
    assert not missing
