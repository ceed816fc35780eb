"""Settings for all tests."""

from __future__ import annotations

import os
import signal

# Tests leave nothing in the user's cache; those about the cache give it a directory of their own.
os.environ["PUNA_CACHE_LIMIT"] = "0"

# Shells start what runs in the background with Ctrl-C ignored, and programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
