"""`puna generate`: text for one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from puna.entrypoints.commands.options import (
    adapter_option,
    engine_options,
    loading_options,
    one_answer_params,
    read_text,
    sampling_options,
    stated_values,
    structure_options,
)
from puna.entrypoints.console import note, print_json, progress, warn, write_text
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.entrypoints.llm import LLM
    from puna.entrypoints.outputs import RequestOutput
    from puna.pipelines.request import GenerateRequest
    from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="The prompt; - reads it from standard input.")
@click.option("--chat/--no-chat", default=None, help="Use the chat template.  [default: if the model has one]")
@click.option("--system", metavar="TEXT", help="A system message before the prompt (chat only).")
@structure_options
@sampling_options
@click.option("--logprobs", type=int, help="With --json: log-probabilities of tokens and of this many likeliest ones.")
@click.option("--prompt-logprobs", type=int, help="With --json: the same for the prompt.")
@adapter_option
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of streaming.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but the text.")
def generate(model: str, prompt: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write text that answers or continues a prompt, as it is made.

    Without sampling options decoding is greedy, unless the model's generation_config.json states something else. A
    sampling option without --temperature means temperature 1. Ranges and the order of filters are in docs/sampling.md.
    """
    from puna.models import find_model

    # A value out of range is told before anything is loaded.
    stated = stated_values(options, logprobs=options["logprobs"], prompt_logprobs=options["prompt_logprobs"])
    if not as_json and (options["logprobs"] is not None or options["prompt_logprobs"] is not None):
        raise InvalidRequestError("is shown with --json only", param="logprobs")
    text = read_text(prompt, "prompt")
    find_model(model, revision=options["revision"])  # before the spinner: a download shows a progress bar of its own
    with progress(quiet or as_json).status(f"loading {model}"):
        from puna.entrypoints.llm import LLM

        llm = LLM(model, **engine_options(options, max_num_seqs=1))
    if not quiet:
        for notice in llm.notices:
            warn(notice)
    request = _request(llm, text, one_answer_params(stated, llm.sampling_defaults), options)
    output = None
    written = 0
    for output in llm.stream_requests([request]):
        if output.error is not None:
            raise output.error
        if not as_json:
            write_text(output.outputs[0].text[written:])
            written = len(output.outputs[0].text)
    assert output is not None
    if as_json:
        print_json(_report(model, output, llm.load_seconds))
        return
    write_text("\n")
    if not quiet:
        note(_summary(output, request.sampling_params, llm))


def _request(llm: LLM, text: str, params: SamplingParams, options: dict[str, Any]) -> GenerateRequest:
    from puna.pipelines.request import GenerateRequest

    has_template = llm.tokenizer.chat_template is not None
    chat = has_template if options["chat"] is None else options["chat"]
    if not chat:
        if options["system"] is not None:
            raise InvalidRequestError("a system message needs the chat template", param="system")
        return GenerateRequest(text=text, sampling_params=params, adapter=options["adapter"])
    messages = [{"role": "user", "content": text}]
    if options["system"] is not None:
        messages.insert(0, {"role": "system", "content": options["system"]})
    return GenerateRequest(messages=messages, sampling_params=params, adapter=options["adapter"])


def _timings(output: RequestOutput, load_seconds: float) -> dict[str, float | None]:
    """Seconds and tokens per second; the first token counts to the prompt, whose last step made it."""
    times = output.timings
    first, last = times.first_token_s or 0.0, times.last_token_s or 0.0
    prompt_tokens, decoded = len(output.prompt_token_ids), len(output.outputs[0].token_ids) - 1
    return {
        "load_s": round(load_seconds, 4),
        "prompt_s": round(first, 4),
        "generation_s": round(last - first, 4),
        "prompt_tokens_per_s": round(prompt_tokens / first, 2) if first > 0 else None,
        "generation_tokens_per_s": round(decoded / (last - first), 2) if last > first and decoded > 0 else None,
    }


def _report(model: str, output: RequestOutput, load_seconds: float) -> dict[str, Any]:
    """What `--json` prints; docs/schemas/generate.json describes it."""
    (choice,) = output.outputs
    assert choice.finish_reason is not None
    prompt_tokens, tokens = len(output.prompt_token_ids), len(choice.token_ids)
    report: dict[str, Any] = {
        "model": model,
        "text": choice.text,
        "token_ids": list(choice.token_ids),
        "prompt_token_ids": list(output.prompt_token_ids),
        "finish_reason": choice.finish_reason.value,
        "stop_reason": choice.stop_reason,
        "seed": output.seed,
        "num_truncated_tokens": output.num_truncated_tokens,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
            "cached_tokens": output.num_cached_tokens,
        },
        "timings": _timings(output, load_seconds),
    }
    if choice.logprobs is not None:
        report["logprobs"] = [_entries(position) for position in choice.logprobs]
    if output.prompt_logprobs is not None:
        report["prompt_logprobs"] = [None if p is None else _entries(p) for p in output.prompt_logprobs]
    return report


def _entries(position: Any) -> list[dict[str, Any]]:
    return [
        {"token_id": token, "token": entry.decoded_token, "logprob": entry.logprob, "rank": entry.rank}
        for token, entry in position.items()
    ]


def _summary(output: RequestOutput, params: SamplingParams, llm: LLM) -> str:
    timings = _timings(output, llm.load_seconds)
    tokens = len(output.outputs[0].token_ids)
    parts = [
        f"loaded in {timings['load_s']:.2f} s",
        f"prompt {len(output.prompt_token_ids)} tokens in {timings['prompt_s']:.2f} s",
        f"text {tokens} tokens in {timings['generation_s']:.2f} s",
    ]
    if output.num_truncated_tokens:
        parts.insert(1, f"{output.num_truncated_tokens} tokens of the prompt cut off")
    rates = [("prompt", timings["prompt_tokens_per_s"]), ("text", timings["generation_tokens_per_s"])]
    rate = ", ".join(f"{name} {value:.1f} tokens/s" for name, value in rates if value is not None)
    return f"[{' · '.join([*parts, rate, _how(params, output.seed, llm.sampling_defaults)])}]"


def _how(params: SamplingParams, seed: int, defaults: SamplingParamsInput) -> str:
    """How tokens were chosen, and what of it the model's generation_config.json stated."""
    stated = {name: value for name, value in defaults.stated().items() if name != "stop_token_ids"}
    used = [f"{name} {value:g}" for name, value in stated.items() if getattr(params, name) == value]
    how = "greedy" if params.is_greedy and params.while_thinking.is_greedy else f"seed {seed}"
    return f"{how}, {', '.join(used)} from generation_config.json" if used else how
