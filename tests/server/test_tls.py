"""TLS: a certificate that is made here, and clients with and without one of their own."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from support.tiny_model import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")]


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    made, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


def test_tls_and_certificates_of_clients(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (mine, key), (theirs, their_key) = certificate(tmp_path, "server"), certificate(tmp_path, "client")
    command = [sys.executable, "-m", "puna.entrypoints.cli", "serve", str(model), "--port", "0", "--no-storage"]
    command += ["--ssl-certfile", str(mine), "--ssl-keyfile", str(key), "--ssl-ca-certs", str(theirs)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            line = next(line for line in running.stderr if "listening on" in line)
            url = line.partition("listening on ")[2].strip()
            assert url.startswith("https://127.0.0.1:")
            trusting = ssl.create_default_context(cafile=str(mine))
            with pytest.raises(httpx2.TransportError), httpx2.Client(verify=trusting) as bare:
                bare.get(f"{url}/health")
            with pytest.raises(httpx2.TransportError):
                httpx2.get(url.replace("https", "http") + "/health")
            trusting.load_cert_chain(theirs, their_key)
            with httpx2.Client(verify=trusting, base_url=url, timeout=30) as client:
                end = time.monotonic() + 60
                while client.get("/health").status_code != 200:
                    assert time.monotonic() < end and running.poll() is None
                    time.sleep(0.05)
                answer = client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 3, "temperature": 0})
                assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] >= 1
        finally:
            running.kill()
