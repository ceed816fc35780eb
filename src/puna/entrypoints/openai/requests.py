"""Bodies of the OpenAI interface, read into what the engine takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Final, get_args

from puna.entrypoints.openai.structure import STRUCTURE_FIELDS, read_structure
from puna.entrypoints.tool_calls.options import read_tools
from puna.errors import InvalidRequestError, ModelNotFoundError
from puna.pipelines.prompt_reading import Pooling
from puna.pipelines.ranges import require_integer
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import RepetitionDetection, SamplingParams, SamplingParamsInput
from puna.pipelines.sampling_ranges import MAX_LOGPROBS

__all__ = ["BodyDefaults", "Call", "Endpoint", "read_body"]


class Endpoint(StrEnum):
    """What a body is sent to."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


# Fields of one name and meaning here and there; those that OpenAI does not have are named as vLLM names them.
_SAMPLING: Final = frozenset({
    *("n", "temperature", "thinking_temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty"),
    *("min_tokens", "top_k", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "repetition_penalty", "penalty_window", "no_repeat_ngram_size"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_window", "dry_sequence_breakers"),
    *("allowed_token_ids", "banned_token_ids", "bad_words", "ignore_eos", "stop_token_ids"),
    *("include_stop_str_in_output", "truncate_prompt_tokens", "skip_special_tokens", "deadline_s"),
    *("logprob_token_ids", "logprobs_mode"),
})
_GENERATING: Final = _SAMPLING | {
    *("model", "max_tokens", "logit_bias", "logprobs", "prompt_logprobs", "repetition_detection"),
    *("stream", "stream_options", "cache_salt", "priority", "return_token_ids"),
    *STRUCTURE_FIELDS,
}
# Names that other servers have for the same fields.
_OTHER_NAMES: Final = {
    "n_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
}
_FIELDS: Final = {
    Endpoint.CHAT: _GENERATING
    | {"messages", "max_completion_tokens", "top_logprobs", "chat_template_kwargs", "add_generation_prompt"}
    | {"continue_final_message", "documents", "tools", "tool_choice", "parallel_tool_calls"},
    Endpoint.COMPLETIONS: _GENERATING | {"prompt", "best_of", "echo"},
    Endpoint.EMBEDDINGS: frozenset({"model", "input", "encoding_format", "dimensions", "pooling", "normalize"}),
}
# Who asks and what for: nothing depends on it.
_LABELS: Final = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
# Fields of which only the value that asks for nothing is served.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "use_beam_search": (False,),
    "prompt_embeds": (),
    "mm_processor_kwargs": (),
}
_DEFAULT_COMPLETION_TOKENS: Final = 16  # the interface's own default
_MAX_INPUTS: Final = 2048
_MAX_PRIORITY: Final = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Call:
    """A body that was understood.

    Attributes:
        endpoint: What it is sent to.
        requests: What the engine is asked: one request for each prompt.
        echo: The text begins with the prompt.
        top_logprobs: So many likeliest tokens are reported at each place; None: no log-probabilities are.
        pooling: How vectors are made; of embeddings only.
        normalize: Vectors are scaled to length 1.
        is_base64: Vectors are written in base64, as little-endian float32.
        dimensions: How long the caller expects vectors to be, or None.
        stream: The answer is wanted as it is made.
        include_usage: A stream ends with the numbers of tokens.
        returns_token_ids: Token ids are part of the answer.
        ignored: Names of fields that are not known.
        adapter: The adapter that the body names as its model, or None.
    """

    endpoint: Endpoint
    requests: tuple[GenerateRequest, ...]
    echo: bool = False
    top_logprobs: int | None = None
    pooling: Pooling | None = None
    normalize: bool = True
    is_base64: bool = False
    dimensions: int | None = None
    stream: bool = False
    include_usage: bool = False
    returns_token_ids: bool = False
    ignored: tuple[str, ...] = ()
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class BodyDefaults:
    """What counts where a body states nothing, and how it is read.

    Attributes:
        sampling: Sampling values.
        seed: Start of the random numbers; None: drawn.
        may_stream: Answers can be sent as they are made.
        is_strict: Fields that are not known are refused; else they are `Call.ignored`.
        template_variables: Names that `chat_template_kwargs` may have; None: any.
        adapters: Names of adapters; a body that names one as its model is computed with it.
    """

    sampling: SamplingParamsInput = field(default_factory=SamplingParamsInput)
    seed: int | None = None
    may_stream: bool = False
    is_strict: bool = True
    template_variables: frozenset[str] | None = None
    adapters: Collection[str] = ()


