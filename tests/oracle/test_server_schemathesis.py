"""schemathesis against the OpenAPI document: whatever is sent, the answer is one that the document names."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.serving import serving
from support.tiny_model import write_tiny_model

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.oracle

EXAMPLES = 60  # of each operation, of each kind


def test_nothing_that_is_sent_is_answered_otherwise_than_documented(tmp_path: Path) -> None:
    import subprocess
    import sys

    limits = {"max_output_tokens": 8, "request_timeout_s": 5.0, "max_choices": 16}
    engine = {"max_num_seqs": 16, "max_model_len": 128}
    with serving(write_tiny_model(tmp_path), engine=engine, limits=limits, storage_dir=tmp_path / "state") as served:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        checks += ",negative_data_rejection"
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"]
        command += ["--checks", checks, "--max-examples", str(EXAMPLES), "--seed", "1", "--workers", "2"]
        command += ["--phases", "examples,coverage,fuzzing", "--request-timeout", "30", "--continue-on-failure"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:]
        served.wait(lambda: served.used_blocks() == 0)
