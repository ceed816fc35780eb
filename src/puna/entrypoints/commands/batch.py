"""`puna batch`: a file of requests, answered into a file of results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from puna.entrypoints.commands.options import (
    adapter_option,
    engine_options,
    loading_options,
    sampling_options,
    stated_values,
)
from puna.entrypoints.console import note, progress, warn

if TYPE_CHECKING:
    from puna.entrypoints.openai.batch import BatchInput, ResultFile
    from puna.entrypoints.openai.batch_run import BatchRun

_SOME_FAILED: Final = 1


@click.command()
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Results."
)
@click.option("-m", "--model", metavar="MODEL", help="The model.  [default: what the lines name, or else smollm2]")
@click.option(
    "--served-model-name", multiple=True, metavar="NAME", help="What lines may call it too; may be repeated."
)
@click.option(
    "--max-num-seqs", type=click.IntRange(1), default=32, show_default=True, help="Requests in a step at most."
)
@sampling_options
@adapter_option
@loading_options
@click.option("-q", "--quiet", is_flag=True, help="Neither progress nor a summary.")
def batch(
    source: Path,
    output: Path,
    model: str | None,
    served_model_name: tuple[str, ...],
    max_num_seqs: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Answer the requests in a file, one JSON object a line, into a file of results.

    Lines are those of OpenAI's batches, {"custom_id", "method", "url", "body"}, for /v1/chat/completions,
    /v1/completions and /v1/embeddings; or a body alone, such as {"prompt": "Hello", "max_tokens": 20}. Options count
    where a line states nothing, --adapter where it names no model. The same command goes on with a file of results that
    an interruption left. Exit status 1: some requests failed, and their results say why.
    """
    from puna.entrypoints.llm import LLM
    from puna.entrypoints.openai.batch import ResultFile, scan
    from puna.entrypoints.openai.batch_run import BatchRun
    from puna.models import DEFAULT_MODEL, find_model

    stated = stated_values({**options, "seed": None})
    asked = scan(source)
    name = model or asked.model or DEFAULT_MODEL
    find_model(name, revision=options["revision"])
    with ResultFile(output, asked.custom_ids) as results:
        num_before = len(results.done)
        if num_before == len(asked.custom_ids):
            _end(asked, results, num_before, None, quiet)
            return
        with progress(quiet).status(f"loading {name}"):
            most = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max(512, max_num_seqs)}
            llm = LLM(name, **engine_options(options, **most))
        with llm:
            if not quiet:
                for notice in llm.notices:
                    warn(notice)
            run = BatchRun(
                llm,
                name,
                model_names=(name, *served_model_name),
                sampling=stated.over(llm.sampling_defaults),
                seed=options["seed"],
                adapter=options["adapter"],
            )
            with _bar(len(asked.custom_ids), num_before, quiet) as tell:
                try:
                    run.answer(source, results, 2 * max_num_seqs, tell)
                except KeyboardInterrupt:
                    note(f"{len(results.done)} of {len(asked.custom_ids)} are done; the same command goes on with it")
                    raise
        _end(asked, results, num_before, run, quiet)


def _end(asked: BatchInput, results: ResultFile, num_before: int, run: BatchRun | None, quiet: bool) -> None:
    """The summary, and the exit status."""
    if not quiet:
        parts = [f"{len(asked.custom_ids)} requests", f"{results.num_failed} failed"]
        if num_before:
            parts.insert(1, f"{num_before} were done before")
        if run is not None:
            parts.append(run.summary())
        note(f"[{' · '.join(parts)}]")
    if results.num_failed:
        raise click.exceptions.Exit(_SOME_FAILED)


@contextmanager
def _bar(total: int, done: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, and the function that moves it on by one and shows a rate."""
    if quiet or not sys.stderr.isatty():
        yield lambda _rate: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done, rate="")
        yield lambda rate: bar.update(task, advance=1, rate=rate)