def read_body(
    endpoint: Endpoint, body: Mapping[str, Any], model_names: Collection[str], defaults: BodyDefaults
) -> Call:
    """Reads a body.

    Args:
        endpoint: What it is sent to.
        body: A JSON object.
        model_names: What the model may be called; a body that names none means it too.
        defaults: What counts where the body states nothing.

    Raises:
        InvalidRequestError: a field is unknown, not served, or has a value that makes no sense (`param` names it).
        ModelNotFoundError: the body names another model.
    """
    stated = {name: value for name, value in body.items() if value is not None and name not in _LABELS}
    for name, values in _NEUTRAL.items():
        if name in stated and stated.pop(name) not in values:
            raise InvalidRequestError("is not supported", param=name)
    for other, name in _OTHER_NAMES.items():
        if other in stated and endpoint is not Endpoint.EMBEDDINGS:
            stated.setdefault(name, stated.pop(other))
    unknown = sorted(stated.keys() - _FIELDS[endpoint])
    if unknown and defaults.is_strict:
        raise InvalidRequestError(f"there is no such field in a body for {endpoint}", param=unknown[0])
    for name in unknown:
        del stated[name]
    model = stated.pop("model", None)
    adapter = model if isinstance(model, str) and model in defaults.adapters and model not in model_names else None
    if model is not None and model not in model_names and adapter is None:
        choices = sorted({*model_names, *defaults.adapters})
        raise ModelNotFoundError(str(model), "it is not loaded", choices=choices)
    if endpoint is Endpoint.EMBEDDINGS:
        return replace(_with_adapter(_embedding(stated), adapter), ignored=tuple(unknown))
    stream, include_usage = _stream(stated, defaults)
    returns_token_ids = _switch(stated, "return_token_ids", False)
    call = _chat(stated, defaults) if endpoint is Endpoint.CHAT else _completion(stated, defaults)
    params = call.requests[0].sampling_params
    if stream and params.num_choices > params.n:
        raise InvalidRequestError("the best ones are known at the end only; not with stream", param="best_of")
    return replace(
        _with_adapter(call, adapter),
        stream=stream,
        include_usage=include_usage,
        returns_token_ids=returns_token_ids,
        ignored=tuple(unknown),
    )


def _with_adapter(call: Call, adapter: str | None) -> Call:
    if adapter is None:
        return call
    return replace(call, adapter=adapter, requests=tuple(replace(item, adapter=adapter) for item in call.requests))


def _stream(stated: dict[str, Any], defaults: BodyDefaults) -> tuple[bool, bool]:
    """Whether an answer is streamed, and whether its numbers of tokens are wanted."""
    stream = _switch(stated, "stream", False)
    if stream and not defaults.may_stream:
        raise InvalidRequestError("is not supported", param="stream")
    options = stated.pop("stream_options", None)
    if options is None:
        return stream, False
    if not isinstance(options, dict):
        raise InvalidRequestError(f"must be an object, got {_brief(options)}", param="stream_options")
    if not stream:
        raise InvalidRequestError("needs stream: true", param="stream_options")
    options = {name: value for name, value in options.items() if value is not None}
    include_usage = _switch(options, "include_usage", False)
    _switch(options, "include_obfuscation", False)  # pads chunks against listeners; TLS is for that
    if options:
        raise InvalidRequestError(f"{min(options)!r} is not known there", param="stream_options")
    return stream, include_usage


