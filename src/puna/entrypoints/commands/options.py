"""Options that several commands share: how tokens are chosen, how a model is loaded, and how text is given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from puna.entrypoints.commands.sizes import SIZE
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput
    from puna.structured_output.params import StructuredOutputsParams

_Command = TypeVar("_Command", bound=Callable[..., Any])

# Options that are fields of SamplingParams by the same name.
SAMPLING_VALUES: Final = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "thinking_temperature",
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
    "deadline_s",
)


_SAMPLING: Final = (
    click.option("-n", "--max-tokens", type=click.IntRange(1), help="Stop after this many tokens."),
    click.option("--min-tokens", type=click.IntRange(0), help="Do not stop before this many tokens."),
    click.option("--temperature", type=float, help="0 takes the likeliest token always."),
    click.option("--thinking-temperature", type=float, help="The same inside the model's reasoning."),
    click.option("--top-k", type=int, help="Choose among the k likeliest tokens."),
    click.option("--top-p", type=float, help="Choose among the likeliest tokens that reach this probability together."),
    click.option("--min-p", type=float, help="Choose among tokens this many times as likely as the likeliest."),
    click.option("--typical-p", type=float, help="Choose among the most typical tokens up to this probability."),
    click.option("--top-n-sigma", type=float, help="Choose among logits this many deviations below the largest."),
    click.option("--xtc-probability", type=float, help="How often the likeliest tokens are left out."),
    click.option("--xtc-threshold", type=float, help="Which ones: those above this probability, but for the last."),
    click.option("--mirostat", type=int, help="2 keeps the surprise constant, instead of filters."),
    click.option("--mirostat-tau", type=float, help="Aimed-at surprise in bits."),
    click.option("--mirostat-eta", type=float, help="How fast it is corrected."),
    click.option("--presence-penalty", type=float, help="Weaken tokens that were generated."),
    click.option("--frequency-penalty", type=float, help="Weaken tokens by how often they were generated."),
    click.option("--repetition-penalty", type=float, help="Weaken tokens that occurred; 1 does nothing."),
    click.option("--penalty-window", type=int, help="Penalties look at this many latest tokens.  [default: all]"),
    click.option("--no-repeat-ngram-size", type=int, help="Never write a sequence of this many tokens twice."),
    click.option("--dry-multiplier", type=float, help="Weaken tokens that go on with a repetition (DRY)."),
    click.option("--dry-base", type=float, help="How fast that grows with the repetition."),
    click.option("--dry-allowed-length", type=int, help="Repetitions up to this length are free."),
    click.option("--bad-word", "bad_words", multiple=True, metavar="TEXT", help="Never write this; may be repeated."),
    click.option("--seed", type=int, help="Start of the random numbers.  [default: drawn]"),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times."),
    click.option("--include-stop", is_flag=True, help="Keep the stop text."),
    click.option("--ignore-eos", is_flag=True, help="Go on when the model says that it is done."),
    click.option("--deadline", "deadline_s", type=float, help="Stop after this many seconds."),
    click.option(
        "--truncate-prompt", "truncate_prompt_tokens", type=int, help="Keep this many last tokens of the prompt."
    ),
)

_LOADING: Final = (
    click.option(
        "--generation-config/--no-generation-config",
        default=True,
        help="Take sampling defaults from the model's generation_config.json.  [default: yes]",
    ),
    click.option("-t", "--threads", type=click.IntRange(1), help="Threads to use.  [default: all that may be used]"),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32"]),
        default="auto",
        show_default=True,
        help="Products with 8-bit activations where kernels have them, or in float32.",
    ),
    click.option(
        "--kv-cache-dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16", "int8"]),
        default="auto",
        show_default=True,
        help="Element type of cached keys and values; auto is float16.",
    ),
    click.option("-c", "--max-length", type=click.IntRange(1), help="Most tokens in all.  [default: the model's]"),
    click.option("--chat-template", type=click.Path(path_type=Path), metavar="FILE", help="Use this template."),
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option(
        "--quantize", metavar="RECIPE", help="Quantize float weights while loading: Q4_K_M, Q8_0, …; see puna quantize."
    ),
    click.option("--no-weight-cache", is_flag=True, help="Neither use nor keep packed weights on disk."),
    click.option(
        "--prefix-cache-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Keep what was computed of prompts and texts there, for later runs. As confidential as they are.",
    ),
    click.option(
        "--prefix-cache-bytes", type=SIZE, default=10 << 30, help="Most bytes there, such as 500M.  [default: 10G]"
    ),
    click.option(
        "--data-parallel-degree",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Copies of the model that run at the same time, each on its share of the threads.",
    ),
)


ADAPTERS: Final = (
    click.option("--enable-lora", is_flag=True, help="Let requests name adapters (docs/lora.md)."),
    click.option(
        "--lora-paths",
        "--lora-modules",
        "lora_paths",
        multiple=True,
        metavar="NAME=PATH",
        help="An adapter: a directory in PEFT's layout, or a GGUF file; may be repeated.",
    ),
    click.option(
        "--max-lora-rank", type=click.IntRange(1), default=16, show_default=True, help="Largest rank of an adapter."
    ),
    click.option(
        "--max-num-loras",
        "--max-loras",
        "max_num_loras",
        type=click.IntRange(1),
        help="Adapters in a step.  [default: as many as --lora-paths, at least 8]",
    ),
    click.option("--lora-memory", type=SIZE, help="Most bytes of adapters in memory, such as 2G.  [default: all]"),
)
_ADAPTER: Final = click.option(
    "--adapter", metavar="NAME", help="Use this adapter: a name of --lora-paths, or a path.  [default: none]"
)


_STRUCTURE: Final = (
    click.option("--json-schema", metavar="FILE", help="Answer with JSON that this schema (or file) accepts."),
    click.option("--json-object", is_flag=True, help="Answer with a JSON object."),
    click.option("--regex", metavar="REGEX", help="Answer with a text that matches this from beginning to end."),
    click.option("--choice", multiple=True, metavar="TEXT", help="Answer with one of these; given once for each."),
    click.option("--grammar", metavar="FILE", help="Answer with a text of this grammar (Lark, GBNF or EBNF)."),
)


def structure_options(command: _Command) -> _Command:
    """Adds the options of what a text must look like; `structure` reads them."""
    return _with(_STRUCTURE, command)


def structure(options: dict[str, Any]) -> StructuredOutputsParams | None:
    """What the options of `structure_options` state.

    Raises:
        InvalidRequestError: more than one is stated, or a value is of a wrong form.
    """
    schema, grammar = options["json_schema"], options["grammar"]
    stated = {
        "--json-schema": {"json": schema},
        "--json-object": {"json_object": options["json_object"] or None},
        "--regex": {"regex": options["regex"]},
        "--choice": {"choice": options["choice"] or None},
        "--grammar": {"grammar": grammar},
    }
    given = {name: value for name, value in stated.items() if next(iter(value.values())) is not None}
    if not given:
        return None
    if len(given) > 1:
        raise InvalidRequestError(f"{' and '.join(given)} do not go together", param=next(iter(given)))
    ((name, value),) = given.items()
    if name == "--grammar" or (name == "--json-schema" and not schema.lstrip().startswith("{")):
        value = {key: read_text_file(path) for key, path in value.items()}
    from puna.structured_output.params import StructuredOutputsParams

    return StructuredOutputsParams(**value, source=name)


def sampling_options(command: _Command) -> _Command:
    """Adds the options of choosing and ending; `stated_values` reads them."""
    return _with(_SAMPLING, command)


def loading_options(command: _Command) -> _Command:
    """Adds the options of loading a model; `engine_options` reads them."""
    return _with((*_LOADING, *ADAPTERS), command)


def adapter_option(command: _Command) -> _Command:
    """Adds `--adapter`; `engine_options` loads it where it is a path."""
    return _ADAPTER(command)


def _with(options: tuple[Callable[[Any], Any], ...], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def stated_values(options: dict[str, Any], **more: Any) -> SamplingParamsInput:
    """What the options of `sampling_options` state; `more`: further values.

    Raises:
        InvalidRequestError: a value is out of range.
    """
    from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput

    stated = SamplingParamsInput(
        **{name: options[name] for name in SAMPLING_VALUES},
        stop=options["stop"] or None,
        bad_words=options["bad_words"] or None,
        ignore_eos=options["ignore_eos"] or None,
        include_stop_str_in_output=options["include_stop"] or None,
        truncate_prompt_tokens=options["truncate_prompt_tokens"],
        structured_outputs=structure(options) if "json_schema" in options else None,
        **more,
    )
    SamplingParams.from_input(stated)
    return stated


def one_answer_params(stated: SamplingParamsInput, defaults: SamplingParamsInput) -> SamplingParams:
    """The final values for one person's answer: greedy where neither options nor the checkpoint ask for sampling.

    Args:
        stated: What the options state.
        defaults: What the checkpoint states.
    """
    from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput

    if stated.temperature is None and _samples(stated):
        stated = SamplingParamsInput(temperature=1.0).over(stated)
    elif stated.temperature is None and not _samples(defaults):
        stated = SamplingParamsInput(temperature=0.0).over(stated)
    return SamplingParams.from_input(stated, defaults)


def _samples(values: SamplingParamsInput) -> bool:
    """Whether values ask for sampling."""
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "mirostat")
    return any(getattr(values, name) is not None for name in names)


def engine_options(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The options of `loading_options`, as arguments of `LLM`; `more`: further arguments."""
    paths = list(options["lora_paths"])
    adapter = options.get("adapter")
    if adapter is not None and adapter not in {entry.partition("=")[0] for entry in paths}:
        paths.append(adapter)  # named by its path
    return {
        "dtype": options["dtype"],
        "kv_cache_dtype": options["kv_cache_dtype"],
        "max_model_len": options["max_length"],
        "threads": options["threads"],
        "generation_config": "auto" if options["generation_config"] else "none",
        "chat_template": options["chat_template"],
        "revision": options["revision"],
        "enable_weight_cache": not options["no_weight_cache"],
        "prefix_cache_dir": options["prefix_cache_dir"],
        "prefix_cache_bytes": options["prefix_cache_bytes"],
        "data_parallel_degree": options["data_parallel_degree"],
        "enable_lora": options["enable_lora"] or adapter is not None,
        "lora_paths": paths,
        "max_lora_rank": options["max_lora_rank"],
        "max_num_loras": options["max_num_loras"],
        "lora_memory": options["lora_memory"],
        "quantize": options["quantize"],
        **more,
    }


def read_text(value: str, param: str) -> str:
    """The text that an option gives: itself, or standard input for `-`.

    Raises:
        InvalidRequestError: standard input is not UTF-8.
    """
    if value != "-":
        return value
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not UTF-8 (byte {error.start})", param=param) from error


def read_text_file(path: str) -> str:
    """A text file's content; `-` is standard input.

    Raises:
        InvalidRequestError: it cannot be read, or is not UTF-8.
    """
    if path == "-":
        return read_text(path, "FILE")
    try:
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path} is not UTF-8 (byte {error.start})", param="FILE") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequestError(f"{path!r} cannot be read: {reason}", param="FILE") from error


def require_output(out: Path, sources: Iterable[Path], *, may_replace: bool) -> None:
    """A file that is written is none of those that are read, and new where it may replace none.

    Raises:
        InvalidRequestError: it is one of them, or it exists.
    """
    for source in sources:
        if out.exists() and source.exists() and out.samefile(source):
            raise InvalidRequestError("is the model itself; name another file", param=str(out))
    if out.exists() and not may_replace:
        raise InvalidRequestError("exists; --force replaces it", param=str(out))
