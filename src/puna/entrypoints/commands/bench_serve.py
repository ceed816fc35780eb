"""`puna bench serve`: what a server's clients wait for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from puna.entrypoints.console import print_json, progress
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from puna.entrypoints.benchmark.load import Load
    from puna.entrypoints.benchmark.load_report import LoadReport

_NAMES = ("ttft", "tpot", "e2el")


def _parse_goodput(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition(":")
        try:
            most = float(value)
        except ValueError:
            most = 0.0
        if name not in _NAMES or not 0 < most < float("inf"):
            raise click.BadParameter(f"{text!r} is not NAME:MS, with a NAME of {', '.join(_NAMES)} and MS above 0")
        if name in found:
            raise click.BadParameter(f"{name} was given twice")
        found[name] = most
    return found


def _parse_percentiles(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= share <= 100 for share in found) or len(set(found)) < len(found):
        raise click.BadParameter(f"{text!r} is no list of different percentages, such as 50,90,99")
    return found


@click.command("serve")
@click.option(
    "--base-url",
    default="http://127.0.0.1:8000/v1",
    show_default=True,
    help="Of a server with OpenAI's interface; http or https.",
)
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Its key; also by OPENAI_API_KEY.")
@click.option("--model", help="Name in requests.  [default: the first that the server lists]")
@click.option(
    "--endpoint", type=click.Choice(["completions", "chat"]), default="completions", show_default=True,
    help="What is asked.",
)  # fmt: skip
@click.option("--num-prompts", type=click.IntRange(1, 1_000_000), default=100, show_default=True)
@click.option(
    "--random-input-len", "input_len", type=click.IntRange(1), default=128, show_default=True,
    help="Random words of a prompt, each about a token.",
)  # fmt: skip
@click.option(
    "--random-output-len", "output_len", type=click.IntRange(1), default=64, show_default=True,
    help="Tokens of an answer.",
)  # fmt: skip
@click.option(
    "--prefix-len", type=click.IntRange(0), default=0, show_default=True,
    help="Words that prompts share at their beginning.",
)  # fmt: skip
@click.option(
    "--num-prefixes", type=click.IntRange(1), default=1, show_default=True,
    help="Different beginnings, in turn; with --prefix-len.",
)  # fmt: skip
@click.option("--max-concurrency", type=click.IntRange(1), help="Requests open at once.  [default: no bound]")
@click.option(
    "--request-rate", type=click.FloatRange(0, min_open=True),
    help="Requests per second, with gaps of a Poisson process.  [default: all at once]",
)  # fmt: skip
@click.option(
    "--goodput", multiple=True, callback=_parse_goodput, metavar="NAME:MS",
    help="A bound for requests that count as good, in milliseconds: ttft:500, tpot:50, e2el:5000. May be repeated.",
)  # fmt: skip
@click.option(
    "--percentiles", callback=_parse_percentiles, default="50,90,99", show_default=True, metavar="LIST",
    help="Shown of each latency.",
)  # fmt: skip
@click.option("--warmup", "num_warmups", type=click.IntRange(0), default=1, show_default=True,
              help="Requests before, which count for nothing.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of prompts and gaps.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True,
              help="Seconds after which a request has failed.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["md", "json", "csv"]), default="md", show_default=True)
def bench_serve(
    base_url: str,
    api_key: str | None,
    model: str | None,
    endpoint: str,
    num_prompts: int,
    input_len: int,
    output_len: int,
    prefix_len: int,
    num_prefixes: int,
    max_concurrency: int | None,
    request_rate: float | None,
    goodput: dict[str, float],
    percentiles: tuple[float, ...],
    num_warmups: int,
    seed: int,
    timeout_s: float,
    form: str,
) -> None:
    """Send a load to a server and measure what its clients see.

    The server is `puna serve` or any other with OpenAI's interface; answers are streamed and greedy. Measured are the
    time to the first token (ttft), the time per output token after it (tpot), the latency between pieces of text (itl),
    and that of the whole answer (e2el). Exit status 1: a request failed.
    """
    from puna.entrypoints.benchmark.load import Load

    if num_prefixes > 1 and not prefix_len:
        raise InvalidRequestError("different beginnings need a length: --prefix-len", param="--num-prefixes")
    load = Load(
        model or "", num_prompts, input_len, output_len, prefix_len, num_prefixes, max_concurrency, request_rate, seed,
        endpoint == "chat", timeout_s,
    )  # fmt: skip
    with progress().status("measuring"):
        report = asyncio.run(_measure(base_url, api_key, load, num_warmups, percentiles, goodput))
    if form == "json":
        print_json(report.as_json())
    else:
        click.echo(report.as_markdown() if form == "md" else report.as_csv())
    if report.failures:
        raise click.exceptions.Exit(1)


async def _measure(
    base_url: str,
    api_key: str | None,
    load: Load,
    num_warmups: int,
    percentiles: tuple[float, ...],
    goodput: dict[str, float],
) -> LoadReport:
    from dataclasses import replace

    from puna.entrypoints.benchmark.http_stream import Endpoint, HttpFailureError
    from puna.entrypoints.benchmark.load import make_prompts, run_load, served_model
    from puna.entrypoints.benchmark.load_report import LoadReport

    endpoint = Endpoint.parse(base_url, api_key)
    try:
        load = replace(load, model=load.model or await served_model(endpoint))
    except HttpFailureError as error:
        raise click.ClickException(str(error)) from error
    if num_warmups:
        # Other prompts than the measured ones, so that nothing of these is in a cache.
        before = replace(load, seed=load.seed + 1_000_003, num_prompts=num_warmups, request_rate=None)
        await run_load(endpoint, before, make_prompts(before))
    seen = await run_load(endpoint, load, make_prompts(load))
    return LoadReport(base_url, load, seen, percentiles, goodput)
