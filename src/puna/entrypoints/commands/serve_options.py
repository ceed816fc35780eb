"""Options of `puna serve`: what they are, and where they come from besides the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from puna.entrypoints.commands.sizes import SIZE

__all__ = ["Manual", "print_config", "serve_options"]

_SECRETS: Final = frozenset({"api_key", "ssl_keyfile_password"})
_NOT_CONFIGURED: Final = frozenset({"config", "print_config"})


class _Option(click.Option):
    """An option that stands in a section of the help."""

    def __init__(self, *args: Any, section: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section


class Manual(click.Command):
    """A command whose options are listed in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(param.section if isinstance(param, _Option) else "Other", []).append(record)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _option(section: str, *names: str, **attributes: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=_Option, section=section, **attributes)


_MODEL, _NET, _SAFE, _LIMIT, _OPS = (
    "The model",
    "Where it listens",
    "Who may use it",
    "What a request may take",
    "Running it",
)
_DEFAULTS: Final = {  # as of `Limits`: the help must not import the server
    "max_header_bytes": 32 << 10,
    "max_body_bytes": 8 << 20,
    "max_file_bytes": 512 << 20,
    "max_json_depth": 64,
    "max_n": 128,
    "max_choices": 512,
    "max_prompts": 2048,
    "max_stop": 16,
    "max_logit_bias": 1024,
    "max_top_logprobs": 20,
    "max_queue_size": 512,
    "max_connections": 2048,
    "queue_timeout": 300.0,
    "header_timeout": 30.0,
    "body_timeout": 60.0,
    "write_timeout": 60.0,
    "drain_timeout": 60.0,
    "keepalive_interval": 15.0,
}


def _limit(name: str, help_text: str, kind: Any = int, *more: str) -> Callable[[Any], Any]:
    flag, default = f"--{name.replace('_', '-')}", _DEFAULTS.get(name)
    shows = default is not None
    if kind is SIZE and isinstance(default, int):
        shown = f"{default >> 20}M" if default >= 1 << 20 else f"{default >> 10}K"
        help_text, shows = f"{help_text}  [default: {shown}]", False
    return _option(_LIMIT, flag, *more, name, type=kind, default=default, show_default=shows, help=help_text)


