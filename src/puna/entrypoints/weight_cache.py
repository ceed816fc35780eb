"""Where packed weights are kept, as the environment says."""

from __future__ import annotations

import os
import re
from typing import Final

from puna.engine.packed_cache import PackedCache
from puna.errors import InvalidRequestError
from puna.models import cache_directory

__all__ = ["weight_cache"]

_LIMIT_VARIABLE: Final = "PUNA_CACHE_LIMIT"
_DEFAULT_LIMIT: Final = 32 << 30
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_FACTORS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def weight_cache() -> PackedCache:
    """The cache of packed weights: `packed` in Puna's cache directory, at most `PUNA_CACHE_LIMIT` bytes (32 GiB).

    Raises:
        InvalidRequestError: `PUNA_CACHE_LIMIT` is no size.
    """
    return PackedCache(cache_directory() / "packed", _limit_bytes())


def _limit_bytes() -> int:
    text = os.environ.get(_LIMIT_VARIABLE, "").strip()
    if not text:
        return _DEFAULT_LIMIT
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequestError(f"{text!r} is no size such as 20G or 500M (0: no cache)", param=_LIMIT_VARIABLE)
    return int(float(match[1]) * _FACTORS[match[2].upper()])
