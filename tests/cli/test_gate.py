"""The gate against slower kernels: what it compares, and that it catches one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gate
from gate import ATTEMPTS, TOLERANCE, Rates, compare, slower
from puna import _native

EXPECTED = {"Q4_K/1": 0.2, "Q4_K/64": 0.5, "BF16/64": 0.9}
GOOD = Rates({"Q4_K/1": 200.0, "Q4_K/64": 500.0, "BF16/64": 90.0}, {"f32": 100.0, "a8": 1000.0})


def test_shares_are_of_the_loop_with_the_same_arithmetic() -> None:
    assert GOOD.shares() == EXPECTED
    assert not slower(GOOD.shares(), EXPECTED)


def test_a_slowed_kernel_is_caught_and_named() -> None:
    slow = Rates({**GOOD.kernels, "Q4_K/64": 500.0 * (1 - TOLERANCE) - 1}, GOOD.peaks)
    (sentence,) = compare(lambda: slow, EXPECTED)
    assert sentence == "Q4_K/64: 43.9% of the calibration loop, 50.0% expected"
    del slow.kernels["BF16/64"]
    assert len(slower(slow.shares(), EXPECTED)) == 2  # one that is gone is no faster


def test_what_is_slow_once_is_measured_again() -> None:
    """A process that takes the core away slows one measurement; a kernel that became slower is so in all."""
    disturbed = Rates({**GOOD.kernels, "Q4_K/1": 100.0}, GOOD.peaks)
    also_disturbed = Rates({**GOOD.kernels, "BF16/64": 10.0}, GOOD.peaks)
    turns = [disturbed, also_disturbed, GOOD]
    assert compare(lambda: turns.pop(0), EXPECTED) == [] and len(turns) == 1
    count = 0

    def measured() -> Rates:
        nonlocal count
        count += 1
        return disturbed

    assert len(compare(measured, EXPECTED)) == 1 and count == ATTEMPTS


def test_a_slow_clock_changes_no_share() -> None:
    halved = Rates(*({name: rate / 2 for name, rate in part.items()} for part in GOOD))
    assert compare(lambda: halved, EXPECTED) == []


def test_real_kernels_are_measured_and_twice_their_speed_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "FORMATS", ("Q4_0", "BF16"))
    monkeypatch.setattr(gate, "ROW_COUNTS", (8,))
    monkeypatch.setattr(gate, "_ROUNDS", 3)
    shares = gate.measure(_native.default_variant()).shares()
    assert set(shares) == {"Q4_0/8", "BF16/8"} and all(0.01 < share < 4 for share in shares.values())
    assert len(slower(shares, {name: 2 * share for name, share in shares.items()})) == 2


def test_an_unknown_processor_passes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gate, "processor", lambda: "a processor of the future")
    monkeypatch.setattr("sys.argv", ["gate.py"])
    assert gate.main() == 0 and "nothing to compare with" in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.3, 1)])
def test_a_known_processor_fails_if_a_kernel_is_slower(
    factor: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {**EXPECTED, "Q4_K/1": EXPECTED["Q4_K/1"] * factor}
    (tmp_path / "gate.json").write_text(json.dumps({"this, avx2": expected}))
    monkeypatch.setattr(gate, "BASELINE", tmp_path / "gate.json")
    monkeypatch.setattr(gate, "processor", lambda: "this")
    monkeypatch.setattr(gate, "_measure_apart", lambda _variant: GOOD)
    monkeypatch.setattr(_native, "supported_variants", lambda: ["scalar", "avx2"])
    monkeypatch.setattr("sys.argv", ["gate.py"])
    assert gate.main() == status
    assert ("this, avx2: Q4_K/1: 20.0%" in capsys.readouterr().out) == bool(status)
    monkeypatch.setattr("sys.argv", ["gate.py", "--update"])
    assert gate.main() == 0 and json.loads((tmp_path / "gate.json").read_text()) == {"this, avx2": EXPECTED}
