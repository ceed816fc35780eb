"""Chat templates: from messages to the text of a prompt.

A template is a Jinja program that comes with the model. It is rendered as everywhere in the ecosystem (same whitespace
rules, globals and filters), in a sandbox with a budget; see docs/tokens.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.errors import InvalidRequestError, UnsupportedModelError, WeightsError

if TYPE_CHECKING:
    from jinja2 import Template

#: Compiling has no budget but this one. The longest templates of models have a third of it.
MAX_TEMPLATE_CHARACTERS = 1 << 16
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """Renders messages to a prompt.

    Attributes:
        source: Where the template comes from, for messages.
        texts: Template text by name; `default` is always there, `tool_use` is taken when tools are given.

    Args:
        texts: See above.
        source: See above.
        special_tokens: Variables such as `bos_token`.
        clock: What the template's `strftime_now` tells.
    """

    def __init__(
        self,
        texts: str | Mapping[str, str],
        *,
        source: str = "chat template",
        special_tokens: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.texts: dict[str, str] = {"default": texts} if isinstance(texts, str) else dict(texts)
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._clock = clock
        self._compiled: dict[str, Template] = {}

    def prepare(self) -> None:
        """Compiles the template now, not at the first rendering.

        Raises:
            UnsupportedModelError: The template cannot be compiled.
        """
        for name in self.texts:
            self._template(name)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text. It holds the special tokens already: encode it with `add_special_tokens=False`.

        Args:
            messages: Objects with `role` and, mostly, `content`.
            tools: Tool descriptions (JSON schema).
            documents: Documents for templates that take them.
            add_generation_prompt: End with the opening of the assistant's turn.
            variables: More variables of the template (`enable_thinking`, ...).

        Raises:
            InvalidRequestError: The template refuses the messages, fails on them, or goes beyond its budget.
            UnsupportedModelError: The template cannot be compiled, or does what no template may do.
        """
        values = self._values(messages, tools, documents, add_generation_prompt, variables)
        name = "tool_use" if tools and "tool_use" in self.texts else "default"
        return self._render(name, values)

    def _values(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        documents: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        from puna.tokenization.template_budget import plain

        more = dict(variables or {})
        if taken := sorted(_RESERVED & more.keys()):
            raise InvalidRequestError(
                f"{taken[0]!r} cannot be given as a template variable", param="chat_template_kwargs"
            )
        given = {"messages": messages, "tools": tools, "documents": documents, "chat_template_kwargs": more}
        checked: dict[str, Any] = {}
        for param, value in given.items():
            try:
                checked[param] = plain(value)
            except (TypeError, ValueError) as error:
                raise InvalidRequestError(str(error), param=param) from error
        if not isinstance(checked["messages"], list) or not all(
            isinstance(message, dict) and isinstance(message.get("role"), str) for message in checked["messages"]
        ):
            raise InvalidRequestError("expected a list of objects with a role", param="messages")
        more = checked.pop("chat_template_kwargs")
        return {**self._special_tokens, **more, **checked, "add_generation_prompt": add_generation_prompt}

    def _render(self, name: str, values: dict[str, Any]) -> str:
        from jinja2.exceptions import SecurityError, TemplateError

        from puna.tokenization.template_budget import Budget, BudgetError, characters_in
        from puna.tokenization.template_sandbox import RaisedByTemplate, TemplateSandbox, chunks, line_of

        template = self._template(name)
        environment = template.environment
        assert isinstance(environment, TemplateSandbox)
        budget = environment.budget = Budget(characters_in(values))
        parts: list[str] = []
        written = 0
        try:
            for chunk in chunks(template, values):
                written += len(chunk) if chunk.isascii() else len(chunk.encode("utf-8", "surrogatepass"))
                if written > budget.max_output:
                    raise BudgetError(f"more than {budget.max_output} bytes of output")
                parts.append(chunk)
        except RaisedByTemplate as error:
            raise InvalidRequestError(
                f"the chat template refuses the conversation: {error}", param="messages"
            ) from error
        except BudgetError as error:
            raise InvalidRequestError(
                f"the chat template goes beyond its budget{self._at(line_of(error, template))}: {error}",
                param="messages",
            ) from error
        except SecurityError as error:
            raise UnsupportedModelError(
                "chat_template", str(error), file=f"{self.source}{self._at(line_of(error, template))}",
                supported="templates that keep to their sandbox",
            ) from error  # fmt: skip
        except (
            TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError,
            TypeError, ValueError,
        ) as error:  # fmt: skip
            raise InvalidRequestError(
                f"the chat template fails on this conversation{self._at(line_of(error, template))}: "
                f"{type(error).__name__}: {str(error)[:500]}",
                param="messages",
            ) from error
        return "".join(parts)

    @staticmethod
    def _at(line: int | None) -> str:
        return f", line {line}" if line else ""

    def _template(self, name: str) -> Template:
        known = self._compiled.get(name)
        if known is not None:
            return known
        from jinja2.exceptions import TemplateError

        from puna.tokenization.template_sandbox import TemplateSandbox

        text = self.texts[name]
        if len(text) > MAX_TEMPLATE_CHARACTERS:
            raise UnsupportedModelError(
                "chat_template",
                f"{len(text)} characters",
                file=self.source,
                supported=f"up to {MAX_TEMPLATE_CHARACTERS}",
            )
        try:
            template = TemplateSandbox(self._clock).from_string(text)
        # SyntaxError: Python's compiler has limits that Jinja does not check (twenty nested loops).
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
            line = getattr(error, "lineno", None) if isinstance(error, TemplateError) else None
            raise UnsupportedModelError(
                "chat_template", str(error)[:500] or type(error).__name__, file=f"{self.source}{self._at(line)}",
                supported="Jinja as in docs/tokens.md; --no-chat and --chat-template do without this template",
            ) from error  # fmt: skip
        self._compiled[name] = template
        return template


@dataclass(frozen=True)
class TemplateSources:
    """Where a chat template may come from, best first: command line, file of its own, tokenizer config, GGUF.

    Attributes:
        candidates: `(source, templates by name)`.
    """

    candidates: tuple[tuple[str, Mapping[str, str]], ...] = field(default=())

    def select(self, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The first template that is there; None when there is none.

        Args:
            special_tokens: Variables such as `bos_token`.
        """
        for source, texts in self.candidates:
            if texts:
                return ChatTemplate(texts, source=source, special_tokens=special_tokens)
        return None

    @classmethod
    def from_directory(
        cls, directory: Path, tokenizer_config: Mapping[str, Any], *, override: str | Path | None = None
    ) -> TemplateSources:
        """The sources of a model directory.

        Args:
            directory: May hold `chat_template.jinja` and `additional_chat_templates/*.jinja`.
            tokenizer_config: Parsed tokenizer_config.json: `chat_template` is a text or a list of named ones.
            override: Template text or file from the command line.
        """
        own: dict[str, str] = {}
        path = directory / "chat_template.jinja"
        if path.is_file():
            own["default"] = _read(path)
            for more in sorted((directory / "additional_chat_templates").glob("*.jinja")):
                own[more.stem] = _read(more)
        config = directory / "tokenizer_config.json"
        listed = _named(tokenizer_config.get("chat_template"), config)
        return cls((*_override(override), (str(path), own), (str(config), listed)))

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, object], name: str, *, override: str | Path | None = None
    ) -> TemplateSources:
        """The sources of a GGUF file: `tokenizer.chat_template` and `tokenizer.chat_template.NAME`.

        Args:
            metadata: Keys of the file.
            name: The file, for messages.
            override: Template text or file from the command line.
        """
        key = "tokenizer.chat_template"
        texts: dict[str, str] = {}
        text = metadata.get(key)
        if text is not None and not isinstance(text, str):
            raise WeightsError("expected text", file=name, tensor=key)
        if isinstance(text, str) and text.strip():
            texts["default"] = text
            tool_use = metadata.get(f"{key}.tool_use")
            if isinstance(tool_use, str):
                texts["tool_use"] = tool_use
        return cls((*_override(override), (f"{name}: {key}", texts)))


def _override(value: str | Path | None) -> tuple[tuple[str, Mapping[str, str]], ...]:
    if value is None:
        return ()
    if isinstance(value, str) and ("{" in value or "\n" in value):
        return (("--chat-template", {"default": value}),)
    path = Path(value)
    if not path.is_file():
        raise InvalidRequestError(f"{str(value)!r} is neither Jinja text nor a file", param="chat_template")
    return ((str(path), {"default": _read(path)}),)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError("is not UTF-8", file=path, offset=error.start) from error


def _named(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    items = [{"name": k, "template": v} for k, v in value.items()] if isinstance(value, dict) else value
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        for item in items
    ):
        raise WeightsError("chat_template is neither a text nor a list of named texts", file=path)
    named = {item["name"]: item["template"] for item in items}
    if "default" not in named:
        raise WeightsError(f"chat_template has no template named default, only {sorted(named)}", file=path)
    return named