_OPTIONS: Final = (
    _option(_MODEL, "-m", "--model", "--model-path", "model_option", metavar="MODEL", help="As the argument MODEL."),
    _option(
        _MODEL,
        "--served-model-name",
        "served_model_name",
        multiple=True,
        metavar="NAME",
        help="What requests call the model; may be repeated, and answers have the first.  [default: MODEL, of a path "
        "its last part]",
    ),
    _option(
        _MODEL,
        "-c",
        "--max-model-len",
        "--max-length",
        "max_length",
        type=click.IntRange(1),
        help="Most tokens of a request, prompt and answer.  [default: the model's, or what memory holds]",
    ),
    _option(
        _MODEL,
        "--max-num-seqs",
        "--max-batch-size",
        "max_num_seqs",
        type=click.IntRange(1),
        default=32,
        show_default=True,
        help="Sequences in a step at most.",
    ),
    _option(
        _MODEL,
        "--max-num-batched-tokens",
        "--max-batch-input-tokens",
        "max_num_batched_tokens",
        type=click.IntRange(1),
        default=512,
        show_default=True,
        help="Tokens in a step at most; longer prompts are read in several steps.",
    ),
    _option(
        _MODEL,
        "--dtype",
        type=click.Choice(["auto", "float32"]),
        default="auto",
        show_default=True,
        help="Products with 8-bit activations where kernels have them, or in float32.",
    ),
    _option(
        _MODEL,
        "--kv-cache-dtype",
        "--kv-cache-format",
        "kv_cache_dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16", "int8"]),
        default="auto",
        show_default=True,
        help="Element type of cached keys and values; auto is float16.",
    ),
    _option(
        _MODEL,
        "--kv-cache-memory",
        "--kv-cache-memory-bytes",
        "kv_cache_memory",
        type=SIZE,
        help="Bytes of the KV cache, such as 4G.  [default: what the requests need, or most of what is left]",
    ),
    _option(
        _MODEL,
        "--block-size",
        "--kv-cache-page-size",
        "block_size",
        type=click.IntRange(1),
        default=128,
        show_default=True,
        help="Tokens of a page of the KV cache.",
    ),
    _option(
        _MODEL,
        "--enable-prefix-caching/--no-enable-prefix-caching",
        "enable_prefix_caching",
        default=True,
        help="Share the pages of equal beginnings.  [default: yes]",
    ),
    _option(
        _MODEL,
        "--prefix-cache-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Keep pages there, so that they survive a restart. As confidential as prompts.",
    ),
    _option(_MODEL, "--prefix-cache-bytes", type=SIZE, default=10 << 30, help="Most bytes there.  [default: 10G]"),
    _option(
        _MODEL,
        "--data-parallel-degree",
        "--data-parallel-size",
        "-dp",
        "data_parallel_degree",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Copies of the model that run at the same time.",
    ),
    _option(_MODEL, "--enable-lora", is_flag=True, help="Let requests name adapters as their model."),
    _option(
        _MODEL,
        "--lora-paths",
        "--lora-modules",
        "lora_paths",
        multiple=True,
        metavar="NAME=PATH",
        help="An adapter to load: a directory in PEFT's layout, or a GGUF file; may be repeated.",
    ),
    _option(
        _MODEL,
        "--lora-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Let requests load and unload adapters of this directory. It turns --enable-lora on.",
    ),
    _option(
        _MODEL,
        "--max-lora-rank",
        type=click.IntRange(1),
        default=16,
        show_default=True,
        help="Largest rank of an adapter.",
    ),
    _option(
        _MODEL,
        "--max-num-loras",
        "--max-loras",
        "max_num_loras",
        type=click.IntRange(1),
        help="Adapters in a step.  [default: as many as --lora-paths, at least 8]",
    ),
    _option(_MODEL, "--lora-memory", type=SIZE, help="Most bytes of adapters in memory, such as 2G.  [default: all]"),
    _option(_MODEL, "-t", "--threads", type=click.IntRange(1), help="Threads to use.  [default: all that may be used]"),
    _option(_MODEL, "--seed", type=click.IntRange(0), help="What seeds of requests without one are drawn from."),
    _option(_MODEL, "--chat-template", type=click.Path(path_type=Path), metavar="FILE", help="Use this template."),
    _option(
        _MODEL,
        "--template-variable",
        "template_variables",
        multiple=True,
        metavar="NAME",
        help="A variable that requests may set by chat_template_kwargs; may be repeated.  [default: enable_thinking, "
        "thinking, reasoning_effort, date_string]",
    ),
    _option(_MODEL, "--revision", help="Branch, tag or commit on the hub."),
    _option(
        _MODEL,
        "--generation-config",
        type=click.Choice(["auto", "none"]),
        default="auto",
        show_default=True,
        help="Whether sampling defaults of the model's generation_config.json count.",
    ),
    _option(_MODEL, "--temperature", type=float, help="Of requests that state none.  [default: the model's, else 1]"),
    _option(_MODEL, "--top-p", type=float, help="The same for top_p.  [default: the model's, else 1]"),
    _option(_MODEL, "--top-k", type=int, help="The same for top_k.  [default: the model's, else all]"),
    _option(_MODEL, "--min-p", type=float, help="The same for min_p.  [default: the model's, else 0]"),
    _option(_MODEL, "--no-weight-cache", is_flag=True, help="Neither use nor keep packed weights on disk."),
    _option(_NET, "--host", default="127.0.0.1", show_default=True, help="Address; 0.0.0.0 or :: is all of them."),
    _option(_NET, "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."),
    _option(
        _NET,
        "--ssl-certfile",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Certificate (PEM); the server speaks TLS.",
    ),
    _option(
        _NET,
        "--ssl-keyfile",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="The certificate's key (PEM).",
    ),
    _option(_NET, "--ssl-keyfile-password", metavar="TEXT", help="The key's password; better by the environment."),
    _option(
        _NET,
        "--ssl-ca-certs",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Clients need a certificate of one of these authorities.",
    ),
    _option(_NET, "--root-path", default="", metavar="PATH", help="Prefix under which a proxy shows the server."),
    _option(
        _SAFE,
        "--api-key",
        multiple=True,
        metavar="KEY",
        help="A key that requests need; may be repeated. Other users of the machine see command lines: prefer "
        "PUNA_SERVE_API_KEY or a file.",
    ),
    _option(
        _SAFE,
        "--api-key-file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Keys, one a line: KEY or NAME: KEY. Each has an equal share of the engine and a prefix cache of its own.",
    ),
    _option(_SAFE, "--insecure", is_flag=True, help="Listen on other addresses than loopback without a key."),
    _option(
        _SAFE,
        "--allowed-origins",
        "--allowed-origin",
        "allowed_origins",
        multiple=True,
        metavar="ORIGIN",
        help="Pages of this origin may use the server from a browser (CORS); * is all; may be repeated.  "
        "[default: none]",
    ),
    _option(_SAFE, "--strict", is_flag=True, help="Refuse requests with fields that are not known."),
    _limit("max_prompt_tokens", "Tokens of a prompt.  [default: what the context holds]"),
    _limit("max_output_tokens", "Tokens of an answer.  [default: what the context holds]"),
    _limit("max_n", "Continuations of one prompt (n, best_of)."),
    _limit("max_choices", "Continuations of one request: prompts times n."),
    _limit("max_prompts", "Prompts, inputs or documents of one request."),
    _limit("max_stop", "Stop strings."),
    _limit("max_logit_bias", "Entries of logit_bias."),
    _limit("max_top_logprobs", "Likeliest tokens that are reported at each place.", int, "--max-logprobs"),
    _limit("max_header_bytes", "Request line and headers (431).", SIZE),
    _limit("max_body_bytes", "A JSON body (413).", SIZE),
    _limit("max_file_bytes", "An uploaded file (413).", SIZE),
    _limit("max_json_depth", "How deep objects and lists may be nested."),
    _limit("max_queue_size", "Requests that wait; one more gets 429.", int, "--max-pending-requests"),
    _limit("max_connections", "Open connections; one more gets 503."),
    _limit("queue_timeout", "Seconds that a request may wait to begin (503).", float),
    _limit("request_timeout", "Seconds after which an answer ends with what it has.  [default: none]", float),
    _limit("header_timeout", "Seconds for headers, and of idleness.", float),
    _limit("body_timeout", "Seconds for a body (408).", float),
    _limit("write_timeout", "Seconds that a client may not read; then it is cut off.", float),
    _limit("drain_timeout", "Seconds that answers have to end after SIGTERM.", float, "--shutdown-timeout"),
    _limit("keepalive_interval", "Seconds of silence after which a stream gets a comment line.", float),
    _option(
        _OPS,
        "--storage-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Where files and batches are kept, which survive a restart.  [default: $XDG_STATE_HOME/puna]",
    ),
    _option(_OPS, "--no-storage", is_flag=True, help="Offer neither files nor batches."),
    _option(_OPS, "--vllm-metrics", is_flag=True, help="Metrics have vLLM's names too."),
    _option(
        _OPS,
        "--otlp-traces-endpoint",
        metavar="URL",
        help="Send a span for each request there, by OTLP over HTTP; needs puna[otel].",
    ),
    _option(
        _OPS,
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Lines for people or for programs. Texts of prompts and answers are in neither.",
    ),
    _option(
        _OPS,
        "--log-level",
        "--uvicorn-log-level",
        "log_level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="Least level that is logged.",
    ),
    _option(_OPS, "--no-access-log", "--disable-uvicorn-access-log", "no_access_log", is_flag=True,
            help="No line for each request."),
    _option(
        _OPS,
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=lambda ctx, param, value: _read_config(ctx, value),
        help="Options from a TOML file, by their long names. Flags and variables of the environment count before it.",
    ),
    _option(_OPS, "--print-config", is_flag=True, help="Print what all of this comes to, as such a file, and end."),
)


