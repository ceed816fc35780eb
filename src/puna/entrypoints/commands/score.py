"""`puna score`: how likely continuations of a prompt are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from puna.entrypoints.commands.options import adapter_option, engine_options, loading_options, read_text, read_text_file
from puna.entrypoints.console import print_json, progress
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.entrypoints.outputs import ChoiceScore


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="The prompt; - reads it from standard input.")
@click.option("--choice", "choices", multiple=True, metavar="TEXT", help="A continuation; may be repeated.")
@click.option("--choices-file", metavar="FILE", help="Further continuations, one a line.")
@adapter_option
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def score(
    model: str, prompt: str, choices: tuple[str, ...], choices_file: str | None, as_json: bool, **options: Any
) -> None:
    """Tell how likely each choice is as the continuation of a prompt, the likeliest first.

    Choices are tokenized by themselves: begin them with a space where a word begins. Each line has the natural
    logarithm of the probability, the same per token, the share among the choices, and the choice.
    """
    from puna.models import find_model

    texts = list(choices)
    if choices_file is not None:
        texts += [line for line in read_text_file(choices_file).split("\n") if line]
    if not texts:
        raise InvalidRequestError("at least one is needed, by --choice or --choices-file", param="choices")
    text = read_text(prompt, "prompt")
    find_model(model, revision=options["revision"])
    with progress(as_json).status(f"loading {model}"):
        from puna.entrypoints.llm import LLM

        llm = LLM(model, **engine_options(options))
    with llm:
        scores = llm.score(text, texts, adapter=options["adapter"])
    most = max(one.logprob for one in scores)
    total = sum(math.exp(one.logprob - most) for one in scores)
    shares = [math.exp(one.logprob - most) / total for one in scores]
    if as_json:
        entries = [_entry(one, share) for one, share in zip(scores, shares, strict=True)]
        best = max(range(len(scores)), key=lambda index: scores[index].logprob)
        print_json({"model": model, "prompt": text, "best": best, "choices": entries})
        return
    for one, share in sorted(zip(scores, shares, strict=True), key=lambda pair: -pair[0].logprob):
        click.echo(f"{one.logprob:.4f}\t{one.mean_logprob:.4f}\t{share:.4f}\t{one.text!r}")


def _entry(score: ChoiceScore, share: float) -> dict[str, Any]:
    return {
        "text": score.text,
        "logprob": score.logprob,
        "mean_logprob": score.mean_logprob,
        "share": share,
        "is_greedy": score.is_greedy,
        "token_ids": list(score.token_ids),
        "token_logprobs": list(score.token_logprobs),
    }
