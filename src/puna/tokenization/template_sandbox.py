"""The Jinja environment of chat templates: what they need, behaving as elsewhere, and nothing else.

Built on Jinja's immutable sandbox. On top of it: callables are an allow-list, filters that can blow up ask first, the
code that is generated for loops, comparisons, literals, `~` and output counts (see `template_budget`), and nothing is
evaluated while a template is compiled.
"""

from __future__ import annotations

import json
import threading
import types
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import Template, Undefined, nodes, pass_context, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner

from puna.tokenization.template_budget import Budget, BudgetError, TemplateNamespace
from puna.tokenization.template_filters import guard_filter, guard_format, guard_method, guard_percent

#: Filters of Jinja that no chat template needs and that reach attributes, run regular expressions over markup, are
#: random or print without bounds.
_DROPPED_FILTERS = ("attr", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")


class RaisedByTemplate(TemplateError):
    """The template itself refuses the conversation."""


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON text, without the HTML escapes that Jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class GenerationBlocks(Extension):
    """`{% generation %}` marks the assistant's own words for training; rendering passes them through."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("pass_through"), [], [], body).set_lineno(line)

    @pass_eval_context
    def pass_through(self, context: nodes.EvalContext, caller: Macro) -> str:
        return str(caller())


class _CountingGenerator(CodeGenerator):
    """Generates code that counts what it does."""

    def visit_EnvironmentAttribute(self, node: nodes.EnvironmentAttribute, frame: Frame) -> None:
        # Only this class makes such nodes: templates cannot write one.
        self.write(f"environment.{node.name}()")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        count = nodes.EnvironmentAttribute("step", lineno=node.lineno)
        node.body = [nodes.ExprStmt(count, lineno=node.lineno), *node.body]
        if node.test is not None:
            node.test = nodes.And(count, node.test, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        # Fixed text passes through `finalize` as well, where output is counted.
        node.nodes = [
            nodes.Const(child.data, lineno=child.lineno) if isinstance(child, nodes.TemplateData) else child
            for child in node.nodes
        ]
        super().visit_Output(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenated((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(environment.step() and ")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._checked(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._checked(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._checked(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._checked(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _checked(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.checked(")
        visit(node, frame)
        self.write(")")


@pass_context
def _finalize(context: Context, value: Any) -> str:
    environment = context.environment
    assert isinstance(environment, TemplateSandbox)
    budget = environment.budget
    budget.step()
    text = budget.text(value)
    budget.made(len(text))
    return text


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment; one for each template, shared by threads.

    Args:
        clock: What `strftime_now` tells.
    """

    code_generator_class = _CountingGenerator
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, clock: Callable[[], datetime] = datetime.now) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlocks, loopcontrols],
            optimized=False,  # the optimizer would evaluate constants outside of any budget
            finalize=_finalize,
        )
        self._local = threading.local()
        self._clock = clock
        for name in _DROPPED_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = tojson
        self.filters.update({name: guard_filter(name, function) for name, function in self.filters.items()})
        tests: Any = dict(self.tests)
        self.tests.update({name: _counted_test(function) for name, function in tests.items()})
        self._callables = {id(function): function for function in (safe_range, dict, TemplateNamespace)}
        self.globals = {
            "range": safe_range,
            "dict": dict,
            "cycler": Cycler,
            "joiner": Joiner,
            "namespace": TemplateNamespace,
            "raise_exception": self.raise_exception,
            "strftime_now": self.strftime_now,
        }

    @property
    def budget(self) -> Budget:
        """The budget of the rendering that runs in this thread."""
        budget: Budget = self._local.budget
        return budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._local.budget = budget

    def step(self) -> bool:
        """One step of a loop or comparison; True."""
        return self.budget.step()

    def checked(self, value: Any) -> Any:
        """Measures a value that the template made; returns it."""
        return self.budget.check(value)

    def concatenated(self, values: tuple[Any, ...]) -> str:
        """The `~` operator."""
        budget = self.budget
        texts = [budget.text(value) for value in values]
        budget.allow(sum(map(len, texts)), "a text")
        return str(budget.check("".join(texts)))

    def raise_exception(self, message: object) -> None:
        """What templates call to refuse a conversation."""
        raise RaisedByTemplate(self.budget.text(message)[:2000])

    def strftime_now(self, format: str) -> str:
        """The time of rendering, formatted."""
        if not isinstance(format, str) or len(format) > 256:
            raise BudgetError("a date format of more than 256 characters")
        return self._clock().strftime(format)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        budget.step()
        if operator == "+" and isinstance(left, (str, list, tuple)):
            if isinstance(right, (str, list, tuple)):
                budget.allow(budget.size(left).characters + budget.size(right).characters, "a text or list")
        elif operator == "*":
            _check_product(budget, left, right)
            _check_product(budget, right, left)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * max(right, 0) > 4096:
                raise BudgetError(f"a power of {left.bit_length() * right} bits")
        elif operator == "%" and isinstance(left, str):
            guard_percent(budget, left, right)
        return budget.check(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.step()
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.budget.step()
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        format_text = super().wrap_str_format(value)
        return None if format_text is None else _GuardedFormat(self, value.__self__, format_text)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Double underscores, as in the base class: a template's keyword may have any other name.
        budget = __self.budget
        budget.step()
        if isinstance(__obj, types.BuiltinMethodType) and not isinstance(__obj.__self__, (type, types.ModuleType)):
            args = guard_method(budget, __obj, args, kwargs)
        elif not __self._may_call(__obj):
            raise SecurityError(f"a call of {type(__obj).__name__} {getattr(__obj, '__name__', '')!r}")
        return budget.check(super().call(__context, __obj, *args, **kwargs))

    def _may_call(self, function: Any) -> bool:
        if isinstance(function, (Macro, LoopContext, BlockReference, Joiner, Undefined, _GuardedFormat)):
            return True
        if function is Cycler or function is Joiner or id(function) in self._callables:
            return True
        owner = getattr(function, "__self__", None)
        return isinstance(function, types.MethodType) and isinstance(
            owner, (LoopContext, Cycler, GenerationBlocks, TemplateSandbox)
        )


class _GuardedFormat:
    """`text.format` of the sandbox that asks for its size first."""

    def __init__(self, environment: TemplateSandbox, text: str, format_text: Callable[..., str]) -> None:
        self._environment = environment
        self._text = text
        self._format_text = format_text

    def __repr__(self) -> str:
        return "<method format>"

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        guard_format(self._environment.budget, self._text, (*args, *kwargs.values()))
        return self._format_text(*args, **kwargs)


def _check_product(budget: Budget, value: Any, count: Any) -> None:
    if not isinstance(count, int):
        return
    if isinstance(value, (str, list, tuple)):
        budget.allow(max(budget.size(value).characters, 8 * len(value)) * max(count, 0), "a repeated text or list")
    elif isinstance(value, int) and value.bit_length() + count.bit_length() > 4096:
        raise BudgetError(f"a product of {value.bit_length() + count.bit_length()} bits")


def _counted_test(function: Callable[..., Any]) -> Callable[..., Any]:
    from jinja2.utils import _PassArg

    kind = _PassArg.from_obj(function)

    @pass_context
    def counted(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        environment = context.environment
        assert isinstance(environment, TemplateSandbox)
        environment.budget.step()
        if kind is _PassArg.environment:
            return function(environment, value, *args, **kwargs)
        return function(value, *args, **kwargs)

    return counted


def line_of(error: BaseException, template: Template) -> int | None:
    """The line of the template in which an error came up, if it came up there."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__jinja_template__") is template:
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


def chunks(template: Template, variables: dict[str, Any]) -> Iterator[str]:
    """Renders piece by piece."""
    yield from template.root_render_func(template.new_context(variables))
