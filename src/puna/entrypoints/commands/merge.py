"""`puna merge`: a model with an adapter in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.entrypoints.commands.options import require_output
from puna.entrypoints.console import bytes_text, note, print_json, progress, progress_bar, warn
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.conversion import Checkpoint, EncodedTensor, MetadataValue


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("adapter", metavar="ADAPTER", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", "recipe", metavar="RECIPE", help="Quantize all of OUT.gguf, as puna quantize does.")
@click.option("--allow-requantize", is_flag=True, help="Let --to quantize what is quantized already, at a loss.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads to use.  [default: all that may be used]")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def merge(
    model: str,
    adapter: Path,
    out: Path,
    recipe: str | None,
    allow_requantize: bool,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL with ADAPTER in its weights as OUT: W + scale · B A, added in floats and rounded once.

    ADAPTER is a directory in PEFT's layout, or a GGUF file of llama.cpp's. OUT.gguf is a GGUF file; any other OUT is a
    directory in Hugging Face layout, for which MODEL is one too. Tensors that the adapter updates are stored in the
    format that they had, all others are the same bytes. OUT appears when all of it is on the disk.
    """
    from puna.models import find_model

    if out.suffix != ".gguf" and (recipe is not None or allow_requantize):
        option = "--to" if recipe is not None else "--allow-requantize"
        raise InvalidRequestError("is for OUT.gguf; a directory keeps the dtypes of the model", param=option)
    if allow_requantize and recipe is None:
        raise InvalidRequestError("is for --to RECIPE", param="--allow-requantize")
    if out.suffix == ".gguf":
        report = _write_gguf(model, adapter, out, recipe, allow_requantize, threads, force, as_json)
    else:
        from puna.conversion import write_merged_directory

        files = find_model(model)
        with progress_bar("files", len(files.weight_paths), wanted=False if as_json else None) as advance:
            merged = write_merged_directory(
                files, adapter, out, overwrite=force, progress=lambda name: advance(), threads=threads
            )
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        report = {"merged": merged, "size_bytes": size, "notes": []}
    if as_json:
        print_json({"path": str(out), **report})
        return
    for sentence in report["notes"]:
        warn(sentence)
    note(f"{out}: {len(report['merged'])} tensors updated, {bytes_text(report['size_bytes'])}")


def _write_gguf(
    model: str,
    adapter: Path,
    out: Path,
    recipe: str | None,
    allow_requantize: bool,
    threads: int | None,
    force: bool,
    quiet: bool,
) -> dict[str, Any]:
    from puna.conversion import merged_checkpoint, open_checkpoint, options_for, quantized_tensors, write_gguf
    from puna.graph.quantization import fallback_sentence, recipe_of

    chosen = None if recipe is None else recipe_of(recipe, "--to")
    with progress(quiet).status(f"reading {model}"):
        checkpoint = open_checkpoint(model)
    require_output(out, checkpoint.files.weight_paths, may_replace=force)
    if out.is_dir() or (out.exists() and adapter.exists() and out.samefile(adapter)):
        reason = "is a directory" if out.is_dir() else "is the adapter itself"
        raise InvalidRequestError(f"{reason}; name another file", param=str(out))
    changed, merged = merged_checkpoint(checkpoint, adapter)
    notes = list(checkpoint.notes)
    if chosen is None:
        metadata, tensors = _in_own_formats(checkpoint, changed, threads)
    else:
        options = options_for(checkpoint, chosen, may_requantize=allow_requantize)
        quantized_tensors(checkpoint, options)  # what may not be quantized again is refused as it is stored
        result = quantized_tensors(changed, options, threads=threads)
        metadata, tensors = result.metadata, result.tensors
        notes += filter(None, [fallback_sentence(result.choices)])
    with progress_bar("tensors", len(tensors), wanted=False if quiet else None) as advance:
        write_gguf(
            out, metadata, tensors, overwrite=force, progress=lambda name, done, total: advance() if done else None
        )
    return {"merged": merged, "size_bytes": out.stat().st_size, "notes": notes}


def _in_own_formats(
    checkpoint: Checkpoint, changed: Checkpoint, threads: int | None
) -> tuple[dict[str, MetadataValue], list[EncodedTensor]]:
    """Keys and tensors of a file in the formats that they had; from a directory as puna convert does."""
    from puna.conversion import file_type, float_tensors, merged_tensors, most_stored

    if checkpoint.files.kind == "gguf":
        return {**changed.metadata, **changed.stored_as}, merged_tensors(checkpoint, changed, threads)
    format = most_stored(checkpoint.tensors)
    return {**changed.metadata, "general.file_type": file_type(format)}, float_tensors(changed.tensors, format)
