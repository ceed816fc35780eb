"""Filters and methods of template values, each with a look at the size of its result before it is made."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.utils import Namespace, _PassArg

from puna.tokenization.template_budget import Budget, BudgetError

if TYPE_CHECKING:
    from puna.tokenization.template_sandbox import TemplateSandbox

#: The largest width, count or precision that a template may ask for.
_MAX_COUNT = 10_000

_STR_METHODS = frozenset(
    [
        "capitalize",
        "casefold",
        "center",
        "count",
        "endswith",
        "expandtabs",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
        "join",
        "ljust",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rjust",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
        "zfill",
    ]
)
_METHODS: dict[type, frozenset[str]] = {
    str: _STR_METHODS,
    dict: frozenset({"get", "items", "keys", "values", "copy"}),
    list: frozenset({"index", "count", "copy"}),
    tuple: frozenset({"index", "count"}),
    range: frozenset({"index", "count"}),
    int: frozenset({"bit_length"}),
    float: frozenset({"is_integer"}),
}
_DIGITS = re.compile(r"\d+")
_STAR = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\*|\d*\.\*)")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")


def guard_method(
    budget: Budget, method: types.BuiltinMethodType, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """Allows or refuses a call of a built-in method.

    Returns:
        The arguments to call it with.

    Raises:
        SecurityError: The method is not one that templates may call.
        BudgetError: Its result would be too large.
    """
    owner, name = method.__self__, method.__name__
    kind = next((kind for kind in type(owner).__mro__ if kind in _METHODS), None)
    if kind is None or name not in _METHODS[kind]:
        raise SecurityError(f"a call of {type(owner).__name__}.{name}")
    args = tuple(budget.listed(value) for value in args)
    if not isinstance(owner, str):
        return args
    if name in ("center", "ljust", "rjust", "zfill"):
        _small_numbers(args, kwargs)
    elif name == "expandtabs":
        width = next((v for v in (*args, *kwargs.values()) if isinstance(v, int)), 8)
        budget.allow(len(owner) + owner.count("\t") * max(width, 0), "a text")
    elif name == "replace":
        _guard_replace(budget, owner, args)
    elif name == "join" and args:
        _guard_join(budget, args[0], owner)
    return args


def _small_numbers(args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > _MAX_COUNT:
            raise BudgetError(f"a width or count of {value}")


def _guard_replace(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    if len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        places = text.count(args[0])
        budget.allow(len(text) + places * max(len(args[1]) - len(args[0]), 0), "a text")


def _guard_join(budget: Budget, values: Any, separator: str) -> None:
    if isinstance(values, (list, tuple, dict)):
        budget.allow(budget.size(values).characters + len(values) * len(separator), "a joined text")
    elif isinstance(values, str):
        budget.allow(len(values) * (1 + len(separator)), "a joined text")


def guard_percent(budget: Budget, text: str, values: Any) -> None:
    """Asks for the size of `text % values`."""
    arguments = values if isinstance(values, tuple) else (values,)
    width = 0
    if _STAR.search(text):
        width = max((abs(value) for value in _leaves(arguments) if isinstance(value, int)), default=0)
    _ask_formatted(budget, text, arguments, text.count("%"), width)


def guard_format(budget: Budget, text: str, values: tuple[Any, ...]) -> None:
    """Asks for the size of `text.format(...)`."""
    if _NESTED_FIELD.search(text.replace("{{", "")):
        raise BudgetError("a format whose width is itself a field")
    _ask_formatted(budget, text, values, text.count("{"), 0)


def _ask_formatted(budget: Budget, text: str, values: tuple[Any, ...], fields: int, width: int) -> None:
    if any(isinstance(value, Namespace) for value in _leaves(values)):
        raise BudgetError("a namespace written out as text")
    # An upper bound: all widths that are written, and every field as large as the largest value.
    digits = sum(int(number[:9]) for number in _DIGITS.findall(text))
    largest = max((budget.size(value).characters for value in values), default=0)
    budget.allow(len(text) + digits + fields * (largest + width), "a formatted text")


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def guard_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts, and asks before it makes something large.

    Args:
        name: Name in templates.
        function: The filter.
    """
    kind = _PassArg.from_obj(function)
    # Jinja's filters exist twice, for synchronous and asynchronous rendering; the wrapper picks by the environment.
    ask = _BEFORE.get(name)

    @pass_context
    def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        environment: TemplateSandbox = context.environment  # type: ignore[assignment]  # the only one with these filters
        budget = environment.budget
        budget.step(1 + (len(value) // 64 if isinstance(value, (list, tuple, dict, str)) else 0))
        if isinstance(value, Namespace) and name not in ("default", "d"):
            raise BudgetError("a namespace given to a filter")
        if name in _CONSUMERS:
            value = budget.listed(value)
        if ask is not None:
            ask(budget, value, args, kwargs)
        first: tuple[Any, ...] = ()
        if kind is _PassArg.context:
            first = (context,)
        elif kind is _PassArg.eval_context:
            first = (context.eval_ctx,)
        elif kind is _PassArg.environment:
            first = (environment,)
        result = function(*first, value, *args, **kwargs)
        if isinstance(result, types.GeneratorType):
            return budget.counted(result)
        return budget.check(result)

    return guarded


_CONSUMERS = frozenset(
    {"join", "list", "sort", "sum", "min", "max", "unique", "groupby", "last", "string", "batch", "slice"}
)


def _ask_width(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _small_numbers(args, kwargs)


def _ask_precision(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for number in (*args, *kwargs.values()):
        if isinstance(number, int) and abs(number) > 300:
            raise BudgetError(f"a precision of {number}")


def _ask_join(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    separator = args[0] if args else kwargs.get("d", "")
    _guard_join(budget, value, budget.text(separator))


def _ask_replace(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names = ("old", "new")
    found = [*args[:2], *(kwargs[name] for name in names[len(args) : 2] if name in kwargs)]
    _guard_replace(budget, budget.text(value), tuple(budget.text(item) for item in found))


def _ask_indent(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _small_numbers(args, kwargs)
    width = args[0] if args else kwargs.get("width", 4)
    text = budget.text(value)
    budget.allow(len(text) + (text.count("\n") + 2) * (len(width) if isinstance(width, str) else int(width)), "a text")


def _ask_format(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    guard_percent(budget, budget.text(value), (*args, kwargs) if kwargs else args)


def _ask_sum(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    start = args[1] if len(args) > 1 else kwargs.get("start", 0)
    if not isinstance(start, (int, float)):
        raise BudgetError("a sum of something else than numbers")


def _ask_json(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    indent = args[1] if len(args) > 1 else kwargs.get("indent")
    size = budget.size(value)
    width = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    separators = args[2] if len(args) > 2 else kwargs.get("separators")
    between = budget.size(separators).characters if separators is not None else 4
    budget.allow(size.characters + size.items * (max(width, 0) * (size.depth + 1) + between), "a JSON text")


def _ask_text(budget: Budget, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    budget.text(value)


_BEFORE: dict[str, Callable[[Budget, Any, tuple[Any, ...], dict[str, Any]], None]] = {
    "batch": _ask_width,
    "center": _ask_width,
    "slice": _ask_width,
    "truncate": _ask_width,
    "round": _ask_precision,
    "join": _ask_join,
    "replace": _ask_replace,
    "indent": _ask_indent,
    "format": _ask_format,
    "sum": _ask_sum,
    "tojson": _ask_json,
    **dict.fromkeys(
        ("string", "upper", "lower", "capitalize", "title", "trim", "escape", "e", "forceescape", "safe", "urlencode",
         "wordcount"),
        _ask_text,
    ),
}  # fmt: skip
