"""The JSON-Schema test suite against jsonschema: what an accepted schema lets through validates, and so does what is
written at random under it. Both copies of the suite are read where their packages keep them.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from jsonschema.validators import validator_for

from puna.structured_output import Constraint, GrammarCompiler, GrammarError, StructuredOutputsParams, byte_vocabulary

END = 256
ENVIRONMENT = Path(sys.prefix)
DRAFTS = {
    "draft4": "http://json-schema.org/draft-06/schema#",  # its groups hold for the next draft, or are no schemas there
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
SUITES = {
    "npm": ENVIRONMENT / "node_modules/json-schema-test-suite/tests",
    "sdist": ENVIRONMENT / "json-schema-suite/tests",
}
CASES = [("npm", "draft4"), *(("sdist", draft) for draft in DRAFTS if draft != "draft4")]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_vocabulary)


def groups(suite: str, draft: str) -> Iterator[tuple[str, Any, list[Any]]]:
    for path in sorted((SUITES[suite] / draft).rglob("*.json")):
        for group in json.loads(path.read_text()):
            schema = group["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": DRAFTS[draft], **schema}
                if draft == "draft4":
                    schema["$schema"] = DRAFTS[draft]
            yield f"{path.name}: {group['description']}", schema, [test["data"] for test in group["tests"]]


def lets_through(constraint: Constraint, text: str) -> bool:
    state, data = constraint.begin(), list(text.encode("utf-8", "surrogatepass"))
    for place, byte in enumerate(data):
        if not state.allowed(np.array(data[:place], dtype=np.int64))[byte]:
            return False
    return bool(state.allowed(np.array(data, dtype=np.int64))[END])


def written(constraint: Constraint, seed: int) -> str | None:
    """A text of the grammar, written at random; None: it got too long. A dead end is an error."""
    chance, state, data = random.Random(seed), constraint.begin(), []
    likely = set(b'"}],:0123456789truefalsn{[')
    while len(data) < 250:
        allowed = np.flatnonzero(state.allowed(np.array(data, dtype=np.int64))).tolist()
        if END in allowed and (len(allowed) == 1 or chance.random() < 0.5):
            return bytes(data).decode()
        some = [byte for byte in allowed if byte in likely]
        byte = chance.choice(some if some and chance.random() < 0.85 else allowed)
        if byte == END:
            return bytes(data).decode()
        data.append(byte)
    return None


@pytest.mark.oracle
@pytest.mark.parametrize(("suite", "draft"), CASES)
def test_accepted_schemas_are_enforced(compiler: GrammarCompiler, suite: str, draft: str) -> None:
    num_accepted = num_valid = num_through = 0
    for name, schema, values in groups(suite, draft):
        try:
            constraint = compiler.compile(StructuredOutputsParams(json=schema))
        except GrammarError as error:
            assert str(error).startswith("structured_outputs.json: "), name
            continue
        num_accepted += 1
        kind = validator_for(schema, default=jsonschema.Draft202012Validator) if isinstance(schema, dict) else None
        validator = (kind or jsonschema.Draft202012Validator)(schema)
        validator.check_schema(schema)
        for value in values:
            for text in {json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=1)}:
                is_valid = validator.is_valid(json.loads(text))
                is_through = lets_through(constraint, text)
                num_valid, num_through = num_valid + is_valid, num_through + is_through
                assert is_valid or not is_through, f"{name}: {text}"
        for seed in range(2):
            text = written(constraint, seed)
            assert text is None or validator.is_valid(json.loads(text)), f"{name}: {text}"
    # Enough of the suite is accepted, and enough of what is valid can be written: properties have one order.
    assert num_accepted > 50 and num_through > num_valid * 0.6