def _read_config(ctx: click.Context, path: Path | None) -> None:
    """Makes the values of a file the defaults of the options."""
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path} cannot be used: {error}", ctx) from error
    known: dict[str, str] = {}
    for param in ctx.command.params:
        names = [name.removeprefix("--").replace("-", "_") for name in param.opts if name.startswith("--")]
        if param.name is not None and param.name not in _NOT_CONFIGURED:
            known |= dict.fromkeys([*names, param.name], param.name)
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = known.get(name.replace("-", "_"))
        if key is None:
            raise click.UsageError(f"{path}: there is no option {name!r}", ctx)
        found[key] = value
    ctx.default_map = found


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a function that becomes the command."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def print_config(ctx: click.Context) -> None:
    """Prints what the options come to, as a configuration file. Secrets are left out."""
    for param in ctx.command.params:
        name = param.name
        if name is None or name in _NOT_CONFIGURED or isinstance(param, click.Argument):
            continue
        value = ctx.params.get(name)
        if name == "model_option":
            name, value = "model", value or ctx.params.get("model")
        if value is None or value == ():
            continue
        if name in _SECRETS:
            click.echo(f"# {name.replace('_', '-')} is given, and not shown")
            continue
        plain = [str(item) for item in value] if isinstance(value, tuple) else value
        plain = str(plain) if isinstance(plain, Path) else plain
        click.echo(f"{name.replace('_', '-')} = {json.dumps(plain)}")
