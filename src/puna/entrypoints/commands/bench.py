"""`puna bench`: how fast a model runs here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from puna.entrypoints.commands.bench_serve import bench_serve
from puna.entrypoints.console import note, print_json, progress
from puna.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from puna.entrypoints.benchmark.report import Report
    from puna.entrypoints.benchmark.runner import Runner, TracedStep
    from puna.entrypoints.benchmark.specs import Spec

_DEFAULT_TESTS: Final = ("pp512", "tg128", "start")
_DEFAULT_COMMAND: Final = "run"
_PROBE_S: Final = 2.0


class _BenchGroup(click.Group):
    """A group that runs its default command when the first word is none of its commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


def _parse_specs(_ctx: click.Context, _param: click.Parameter, names: tuple[str, ...]) -> tuple[Spec, ...]:
    from puna.entrypoints.benchmark.specs import parse_spec

    try:
        specs = tuple(parse_spec(name) for name in names)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if len(set(specs)) < len(specs):
        raise click.BadParameter("the same test was given twice; --reps repeats tests")
    return specs


@click.group(cls=_BenchGroup)
def bench() -> None:
    """Measure how fast a model runs here, or what a server's clients wait for.

    `puna bench MODEL` is `puna bench run MODEL`.
    """


bench.add_command(bench_serve)


@bench.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--test",
    "specs",
    multiple=True,
    callback=_parse_specs,
    default=_DEFAULT_TESTS,
    metavar="NAME",
    help="pp512 reads 512 tokens, tg128 generates 128; @d2048 with 2048 tokens in the cache before, @b8 for 8 "
    "sequences at once, @a8 with 8 adapters in turn; start: a process from its start to its first token. May be given "
    f"several times.  [default: {' '.join(_DEFAULT_TESTS)}]",
)
@click.option("-r", "--reps", type=click.IntRange(1), default=5, show_default=True, help="Repetitions of each test.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads to use.  [default: all that may be used]")
@click.option(
    "--kv-cache-dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16", "int8"]),
    default="auto",
    show_default=True,
    help="Element type of cached keys and values; auto is float16.",
)
@click.option("--format", "form", type=click.Choice(["md", "json", "csv"]), default="md", show_default=True)
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Run each test once more, write its instructions to FILE for a trace viewer, and tell where the time went.",
)
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option(
    "--lora-paths",
    "--lora-modules",
    "lora_paths",
    multiple=True,
    metavar="NAME=PATH",
    help="An adapter for tests that have any; may be repeated.",
)
def run(
    model: str,
    specs: tuple[Spec, ...],
    reps: int,
    threads: int | None,
    kv_cache_dtype: str,
    form: str,
    trace_file: Path | None,
    revision: str | None,
    lora_paths: tuple[str, ...],
) -> None:
    """Run tests of speed on MODEL.

    Each test runs once before it is measured. Tokens per second are over all sequences of a test, and of the whole
    loop: scheduling, the forward pass, choosing the token; text is not made. Prompts are random tokens.
    """
    from puna.models import find_model

    if trace_file is not None and not trace_file.parent.is_dir():
        raise InvalidRequestError(f"{trace_file.parent} is no directory", param="--trace")
    find_model(model, revision=revision)  # before the spinner: a download shows a progress bar of its own
    options: dict[str, Any] = {"threads": threads, "kv_cache_dtype": kv_cache_dtype, "revision": revision}
    with progress().status("loading") as status:
        from puna.entrypoints.benchmark.runner import Runner

        runner = Runner(model, [spec for spec in specs if spec.kind != "start"], lora_paths=lora_paths, **options)
        report = _measure(runner, model, specs, reps, options, status.update)
        steps = {}
        if trace_file is not None:
            status.update("tracing")
            steps = {spec.name: runner.trace(spec) for spec in specs if spec.kind != "start"}
    if form == "json":
        print_json(report.as_json())
    else:
        click.echo(report.as_markdown() if form == "md" else report.as_csv())
    if trace_file is not None:
        _save_traces(trace_file, steps)


def _measure(
    runner: Runner, model: str, specs: Sequence[Spec], reps: int, options: dict[str, Any], tell: Any
) -> Report:
    from puna import _native
    from puna.entrypoints.benchmark.process import peak_rss_bytes, start_seconds
    from puna.entrypoints.benchmark.report import Report, Result
    from puna.entrypoints.llm import kernel_variant
    from puna.entrypoints.model_header import open_header

    results = []
    for spec in specs:
        tell(spec.name)
        if spec.kind == "start":
            start_seconds(model, **options)  # so that all files are in memory
            results.append(Result(spec.name, [start_seconds(model, **options) for _ in range(reps)]))
        else:
            runner.warm(spec)
            results.append(Result(spec.name, [runner.run(spec) for _ in range(reps)]))
    peak = peak_rss_bytes()  # before the machine is measured, which takes memory of its own
    tell("measuring this machine")
    threads = options["threads"] or _native.cpu_info()["default_threads"]
    limits = _native.measure_limits(_PROBE_S, threads)
    allowed = open_header(model, revision=options["revision"]).speed(limits)
    bounds = allowed.prompt_tokens_per_s, allowed.generation_tokens_per_s
    return Report(model, kernel_variant(), threads, runner.load_s, peak, results, limits, bounds)


def _save_traces(path: Path, tests: dict[str, list[TracedStep]]) -> None:
    from puna.entrypoints.benchmark.tracing import summary_rows, write_chrome_trace

    write_chrome_trace(path, tests)
    for name, steps in tests.items():
        whole = sum(step.seconds for step in steps)
        note(f"\n{name}: {len(steps)} step{'s' if len(steps) > 1 else ''} in {whole * 1e3:.2f} ms")
        note(
            f"{'ms':>9} {'share':>6} {'waited':>7} {'count':>6} {'GB/s':>6} {'GFLOP/s':>8} {'of limit':>8}  instruction"
        )
        for row in summary_rows(steps):
            times = f"{row.seconds * 1e3:9.3f} {row.seconds / whole:6.1%} {row.waited * 1e3:7.3f} {row.count:6}"
            note(f"{times} {row.gbps:6.1f} {row.gflops:8.1f} {row.share_of_limit:8.1%}  {row.name}")
