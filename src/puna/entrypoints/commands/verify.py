"""`puna verify`: whether a model computes here what it should."""

from __future__ import annotations

from dataclasses import asdict

import click

from puna.entrypoints.commands.options import read_text_file
from puna.entrypoints.console import print_json, progress, tables


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--against", metavar="OTHER", help="The same model from elsewhere: another kind of file, another encoding."
)
@click.option(
    "--text", "text_file", metavar="FILE", help="What predictions are compared on.  [default: a built-in text]"
)
@click.option(
    "--tokens", type=click.IntRange(2, 4096), default=64, show_default=True, help="Most tokens of it that are read."
)
@click.option(
    "--max-kl",
    type=click.FloatRange(0, min_open=True),
    help="Mean divergence up to which predictions agree, in nats.  [default: by the encodings]",
)
@click.option("--revision", help="Branch, tag or commit of MODEL on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    model: str,
    against: str | None,
    text_file: str | None,
    tokens: int,
    max_kl: float | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """Check that MODEL computes here what it should: this install's kernels against NumPy on the model's own weights,
    layer by layer, and the kernels of every instruction set against each other.

    With --against, MODEL and OTHER are compared: numbers, tensors, tokenizer, template, and what both predict. Exit
    status 0: all agree; 1: something differs, and the first place is named.
    """
    from puna.entrypoints.model_header import open_header
    from puna.entrypoints.verification import DEFAULT_TEXT
    from puna.entrypoints.verification import verify as run

    text = DEFAULT_TEXT if text_file is None else read_text_file(text_file)
    with progress(quiet=as_json).status(f"reading {model}") as status:
        first = open_header(model, revision=revision, kv_cache_dtype="float32")
        second = None if against is None else open_header(against, kv_cache_dtype="float32")
        checks = list(
            run(first, second, text, tokens, max_kl=max_kl, on_check=lambda name: status.update(f"checking {name}"))
        )
    agrees = all(check.agrees for check in checks)
    if as_json:
        print_json(
            {"model": model, "against": against, "agrees": agrees, "checks": [asdict(check) for check in checks]}
        )
    else:
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(min_width=6)
        table.add_column(overflow="fold")
        for check in checks:
            table.add_row(check.name, "agrees" if check.agrees else "DIFFERS", check.detail)
        tables().print(table)
    if not agrees:
        click.get_current_context().exit(1)
