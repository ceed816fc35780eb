"""Opens the store of a loaded model's prefixes: names everything that decides the bits of its pages."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puna import __version__, _native
from puna.engine import InferenceSession
from puna.errors import InvalidRequestError
from puna.pipelines.kv_cache import BlockStore, cache_identity

__all__ = ["open_prefix_store"]


def open_prefix_store(directory: Path, model: Any, session: InferenceSession, max_bytes: int) -> BlockStore:
    """The store for this model in `directory`; whatever was kept under other circumstances is not found.

    Args:
        directory: Made if it is not there.
        model: The loaded pipeline model.
        session: What it was loaded with.
        max_bytes: Most bytes of all files in the directory.

    Raises:
        InvalidRequestError: Prefixes are not cached at all, or the directory cannot be used.
    """
    params = model.kv_params
    if not params.enable_prefix_caching:
        raise InvalidRequestError("needs enable_prefix_caching", param="prefix_cache_dir")
    spec = model.config.decoder_spec()
    kernels = Path(str(_native.__file__)).read_bytes()
    identity = cache_identity(
        weights=model.model.report.content_id,
        # The cache's own facts follow below; its devices decide nothing.
        architecture=[(f.name, _text(getattr(spec, f.name))) for f in fields(spec) if f.name != "kv_params"],
        puna=__version__,
        kernels=hashlib.blake2b(kernels, digest_size=16).hexdigest(),
        variant=session.variant,
        precision=session.precision,
        dtype=params.dtype,
        shape=params.shape_per_block,
        scales=params.kvcache_quant_config,
        byte_order=sys.byteorder,
    )
    return BlockStore(directory, identity, max_bytes=max_bytes)


def _text(value: object) -> str:
    """A value as text, the same in every process, to the last bit."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = [f"{f.name}={_text(getattr(value, f.name))}" for f in fields(value)]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tobytes().hex()}"
    if isinstance(value, frozenset | set):
        return f"{{{', '.join(sorted(map(_text, value)))}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)
