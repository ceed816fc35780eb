"""`puna schema-check`: what of a JSON schema is enforced."""

from __future__ import annotations

import click

from puna.entrypoints.commands.options import read_text_file
from puna.entrypoints.console import print_json, write_text
from puna.errors import InvalidRequestError


@click.command("schema-check")
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def schema_check(file: str, as_json: bool) -> None:
    """Say whether answers can be held to a JSON schema; FILE - is standard input.

    Ends with 0 if all of it is enforced, and with 2 if a part is not: the message names the JSON path. No model is
    loaded. docs/structured-output.md lists the keywords.
    """
    from puna.structured_output import GrammarCompiler, GrammarError, StructuredOutputsParams, byte_vocabulary
    from puna.structured_output.json_schema import check_schema

    text = read_text_file(file)
    try:
        params = StructuredOutputsParams(json=text, source=file)
        checked = check_schema(params.json)
        GrammarCompiler(byte_vocabulary).compile(params)
    except GrammarError as error:
        if not as_json:
            raise
        print_json({"enforced": False, "path": error.path, "reason": error.reason})
        raise click.exceptions.Exit(InvalidRequestError.exit_code) from error
    if as_json:
        print_json({"enforced": True, "keywords": list(checked.enforced), "annotations": list(checked.annotations)})
        return
    write_text(f"enforced: {', '.join(checked.enforced) or 'nothing, every value is accepted'}\n")
    if checked.annotations:
        write_text(f"read by people only: {', '.join(checked.annotations)}\n")
