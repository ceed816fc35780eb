"""What commands print, and how: data to standard output, the rest to standard error."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console

# C0 and C1 controls but for tab and newline: a terminal would take them as commands.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIPE_WIDTH: Final = 200  # nothing is folded in a pipe or a file
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def write_text(text: str) -> None:
    """Model output as it comes: unchanged into pipes and files, without control characters on a terminal."""
    sys.stdout.write(_CONTROLS.sub("", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(message: str) -> None:
    """A line for people, on standard error."""
    click.echo(message, err=True)


def warn(message: str) -> None:
    """A warning, on standard error."""
    click.echo(f"{click.style('warning', fg='yellow', bold=True)}: {message}", err=True)


def tables() -> Console:
    """A console for tables on standard output. Colours only on a terminal, never with `NO_COLOR`."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


class _Status:
    """What tells how far a command is, where nobody sees it: rich takes a while to import."""

    def __enter__(self) -> _Status:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, status: str) -> None:
        """Say what is done now."""


class _Silence:
    """A console that shows nothing."""

    def status(self, status: str) -> _Status:
        """Say what is done now."""
        return _Status()


def progress(quiet: bool = False) -> Console | _Silence:
    """A console for progress on standard error; silent unless that is a terminal."""
    if quiet or not sys.stderr.isatty():
        return _Silence()
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


@contextmanager
def progress_bar(label: str, total: int, wanted: bool | None = None) -> Iterator[Callable[[], None]]:
    """A bar on standard error and the function that moves it on by one.

    Args:
        label: What is being done.
        total: How often it will move.
        wanted: Whether it is shown; None: if standard error is a terminal and `total` is more than 1.
    """
    if not (wanted if wanted is not None else sys.stderr.isatty() and total > 1):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def bytes_text(count: float) -> str:
    """A size for people: `93.8 MiB`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
