"""`puna doctor`: what was found out about this machine."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any, Final

import click

from puna import __version__
from puna.entrypoints.console import bytes_text, print_json, progress, tables

_PROBE_S: Final = 2.0
_SETTINGS: Final = (
    *("PUNA_VARIANT", "PUNA_CACHE_DIR", "PUNA_CACHE_LIMIT", "XDG_CACHE_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
)


@click.command()
@click.option("--probe/--no-probe", default=True, show_default=True, help="Measure memory and arithmetic (2 s).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(probe: bool, as_json: bool) -> None:
    """Tell what was found out about this machine: cores, quota, memory, instruction sets, speed."""
    from puna import _native
    from puna.entrypoints.llm import kernel_variant
    from puna.models import packaged
    from puna.pipelines.kv_cache import machine_memory

    cpu = _native.cpu_info()
    memory = machine_memory()
    limits: dict[str, float] | None = None
    if probe:
        with progress(quiet=as_json).status("measuring"):
            limits = _native.measure_limits(_PROBE_S)
    report: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "cpu": {
            "vendor": cpu["vendor"],
            "model": cpu["model"],
            "features": list(cpu["features"]),
            "affinity_cores": len(cpu["affinity"]),
            "physical_cores": cpu["physical_cores"],
            "quota_cores": cpu["cpu_quota"],
            "threads": cpu["default_threads"],
        },
        "memory": {
            "total_bytes": memory.total,
            "available_bytes": memory.available,
            "limited_by": memory.limited_by,
        },
        "variants": {
            "used": kernel_variant(),
            "runnable": _native.supported_variants(),
            "compiled": _native.compiled_variants(),
        },
        "limits": None if limits is None else {name: round(value, 2) for name, value in limits.items()},
        "cache": str(packaged.cache_directory()),
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }
    if as_json:
        print_json(report)
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    cpu, memory, variants, limits = (report[key] for key in ("cpu", "memory", "variants", "limits"))
    quota = f", quota of {cpu['quota_cores']:g} cores" if cpu["quota_cores"] else ""
    rows = [
        ("puna", f"{report['version']} on Python {report['python']}, {report['platform']}"),
        ("processor", f"{cpu['model']} ({cpu['vendor']})"),
        ("features", " ".join(cpu["features"])),
        ("cores", f"{cpu['affinity_cores']} usable, {cpu['physical_cores']} physical{quota}: {cpu['threads']} threads"),
        ("memory", f"{bytes_text(memory['available_bytes'])} of {bytes_text(memory['total_bytes'])} available"),
        ("limited by", memory["limited_by"]),
        ("kernels", f"{variants['used']} (runnable: {', '.join(variants['runnable'])})"),
    ]
    if limits is not None:
        rows.append(("bandwidth", f"{limits['read_gbps']:.1f} GB/s"))
        rows.append(("arithmetic", f"{limits['f32_gflops']:.0f} GFLOP/s float32, {limits['int8_gops']:.0f} GOP/s int8"))
    rows.append(("cache", report["cache"]))
    rows += [(name, value) for name, value in report["settings"].items()]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    tables().print(table)
