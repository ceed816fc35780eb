"""`puna tokenize`: text to token ids, without loading weights."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from puna.entrypoints.console import print_json
from puna.errors import InvalidRequestError


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("text", metavar="TEXT")
@click.option(
    "--special/--no-special", default=True, show_default=True, help="Add the tokens that begin and end a text."
)
@click.option("--chat", is_flag=True, help="Apply the chat template to TEXT as a user's message first.")
@click.option("--chat-template", type=click.Path(path_type=Path), metavar="FILE", help="Use this template.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def tokenize(
    model: str, text: str, special: bool, chat: bool, chat_template: Path | None, revision: str | None, as_json: bool
) -> None:
    """Turn TEXT (- reads standard input) into the token ids of MODEL: one line per token, id and piece."""
    from puna.entrypoints.model_header import open_tokenizer
    from puna.errors import UnsupportedModelError

    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"standard input is not UTF-8 (byte {error.start})", param="TEXT") from error
    tokenizer = open_tokenizer(model, revision=revision, chat_template=chat_template)
    if chat:
        if tokenizer.chat_template is None:
            raise UnsupportedModelError("chat template", None, file=model, supported="a template of your own")
        text = tokenizer.chat_template.render([{"role": "user", "content": text}])
    ids = tokenizer.encode(text, add_special_tokens=special and not chat)
    tokens = [tokenizer.id_to_token(token) or "" for token in ids]
    if as_json:
        print_json({"ids": ids, "tokens": tokens})
        return
    for token, piece in zip(ids, tokens, strict=True):
        click.echo(f"{token}\t{piece!r}")
