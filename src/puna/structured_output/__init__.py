"""Texts that follow a grammar: JSON schemas, regular expressions, choices, context-free grammars, tags.

A leaf: it knows tokens and bytes, and neither models nor requests. `llguidance` does the parsing and is imported when
the first grammar is compiled.
"""

from puna.structured_output.compiler import GrammarCompiler
from puna.structured_output.constraint import Constraint, ConstraintState, DeadEndError
from puna.structured_output.errors import GrammarError
from puna.structured_output.params import StructuredOutputsParams
from puna.structured_output.vocabulary import Vocabulary, byte_vocabulary

__all__ = [
    "Constraint",
    "ConstraintState",
    "DeadEndError",
    "GrammarCompiler",
    "GrammarError",
    "StructuredOutputsParams",
    "Vocabulary",
    "byte_vocabulary",
]
