"""Settings for all tests."""

from __future__ import annotations

import os

# Tests leave nothing in the user's cache; those about the cache give it a directory of their own.
os.environ["PUNA_CACHE_LIMIT"] = "0"
