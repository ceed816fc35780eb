"""`puna serve`: a model behind HTTP."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.entrypoints.commands.serve_options import Manual, print_config, serve_options
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.entrypoints.server.settings import Limits


@click.command(cls=Manual, context_settings={"auto_envvar_prefix": "PUNA_SERVE"})
@click.argument("model", required=False, metavar="[MODEL]")
@serve_options
@click.pass_context
def serve(ctx: click.Context, /, model: str | None, **options: Any) -> None:
    """Serve a model over HTTP: OpenAI's interface, Anthropic's messages and Ollama's.

    MODEL is a .gguf file, a directory in Hugging Face layout, a name on the hub, or smollm2, the default. Clients of
    OpenAI's interface get the base URL http://127.0.0.1:8000/v1; /openapi.json describes every route.

    The server listens on this machine alone unless --host says otherwise, and then it wants a key (--api-key-file).
    While the model loads and while the server ends, /health answers 503. SIGTERM and Ctrl-C let answers under way end,
    a second one ends them. Exit status: 0 ended by a signal, 1 some answers were cut off, 2 wrong usage, 3 the model
    cannot be used, 70 the engine failed.

    Every option can also be given by the environment: PUNA_SERVE_ and its name, as in PUNA_SERVE_MAX_NUM_SEQS=8.
    """
    from puna.entrypoints.server.keys import read_keys
    from puna.entrypoints.server.logs import set_up_logging
    from puna.entrypoints.server.settings import is_loopback

    if options["print_config"]:
        print_config(ctx)
        return
    keys = read_keys(options["api_key"], options["api_key_file"])
    if not keys and not options["insecure"] and not is_loopback(options["host"]):
        raise InvalidRequestError(
            f"{options['host']} can be reached by others: give a key (--api-key-file), or --insecure to do without",
            param="host",
        )
    if (options["ssl_certfile"] is None) != (options["ssl_keyfile"] is None):
        raise InvalidRequestError("--ssl-certfile and --ssl-keyfile belong together", param="ssl_certfile")
    set_up_logging(options["log_format"], options["log_level"], has_access_log=not options["no_access_log"])
    status = _run(_model_name(model, options["model_option"]), keys, options)
    if status:
        raise click.exceptions.Exit(status)

def _model_name(argument: str | None, option: str | None) -> str:
    from puna.models import DEFAULT_MODEL

    if argument is not None and option is not None and argument != option:
        raise InvalidRequestError(f"two models are named, {argument} and {option}", param="model")
    return argument or option or DEFAULT_MODEL


def _run(model: str, keys: dict[str, str], options: dict[str, Any]) -> int:
    from puna.entrypoints.async_llm import AsyncLLM
    from puna.entrypoints.loading import EngineOptions
    from puna.entrypoints.server.app import create_app
    from puna.entrypoints.server.host import ModelHost
    from puna.entrypoints.server.process import Network, serve
    from puna.entrypoints.server.settings import TEMPLATE_VARIABLES, ServerSettings
    from puna.models import find_model
    from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput

    sampling = SamplingParamsInput(**{name: options[name] for name in ("temperature", "top_p", "top_k", "min_p")})
    SamplingParams.from_input(sampling)
    names = {item.name for item in fields(EngineOptions)} & options.keys()
    engine = {name: options[name] for name in names}
    engine |= {"max_model_len": options["max_length"], "enable_weight_cache": not options["no_weight_cache"]}
    if options["lora_dir"] is not None:
        if not options["lora_dir"].is_dir():
            raise InvalidRequestError(f"{options['lora_dir']} is no directory", param="lora_dir")
        engine["enable_lora"] = True
    EngineOptions(**engine)
    find_model(model, revision=options["revision"])
    limits = _limits(options)
    settings = ServerSettings(
        model_names=options["served_model_name"] or (_shown_name(model),),
        limits=limits,
        sampling=sampling,
        api_keys=keys,
        allowed_origins=options["allowed_origins"],
        is_strict=options["strict"],
        template_variables=frozenset(options["template_variables"]) or TEMPLATE_VARIABLES,
        has_vllm_metrics=options["vllm_metrics"],
        storage_dir=None if options["no_storage"] else options["storage_dir"] or _state_dir(),
        max_in_engine=2 * options["max_num_seqs"] * options["data_parallel_degree"],
        root_path=options["root_path"],
        lora_dir=options["lora_dir"],
        otlp_traces_endpoint=options["otlp_traces_endpoint"],
    )
    # Requests wait in the server's fair line; the engine's own never fills up.
    host = ModelHost(lambda: AsyncLLM(model, max_queue_size=1 << 20, **engine))
    network = Network(
        host=options["host"],
        port=options["port"],
        certificate=options["ssl_certfile"],
        key=options["ssl_keyfile"],
        key_password=options["ssl_keyfile_password"],
        client_authorities=options["ssl_ca_certs"],
    )
    return serve(create_app(settings, host), network)


def _limits(options: dict[str, Any]) -> Limits:
    from puna.entrypoints.server.settings import Limits

    names = [item.name for item in fields(Limits)]
    return Limits(**{name: options[name.removesuffix("_s")] for name in names})


def _shown_name(model: str) -> str:
    """What a model is called by default: paths are nobody's business."""
    path = Path(model)
    return path.resolve().name.removesuffix(".gguf") if path.exists() else model


def _state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "puna"

