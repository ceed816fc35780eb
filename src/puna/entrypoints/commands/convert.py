"""`puna convert`: a checkpoint in Hugging Face layout as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import click

from puna.entrypoints.console import bytes_text, note, print_json, progress, progress_bar, warn

_FORMATS = ("F32", "F16", "BF16")


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("out", metavar="OUT.gguf", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--to",
    "encoding",
    type=click.Choice(["auto", *_FORMATS], case_sensitive=False),
    default="auto",
    show_default=True,
    help="How matrices are stored; auto is what the checkpoint has. Vectors are F32.",
)
@click.option("--force", is_flag=True, help="Replace OUT.gguf if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(model: str, out: Path, encoding: str, force: bool, as_json: bool) -> None:
    """Write MODEL, a directory in Hugging Face layout, as OUT.gguf.

    Tensors pass one by one. What the file says of the model and of its tokenizer is read back and compared before it is
    written; what GGUF cannot say is refused by name, or told as a warning where it touches only special tokens. For
    quantized files see puna quantize.
    """
    from puna.conversion import file_type, float_tensors, most_stored, open_checkpoint, write_gguf
    from puna.errors import InvalidRequestError

    if out.suffix != ".gguf":
        raise InvalidRequestError("a name that ends in .gguf is expected", param=str(out))
    if out.exists() and not force:
        raise InvalidRequestError("exists; --force replaces it", param=str(out))
    with progress(quiet=as_json).status(f"reading {model}"):
        checkpoint = open_checkpoint(model)
    chosen = most_stored(checkpoint.tensors) if encoding == "auto" else encoding.upper()
    tensors = float_tensors(checkpoint.tensors, chosen)
    with progress_bar("tensors", len(tensors), wanted=False if as_json else None) as advance:
        write_gguf(
            out,
            {**checkpoint.metadata, "general.file_type": file_type(chosen)},
            tensors,
            overwrite=force,
            progress=lambda name, done, total: advance() if done else None,
        )
    for sentence in checkpoint.notes:
        warn(sentence)
    report = {
        "path": str(out),
        "architecture": checkpoint.architecture,
        "encoding": chosen,
        "tensors": len(tensors),
        "size_bytes": out.stat().st_size,
        "notes": list(checkpoint.notes),
    }
    if as_json:
        print_json(report)
    else:
        note(f"{out}: {checkpoint.architecture}, {len(tensors)} tensors, {chosen}, {bytes_text(out.stat().st_size)}")
