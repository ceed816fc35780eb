"""Checks of a step's values: what shapes and types cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from puna.errors import InvalidRequestError

__all__ = ["check_logit_rows", "check_step"]

Array: TypeAlias = np.ndarray[Any, Any]


def check_logit_rows(offsets: Array, count: Array) -> int:
    """Rows that `gather_variable` returns: requests times n.

    Raises:
        InvalidRequestError: n is below 1, or a request has fewer than n rows in this step.
    """
    n = int(count[0])
    lengths = np.diff(offsets.astype(np.int64))
    if n < 1 or (lengths.size and n > int(lengths.min())):
        shortest = f"; the shortest request has {int(lengths.min())} rows" if lengths.size else ""
        raise InvalidRequestError(f"{n} rows per request cannot be returned{shortest}", param="return_n_logits")
    return n * int(lengths.size)


def check_step(inputs: Mapping[str, Array], vocab_size: int | None) -> None:
    """Check the inputs of a decoder as the native program does before it runs.

    Raises:
        ValueError: token ids outside the vocabulary; offsets that do not ascend from 0 to the number of tokens; a
            request without room in its blocks; a block id that does not exist. The message names the input.
    """
    tokens, offsets = inputs.get("tokens"), inputs.get("input_row_offsets")
    if tokens is None or offsets is None:
        return
    if vocab_size is not None and tokens.size and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        raise ValueError(f"tokens: ids must be within 0..{vocab_size - 1}, got {tokens.min()}..{tokens.max()}")
    rows = offsets.astype(np.int64)
    if rows[0] != 0 or rows[-1] != tokens.size or (np.diff(rows) < 0).any():
        raise ValueError(f"input_row_offsets: must ascend from 0 to {tokens.size}, got {rows.tolist()}")
    if "kv_blocks" not in inputs:
        return
    blocks, table = inputs["kv_blocks"], inputs["lookup_table"]
    totals = inputs["cache_lengths"].astype(np.int64) + np.diff(rows)
    for request, total in enumerate(totals.tolist()):
        pages = -(-total // blocks.shape[3])
        if pages > table.shape[1]:
            raise ValueError(f"lookup_table: request {request} needs {pages} blocks, the table has {table.shape[1]}")
        if pages and int(table[request, :pages].max()) >= blocks.shape[0]:
            raise ValueError(f"lookup_table: request {request} names a block of {blocks.shape[0]} that does not exist")
