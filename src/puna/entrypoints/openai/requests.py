"""Bodies of the OpenAI interface, read into what the engine takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, get_args

from puna.errors import InvalidRequestError, ModelNotFoundError
from puna.pipelines.prompt_reading import Pooling
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import MAX_LOGPROBS, SamplingParams, SamplingParamsInput

__all__ = ["BodyDefaults", "Call", "Endpoint", "read_body"]


class Endpoint(StrEnum):
    """What a body is sent to."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


# Fields of one name and meaning here and there; those that OpenAI does not have are named as vLLM names them.
_SAMPLING: Final = frozenset({
    *("n", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty"),
    *("min_tokens", "top_k", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "repetition_penalty", "penalty_window", "no_repeat_ngram_size"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_window", "dry_sequence_breakers"),
    *("allowed_token_ids", "banned_token_ids", "bad_words", "ignore_eos", "stop_token_ids"),
    *("include_stop_str_in_output", "truncate_prompt_tokens", "skip_special_tokens", "deadline_s"),
})
_GENERATING: Final = _SAMPLING | {"model", "max_tokens", "logit_bias", "logprobs"}
_FIELDS: Final = {
    Endpoint.CHAT: _GENERATING
    | {"messages", "max_completion_tokens", "top_logprobs", "chat_template_kwargs", "add_generation_prompt"},
    Endpoint.COMPLETIONS: _GENERATING | {"prompt", "best_of", "echo"},
    Endpoint.EMBEDDINGS: frozenset({"model", "input", "encoding_format", "dimensions", "pooling", "normalize"}),
}
# Who asks and what for: nothing depends on it.
_LABELS: Final = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
# Fields of which only the value that asks for nothing is served.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "stream": (False,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none",),
    "suffix": ("",),
}
_DEFAULT_COMPLETION_TOKENS: Final = 16  # the interface's own default
_MAX_INPUTS: Final = 2048


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
    """

    endpoint: Endpoint
    requests: tuple[GenerateRequest, ...]
    echo: bool = False
    top_logprobs: int | None = None
    pooling: Pooling | None = None
    normalize: bool = True
    is_base64: bool = False
    dimensions: int | None = None


@dataclass(frozen=True, kw_only=True)
class BodyDefaults:
    """What counts where a body states nothing.

    Attributes:
        sampling: Sampling values.
        seed: Start of the random numbers; None: drawn.
    """

    sampling: SamplingParamsInput = field(default_factory=SamplingParamsInput)
    seed: int | None = None


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
    if unknown := sorted(stated.keys() - _FIELDS[endpoint]):
        raise InvalidRequestError(f"there is no such field in a body for {endpoint}", param=unknown[0])
    model = stated.pop("model", None)
    if model is not None and model not in model_names:
        raise ModelNotFoundError(str(model), "it is not loaded", choices=sorted(model_names))
    if endpoint is Endpoint.CHAT:
        return _chat(stated, defaults)
    return _completion(stated, defaults) if endpoint is Endpoint.COMPLETIONS else _embedding(stated)


def _chat(stated: dict[str, Any], defaults: BodyDefaults) -> Call:
    messages = [_message(message) for message in _list_of(dict, stated.pop("messages", None), "messages")]
    options = {"add_generation_prompt": _switch(stated, "add_generation_prompt", True)}
    if variables := stated.pop("chat_template_kwargs", None):
        options["variables"] = variables
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
    params = _params(stated, defaults, logprobs=reported)
    request = GenerateRequest(messages=messages, sampling_params=params, chat_template_kwargs=options)
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
        prompt_logprobs=reported if echo else None,
    )
    requests = tuple(GenerateRequest(**prompt, sampling_params=params) for prompt in prompts)
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


def _params(stated: dict[str, Any], defaults: BodyDefaults, **more: Any) -> SamplingParams:
    bias = stated.pop("logit_bias", None)
    if bias is not None:
        more["logit_bias"] = _bias(bias)
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
