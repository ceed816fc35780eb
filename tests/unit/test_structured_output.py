"""Grammars: what is refused and where, what is allowed next, and what tokens forced text has."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import InvalidRequestError
from puna.structured_output import (
    Constraint,
    DeadEndError,
    GrammarCompiler,
    GrammarError,
    StructuredOutputsParams,
    Vocabulary,
    byte_vocabulary,
)
from puna.structured_output.json_schema import check_schema
from puna.structured_output.patterns import PatternError, portable_pattern
from puna.tokenization import Tokenizer, load_tokenizer
from support.tiny_tokenizers import (
    byte_level_tokenizer_json,
    gguf_metadata,
    sentencepiece_metadata,
    small_sentencepiece,
)

END = 256  # of the vocabulary of bytes


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_vocabulary)


def follows(constraint: Constraint, text: str) -> bool:
    """Whether a text, byte by byte, is one of the grammar's."""
    state, data = constraint.begin(), list(text.encode())
    for place, byte in enumerate(data):
        if not state.allowed(np.array(data[:place], dtype=np.int64))[byte]:
            return False
    return bool(state.allowed(np.array(data, dtype=np.int64))[END])


def some_text(constraint: Constraint, seed: int, vocabulary: Vocabulary, limit: int = 400) -> str | None:
    """A text of the grammar, written at random; None: it got too long."""
    chance, state, tokens = random.Random(seed), constraint.begin(), []
    likely = [b for b in b'"}],:0123456789 truefalsn{[' if b < vocabulary.size]
    while len(tokens) < limit:
        allowed = np.flatnonzero(state.allowed(np.array(tokens, dtype=np.int64)))
        if set(vocabulary.end_ids) & set(allowed.tolist()) and chance.random() < 0.5:
            return b"".join(map(vocabulary.token_bytes, tokens)).decode()
        preferred = [token for token in likely if token in allowed]
        token = int(chance.choice(preferred if preferred and chance.random() < 0.8 else allowed.tolist()))
        if token in vocabulary.end_ids:
            return b"".join(map(vocabulary.token_bytes, tokens)).decode()
        tokens.append(token)
    return None


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "path", "reason"),
    [
        ({"properties": {"a": {"not": {}}}}, "$.properties.a.not", "'not' is not supported"),
        ({"properties": {"a b": {"if": {}}}}, "$.properties['a b'].if", "'if' is not supported"),
        ({"type": "array", "uniqueItems": True}, "$.uniqueItems", "not supported"),
        ({"minimun": 1}, "$.minimun", "not supported"),
        ({"x-guidance": {"lenient": True}}, "$.x-guidance", "not supported"),
        ({"$ref": "https://example.org/schema"}, "$.$ref", "within the schema"),
        ({"$ref": "#/$defs/none"}, "$.$ref", "is not there"),
        ({"$defs": {"a": {"contains": {}}}, "items": {"$ref": "#/$defs/a"}}, "$.$defs.a.contains", "not supported"),
        ({"$ref": "#"}, "$", "refers to itself"),
        ({"anyOf": [{"type": "null"}, {"allOf": [{"$ref": "#"}]}]}, "$", "refers to itself"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            "$",
            "every value would be infinite",
        ),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "$", "every value would be infinite"),
        ({"type": "number", "multipleOf": 0.01}, "$.multipleOf", "validators round"),
        ({"type": "integer", "minimum": 1e30}, "$.minimum", "readers of JSON differ"),
        ({"const": 12345678901234567890}, "$.const", "readers of JSON differ"),
        ({"const": [1, {"a": 0.12345678901234567}]}, "$.const[1].a", "15 digits"),
        ({"type": "object", "minProperties": 2}, "$.minProperties", "above 1 is not supported"),
        ({"type": "string", "format": "regex"}, "$.format", "there is: date"),
        ({"pattern": "(?=a)"}, "$.pattern", "differ by dialect"),
        ({"properties": {"q": {"oneOf": [{}, {"type": "object"}]}}}, "$.properties.q", "oneOf is supported where"),
        ({"const": "a\x01b"}, "$.const", "control character U+0001"),
        ({"properties": {"a\x7f": {}}}, "$.properties", "control character U+007F"),
        ({"pattern": r"a\x00b"}, "$.pattern", "control character U+0000"),
        ({"enum": []}, "$.enum", "list with values"),
        ({"type": "int"}, "$.type", "not a type"),
        ({"type": "string", "enum": [1]}, "$", "Unsatisfiable"),
        ({"items": [{}]}, "$.items", "prefixItems"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "$.$schema", "2020-12"),
        (False, "$", "accepts nothing"),
    ],
)
def test_what_is_not_enforced_is_refused_with_its_path(
    compiler: GrammarCompiler, schema: Any, path: str, reason: str
) -> None:
    with pytest.raises(GrammarError, match=re.escape(f"structured_outputs.json: at {path}: ")) as caught:
        compiler.compile(StructuredOutputsParams(json=schema))
    assert caught.value.path == path and reason in str(caught.value)
    assert caught.value.http_status == 400 and caught.value.exit_code == 2


