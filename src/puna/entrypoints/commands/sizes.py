"""`SIZE`: the type of options that are numbers of bytes."""

from __future__ import annotations

from typing import Any, Final

import click

_SIZES: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class _Size(click.ParamType[int]):
    """Bytes: 1048576, 1M, 1MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().lower().removesuffix("b").removesuffix("i")
        factor = _SIZES.get(text[-1:], 1)
        try:
            return int(float(text.rstrip("kmgt")) * factor)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no number of bytes; write 1048576, 1M or 2G", param, ctx)


SIZE: Final = _Size()
