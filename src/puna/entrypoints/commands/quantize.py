"""`puna quantize`: a model as a quantized GGUF file."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.entrypoints.commands.options import read_text_file, require_output
from puna.entrypoints.console import bytes_text, note, print_json, progress, progress_bar, warn
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.conversion import Importance, QuantizedTensors


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("out", metavar="OUT.gguf", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--to", "recipe", required=True, metavar="RECIPE", help="Q4_K_M and the like; docs/quantize.md has all.")
@click.option(
    "--tensor-type",
    "overrides",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Give tensors whose name holds the regular expression PATTERN the format TYPE; may be repeated, and the first "
    "that fits counts.",
)
@click.option("--token-embedding-type", metavar="TYPE", help="The embedding's format.  [default: as the recipe says]")
@click.option("--output-tensor-type", metavar="TYPE", help="The output matrix's format.  [default: as the recipe says]")
@click.option("--pure", is_flag=True, help="Give every matrix the recipe's own format.")
@click.option(
    "--importance",
    "importance_file",
    metavar="FILE",
    help="A text that the model reads first: errors in columns that it uses more count more.",
)
@click.option("--allow-requantize", is_flag=True, help="Quantize what is quantized already, at a loss.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads to use.  [default: all that may be used]")
@click.option("--force", is_flag=True, help="Replace OUT.gguf if it exists.")
@click.option("--dry-run", is_flag=True, help="Only tell what every tensor would become.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def quantize(
    model: str,
    out: Path,
    recipe: str,
    overrides: tuple[str, ...],
    token_embedding_type: str | None,
    output_tensor_type: str | None,
    pure: bool,
    importance_file: str | None,
    allow_requantize: bool,
    threads: int | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write MODEL, a GGUF file or a directory in Hugging Face layout, quantized as OUT.gguf.

    A recipe says which format each tensor gets, as llama.cpp's of the same name does. Tensors whose rows are no whole
    number of a format's blocks get another one, and are listed. Tensors pass piece by piece; OUT.gguf appears when all
    of it is on the disk.
    """
    from puna.conversion import open_checkpoint, options_for, quantized_tensors, write_gguf
    from puna.graph.quantization import fallback_sentence, recipe_of, target_format

    chosen = recipe_of(recipe, "--to")
    patterns = tuple(_override(text) for text in overrides)
    embedding = target_format(token_embedding_type, "--token-embedding-type") if token_embedding_type else None
    head = target_format(output_tensor_type, "--output-tensor-type") if output_tensor_type else None
    if out.suffix != ".gguf":
        raise InvalidRequestError("a name that ends in .gguf is expected", param=str(out))
    with progress(quiet=as_json).status(f"reading {model}"):
        checkpoint = open_checkpoint(model)
    require_output(out, checkpoint.files.weight_paths, may_replace=force or dry_run)
    options = options_for(
        checkpoint,
        chosen,
        overrides=patterns,
        token_embedding_format=embedding,
        output_format=head,
        is_pure=pure,
        has_importance=importance_file is not None,
        may_requantize=allow_requantize,
    )
    result = quantized_tensors(checkpoint, options, threads=threads)  # what is refused is so before a text is read
    if not dry_run:
        if importance_file is not None:
            importance = _importance(model, importance_file, as_json)
            result = quantized_tensors(checkpoint, options, importance, threads)
        with progress_bar("tensors", len(result.tensors), wanted=False if as_json else None) as advance:
            write_gguf(
                out,
                result.metadata,
                result.tensors,
                overwrite=force,
                progress=lambda name, done, total: advance() if done else None,
            )
    notes = [*checkpoint.notes, *filter(None, [fallback_sentence(result.choices)])]
    _tell(result, out, chosen.name, notes, is_written=not dry_run, as_json=as_json)


def _override(text: str) -> tuple[re.Pattern[str], str]:
    from puna.graph.quantization import target_format

    pattern, separator, name = text.rpartition("=")
    if not separator or not pattern:
        raise InvalidRequestError(f"{text!r} is not of the form PATTERN=TYPE", param="--tensor-type")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InvalidRequestError(f"{pattern!r} is no regular expression: {error}", param="--tensor-type") from error
    return compiled, target_format(name, "--tensor-type")


def _importance(model: str, file: str, quiet: bool) -> Importance:
    from puna.entrypoints.importance import measure_importance

    text = read_text_file(file)
    with progress(quiet).status(f"reading {file}"):
        return measure_importance(model, text)


def _tell(
    result: QuantizedTensors, out: Path, recipe: str, notes: list[str], *, is_written: bool, as_json: bool
) -> None:
    before = sum(_bytes(choice.outline.shape, choice.outline.format) for choice in result.choices)
    after = sum(tensor.nbytes for tensor in result.tensors)
    if as_json:
        report: dict[str, Any] = {
            "path": str(out),
            "recipe": recipe,
            "is_written": is_written,
            "source_bytes": before,
            "tensor_bytes": after,
            "tensors": [
                {
                    "name": choice.outline.name,
                    "shape": list(choice.outline.shape),
                    "from": choice.outline.format,
                    "to": choice.format,
                    "wanted": choice.wanted or choice.format,
                }
                for choice in result.choices
            ],
            "notes": notes,
        }
        print_json(report)
        return
    if not is_written:
        for choice in result.choices:
            shape = " × ".join(map(str, choice.outline.shape))
            instead = f" (instead of {choice.wanted})" if choice.wanted else ""
            click.echo(f"{choice.outline.name}  {shape}  {choice.outline.format} → {choice.format}{instead}")
    for sentence in notes:
        warn(sentence)
    counts = Counter(choice.format for choice in result.choices)
    formats = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    note(f"{out}: {formats}; {bytes_text(before)} → {bytes_text(after)}")


def _bytes(shape: tuple[int, ...], format: str) -> int:
    from puna.conversion import EncodedTensor

    return EncodedTensor("", shape, format, lambda: ()).nbytes
