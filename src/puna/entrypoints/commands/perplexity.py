"""`puna perplexity`: how well a model foresees a text."""

from __future__ import annotations

import math
import time
from typing import Any

import click

from puna.entrypoints.commands.options import adapter_option, engine_options, loading_options, read_text_file
from puna.entrypoints.console import note, print_json, progress


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("file", metavar="FILE")
@click.option("--window", type=int, help="Tokens that are read together.  [default: the context]")
@click.option("--stride", type=int, help="Tokens that a window goes on by.  [default: half a window]")
@adapter_option
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def perplexity(
    model: str, file: str, window: int | None, stride: int | None, as_json: bool, **options: Any
) -> None:
    """Tell how well a model foresees the text in FILE (- is standard input): exp of the mean negative log-probability.

    Each token but the first counts once. One behind the first window has at least window - stride tokens before it.
    """
    from puna.models import find_model

    text = read_text_file(file)
    find_model(model, revision=options["revision"])
    with progress(as_json).status(f"loading {model}"):
        from puna.entrypoints.llm import LLM

        llm = LLM(model, **engine_options(options))
    with llm:
        width = llm.max_model_len if window is None else window
        begin = time.perf_counter()
        shows_progress = False if as_json else None
        values = llm.token_logprobs(
            text, window=window, stride=stride, progress=shows_progress, adapter=options["adapter"]
        )
        seconds = time.perf_counter() - begin
    mean = -float(values.mean())
    # Of the mean, as if tokens were independent; carried over to the exponential.
    deviation = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    result = math.exp(mean)
    if as_json:
        print_json({
            "model": model,
            "perplexity": result,
            "standard_error": result * deviation,
            "mean_negative_logprob": mean,
            "num_scored_tokens": len(values),
            "window": width,
            "stride": max(1, width // 2) if stride is None else stride,
            "seconds": round(seconds, 3),
        })
        return
    click.echo(f"{result:.4f}")
    rate = f"{len(values)} tokens in {seconds:.1f} s, {len(values) / seconds:.0f} tokens/s"
    note(f"[± {result * deviation:.4f} · {rate}]")
