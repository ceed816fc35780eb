"""`puna generate`: text for one prompt."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.entrypoints.console import note, print_json, progress, warn, write_text
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.entrypoints.llm import LLM, LoadOptions, TextDelta
    from puna.pipelines.request import GenerateRequest, SamplingParams, SamplingParamsInput


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="The prompt; - reads it from standard input.")
@click.option("--chat/--no-chat", default=None, help="Use the chat template.  [default: if the model has one]")
@click.option("--system", metavar="TEXT", help="A system message before the prompt (chat only).")
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="Stop after this many tokens.  [default: no limit]")
@click.option("--temperature", type=float, help="0 takes the likeliest token always.  [default: 0]")
@click.option("--top-k", type=int, help="Choose among the k likeliest tokens.")
@click.option("--top-p", type=float, help="Choose among the likeliest tokens that reach this probability together.")
@click.option("--min-p", type=float, help="Choose among tokens this many times as likely as the likeliest.")
@click.option("--repetition-penalty", type=float, help="Weaken tokens that occurred; 1 does nothing.")
@click.option("--seed", type=int, help="Start of the random numbers.  [default: drawn]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--ignore-eos", is_flag=True, help="Go on when the model says that it is done.")
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
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Element type of cached keys and values; auto is float16.",
)
@click.option("-c", "--max-length", type=click.IntRange(1), help="Most tokens in all.  [default: the model's]")
@click.option("--chat-template", type=click.Path(path_type=Path), metavar="FILE", help="Use this template.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of streaming.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but the text.")
def generate(model: str, prompt: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write text that answers or continues a prompt, as it is made.

    Without sampling options decoding is greedy, unless the model's generation_config.json states something else. A
    sampling option without --temperature means temperature 1.
    """
    from puna.models import find_model
    from puna.pipelines.request import SamplingParamsInput

    _sampling_params(SamplingParamsInput(), options)  # a value out of range is told before anything is loaded
    text = _read_prompt(prompt)
    find_model(model, revision=options["revision"])  # before the spinner: a download shows a progress bar of its own
    with progress(quiet or as_json).status(f"loading {model}"):
        from puna.entrypoints.llm import LLM

        llm = LLM(model, _load_options(options))
    if not quiet:
        for notice in llm.notices:
            warn(notice)
    request = _request(llm, text, options)
    prompt_ids = llm.encode(request)
    timer = _Timer(llm.load_seconds)
    deltas: list[TextDelta] = []
    for delta in llm.stream(request, prompt_ids):
        timer.count(len(delta.tokens))
        deltas.append(delta)
        if not as_json:
            write_text(delta.text)
    timings = timer.timings(len(prompt_ids))
    if as_json:
        print_json(_report(model, request.sampling_params, prompt_ids, deltas, timings))
        return
    write_text("\n")
    if not quiet:
        note(_summary(len(prompt_ids), timer.tokens, request.sampling_params, timings))


def _read_prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not UTF-8 (byte {error.start})", param="prompt") from error


def _load_options(options: dict[str, Any]) -> LoadOptions:
    from puna.entrypoints.llm import LoadOptions

    return LoadOptions(
        dtype=options["dtype"],
        kv_cache_dtype=options["kv_cache_dtype"],
        max_length=options["max_length"],
        num_threads=options["threads"],
        chat_template=options["chat_template"],
        revision=options["revision"],
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
    from puna.pipelines.request import SamplingParams, SamplingParamsInput

    stated = SamplingParamsInput(
        temperature=options["temperature"],
        top_k=options["top_k"],
        top_p=options["top_p"],
        min_p=options["min_p"],
        repetition_penalty=options["repetition_penalty"],
        max_new_tokens=options["max_tokens"],
        seed=options["seed"],
        stop=options["stop"] or None,
        ignore_eos=options["ignore_eos"] or None,
    )
    chooses = [value for value in (stated.top_k, stated.top_p, stated.min_p) if value is not None]
    if stated.temperature is None and chooses:
        stated = SamplingParamsInput(temperature=1.0).over(stated)
    elif stated.temperature is None and not _samples(defaults):
        stated = SamplingParamsInput(temperature=0.0).over(stated)
    return SamplingParams.from_input(stated, defaults)


def _samples(defaults: Any) -> bool:
    """Whether a checkpoint's generation config asks for sampling."""
    return any(getattr(defaults, name) is not None for name in ("temperature", "top_k", "top_p", "min_p"))


class _Timer:
    """When tokens came."""

    def __init__(self, load_seconds: float) -> None:
        self._load = load_seconds
        self._begin = self._first = self._last = time.perf_counter()
        self.tokens = 0

    def count(self, tokens: int) -> None:
        """Some tokens came now."""
        self._last = time.perf_counter()
        if self.tokens == 0:
            self._first = self._last
            self._first_tokens = tokens
        self.tokens += tokens

    def timings(self, prompt_tokens: int) -> dict[str, float | None]:
        """Seconds and tokens per second; the first token counts to the prompt, whose last step made it."""
        prompt, decode = self._first - self._begin, self._last - self._first
        decoded = self.tokens - self._first_tokens if self.tokens else 0
        return {
            "load_s": round(self._load, 4),
            "prompt_s": round(prompt, 4),
            "generation_s": round(decode, 4),
            "prompt_tokens_per_s": round(prompt_tokens / prompt, 2) if prompt > 0 else None,
            "generation_tokens_per_s": round(decoded / decode, 2) if decode > 0 and decoded else None,
        }


def _report(
    model: str,
    params: SamplingParams,
    prompt_ids: list[int],
    deltas: list[TextDelta],
    timings: dict[str, float | None],
) -> dict[str, Any]:
    """What `--json` prints; docs/schemas/generate.json describes it."""
    tokens = [token for delta in deltas for token in delta.tokens]
    reasons = [delta.finish_reason for delta in deltas if delta.finish_reason is not None]
    return {
        "model": model,
        "text": "".join(delta.text for delta in deltas),
        "token_ids": tokens,
        "prompt_token_ids": prompt_ids,
        "finish_reason": reasons[-1].value,
        "seed": params.seed,
        "usage": {
            "prompt_tokens": len(prompt_ids),
            "completion_tokens": len(tokens),
            "total_tokens": len(prompt_ids) + len(tokens),
        },
        "timings": timings,
    }


def _summary(prompt_tokens: int, tokens: int, params: SamplingParams, timings: dict[str, float | None]) -> str:
    parts = [
        f"loaded in {timings['load_s']:.2f} s",
        f"prompt {prompt_tokens} tokens in {timings['prompt_s']:.2f} s",
        f"text {tokens} tokens in {timings['generation_s']:.2f} s",
    ]
    rates = [("prompt", timings["prompt_tokens_per_s"]), ("text", timings["generation_tokens_per_s"])]
    rate = ", ".join(f"{name} {value:.1f} tokens/s" for name, value in rates if value is not None)
    how = "greedy" if params.is_greedy else f"seed {params.seed}"
    return f"[{' · '.join([*parts, rate, how])}]"
