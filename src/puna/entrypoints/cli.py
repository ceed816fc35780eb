"""`puna`: the command line.

Standard output carries data, standard error everything else. A command's module is imported when the command runs, so
that `puna --version` and `puna --help` start at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from puna import __version__
from puna.errors import PunaError

# name -> (module, function, one line for `puna --help`)
_COMMANDS: Final = {
    "generate": ("puna.entrypoints.commands.generate", "generate", "Write text that continues or answers a prompt."),
    "chat": ("puna.entrypoints.commands.chat", "chat", "Talk with a model in the terminal."),
    "serve": ("puna.entrypoints.commands.serve", "serve", "Serve a model over HTTP, as OpenAI's interface and others."),
    "batch": ("puna.entrypoints.commands.batch", "batch", "Answer a file of requests into a file of results."),
    "score": ("puna.entrypoints.commands.score", "score", "Tell how likely continuations of a prompt are."),
    "embed": ("puna.entrypoints.commands.embed", "embed", "Turn texts into vectors."),
    "perplexity": ("puna.entrypoints.commands.perplexity", "perplexity", "Tell how well a model foresees a text."),
    "show": ("puna.entrypoints.commands.show", "show", "Describe a model, its memory and its likely speed here."),
    "list": ("puna.entrypoints.commands.models", "list_command", "List the models that were fetched."),
    "pull": ("puna.entrypoints.commands.models", "pull", "Fetch a model."),
    "rm": ("puna.entrypoints.commands.models", "rm", "Delete a fetched model."),
    "cache": ("puna.entrypoints.commands.cache", "cache", "Look after weights that are kept for later starts."),
    "verify": ("puna.entrypoints.commands.verify", "verify", "Check that a model computes here what it should."),
    "convert": ("puna.entrypoints.commands.convert", "convert", "Write a checkpoint as a GGUF file."),
    "quantize": ("puna.entrypoints.commands.quantize", "quantize", "Write a model as a quantized GGUF file."),
    "merge": ("puna.entrypoints.commands.merge", "merge", "Write a model with an adapter in its weights."),
    "tokenize": ("puna.entrypoints.commands.tokenize", "tokenize", "Turn text into token ids."),
    "schema-check": (
        "puna.entrypoints.commands.schema_check",
        "schema_check",
        "Say whether answers can be held to a JSON schema.",
    ),
    "bench": ("puna.entrypoints.commands.bench", "bench", "Measure how fast a model runs here."),
    "doctor": ("puna.entrypoints.commands.doctor", "doctor", "Tell what was found out about this machine."),
}

_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE
_INTERNAL: Final = 70  # EX_SOFTWARE


class _LazyGroup(click.Group):
    """A group whose commands are rows of a table until one of them is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, function, _help = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}; there is: {', '.join(_COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row[2]) for name, row in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="puna", message="%(prog)s %(version)s")
def cli() -> None:
    """Run Llama-shaped language models on the CPU.

    MODEL is a .gguf file, a directory in Hugging Face layout, a name on the hub (org/name or org/name:Q4_K_M), or
    smollm2, the default model. Exit status: 0 done, 1 failed, 2 wrong usage or request, 3 model not usable, 70 a
    fault of Puna's own, 130 interrupted.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status; no exception comes out, and no traceback is shown.

    Args:
        arguments: Without the program's name; None: those of this process.
    """
    try:
        # Not `cli.main`: that answers a broken pipe with a status of its own.
        with cli.make_context("puna", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        # Python would complain when it flushes at exit; nobody reads any more, so what is left may go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except PunaError as error:
        return _report(str(error), error.exit_code)
    except (OSError, MemoryError) as error:
        return _report(str(error) or type(error).__name__, 1)
    except Exception as error:  # the last line of defence: a person sees a sentence, never a traceback
        if os.environ.get("PUNA_DEBUG"):
            raise
        return _report(f"internal fault, {type(error).__name__}: {error} (PUNA_DEBUG=1 shows where)", _INTERNAL)


def main() -> NoReturn:
    """The `puna` program."""
    sys.exit(run())


def _report(message: str, status: int) -> int:
    click.echo(f"{click.style('error', fg='red', bold=True)}: {message}", err=True)
    return status


if __name__ == "__main__":
    main()
