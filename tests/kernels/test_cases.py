"""The recorded cases are those that the writer writes: whoever changes a bit has to say so by writing them again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

WRITER = Path(__file__).parent / "write_cases.py"


def test_recorded_cases_are_up_to_date(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("write_cases", WRITER)
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    writer.write_all(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in writer.CASES.iterdir()}
    changed = [name for name in sorted(names) if (tmp_path / name).read_bytes() != (writer.CASES / name).read_bytes()]
    assert not changed, f"other bits than recorded; if that is intended: python {WRITER.name}"