def _chat(stated: dict[str, Any], defaults: BodyDefaults) -> Call:
    messages = [_message(message) for message in _list_of(dict, stated.pop("messages", None), "messages")]
    options: dict[str, Any] = {}
    if _switch(stated, "continue_final_message", False):
        options["continue_final_message"] = True
    is_new_turn = not options
    options["add_generation_prompt"] = _switch(stated, "add_generation_prompt", is_new_turn)
    if options["add_generation_prompt"] and not is_new_turn:
        raise InvalidRequestError("cannot be combined with add_generation_prompt", param="continue_final_message")
    if (variables := stated.pop("chat_template_kwargs", None)) is not None:
        options["variables"] = _variables(variables, defaults.template_variables)
    if (documents := stated.pop("documents", None)) is not None:
        options["documents"] = _list_of(dict, documents, "documents")
    newer = stated.pop("max_completion_tokens", None)
    if newer is not None and stated.setdefault("max_tokens", newer) != newer:
        raise InvalidRequestError(
            f"{newer!r} is not max_tokens ({stated['max_tokens']!r}), which means the same",
            param="max_completion_tokens",
        )
    wants_logprobs = _switch(stated, "logprobs", False)
    top = stated.pop("top_logprobs", None)
    if top is not None and not wants_logprobs:
        raise InvalidRequestError("needs logprobs: true", param="top_logprobs")
    reported = _top_logprobs(top or 0, "top_logprobs") if wants_logprobs else None
    params = _params(stated, defaults, logprobs=reported, prompt_logprobs=stated.pop("prompt_logprobs", None))
    request = GenerateRequest(
        messages=messages,
        sampling_params=params,
        chat_template_kwargs=options,
        tools=stated.pop("tools", None),
        tool_choice=stated.pop("tool_choice", "auto"),
        parallel_tool_calls=_switch(stated, "parallel_tool_calls", True),
        **_scheduling(stated),
    )
    read_tools(request.tools, request.tool_choice, request.parallel_tool_calls)
    return Call(endpoint=Endpoint.CHAT, requests=(request,), top_logprobs=reported)


def _completion(stated: dict[str, Any], defaults: BodyDefaults) -> Call:
    prompts = _prompts(stated.pop("prompt", None), "prompt")
    echo = _switch(stated, "echo", False)
    reported = stated.pop("logprobs", None)
    if reported is not None:
        reported = _top_logprobs(reported, "logprobs")
    limit = SamplingParamsInput(max_tokens=_DEFAULT_COMPLETION_TOKENS)
    params = _params(
        stated,
        BodyDefaults(sampling=defaults.sampling.over(limit), seed=defaults.seed),
        best_of=stated.pop("best_of", None),
        logprobs=reported,
        prompt_logprobs=stated.pop("prompt_logprobs", reported if echo else None),
    )
    scheduling = _scheduling(stated)
    requests = tuple(GenerateRequest(**prompt, sampling_params=params, **scheduling) for prompt in prompts)
    return Call(endpoint=Endpoint.COMPLETIONS, requests=requests, echo=echo, top_logprobs=reported)


def _embedding(stated: dict[str, Any]) -> Call:
    prompts = _prompts(stated.pop("input", None), "input")
    encoding, pooling = stated.get("encoding_format", "float"), stated.get("pooling", "mean")
    if encoding not in ("float", "base64"):
        raise InvalidRequestError(f"must be float or base64, got {encoding!r}", param="encoding_format")
    if pooling not in get_args(Pooling):
        raise InvalidRequestError(f"must be one of {', '.join(get_args(Pooling))}, got {pooling!r}", param="pooling")
    dimensions = stated.get("dimensions")
    if dimensions is not None and (isinstance(dimensions, bool) or not isinstance(dimensions, int)):
        raise InvalidRequestError(f"must be an integer, got {dimensions!r}", param="dimensions")
    return Call(
        endpoint=Endpoint.EMBEDDINGS,
        requests=tuple(GenerateRequest(**prompt) for prompt in prompts),
        pooling=pooling,
        normalize=_switch(stated, "normalize", True),
        is_base64=encoding == "base64",
        dimensions=dimensions,
    )


def _scheduling(stated: dict[str, Any]) -> dict[str, Any]:
    """What the scheduler and the cache are told about a request."""
    salt, priority = stated.pop("cache_salt", None), stated.pop("priority", 0)
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise InvalidRequestError(f"must be text that is not empty, got {_brief(salt)}", param="cache_salt")
    require_integer("priority", priority, -_MAX_PRIORITY, _MAX_PRIORITY)
    return {"cache_salt": salt, "priority": priority}