def test_nested_beyond_all_bounds_is_refused(compiler: GrammarCompiler) -> None:
    schema: dict[str, Any] = {}
    for _ in range(200):
        schema = {"properties": {"a": schema}}
    with pytest.raises(GrammarError, match="nested deeper than 64"):
        compiler.compile(StructuredOutputsParams(json=schema))
    with pytest.raises(GrammarError, match=r"nested too deeply|not JSON"):
        StructuredOutputsParams(json='{"a":' * 100_000)
    with pytest.raises(GrammarError, match="at most 262144"):
        StructuredOutputsParams(regex="a" * 300_000)


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({}, "exactly one of json, .* got none"),
        ({"regex": "a", "json_object": True}, "got json_object and regex"),
        ({"json_object": False}, "must be true"),
        ({"choice": []}, "not empty"),
        ({"choice": "abc"}, "list of texts"),
        ({"json": 3}, "must be an object, true or false, got int"),
        ({"json": "{"}, "is not JSON"),
        ({"json": {"const": float("nan")}}, "is not JSON"),
        ({"json": {"a": {1, 2}}}, "is not JSON"),
        ({"json_object": True, "whitespace_pattern": " ", "disable_any_whitespace": True}, "go together"),
    ],
)
def test_params_are_checked_when_they_are_made(stated: dict[str, Any], reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        StructuredOutputsParams(**stated)


def tag(begin: str, schema: Any) -> dict[str, Any]:
    return {"structures": [{"begin": begin, "schema": schema, "end": "</f>"}], "triggers": ["<f"]}


@pytest.mark.parametrize(
    ("stated", "yes", "no"),
    [
        (
            {"json": PERSON},
            ['{"name":"a"}', '{ "name" : "é\\n", "age": 12}'],
            ['{"age":1}', '{"name":"a"', '{"name":"0123456789"}', ""],
        ),
        ({"json": PERSON, "disable_any_whitespace": True}, ['{"name":"a"}'], ['{"name": "a"}']),
        ({"json": PERSON, "whitespace_pattern": " {1,2}"}, ['{"name":  "a"}'], ['{"name":   "a"}']),
        ({"json": {"type": "number", "exclusiveMinimum": 0}}, ["0.5", "7"], ["0", "0.0000000000000000001", "-1"]),
        ({"json": {"type": "integer"}}, ["-12", "9007199254740992"], ["9007199254740993", "1.5"]),
        ({"json": {"type": "string", "pattern": r"^\d\D$"}}, ['"1a"'], ['"aa"', '"1٣"', '"٣a"']),
        ({"json": {"type": "string", "pattern": r"^[\x00-\x7e]$"}}, ['"a"', '"\\n"'], ['"é"', '"\\u0001"']),
        (
            {"json": {"type": "object", "patternProperties": {"^🐲$": {"type": "integer"}}}},
            ['{"🐲":1}', '{"x":"y"}'],
            ['{"🐲":"a"}', '{"\\ud83d\\udc32":"a"}', '{"\\u0041":1}'],
        ),
        ({"json_object": True}, ["{}", '{"a":[1,null]}'], ["[]", "1"]),
        ({"regex": "[ab]+c"}, ["abc"], ["ab", "abcc"]),
        ({"choice": ["ja", 'nein"\n😀\\']}, ["ja", 'nein"\n😀\\'], ["j", "jaa"]),
        ({"grammar": 'root ::= "a" | "b" root'}, ["a", "bba"], ["b"]),
        ({"grammar": 'start: "x" %json {"const": 1}'}, ["x1"], ["x2"]),
        (
            {"structural_tag": tag("<f=a>", {"type": "integer"})},
            ["", "so < be it", "a<f=a>1</f>b<f=a>2</f>"],
            ["<f=b>1</f>", "<f=a>x</f>", "<f=a>1"],
        ),
    ],
)  # fmt: skip
def test_texts_of_a_grammar(compiler: GrammarCompiler, stated: dict[str, Any], yes: list[str], no: list[str]) -> None:
    constraint = compiler.compile(StructuredOutputsParams(**stated))
    assert [text for text in yes if not follows(constraint, text)] == []
    assert [text for text in no if follows(constraint, text)] == []


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(" * 5000 + "a" + ")" * 5000}, "nest"),
        ({"grammar": "start: ["}, "Expected"),
        ({"grammar": "start: " + "(" * 60_000 + '"a"' + ")" * 60_000}, "nested"),
        ({"grammar": 'start: <|foo|> "a"'}, "unknown special token|engine fails"),
        ({"grammar": 'start: a\na[temperature=0.5]: "x"'}, "'temperature' of rules is not supported"),
        ({"grammar": 'start: %json {"not": {}}'}, r"at \$.not: %json number 1"),
        ({"structural_tag": {"structures": [{"begin": "<f>"}], "triggers": ["<g"]}}, "no trigger begins '<f>'"),
        ({"structural_tag": tag("<f>", {"not": {}})}, r"\[0\].schema.not"),
        ({"structural_tag": {"format": {}}}, "'format' is not supported"),
    ],
)  # fmt: skip
def test_damaged_grammars_are_refused(compiler: GrammarCompiler, stated: dict[str, Any], reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as caught:
        compiler.compile(StructuredOutputsParams(**stated))
    assert len(str(caught.value)) < 600


def test_grammar_that_takes_too_much_ends_the_process_and_not_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.structured_output.compile_process._SECONDS", 0.2)  # a fast machine needs less than 1
    compiler = GrammarCompiler(byte_vocabulary)
    with pytest.raises(GrammarError, match="too complex"):
        compiler.compile(StructuredOutputsParams(regex="((a{1000}){1000}){1000}"))
    assert follows(compiler.compile(StructuredOutputsParams(choice=["still", "here"])), "here")


def test_compiled_grammars_are_kept_up_to_a_number_of_bytes() -> None:
    compiler = GrammarCompiler(byte_vocabulary, cache_bytes=1 << 20)
    params = [StructuredOutputsParams(choice=[f"a{number}"]) for number in range(40)]
    first, *others = [compiler.compile(item) for item in params]
    assert 0 < compiler.num_cached_bytes <= 1 << 20
    assert compiler.compile(params[-1]) is others[-1] and compiler.compile(params[0]) is not first


CLOSED = {"additionalProperties": False}
NARROW = st.recursive(
    st.sampled_from([
        {"type": "null"}, {"type": "boolean"}, {"type": "integer", "minimum": -3, "exclusiveMaximum": 12},
        {"type": "integer", "multipleOf": 7, "maximum": 100}, {"type": "number", "exclusiveMinimum": 0.5, "maximum": 3},
        {"type": "string", "maxLength": 4}, {"type": "string", "pattern": r"^[^\s,]\S?$"}, {"const": {"a": [1, "x"]}},
        {"enum": [None, 1, "é\n", 2.5]}, {"type": ["string", "null"], "minLength": 1, "maxLength": 2},
        {"type": "string", "pattern": r"\w\W\D"},
    ]),
    lambda inner: st.one_of(
        st.builds(lambda s, n: {"type": "array", "items": s, "maxItems": n}, inner, st.integers(0, 3)),
        st.builds(lambda s, t: {"type": "array", "prefixItems": [s, t], "items": False, "minItems": 1}, inner, inner),
        st.builds(lambda s, t: {"anyOf": [s, t]}, inner, inner),
        st.builds(lambda s: {"type": "object", "additionalProperties": s, "maxProperties": 2}, inner),
        st.builds(lambda s: {"type": "object", "patternProperties": {"^k": s}, "additionalProperties": False}, inner),
        st.builds(
            lambda s, t, r: {"type": "object", "properties": {"x": s, "y": t}, "required": r} | CLOSED,
            inner, inner, st.sampled_from([[], ["x"], ["y", "x"]]),
        ),
    ),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(schema=NARROW, seed=st.integers(0, 1 << 30))
def test_what_is_written_validates(compiler: GrammarCompiler, schema: dict[str, Any], seed: int) -> None:
    constraint = compiler.compile(StructuredOutputsParams(json=schema))
    text = some_text(constraint, seed, constraint.vocabulary)
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


@settings(max_examples=200, deadline=None)
@given(pattern=st.text(st.sampled_from(r"ab^$.|()[]{}*+?\dDwWsSnu-0041,&~:=<!pP"), max_size=9))
def test_patterns_are_translated_or_refused(pattern: str) -> None:
    try:
        portable_pattern(pattern)
    except PatternError as error:
        assert str(error)
        return
    re.compile(pattern)  # what is taken is an expression in Python, too


def test_lookalike_of_json_schema_that_pydantic_writes_is_taken(compiler: GrammarCompiler) -> None:
    def animal(kind: str) -> dict[str, Any]:
        return {"type": "object", "title": kind, "properties": {"kind": {"const": kind}}, "required": ["kind"]}

    schema = {
        "$defs": {"Cat": animal("cat"), "Dog": animal("dog")},
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "discriminator": {"propertyName": "kind"},
    }
    assert check_schema(schema).enforced == ("$ref", "const", "oneOf", "properties", "required", "type")
    constraint = compiler.compile(StructuredOutputsParams(json=schema))
    assert follows(constraint, '{"kind":"dog"}') and not follows(constraint, '{"kind":"cow"}')


# Tokens of real kinds of tokenizers.


def byte_level() -> Tokenizer:
    metadata = gguf_metadata(byte_level_tokenizer_json(), "smollm", eos_token_id=2)
    return load_tokenizer(metadata)


def sentencepiece() -> Tokenizer:
    return load_tokenizer(sentencepiece_metadata(small_sentencepiece()))


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(
        tokenizer.vocab_size,
        tokenizer.token_bytes,
        tokenizer.special_token_ids.__contains__,
        tokenizer.eos_token_ids,
        lambda text: tokenizer.encode(text, add_special_tokens=False),
    )


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_tokens_of_every_kind_of_tokenizer(make: Any) -> None:
    vocabulary = vocabulary_of(make())
    compiler = GrammarCompiler(lambda: vocabulary)
    schema = {"type": "object", "properties": {"größe": {"type": "string", "maxLength": 3}}, "required": ["größe"]}
    constraint = compiler.compile(StructuredOutputsParams(json=schema))
    for seed in range(4):
        state, tokens, chance = constraint.begin(), [], random.Random(seed)
        for _ in range(300):
            allowed = np.flatnonzero(state.allowed(np.array(tokens, dtype=np.int64))).tolist()
            assert not [t for t in allowed if vocabulary.is_control(t) and t not in vocabulary.end_ids]
            closing = [t for t in allowed if vocabulary.token_bytes(t) in (b'"', b"}", b'"}')]
            token = chance.choice(closing or allowed)
            if token in vocabulary.end_ids:
                break
            tokens.append(token)
        text = b"".join(map(vocabulary.token_bytes, tokens)).decode()
        jsonschema.validate(json.loads(text), schema)


def test_forced_text_has_the_tokenizers_own_tokens() -> None:
    tokenizer = byte_level()
    vocabulary = vocabulary_of(tokenizer)
    text = "Hello, world! It's the 21st"
    constraint = GrammarCompiler(lambda: vocabulary).compile(StructuredOutputsParams(choice=[text]))
    state, tokens = constraint.begin(), []
    while True:
        allowed = np.flatnonzero(state.allowed(np.array(tokens, dtype=np.int64))).tolist()
        if allowed[0] in vocabulary.end_ids:
            break
        tokens.append(allowed[0])
    own = tokenizer.encode(text, add_special_tokens=False)
    assert tokens[: len(own) - 2] == own[: len(own) - 2]  # where it may end, its last tokens are the model's choice
    assert b"".join(map(vocabulary.token_bytes, tokens)).decode() == text


def test_control_tokens_spelled_out_in_a_text_are_text() -> None:
    tokenizer = byte_level()
    vocabulary = vocabulary_of(tokenizer)
    constraint = GrammarCompiler(lambda: vocabulary).compile(StructuredOutputsParams(choice=["<|im_start|>x"]))
    state, tokens = constraint.begin(), []
    for _ in range(40):
        token = int(np.flatnonzero(state.allowed(np.array(tokens, dtype=np.int64)))[0])
        if token in vocabulary.end_ids:
            break
        tokens.append(token)
    assert b"".join(map(vocabulary.token_bytes, tokens)) == b"<|im_start|>x"
    assert not any(vocabulary.is_control(token) for token in tokens)


def test_state_follows_tokens_forward_and_back(compiler: GrammarCompiler) -> None:
    state = compiler.compile(StructuredOutputsParams(regex="ab|ac|ad")).begin()

    def allowed(text: str) -> str:
        found = np.flatnonzero(state.allowed(np.frombuffer(text.encode(), np.uint8).astype(np.int64)))
        return "".join("$" if token == END else chr(token) for token in found)

    assert [allowed(text) for text in ("", "a", "ab", "a", "ac", "", "ad")] == ["a", "bcd", "$", "bcd", "$", "a", "$"]
    other = state.fork()
    assert allowed("a") == "bcd" and other.allowed(np.array([97, 98]))[END]


def test_dead_ends_are_told(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a$", "minLength": 5}}}
    try:
        constraint = compiler.compile(StructuredOutputsParams(json=schema))
    except GrammarError:
        return  # told before anything is written, which is as good
    state = constraint.begin()
    tokens = [ord(c) for c in '{"a":"a']
    with pytest.raises(DeadEndError, match=r"allows nothing|not one that"):
        for place in range(len(tokens) + 1):
            assert state.allowed(np.array(tokens[:place], dtype=np.int64)).any()


def test_further_ends_are_allowed_where_the_text_may_end(compiler: GrammarCompiler) -> None:
    state = compiler.compile(StructuredOutputsParams(regex="ab?")).begin()
    ends = frozenset({7})
    rows = [state.allowed(np.array(tokens, dtype=np.int64), ends) for tokens in ([], [97], [97, 98])]
    assert [bool(row[7]) for row in rows] == [False, True, True]


def test_vocabulary_without_an_end_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="needs an end-of-sequence token"):
        Vocabulary(2, lambda _: b"a", lambda _: False, [], lambda _: [0])



@pytest.mark.slow
def test_ten_thousand_schemas_take_little_memory() -> None:
    vocabulary = vocabulary_of(byte_level())
    compiler = GrammarCompiler(lambda: vocabulary)

    def compile_some(count: int, offset: int) -> None:
        for number in range(offset, offset + count):
            schema = {"type": "object", "properties": {f"name {number}": {"type": "string", "maxLength": 9}}}
            constraint = compiler.compile(StructuredOutputsParams(json=schema))
            constraint.begin().allowed(np.zeros(0, dtype=np.int64))

    compile_some(1_000, 0)  # fills the cache
    before = resident_bytes()
    compile_some(9_000, 1_000)
    assert resident_bytes() - before < 64 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
