"""`puna show`: a model by its headers, and what it would take here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from puna.entrypoints.console import bytes_text, print_json, progress, tables

if TYPE_CHECKING:
    from rich.table import Table

    from puna.entrypoints.model_header import ModelHeader

_PROBE_S: Final = 2.0
_STEP_TOKENS: Final = 512


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--kv-cache-dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16", "int8"]),
    default="auto",
    show_default=True,
    help="Element type of cached keys and values; auto is float16.",
)
@click.option(
    "--probe/--no-probe", default=True, show_default=True, help="Measure this machine for the estimate of speed."
)
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(model: str, kv_cache_dtype: str, probe: bool, revision: str | None, as_json: bool) -> None:
    """Describe MODEL: family, numbers and where they come from, encodings, tokenizer, template, memory, likely speed.

    Only headers are read. The speed is what this machine's measured limits allow; kernels come near to it.
    """
    from puna.entrypoints.model_header import open_header, tokenizer_of
    from puna.models import find_model

    find_model(model, revision=revision)  # before the spinner: a download shows a progress bar of its own
    with progress(quiet=as_json).status(f"reading {model}"):
        header = open_header(model, revision=revision, kv_cache_dtype=kv_cache_dtype)
        tokenizer = tokenizer_of(header.config)
    report = _describe(header, tokenizer)
    if probe:
        with progress(quiet=as_json).status("measuring this machine"):
            report["speed"] = _estimate(header)
    if as_json:
        print_json(report)
    else:
        _print(report)


def _describe(header: ModelHeader, tokenizer: Any) -> dict[str, Any]:
    from puna.pipelines.kv_cache import machine_memory

    template = tokenizer.chat_template
    return {
        "model": header.name,
        "path": str(header.files.path),
        "format": header.files.kind,
        "architecture": header.architecture.name,
        "context_length": header.arch_config.max_seq_len,
        "parameters": sum(item.elements for item in header.stored_classes()),
        "knobs": [asdict(knob) for knob in header.knobs()],
        "encodings": [asdict(item) for item in header.stored_classes()],
        "tokenizer": {
            "kind": tokenizer.description,
            "vocab_size": tokenizer.vocab_size,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_ids": list(tokenizer.eos_token_ids),
        },
        "chat_template": None if template is None else template.source,
        "memory": asdict(header.memory(_STEP_TOKENS, machine_memory())),
        "speed": None,
    }


def _estimate(header: ModelHeader) -> dict[str, float]:
    from puna import _native

    limits = _native.measure_limits(_PROBE_S)
    return {name: round(value, 2) for name, value in asdict(header.speed(limits)).items()}


def _print(report: dict[str, Any]) -> None:
    console = tables()
    tokenizer, memory, speed = report["tokenizer"], report["memory"], report["speed"]
    console.print(
        _pairs(
            [
                ("model", report["model"]),
                ("path", report["path"]),
                ("architecture", f"{report['architecture']} ({report['format']})"),
                ("parameters", f"{report['parameters'] / 1e6:,.1f} million"),
                ("context", f"{report['context_length']:,} tokens"),
                ("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens"),
                ("ends with", ", ".join(map(str, tokenizer["eos_token_ids"])) or "nothing"),
                ("chat template", report["chat_template"] or "none"),
            ]
        )
    )
    console.print()
    knobs = _columns("NUMBER", "VALUE", "FROM")
    for knob in report["knobs"]:
        knobs.add_row(knob["name"], str(knob["value"]), knob["source"])
    console.print(knobs)
    costs = [knob for knob in report["knobs"] if knob["cost"] is not None]
    if costs:
        console.print()
        table = _columns("THIS MODEL SETS", "IGNORING IT")
        for knob in costs:
            table.add_row(f"{knob['name']} {_short(knob['value'])}", knob["cost"])
        console.print(table)
    console.print()
    encodings = _columns("TENSORS", "ENCODING", "COMPUTED AS", "COUNT", "SIZE")
    for item in report["encodings"]:
        names = (item["tensor_class"], item["encoding"], item["computed_as"])
        encodings.add_row(*names, str(item["tensors"]), bytes_text(item["size_bytes"]))
    console.print(encodings)
    console.print()
    rows = [
        ("weights", bytes_text(memory["weights"])),
        ("KV cache", f"{bytes_text(memory['kv_cache'])} ({bytes_text(memory['kv_cache_per_token'])} per token)"),
        ("activations", f"{bytes_text(memory['activations'])} in a step of {_STEP_TOKENS} tokens"),
        ("available", bytes_text(memory["available"])),
    ]
    if speed is not None:
        rows.append(("prompt", f"up to {speed['prompt_tokens_per_s']:,.0f} tokens/s"))
        rows.append(("text", f"up to {speed['generation_tokens_per_s']:,.1f} tokens/s ({speed['read_gbps']:.1f} GB/s)"))
    console.print(_pairs(rows))


def _short(value: Any) -> str:
    """A value for people: numbers to four digits, records by their kind, long lists by their length."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return str(value.get("kind", "")).removesuffix("Params")
    if isinstance(value, list):
        return ", ".join(map(str, value)) if len(value) <= 4 else f"of {len(value)}"
    return "" if value is True else str(value)


def _pairs(rows: list[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", min_width=14)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _columns(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="right" if heading in ("COUNT", "SIZE") else "left")
    return table
