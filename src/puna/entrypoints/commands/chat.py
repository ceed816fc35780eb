"""`puna chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Any, Final

import click

from puna.entrypoints.commands.options import (
    adapter_option,
    engine_options,
    loading_options,
    one_answer_params,
    sampling_options,
    stated_values,
    structure_options,
)
from puna.entrypoints.console import note, progress, warn
from puna.errors import PunaError, UnsupportedModelError

# Whole pages of a conversation are found again; small ones leave little of the last answer to be read a second time.
_BLOCK_SIZE: Final = 32


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--system", metavar="TEXT", help="A system message.")
@structure_options
@sampling_options
@adapter_option
@loading_options
@click.option("-v", "--verbose", is_flag=True, help="Show tokens and times after each answer.")
@click.option("-q", "--quiet", is_flag=True, help="Show no more than the answers.")
def chat(model: str, system: str | None, verbose: bool, quiet: bool, **options: Any) -> None:
    """Talk with a model. /help lists what can be done; Ctrl-C stops an answer, Ctrl-D ends.

    Messages come from the terminal, or one a line from a pipe. Tokens are chosen as by puna generate.
    """
    from puna.entrypoints.async_llm import AsyncLLM
    from puna.entrypoints.chat_input import ChatInput
    from puna.entrypoints.chat_session import ChatSession
    from puna.models import find_model

    stated = stated_values(options)
    find_model(model, revision=options["revision"])
    with progress(quiet).status(f"loading {model}"):
        llm = AsyncLLM(model, **engine_options(options, max_num_seqs=1, block_size=_BLOCK_SIZE))
    session = ChatSession(llm, stated, one_answer_params, system, options["adapter"])
    try:
        if llm.tokenizer.chat_template is None:
            raise UnsupportedModelError(
                "chat template", None, file=model, supported="puna generate --no-chat, or a template of your own"
            )
        entries = ChatInput()
        if not quiet:
            for notice in llm.notices:
                warn(notice)
            if entries.is_terminal:
                note(f"{model}, {llm.max_model_len} tokens of context; /help lists what can be done, Ctrl-D ends")
        while not session.is_over:
            try:
                entry = entries.read()
                session.enter(entry)
                if verbose and not entry.startswith("/"):
                    note(session.stats())
            except EOFError:
                if entries.is_terminal:
                    click.echo()
                break
            except KeyboardInterrupt:
                if not entries.is_terminal:
                    raise
                note("\n(Ctrl-D or /quit ends)")
            except (PunaError, OSError) as error:
                if not entries.is_terminal or isinstance(error, BrokenPipeError):
                    raise
                note(f"{click.style('error', fg='red', bold=True)}: {error}")
    finally:
        session.close()