def _variables(variables: Any, known: frozenset[str] | None) -> dict[str, Any]:
    if not isinstance(variables, dict):
        raise InvalidRequestError(f"must be an object, got {_brief(variables)}", param="chat_template_kwargs")
    if known is not None and (other := sorted(variables.keys() - known)):
        raise InvalidRequestError(
            f"{other[0]!r} may not be set here; there is: {', '.join(sorted(known)) or 'nothing'}",
            param="chat_template_kwargs",
        )
    return variables


def _params(stated: dict[str, Any], defaults: BodyDefaults, **more: Any) -> SamplingParams:
    bias = stated.pop("logit_bias", None)
    if bias is not None:
        more["logit_bias"] = _bias(bias)
    more["structured_outputs"] = read_structure(stated)
    if (detection := stated.pop("repetition_detection", None)) is not None:
        more["repetition_detection"] = _repetition_detection(detection)
    for name in ("stop", "bad_words", "dry_sequence_breakers"):
        if name in stated and not isinstance(stated[name], str | list):
            raise InvalidRequestError(f"must be texts, got {_brief(stated[name])}", param=name)
    values = {name: value for name, value in stated.items() if name in _SAMPLING or name == "max_tokens"}
    values.setdefault("seed", defaults.seed)
    return SamplingParams.from_input(SamplingParamsInput(**values, **more), defaults.sampling)


def _bias(bias: Any) -> dict[int, Any]:
    if not isinstance(bias, Mapping):
        raise InvalidRequestError(f"must map token ids to numbers, got {bias!r}", param="logit_bias")
    try:
        return {int(token): value for token, value in bias.items()}  # keys of JSON are text
    except ValueError as error:
        raise InvalidRequestError("its names must be token ids", param="logit_bias") from error


def _repetition_detection(value: Any) -> RepetitionDetection:
    names = {item.name for item in fields(RepetitionDetection)}
    if not isinstance(value, dict) or value.keys() - names:
        raise InvalidRequestError(f"must be an object with {', '.join(sorted(names))}", param="repetition_detection")
    return RepetitionDetection(**value)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates know it: text as one string, the newer name of the system's role as the old one."""
    if not isinstance(message.get("role"), str):
        raise InvalidRequestError("each message needs a role", param="messages")
    result = dict(message)
    if result["role"] == "developer":
        result["role"] = "system"
    content = result.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise InvalidRequestError("parts of a message must be of type text", param="messages")
        result["content"] = "".join(map(str, texts))
    elif content is not None and not isinstance(content, str):
        raise InvalidRequestError(f"content must be text, got {type(content).__name__}", param="messages")
    elif content is None and result["role"] != "assistant":
        raise InvalidRequestError(f"a message of role {result['role']!r} needs content", param="messages")
    return result


def _prompts(value: Any, param: str) -> list[dict[str, Any]]:
    """Prompts as arguments of requests: text, token ids, or lists of one of these."""
    if isinstance(value, str):
        return [{"text": value}]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [{"token_ids": value}]
    many = _list_of((str, list), value, param)
    if len(many) > _MAX_INPUTS:
        raise InvalidRequestError(f"at most {_MAX_INPUTS} prompts, got {len(many)}", param=param)
    prompts: list[dict[str, Any]] = []
    for item in many:
        is_ids = isinstance(item, list) and item and all(type(token) is int for token in item)
        if not isinstance(item, str) and not is_ids:
            raise InvalidRequestError("must be text, token ids, or a list of one of these", param=param)
        prompts.append({"text": item} if isinstance(item, str) else {"token_ids": item})
    return prompts


def _list_of(kind: type | tuple[type, ...], value: Any, param: str) -> list[Any]:
    if not isinstance(value, list) or not value or not all(isinstance(item, kind) for item in value):
        problem = "is missing" if value is None else f"must be a list that is not empty, got {_brief(value)}"
        raise InvalidRequestError(problem, param=param)
    return value


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _switch(stated: dict[str, Any], name: str, default: bool) -> bool:
    value = stated.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"must be true or false, got {_brief(value)}", param=name)
    return value


def _top_logprobs(value: Any, param: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LOGPROBS:
        raise InvalidRequestError(f"must be an integer from 0 to {MAX_LOGPROBS}, got {_brief(value)}", param=param)
    return value
