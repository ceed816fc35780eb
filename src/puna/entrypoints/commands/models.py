"""`puna list`, `puna pull`, `puna rm`."""

from __future__ import annotations

import click

from puna.entrypoints.console import bytes_text, note, print_json, tables


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_command(as_json: bool) -> None:
    """List the models that were fetched: the default one, and those in the hub's cache."""
    from puna.models import DEFAULT_MODEL, list_models

    models = list_models()
    if as_json:
        print_json(
            {
                "models": [
                    {
                        "name": model.name,
                        "kind": model.kind,
                        "path": str(model.path),
                        "bytes": model.size_bytes,
                        "source": model.source,
                    }
                    for model in models
                ]
            }
        )
        return
    if not models:
        note(f"no model was fetched yet; `puna pull {DEFAULT_MODEL}` fetches the default one")
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAME", "KIND", "SIZE", "PATH"):
        table.add_column(
            heading, overflow="fold", no_wrap=heading != "PATH", justify="right" if heading == "SIZE" else "left"
        )
    for model in models:
        table.add_row(model.name, model.kind, bytes_text(model.size_bytes), str(model.path))
    tables().print(table)


@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(name: str, revision: str | None, as_json: bool) -> None:
    """Fetch MODEL, or bring its copy up to date; prints where it is."""
    from puna.models import pull_model

    found = pull_model(name, revision=revision)
    if as_json:
        print_json({"name": found.name, "kind": found.kind, "path": str(found.path), "bytes": found.size_bytes})
    else:
        click.echo(str(found.path))


@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rm(name: str, revision: str | None, as_json: bool) -> None:
    """Delete a fetched MODEL from the cache that it is in. Files of your own are never touched."""
    from puna.models import remove_model

    removed = remove_model(name, revision=revision)
    if as_json:
        print_json({"name": removed.name, "bytes": removed.size_bytes})
    else:
        note(f"{removed.name}: {bytes_text(removed.size_bytes)} freed")
