"""`puna cache`: packed weights that are kept for later starts."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from puna.entrypoints.console import bytes_text, note, print_json, progress, tables
from puna.errors import WeightsError

if TYPE_CHECKING:
    from puna.engine.packed_cache import CacheEntry, PackedFile


@click.group()
def cache() -> None:
    """Look after the weights that are kept on disk in the form that kernels read.

    They are made when a model is first loaded and mapped by later starts. PUNA_CACHE_DIR says where Puna keeps things,
    PUNA_CACHE_LIMIT how much of this there may be (20G, 500M; 0 for none).
    """


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(as_json: bool) -> None:
    """List what is kept, what was used last first."""
    from puna.entrypoints.weight_cache import weight_cache

    kept = weight_cache()
    entries = [(entry, _opened(entry)) for entry in kept.entries()]
    total = sum(entry.nbytes for entry, _ in entries)
    if as_json:
        rows = [_row(entry, file) for entry, file in entries]
        print_json(
            {"directory": str(kept.directory), "limit_bytes": kept.limit_bytes, "bytes": total, "entries": rows}
        )
        return
    note(f"{kept.directory}: {bytes_text(total)} of {bytes_text(kept.limit_bytes)}")
    if not entries:
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("ID", "SIZE", "USED", "FROM"):
        table.add_column(
            heading, overflow="fold", no_wrap=heading != "FROM", justify="right" if heading == "SIZE" else "left"
        )
    for entry, file in entries:
        used = datetime.fromtimestamp(entry.used).astimezone().strftime("%Y-%m-%d %H:%M")
        sources = "not usable" if file is None else " ".join(file.sources)
        table.add_row(entry.path.name[:12], bytes_text(entry.nbytes), used, sources)
    tables().print(table)


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def clear(as_json: bool) -> None:
    """Delete all of it. Processes that run keep what they have mapped."""
    from puna.entrypoints.weight_cache import weight_cache

    freed = weight_cache().clear()
    if as_json:
        print_json({"bytes": freed})
    else:
        note(f"{bytes_text(freed)} freed")


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(as_json: bool) -> None:
    """Read all of it and delete what is damaged. Starts check only what costs them no time."""
    from puna.entrypoints.weight_cache import weight_cache

    damaged = []
    entries = weight_cache().entries()
    with progress(as_json).status("checking"):
        for entry in entries:
            file = _opened(entry)
            if file is None or any(file.damaged_weights()):
                entry.path.unlink(missing_ok=True)
                damaged.append(entry.path.name)
    if as_json:
        print_json({"checked": len(entries), "deleted": damaged})
        return
    note(f"{len(entries)} checked, {len(damaged)} damaged and deleted")
    for name in damaged:
        click.echo(name)


def _opened(entry: CacheEntry) -> PackedFile | None:
    from puna.engine.packed_cache import PackedFile

    try:
        return PackedFile(entry.path)
    except (WeightsError, OSError):
        return None


def _row(entry: CacheEntry, file: PackedFile | None) -> dict[str, Any]:
    return {
        "path": str(entry.path),
        "bytes": entry.nbytes,
        "used": datetime.fromtimestamp(entry.used).astimezone().isoformat(timespec="seconds"),
        "is_usable": file is not None,
        "content_id": None if file is None else file.content_id,
        "layout": None if file is None else file.layout,
        "sources": [] if file is None else list(file.sources),
    }
