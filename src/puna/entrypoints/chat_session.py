"""`ChatSession`: a conversation with a model, and the commands that a person gives in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from puna.entrypoints.async_llm import AsyncLLM
from puna.entrypoints.console import note, write_text
from puna.entrypoints.outputs import RequestOutput
from puna.errors import InvalidRequestError
from puna.pipelines.sampling_params import SamplingParams, SamplingParamsInput

__all__ = ["ChatSession"]

# command -> (what follows it, what it does)
_HELP: Final = {
    "/help": ("", "show this list"),
    "/system": ("[TEXT]", "set the system message, or show it"),
    "/set": ("[NAME VALUE]", "set a sampling value, such as temperature 0.7, or show what is set"),
    "/regen": ("", "answer the last message anew"),
    "/undo": ("", "take the last message and its answer back"),
    "/clear": ("", "forget the conversation, but for the system message"),
    "/save": ("FILE", "write the conversation as JSON"),
    "/load": ("FILE", "go on with a conversation that was written"),
    "/stats": ("", "show tokens and times"),
    "/quit": ("", "end; Ctrl-D does too"),
}
_ALIASES: Final = {"/?": "/help", "/exit": "/quit", "/bye": "/quit", "/retry": "/regen"}

MakeParams = Callable[[SamplingParamsInput, SamplingParamsInput], SamplingParams]


class ChatSession:
    """A conversation.

    Args:
        llm: The model.
        stated: Sampling values that were stated.
        make_params: Makes the final values of what was stated and of what the checkpoint states.
        system: The system message; None: there is none.
        adapter: The name of the adapter that answers; None: the model itself.

    Attributes:
        messages: The conversation, with the system message first if there is one.
        is_over: Whether `/quit` was given.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        stated: SamplingParamsInput,
        make_params: MakeParams,
        system: str | None = None,
        adapter: str | None = None,
    ) -> None:
        self._llm = llm
        self._adapter = adapter
        self._stated = stated
        self._make_params = make_params
        self.messages: list[dict[str, Any]] = []
        self.is_over = False
        self._last: RequestOutput | None = None
        self._num_turns = 0
        self._num_generated = 0
        # Ctrl-C cancels what the runner runs, and only that: the engine's thread ends the request before its next step.
        self._runner = asyncio.Runner()
        if system is not None:
            self._set_system(system)

    def close(self) -> None:
        """Ends the model's thread."""
        self._runner.run(self._llm.close())
        self._runner.close()

    def enter(self, entry: str) -> None:
        """Does what an entry says: a command begins with a slash, all else is a message to the model.

        Raises:
            InvalidRequestError: there is no such command, or it makes no sense here; or the conversation is too long.
            PunaError: the model failed. The conversation is as it was before.
            OSError: a file cannot be read or written.
        """
        if not entry.strip():
            return
        if not entry.startswith("/"):
            self._say(entry)
            return
        name, _, argument = entry.partition(" ")
        name = _ALIASES.get(name.strip(), name.strip())
        if name not in _HELP:
            raise InvalidRequestError(
                f"no command {name}; /help lists them, and a space before the slash makes it a message"
            )
        getattr(self, f"_do_{name[1:]}")(argument.strip())

    def stats(self) -> str:
        """Tokens and times so far, and of the last answer."""
        lines = [f"{self._num_turns} answers, {self._num_generated} tokens; loaded in {self._llm.load_seconds:.2f} s"]
        if (last := self._last) is not None:
            tokens, times = len(last.outputs[0].token_ids), last.timings
            used = len(last.prompt_token_ids) + tokens
            lines.append(f"context: {used} of {self._llm.max_model_len} tokens")
            first, end = times.first_token_s or 0.0, times.last_token_s or 0.0
            rate = f", {(tokens - 1) / (end - first):.1f} tokens/s" if tokens > 1 and end > first else ""
            lines.append(
                f"last answer: {len(last.prompt_token_ids)} tokens read ({last.num_cached_tokens} of them from the "
                f"cache), first token after {first:.2f} s, {tokens} tokens{rate}, seed {last.seed}"
            )
        return "\n".join(lines)

    def _say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        try:
            self._answer()
        except BaseException:
            if self.messages[-1]["role"] == "user":
                self.messages.pop()
            raise

    def _answer(self) -> None:
        """Answers the last message; Ctrl-C ends the answer, and what came of it stays."""
        params = self._make_params(self._stated, self._llm.sampling_defaults)
        self._last = None
        with contextlib.suppress(KeyboardInterrupt):
            self._runner.run(self._stream(params))
        last = self._last_output()
        write_text("\n")
        if last is None:  # nothing came before Ctrl-C
            self.messages.pop()
            return
        if last.error is not None:
            raise last.error
        self.messages.append({"role": "assistant", "content": last.outputs[0].text})
        self._num_turns += 1
        self._num_generated += len(last.outputs[0].token_ids)

    def _last_output(self) -> RequestOutput | None:
        return self._last

    async def _stream(self, params: SamplingParams) -> None:
        written = 0
        async with contextlib.aclosing(self._llm.chat(self.messages, params, adapter=self._adapter)) as outputs:
            async for output in outputs:
                self._last = output
                write_text(output.outputs[0].text[written:])
                written = len(output.outputs[0].text)

    def _do_help(self, _argument: str) -> None:
        width = max(len(f"{name} {more}") for name, (more, _) in _HELP.items())
        note("\n".join(f"{f'{name} {more}':{width}}  {text}" for name, (more, text) in _HELP.items()))
        note('A line that ends with \\ goes on; """ begins and ends a text of several lines. Ctrl-C stops an answer.')

    def _do_system(self, text: str) -> None:
        if text:
            self._set_system(text)
        else:
            note(self.messages[0]["content"] if self._has_system() else "there is no system message")

    def _do_set(self, argument: str) -> None:
        if not argument:
            params = self._make_params(self._stated, self._llm.sampling_defaults)
            defaults = SamplingParams()
            changed = {name: getattr(params, name) for name in params.__dataclass_fields__}
            shown = {name: value for name, value in changed.items() if value != getattr(defaults, name)}
            note(", ".join(f"{name} {value}" for name, value in shown.items()) or "everything is as by default")
            return
        name, _, text = argument.partition(" ")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        stated = SamplingParamsInput(**{name: value}).over(self._stated)
        if self._make_params(stated, self._llm.sampling_defaults).num_choices > 1:
            raise InvalidRequestError("a conversation goes on with one answer", param=name)
        self._stated = stated

    def _do_regen(self, _argument: str) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise InvalidRequestError("there is no answer yet")
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        self._say(question)

    def _do_undo(self, _argument: str) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise InvalidRequestError("there is nothing to take back")
        del self.messages[-2:]

    def _do_clear(self, _argument: str) -> None:
        del self.messages[int(self._has_system()) :]

    def _do_save(self, name: str) -> None:
        path = _file(name)
        value = {"model": self._llm.name, "messages": self.messages}
        path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        note(f"{len(self.messages)} messages are in {path}")

    def _do_load(self, name: str) -> None:
        path = _file(name)
        try:
            messages = json.loads(path.read_bytes())["messages"]
            is_valid = all(isinstance(m["role"], str) and isinstance(m["content"], str) for m in messages)
        except (ValueError, KeyError, TypeError):
            is_valid = False
        if not is_valid:
            raise InvalidRequestError(f"{path} holds no conversation")
        self.messages = messages
        note(f"{len(messages)} messages")

    def _do_stats(self, _argument: str) -> None:
        note(self.stats())

    def _do_quit(self, _argument: str) -> None:
        self.is_over = True

    def _has_system(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] == "system"

    def _set_system(self, text: str) -> None:
        self.messages[: int(self._has_system())] = [{"role": "system", "content": text}]


def _file(name: str) -> Path:
    if not name:
        raise InvalidRequestError("the name of a file is needed")
    return Path(name).expanduser()
