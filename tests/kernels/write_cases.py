"""Writes the recorded kernel cases: `python tests/kernels/write_cases.py [DIRECTORY]`.

Operands come from fixed seeds. Results are NumPy's by the rules that the kernels document, or the `gguf` package's; for
the exponential function, attention and whole programs they are the scalar variant's, which test_cases.py compares with
float64. puna_replay then asks every variant, sanitizers and emulated machines for the same bits.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support.case_recorder import write_calls
from support.kernel_cases import FILES
from support.program_cases import PROGRAMS

CASES = Path(__file__).parent / "cases"


def write_all(directory: Path) -> None:
    """Write every file."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, calls in FILES.items():
        write_calls(directory / f"{name}.case", calls())
    for name, write in PROGRAMS.items():
        write("scalar", directory / f"{name}.case")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]) if len(sys.argv) > 1 else CASES)
