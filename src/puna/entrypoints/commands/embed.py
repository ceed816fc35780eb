"""`puna embed`: texts as vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from puna.entrypoints.commands.options import adapter_option, engine_options, loading_options, read_text_file
from puna.entrypoints.console import print_json, progress, progress_bar
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from puna.entrypoints.llm import LLM
    from puna.pipelines.prompt_reading import Pooling

_TOGETHER: Final = 128  # texts that are in memory as tokens at once


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("-f", "--file", metavar="FILE", help="Further texts, one a line; - is standard input.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "last", "cls"]),
    default="mean",
    show_default=True,
    help="Mean over the tokens, the last token, or the first.",
)
@click.option("--layer", type=int, default=-1, show_default=True, help="Whose outputs; -1 is behind the final norm.")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Scale vectors to length 1.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="A .npy or .json file."
)
@adapter_option
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def embed(
    model: str,
    texts: tuple[str, ...],
    file: str | None,
    pooling: Pooling,
    layer: int,
    normalize: bool,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn texts into vectors: one JSON array a line, or with -o a float32 array [texts, dimensions] in a .npy file.

    With --json, and in a .json file, there is one object that says what was computed.
    """
    from puna.models import find_model

    everything = list(texts)
    if file is not None:
        everything += [line for line in read_text_file(file).split("\n") if line]
    if not everything:
        raise InvalidRequestError("at least one is needed, as an argument or by --file", param="TEXT")
    if output is not None and output.suffix not in (".npy", ".json"):
        raise InvalidRequestError(f"its name must end with .npy or .json, got {output.name}", param="output")
    find_model(model, revision=options["revision"])
    with progress(as_json).status(f"loading {model}"):
        from puna.entrypoints.llm import LLM

        llm = LLM(model, **engine_options(options))
    with llm:
        vectors = _vectors(llm, everything, pooling, normalize, layer, options["adapter"])
    about = {"model": model, "pooling": pooling, "layer": layer, "normalized": normalize}
    about["dimensions"] = vectors.shape[1]
    if as_json or (output is not None and output.suffix == ".json"):
        about["embeddings"] = vectors.tolist()
    if output is not None:
        _write(output, vectors, about)
    elif as_json:
        print_json(about)
    else:
        for vector in vectors.tolist():
            click.echo(json.dumps(vector))


def _vectors(
    llm: LLM, texts: list[str], pooling: Pooling, normalize: bool, layer: int, adapter: str | None
) -> npt.NDArray[np.float32]:
    import numpy as np

    parts = []
    with progress_bar("embedding", len(texts)) as tell:
        for first in range(0, len(texts), _TOGETHER):
            some = texts[first : first + _TOGETHER]
            parts.append(llm.embed(some, pooling=pooling, normalize=normalize, layer=layer, adapter=adapter))
            for _ in some:
                tell()
    return np.concatenate(parts)


def _write(path: Path, vectors: npt.NDArray[np.float32], about: dict[str, Any]) -> None:
    import numpy as np

    if path.suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, vectors)
    else:
        path.write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")
