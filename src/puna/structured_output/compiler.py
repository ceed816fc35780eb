"""`GrammarCompiler`: from what requests state to compiled grammars, within bounds, and each once."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from puna.structured_output.compile_process import CompileProcess
from puna.structured_output.constraint import Constraint
from puna.structured_output.errors import GrammarError, json_path
from puna.structured_output.grammars import grammar_of, json_grammar
from puna.structured_output.json_schema import CheckedSchema, check_schema, moved
from puna.structured_output.params import StructuredOutputsParams
from puna.structured_output.vocabulary import Vocabulary

__all__ = ["GrammarCompiler"]

_LIMITS: Final[dict[str, Any]] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
_CACHE_BYTES: Final = 32 << 20
_BASE_BYTES: Final = 64 << 10  # of a compiled grammar, measured; and so many for each of its source
_BYTES_PER_BYTE: Final = 96
_SEARCH_SECONDS: Final = 2.0
_MAX_REASON: Final = 300  # characters


class GrammarCompiler:
    """Compiles grammars for one model. Safe to use from several threads.

    Args:
        make_vocabulary: Makes the model's tokens; called when the first grammar comes.
        cache_bytes: About how many bytes of compiled grammars are kept for later requests, the latest used ones.
    """

    def __init__(self, make_vocabulary: Callable[[], Vocabulary], cache_bytes: int = _CACHE_BYTES) -> None:
        self._make_vocabulary = make_vocabulary
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._process: CompileProcess | None = None
        self._cache: OrderedDict[str, Constraint] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._num_bytes = 0

    @property
    def num_cached_bytes(self) -> int:
        """About how many bytes are kept."""
        return self._num_bytes

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens.

        Raises:
            InvalidRequestError: No token ends a text.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._make_vocabulary()
                self._process = CompileProcess(self._vocabulary.size, self._vocabulary.control(), _LIMITS)
            return self._vocabulary

    def compile(self, params: StructuredOutputsParams) -> Constraint:
        """The grammar that a request states.

        Raises:
            GrammarError: It uses what is not supported, makes no sense, or is too complex.
            InvalidRequestError: No token of the model ends a text.
        """
        grammar = grammar_of(params)
        try:
            return self.compile_grammar(grammar)
        except GrammarError as error:
            path = error.path
            if params.kind == "json" and path is None:
                path = self._place_of(check_schema(params.json), params)
            raise GrammarError(error.reason, param=params.param, path=path) from error

    def compile_grammar(self, grammar: Mapping[str, Any], param: str | None = None) -> Constraint:
        """A grammar in the engine's form, `{"grammars": [...]}`. Errors are those of `compile`; `param` names it."""
        try:
            return self._compiled(grammar)
        except GrammarError as error:
            if error.param is not None or param is None:
                raise
            raise GrammarError(error.reason, param=param, path=error.path) from error

    def _compiled(self, grammar: Mapping[str, Any]) -> Constraint:
        vocabulary = self.vocabulary
        text = json.dumps(grammar)
        with self._lock:
            known = self._cache.get(text)
            if known is not None:
                self._cache.move_to_end(text)
                return known
        self._check(text)
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(vocabulary.engine, text, log_level=0, limits=LLParserLimits(**_LIMITS))
        if matcher.is_error():
            raise GrammarError(_reason(matcher.get_error()))
        constraint = Constraint(matcher, vocabulary, _BASE_BYTES + _BYTES_PER_BYTE * len(text))
        self._keep(text, constraint)
        return constraint

    def _check(self, text: str) -> None:
        """Lets the process try a grammar.

        Raises:
            GrammarError: There is something wrong with it.
        """
        assert self._process is not None
        if problem := self._process.problem(text):
            raise GrammarError(_reason(problem))

    def _keep(self, text: str, constraint: Constraint) -> None:
        with self._lock:
            if text in self._cache or constraint.num_bytes > self._cache_bytes:
                return
            self._cache[text] = constraint
            self._num_bytes += constraint.num_bytes
            while self._num_bytes > self._cache_bytes:
                _, oldest = self._cache.popitem(last=False)
                self._num_bytes -= oldest.num_bytes

    def _place_of(self, checked: CheckedSchema, params: StructuredOutputsParams) -> str:
        """The path of the innermost schema that cannot be compiled: the whole one can't."""
        deadline = time.monotonic() + _SEARCH_SECONDS
        place: tuple[str | int, ...] = ()
        while True:
            for path in _inner(checked.places, place):
                if time.monotonic() > deadline:
                    return json_path(place)
                if self._fails(checked, path, params):
                    place = path
                    break
            else:
                return json_path(place)

    def _fails(self, checked: CheckedSchema, path: tuple[str | int, ...], params: StructuredOutputsParams) -> bool:
        """Whether a part of a schema cannot be compiled."""
        pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
        part = {"$defs": {"root": moved(checked.schema, "#/$defs/root")}, "$ref": f"#/$defs/root{pointer}"}
        try:
            grammar = json_grammar({}, params)
            grammar["grammars"][0]["json_schema"].update(part)
            self._check(json.dumps(grammar))
        except GrammarError as error:
            return "not found" not in error.reason
        return False


def _inner(places: Collection[tuple[str | int, ...]], place: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    """The schemas directly within a schema."""
    known, depth = frozenset(places), len(place)
    inside = [path for path in places if len(path) > depth and path[:depth] == place]
    return [path for path in inside if not any(path[:end] in known for end in range(depth + 1, len(path)))]


def _reason(text: str) -> str:
    """What the engine says, in one line of bounded length."""
    if text.startswith("oneOf constraints are not supported"):
        return "oneOf is supported where no value can match two of its schemas, which is not certain here"
    lines = text.strip().splitlines() or ["it cannot be compiled"]
    details = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if details:  # an expression: what is wrong comes last, behind a picture of where
        return f"invalid expression: {details[0]}"
    line = lines[0]
    if line.startswith("panic"):
        return "the grammar's engine fails on it"
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}…"
