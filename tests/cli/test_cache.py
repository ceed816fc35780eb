"""`puna cache`, and loading with and without it."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from puna.engine.packed_cache import PackedCache
from puna.entrypoints.cli import run
from puna.entrypoints.llm import LLM
from support.tiny_model import write_tiny_model

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "cache.json").read_text())


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PUNA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PUNA_CACHE_LIMIT", "1G")
    small = functools.partial(PackedCache, min_bytes=0)
    monkeypatch.setattr("puna.entrypoints.weight_cache.PackedCache", small)
    return tmp_path / "cache" / "packed"


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(write_tiny_model(tmp_path / "tiny"))


def join_writers() -> None:
    for thread in threading.enumerate():
        if thread.name == "puna-weight-cache":
            thread.join()


def puna(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(arguments)
    join_writers()
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def checked(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    status, out, err = puna(capfd, "cache", *arguments, "--json")
    assert status == 0, err
    value = json.loads(out)
    jsonschema.validate(value, SCHEMA)
    return value


def test_a_model_is_kept_shown_checked_and_deleted(
    capfd: pytest.CaptureFixture[str], tiny: str, directory: Path
) -> None:
    generate = ("generate", tiny, "-p", "Hello", "-n", "4", "--quiet")
    assert checked(capfd, "show") == {"directory": str(directory), "limit_bytes": 1 << 30, "bytes": 0, "entries": []}
    texts = {puna(capfd, *generate, "--no-weight-cache")[1]}
    assert not directory.exists()
    texts |= {puna(capfd, *generate)[1] for _ in range(2)}
    assert len(texts) == 1
    shown = checked(capfd, "show")
    [entry] = shown["entries"]
    assert entry["sources"] == [str(Path(tiny) / "model.safetensors")]
    assert shown["bytes"] == entry["bytes"] == Path(entry["path"]).stat().st_size
    status, out, err = puna(capfd, "cache", "show")
    assert status == 0 and entry["content_id"][:12] in out and "1.0 GiB" in err
    assert checked(capfd, "check") == {"checked": 1, "deleted": []}
    assert checked(capfd, "clear") == {"bytes": entry["bytes"]}
    assert list(directory.iterdir()) == []


def test_check_deletes_what_is_damaged(capfd: pytest.CaptureFixture[str], tiny: str, directory: Path) -> None:
    puna(capfd, "generate", tiny, "-p", "Hello", "-n", "1")
    [path] = directory.glob("*.packed")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    assert checked(capfd, "check") == {"checked": 1, "deleted": [path.name]}
    assert not path.exists()
    path.write_bytes(b"nonsense")
    assert [entry["is_usable"] for entry in checked(capfd, "show")["entries"]] == [False]
    status, out, err = puna(capfd, "cache", "show")
    assert status == 0 and "not usable" in out
    status, out, err = puna(capfd, "cache", "check")
    assert status == 0 and path.name in out and "1 damaged" in err


def test_a_load_says_what_it_mapped(tiny: str) -> None:
    reports = []
    for _ in range(2):
        reports.append(LLM(tiny).model.model.report)
        join_writers()
    alone = LLM(tiny, enable_weight_cache=False).model.model.report
    assert [report.mapped_bytes for report in (*reports, alone)] == [0, alone.packed_bytes, 0]
    assert len({report.content_id for report in (*reports, alone)}) == 1


@pytest.mark.parametrize(("text", "limit"), [("0", 0), ("12345", 12345), ("20G", 20 << 30), ("1.5 MiB", 3 << 19)])
def test_limits(
    text: str, limit: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUNA_CACHE_LIMIT", text)
    assert checked(capfd, "show")["limit_bytes"] == limit


@pytest.mark.parametrize("text", ["much", "-1", "20X", "G"])
def test_what_is_no_limit(text: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_CACHE_LIMIT", text)
    status, out, err = puna(capfd, "cache", "show")
    assert (status, out) == (2, "")
    assert "PUNA_CACHE_LIMIT" in err and repr(text) in err
