"""JSON schemas of bodies, for the OpenAPI document. Bodies are checked by whoever reads them; tests hold both together.

Fields that are not named are served unless the server is strict, so schemas of requests are open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from puna.pipelines.sampling_ranges import MAX_LOGPROBS, MAX_STOPS, field_range

__all__ = ["SCHEMAS", "reference"]

Schema = dict[str, Any]


def reference(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _optional(schema: Schema) -> Schema:
    """What may also be null: not stated."""
    if "type" in schema and isinstance(schema["type"], str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _only(*values: Any) -> Schema:
    """A field of which only the values that ask for nothing are served."""
    return {"enum": [*values, None]}


_TEXT: Final[Schema] = {"type": "string"}
_INTEGER: Final[Schema] = {"type": "integer"}
_NUMBER: Final[Schema] = {"type": "number"}
_SWITCH: Final[Schema] = {"type": "boolean"}
_OBJECT: Final[Schema] = {"type": "object"}
_ANY: Final[Schema] = {}
_TOKENS: Final = _list({"type": "integer", "minimum": 0})
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_TEXTS: Final = {"anyOf": [{"type": "string", "minLength": 1}, _list({"type": "string", "minLength": 1})]}


def _sampling(*names: str) -> dict[str, Schema]:
    """Sampling values, with the ranges that `SamplingParams` checks."""
    found: dict[str, Schema] = {}
    for name in names:
        kind, low, high, is_open = field_range(name)
        schema: Schema = {"type": kind}
        if low is not None:
            schema["exclusiveMinimum" if is_open else "minimum"] = low
        if high is not None:
            schema["maximum"] = high
        found[name] = _optional(schema)
    return found


_SAMPLING: Final[dict[str, Schema]] = {
    **_sampling("n", "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma"),
    **_sampling("xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta", "presence_penalty"),
    **_sampling("frequency_penalty", "repetition_penalty", "penalty_window", "no_repeat_ngram_size", "dry_multiplier"),
    **_sampling("dry_base", "dry_allowed_length", "dry_window", "seed", "deadline_s", "truncate_prompt_tokens"),
    **_sampling("prompt_logprobs", "thinking_temperature"),
    "mirostat": {"enum": [0, 2, None]},
    "stop": _optional({"anyOf": [_TEXTS["anyOf"][0], {**_TEXTS["anyOf"][1], "maxItems": MAX_STOPS}]}),
    "bad_words": _optional(_TEXTS),
    "dry_sequence_breakers": _optional(_TEXTS),
    "allowed_token_ids": _optional({**_TOKENS, "minItems": 1}),
    "banned_token_ids": _optional(_TOKENS),
    "stop_token_ids": _optional(_TOKENS),
    "logprob_token_ids": _optional(_TOKENS),
    "logprobs_mode": {"enum": ["raw", "processed", None]},
    "logit_bias": _optional(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
    "ignore_eos": _optional(_SWITCH),
    "include_stop_str_in_output": _optional(_SWITCH),
    "skip_special_tokens": _optional(_SWITCH),
    "repetition_detection": _optional(
        _object(max_pattern_size=_INTEGER, min_pattern_size=_INTEGER, min_count=_INTEGER)
    ),
}
_FORMAT: Final = _object(
    ("type",),
    type={"enum": ["text", "json_object", "json_schema", "structural_tag"]},
    json_schema=_object(
        ("schema",), name=_TEXT, description=_TEXT, schema={"anyOf": [_OBJECT, _SWITCH]}, strict=_optional(_SWITCH)
    ),
)
_TOOL: Final = _object(
    ("function",),
    type={"enum": ["function"]},
    function=_object(
        ("name",),
        name={"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
        description=_TEXT,
        parameters=_optional(_OBJECT),
        strict=_optional(_SWITCH),
    ),
)
_CHOICE: Final[Schema] = {
    "anyOf": [
        {"enum": ["none", "auto", "required", None]},
        _object(("type", "function"), type={"enum": ["function"]}, function=_object(("name",), name=_TEXT)),
    ]
}
_CALL: Final = _object(
    ("id", "type", "function"),
    id=_TEXT,
    type={"enum": ["function"]},
    function=_object(("name", "arguments"), name=_TEXT, arguments=_TEXT),
)
_GENERATING: Final[dict[str, Schema]] = {
    **_SAMPLING,
    "model": _optional(_TEXT),
    "stream": _optional(_SWITCH),
    "stream_options": _optional(_object(include_usage=_optional(_SWITCH), include_obfuscation=_optional(_SWITCH))),
    "cache_salt": _optional({"type": "string", "minLength": 1}),
    "priority": _optional({"type": "integer", "minimum": -(1 << 31), "maximum": 1 << 31}),
    "return_token_ids": _optional(_SWITCH),
    "response_format": _optional(_FORMAT),
    "structured_outputs": _optional(_OBJECT),
    "json_schema": _optional({"anyOf": [_OBJECT, _SWITCH, _TEXT]}),
    "grammar": _optional(_TEXT),
    "user": _ANY,
    "metadata": _ANY,
    "store": _only(False),
    "service_tier": _only("auto", "default"),
}
_TOP: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS}
_PART: Final = _object(("type", "text"), type={"enum": ["text"]}, text=_TEXT)
_MESSAGE: Final = _object(("role",), role=_TEXT, content=_optional({"anyOf": [_TEXT, _list(_PART)]}))
_USAGE: Final = _object(
    ("prompt_tokens", "total_tokens"),
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
    prompt_tokens_details=_object(cached_tokens=_COUNT, truncated_tokens=_COUNT),
)
_PROMPT: Final[Schema] = {
    "anyOf": [
        _TEXT,
        _list(_TEXT, minItems=1),
        {**_TOKENS, "minItems": 1},
        _list({**_TOKENS, "minItems": 1}, minItems=1),
    ]
}
_REASON: Final[Schema] = {"enum": ["stop", "length", "tool_calls", None]}


def _answer(kind: str, choice: Schema) -> Schema:
    return _object(
        ("id", "object", "created", "model", "choices", "usage"),
        id=_TEXT,
        object={"enum": [kind]},
        created=_INTEGER,
        model=_TEXT,
        choices=_list(choice),
        usage=_USAGE,
    )


def _page(name: str) -> Schema:
    return _object(("object", "data"), object={"enum": ["list"]}, data=_list(reference(name)), has_more=_SWITCH)


_SCORED: Final = {"id": _TEXT, "model": _TEXT, "method": _TEXT, "usage": _USAGE}
_DOCUMENTS: Final = _list({"anyOf": [_TEXT, _object(("text",), text=_TEXT)]}, minItems=1)
_BLOCKS: Final = {"anyOf": [_TEXT, _list(_object(("type",), type=_TEXT))]}
_OLLAMA: Final = {
    "model": _TEXT,
    "options": _optional(_OBJECT),
    "stream": _optional(_SWITCH),
    "keep_alive": _ANY,
    "format": _optional({"anyOf": [{"enum": ["", "json"]}, _OBJECT]}),
    "think": _ANY,
}
_OLLAMA_END: Final = {"model": _TEXT, "created_at": _TEXT, "done": _SWITCH, "done_reason": _TEXT, "eval_count": _COUNT}

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code"),
            message=_TEXT,
            type=_TEXT,
            param=_optional(_TEXT),
            code=_optional(_TEXT),
        ),
    ),
    "AnthropicError": _object(
        ("type", "error"),
        type={"enum": ["error"]},
        error=_object(("type", "message"), type=_TEXT, message=_TEXT),
    ),
    "OllamaError": _object(("error",), error=_TEXT),
    "ChatCompletionRequest": _object(
        ("messages",),
        **_GENERATING,
        messages=_list(_MESSAGE, minItems=1),
        max_completion_tokens=_sampling("max_tokens")["max_tokens"],
        logprobs=_optional(_SWITCH),
        top_logprobs=_optional(_TOP),
        add_generation_prompt=_optional(_SWITCH),
        continue_final_message=_optional(_SWITCH),
        chat_template_kwargs=_optional(_OBJECT),
        documents=_optional(_list(_OBJECT, minItems=1)),
        tools=_optional(_list(_TOOL, maxItems=128)),
        tool_choice=_CHOICE,
        parallel_tool_calls=_optional(_SWITCH),
    ),
    "ChatCompletion": _answer(
        "chat.completion",
        _object(
            ("index", "message", "finish_reason"),
            index=_COUNT,
            message=_object(
                ("role", "content"),
                role={"enum": ["assistant"]},
                content=_optional(_TEXT),
                reasoning_content=_TEXT,
                tool_calls=_list(_CALL),
            ),
            logprobs=_optional(_object(("content",), content=_list(_OBJECT))),
            finish_reason=_REASON,
        ),
    ),
    "CompletionRequest": _object(
        ("prompt",),
        **_GENERATING,
        prompt=_PROMPT,
        best_of=_sampling("best_of")["best_of"],
        echo=_optional(_SWITCH),
        logprobs=_optional(_TOP),
        suffix=_only(""),
    ),
    "Completion": _answer(
        "text_completion",
        _object(
            ("index", "text", "finish_reason"),
            index=_COUNT,
            text=_TEXT,
            logprobs=_optional(_object(("tokens", "token_logprobs", "top_logprobs", "text_offset"))),
            finish_reason=_REASON,
        ),
    ),
    "Model": _object(
        ("id", "object", "created", "owned_by"),
        id=_TEXT,
        object={"enum": ["model"]},
        created=_INTEGER,
        owned_by=_TEXT,
        max_model_len=_COUNT,
    ),
    "ModelList": _page("Model"),
    "Timeline": _object(
        ("id", "route", "created", "events_s"), id=_TEXT, route=_TEXT, created=_NUMBER, events_s=_OBJECT
    ),
    "EmbeddingRequest": _object(
        ("input",),
        model=_optional(_TEXT),
        input=_PROMPT,
        encoding_format={"enum": ["float", "base64", None]},
        dimensions=_optional(_INTEGER),
        pooling={"enum": ["mean", "last", "cls", None]},
        normalize=_optional(_SWITCH),
        user=_ANY,
    ),
    "EmbeddingList": _object(
        ("object", "data", "model", "usage"), object={"enum": ["list"]}, data=_list(_OBJECT), model=_TEXT, usage=_USAGE
    ),
    "ScoreRequest": _object(
        ("text_1", "text_2"),
        model=_optional(_TEXT),
        text_1={"anyOf": [_TEXT, _DOCUMENTS]},
        text_2={"anyOf": [_TEXT, _DOCUMENTS]},
    ),
    "ScoreList": _object(
        ("data", "method"), **_SCORED, data=_list(_object(("index", "score"), index=_COUNT, score=_NUMBER))
    ),
    "RerankRequest": _object(
        ("query", "documents"),
        model=_optional(_TEXT),
        query=_TEXT,
        documents={"anyOf": [_TEXT, _DOCUMENTS]},
        top_n=_optional({"type": "integer", "minimum": 1}),
        return_documents=_optional(_SWITCH),
    ),
    "RerankList": _object(
        ("results", "method"),
        **_SCORED,
        results=_list(_object(("index", "relevance_score"), index=_COUNT, relevance_score=_NUMBER)),
    ),
    "TokenizeRequest": {
        **_object(
            model=_optional(_TEXT),
            prompt=_optional(_TEXT),
            messages=_optional(_list(_MESSAGE, minItems=1)),
            add_special_tokens=_optional(_SWITCH),
            return_token_strs=_optional(_SWITCH),
        ),
        "anyOf": [
            _object(("prompt",), prompt=_TEXT),
            _object(("messages",), messages={"type": "array"}),
            _object(("content",), content=_TEXT),
        ],
    },
    "TokenList": _object(("count", "max_model_len", "tokens"), count=_COUNT, max_model_len=_COUNT, tokens=_TOKENS),
    "DetokenizeRequest": _object(
        ("tokens",), model=_optional(_TEXT), tokens=_TOKENS, skip_special_tokens=_optional(_SWITCH)
    ),
    "DetokenizedText": _object(("prompt",), prompt=_TEXT),
    "RenderedPrompt": _object(
        ("prompt", "prompt_token_ids", "count"), prompt=_TEXT, prompt_token_ids=_TOKENS, count=_COUNT
    ),
    "ResponseRequest": _object(
        ("input",),
        model=_optional(_TEXT),
        input={"anyOf": [_TEXT, _list(_OBJECT, minItems=1)]},
        instructions=_optional(_TEXT),
        max_output_tokens=_sampling("max_tokens")["max_tokens"],
        temperature=_SAMPLING["temperature"],
        top_p=_SAMPLING["top_p"],
        stream=_optional(_SWITCH),
        store=_optional(_SWITCH),
        previous_response_id=_optional(_TEXT),
        metadata=_optional(_OBJECT),
        background=_only(False),
    ),
    "Response": _object(
        ("id", "object", "created_at", "status", "output"),
        id=_TEXT,
        object={"enum": ["response"]},
        created_at=_INTEGER,
        status={"enum": ["completed", "incomplete", "in_progress", "failed"]},
        output=_list(_OBJECT),
    ),
    "Deleted": _object(("id", "object", "deleted"), id=_TEXT, object=_TEXT, deleted=_SWITCH),
    "ItemList": _object(("object", "data"), object={"enum": ["list"]}, data=_list(_OBJECT)),
    "FileUpload": _object(
        ("file", "purpose"), file={"type": "string", "format": "binary"}, purpose={"enum": ["batch", "user_data"]}
    ),
    "File": _object(
        ("id", "object", "bytes", "created_at", "filename", "purpose"),
        id=_TEXT,
        object={"enum": ["file"]},
        bytes=_COUNT,
        created_at=_INTEGER,
        filename=_TEXT,
        purpose=_TEXT,
    ),
    "FileList": _page("File"),
    "BatchRequest": _object(
        ("input_file_id", "endpoint"),
        input_file_id=_TEXT,
        endpoint={"enum": ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]},
        completion_window={"enum": ["24h", None]},
        metadata=_optional({"type": "object", "additionalProperties": _TEXT}),
    ),
    "Batch": _object(
        ("id", "object", "endpoint", "input_file_id", "status", "request_counts"),
        id=_TEXT,
        object={"enum": ["batch"]},
        endpoint=_TEXT,
        input_file_id=_TEXT,
        status=_TEXT,
        output_file_id=_optional(_TEXT),
        error_file_id=_optional(_TEXT),
        request_counts=_object(("total", "completed", "failed"), total=_COUNT, completed=_COUNT, failed=_COUNT),
    ),
    "BatchList": _page("Batch"),
    "MessagesRequest": _object(
        ("messages",),
        model=_optional(_TEXT),
        max_tokens=_sampling("max_tokens")["max_tokens"],
        messages=_list(_object(("role", "content"), role={"enum": ["user", "assistant"]}, content=_BLOCKS), minItems=1),
        system=_optional(_BLOCKS),
        stop_sequences=_optional(_TEXTS),
        stream=_optional(_SWITCH),
        temperature=_SAMPLING["temperature"],
        top_p=_SAMPLING["top_p"],
        top_k=_SAMPLING["top_k"],
        metadata=_ANY,
    ),
    "Message": _object(
        ("id", "type", "role", "model", "content", "stop_reason", "usage"),
        id=_TEXT,
        type={"enum": ["message"]},
        role={"enum": ["assistant"]},
        model=_TEXT,
        content=_list(_OBJECT),
        stop_reason=_TEXT,
        usage=_object(("input_tokens", "output_tokens"), input_tokens=_COUNT, output_tokens=_COUNT),
    ),
    "TokenCount": _object(("input_tokens",), input_tokens=_COUNT),
    "OllamaChatRequest": _object(("model", "messages"), **_OLLAMA, messages=_list(_MESSAGE)),
    "OllamaChat": _object(("model", "message", "done"), **_OLLAMA_END, message=_object(("role", "content"))),
    "OllamaGenerateRequest": _object(("model",), **_OLLAMA, prompt=_optional(_TEXT), system=_optional(_TEXT), raw=_ANY),
    "OllamaText": _object(("model", "response", "done"), **_OLLAMA_END, response=_TEXT),
    "OllamaEmbedRequest": _object(("model", "input"), model=_TEXT, input=_PROMPT, options=_ANY, truncate=_ANY),
    "OllamaEmbeddings": _object(("model", "embeddings"), model=_TEXT, embeddings=_list(_list(_NUMBER))),
    "OllamaEmbeddingRequest": _object(("model", "prompt"), model=_TEXT, prompt=_TEXT, options=_ANY),
    "OllamaEmbedding": _object(("embedding",), embedding=_list(_NUMBER)),
    "OllamaShowRequest": _object(("model",), model=_TEXT),
    "OllamaModelDescription": _object(("template", "details", "model_info", "capabilities"), template=_TEXT),
    "OllamaModelList": _object(("models",), models=_list(_object(("name", "model"), name=_TEXT, model=_TEXT))),
    "OllamaVersion": _object(("version",), version=_TEXT),
}
