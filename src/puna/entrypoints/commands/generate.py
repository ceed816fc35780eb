"""`puna generate`: text for one prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from puna.entrypoints.console import note, print_json, progress, warn, write_text
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.entrypoints.llm import LLM
    from puna.entrypoints.outputs import RequestOutput
    from puna.pipelines.request import GenerateRequest
    from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput

# Options that are fields of SamplingParams by the same name.
_VALUES: Final = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "penalty_window",
    "no_repeat_ngram_size",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "seed",
    "logprobs",
    "prompt_logprobs",
    "deadline_s",
)


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="The prompt; - reads it from standard input.")
@click.option("--chat/--no-chat", default=None, help="Use the chat template.  [default: if the model has one]")
@click.option("--system", metavar="TEXT", help="A system message before the prompt (chat only).")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Stop after this many tokens.  [default: no limit]")
@click.option("--min-tokens", type=click.IntRange(0), help="Do not stop before this many tokens.")
@click.option("--temperature", type=float, help="0 takes the likeliest token always.  [default: 0]")
@click.option("--top-k", type=int, help="Choose among the k likeliest tokens.")
@click.option("--top-p", type=float, help="Choose among the likeliest tokens that reach this probability together.")
@click.option("--min-p", type=float, help="Choose among tokens this many times as likely as the likeliest.")
@click.option("--typical-p", type=float, help="Choose among the most typical tokens up to this probability.")
@click.option("--top-n-sigma", type=float, help="Choose among logits this many deviations below the largest.")
@click.option("--xtc-probability", type=float, help="How often the likeliest tokens are left out.")
@click.option("--xtc-threshold", type=float, help="Which ones: those above this probability, but for the last.")
@click.option("--mirostat", type=int, help="2 keeps the surprise constant, instead of filters.")
@click.option("--mirostat-tau", type=float, help="Aimed-at surprise in bits.")
@click.option("--mirostat-eta", type=float, help="How fast it is corrected.")
@click.option("--presence-penalty", type=float, help="Weaken tokens that were generated.")
@click.option("--frequency-penalty", type=float, help="Weaken tokens by how often they were generated.")
@click.option("--repetition-penalty", type=float, help="Weaken tokens that occurred; 1 does nothing.")
@click.option("--penalty-window", type=int, help="Penalties look at this many latest tokens.  [default: all]")
@click.option("--no-repeat-ngram-size", type=int, help="Never write a sequence of this many tokens twice.")
@click.option("--dry-multiplier", type=float, help="Weaken tokens that go on with a repetition (DRY).")
@click.option("--dry-base", type=float, help="How fast that grows with the repetition.")
@click.option("--dry-allowed-length", type=int, help="Repetitions up to this length are free.")
@click.option("--bad-word", "bad_words", multiple=True, metavar="TEXT", help="Never write this; may be repeated.")
@click.option("--seed", type=int, help="Start of the random numbers.  [default: drawn]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--include-stop", is_flag=True, help="Keep the stop text.")
@click.option("--ignore-eos", is_flag=True, help="Go on when the model says that it is done.")
@click.option("--logprobs", type=int, help="With --json: log-probabilities of tokens and of this many likeliest ones.")
@click.option("--prompt-logprobs", type=int, help="With --json: the same for the prompt.")
@click.option("--deadline", "deadline_s", type=float, help="Stop after this many seconds.")
@click.option("--truncate-prompt", "truncate_prompt_tokens", type=int, help="Keep this many last tokens of the prompt.")
@click.option(
    "--generation-config/--no-generation-config",
    default=True,
    help="Take sampling defaults from the model's generation_config.json.  [default: yes]",
)
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads to use.  [default: all that may be used]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32"]),
    default="auto",
    show_default=True,
    help="Products with 8-bit activations where kernels have them, or in float32.",
)
@click.option(
    "--kv-cache-dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16", "int8"]),
    default="auto",
    show_default=True,
    help="Element type of cached keys and values; auto is float16.",
)
@click.option("-c", "--max-length", type=click.IntRange(1), help="Most tokens in all.  [default: the model's]")
@click.option("--chat-template", type=click.Path(path_type=Path), metavar="FILE", help="Use this template.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--no-weight-cache", is_flag=True, help="Neither use nor keep packed weights on disk.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of streaming.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but the text.")
def generate(model: str, prompt: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write text that answers or continues a prompt, as it is made.

    Without sampling options decoding is greedy, unless the model's generation_config.json states something else. A
    sampling option without --temperature means temperature 1. Ranges and the order of filters are in docs/sampling.md.
    """
    from puna.models import find_model
    from puna.pipelines.sampling_params import SamplingParamsInput

    _sampling_params(SamplingParamsInput(), options)  # a value out of range is told before anything is loaded
    if not as_json and (options["logprobs"] is not None or options["prompt_logprobs"] is not None):
        raise InvalidRequestError("is shown with --json only", param="logprobs")
    text = _read_prompt(prompt)
    find_model(model, revision=options["revision"])  # before the spinner: a download shows a progress bar of its own
    with progress(quiet or as_json).status(f"loading {model}"):
        llm = _load(model, options)
    if not quiet:
        for notice in llm.notices:
            warn(notice)
    request = _request(llm, text, options)
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


def _read_prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not UTF-8 (byte {error.start})", param="prompt") from error


def _load(model: str, options: dict[str, Any]) -> LLM:
    from puna.entrypoints.llm import LLM

    return LLM(
        model,
        max_num_seqs=1,
        dtype=options["dtype"],
        kv_cache_dtype=options["kv_cache_dtype"],
        max_model_len=options["max_length"],
        threads=options["threads"],
        generation_config="auto" if options["generation_config"] else "none",
        chat_template=options["chat_template"],
        revision=options["revision"],
        enable_weight_cache=not options["no_weight_cache"],
    )


def _request(llm: LLM, text: str, options: dict[str, Any]) -> GenerateRequest:
    from puna.pipelines.request import GenerateRequest

    params = _sampling_params(llm.sampling_defaults, options)
    has_template = llm.tokenizer.chat_template is not None
    chat = has_template if options["chat"] is None else options["chat"]
    if not chat:
        if options["system"] is not None:
            raise InvalidRequestError("a system message needs the chat template", param="system")
        return GenerateRequest(text=text, sampling_params=params)
    messages = [{"role": "user", "content": text}]
    if options["system"] is not None:
        messages.insert(0, {"role": "system", "content": options["system"]})
    return GenerateRequest(messages=messages, sampling_params=params)


def _sampling_params(defaults: SamplingParamsInput, options: dict[str, Any]) -> SamplingParams:
    from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput

    stated = SamplingParamsInput(
        **{name: options[name] for name in _VALUES},
        stop=options["stop"] or None,
        bad_words=options["bad_words"] or None,
        ignore_eos=options["ignore_eos"] or None,
        include_stop_str_in_output=options["include_stop"] or None,
        truncate_prompt_tokens=options["truncate_prompt_tokens"],
    )
    if stated.temperature is None and _samples(stated):
        stated = SamplingParamsInput(temperature=1.0).over(stated)
    elif stated.temperature is None and not _samples(defaults):
        stated = SamplingParamsInput(temperature=0.0).over(stated)
    return SamplingParams.from_input(stated, defaults)


def _samples(values: SamplingParamsInput) -> bool:
    """Whether values ask for sampling."""
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "mirostat")
    return any(getattr(values, name) is not None for name in names)


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
    how = "greedy" if params.is_greedy else f"seed {seed}"
    return f"{how}, {', '.join(used)} from generation_config.json" if used else how
