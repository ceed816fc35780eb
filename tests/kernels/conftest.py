"""Says at the end of a run which variants the kernel tests could not run on this machine."""

from __future__ import annotations

import pytest

from puna import _native


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    supported = _native.supported_variants()
    missing = [name for name in _native.compiled_variants() if name not in supported]
    terminalreporter.write_line(f"kernel variants run: {', '.join(supported)}")
    if missing:
        terminalreporter.write_line(f"kernel variants that this machine cannot run: {', '.join(missing)}")
