"""What a call is answered with: bodies of the OpenAI interface, made of what the engine gave, and bodies of errors."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from puna.entrypoints.openai.requests import Call, Endpoint
from puna.entrypoints.outputs import CompletionOutput, Logprob, PositionLogprobs, RequestOutput
from puna.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterNotFoundError,
    InvalidRequestError,
    ModelNotFoundError,
    PromptTooLongError,
    PunaError,
    QueueFullError,
    UnsupportedModelError,
)
from puna.pipelines.batch import FinishReason
from puna.tokenization import Tokenizer

__all__ = [
    "chat_logprobs",
    "completion_logprobs",
    "decoded",
    "embedding_body",
    "error_body",
    "error_status",
    "finish_reason",
    "generated_body",
    "prompt_logprobs",
    "prompt_text",
    "usage",
]

_CODES: Final[tuple[tuple[type[PunaError], str], ...]] = (  # the first one that fits
    (PromptTooLongError, "context_length_exceeded"),
    (ModelNotFoundError, "model_not_found"),
    (AdapterNotFoundError, "model_not_found"),
    (AdapterExistsError, "adapter_exists"),
    (AdapterError, "invalid_adapter"),
    (QueueFullError, "queue_full"),
    (UnsupportedModelError, "unsupported_by_model"),
    (InvalidRequestError, "invalid_value"),
)


def error_status(error: PunaError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, UnsupportedModelError):
        return 400  # the request asks for what this model has not, such as a chat template
    return error.http_status or 500


def error_body(error: PunaError) -> dict[str, Any]:
    """The body of an error: `{"error": {message, type, param, code}}`."""
    kind = "invalid_request_error" if error_status(error) < 500 else "server_error"
    code = next((code for known, code in _CODES if isinstance(error, known)), None)
    param = "model" if isinstance(error, ModelNotFoundError) else getattr(error, "param", None)
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def generated_body(
    call: Call, outputs: Sequence[RequestOutput], *, model: str, created: int, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """The body of a chat completion or a completion.

    Args:
        call: What was asked.
        outputs: One finished output for each of its requests.
        model: The model's name.
        created: Seconds since 1970.
        tokenizer: The model's; None: it has none.
    """
    is_chat = call.endpoint is Endpoint.CHAT
    choices = [(output, choice) for output in outputs for choice in output.outputs]
    make = _chat_choice if is_chat else _completion_choice
    body: dict[str, Any] = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{outputs[0].request_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": call.adapter or model,
        "choices": [
            {"index": index, **make(call, output, choice, tokenizer), **_extras(call, output, choice)}
            for index, (output, choice) in enumerate(choices)
        ],
        "usage": usage(outputs),
    }
    if is_chat and outputs[0].prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(outputs[0])
    return body


def _extras(call: Call, output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
    """Fields of a choice that OpenAI does not have; most are vLLM's."""
    more: dict[str, Any] = {"stop_reason": choice.stop_reason, "seed": output.seed}
    if call.endpoint is Endpoint.COMPLETIONS and output.prompt_logprobs is not None and not call.echo:
        more["prompt_logprobs"] = prompt_logprobs(output)
    if call.returns_token_ids:
        more |= {"token_ids": list(choice.token_ids), "prompt_token_ids": list(output.prompt_token_ids)}
    return more


def finish_reason(choice: CompletionOutput) -> str | None:
    """Why a choice ended, in OpenAI's words: a deadline is a limit like others."""
    if choice.finish_reason is FinishReason.ABORT and choice.stop_reason == "deadline":
        return "length"
    if choice.finish_reason is FinishReason.STOP and choice.message is not None and choice.message.tool_calls:
        return "tool_calls"
    return choice.finish_reason


def prompt_logprobs(output: RequestOutput) -> list[dict[str, Any] | None]:
    """The log-probabilities of a prompt, as vLLM writes them: token id -> logprob, rank, decoded_token."""
    return [
        None
        if position is None
        else {
            str(token): {"logprob": value.logprob, "rank": value.rank, "decoded_token": value.decoded_token}
            for token, value in position.items()
        }
        for position in output.prompt_logprobs or []
    ]


def embedding_body(
    call: Call, vectors: npt.NDArray[np.float32], *, model: str, num_tokens: int
) -> dict[str, Any]:
    """The body of embeddings.

    Args:
        call: What was asked.
        vectors: Float32 `[n, H]`.
        model: The model's name.
        num_tokens: Tokens of all prompts.

    Raises:
        InvalidRequestError: the caller expects vectors of another length.
    """
    if call.dimensions not in (None, vectors.shape[1]):
        raise InvalidRequestError(f"this model's have {vectors.shape[1]}, got {call.dimensions}", param="dimensions")
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if call.is_base64
                else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ],
        "model": call.adapter or model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def usage(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """The numbers of tokens of some answers."""
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    completion = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
    details = {"cached_tokens": sum(output.num_cached_tokens for output in outputs)}
    if truncated := sum(output.num_truncated_tokens for output in outputs):
        details["truncated_tokens"] = truncated
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
    }


def _chat_choice(
    call: Call, output: RequestOutput, choice: CompletionOutput, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    logprobs = None
    if choice.logprobs is not None:
        logprobs = chat_logprobs(call, choice.token_ids, choice.logprobs, tokenizer)
    return {
        "message": _message(choice),
        "logprobs": logprobs,
        "finish_reason": finish_reason(choice),
    }


def _message(choice: CompletionOutput) -> dict[str, Any]:
    message = choice.message
    if message is None:
        return {"role": "assistant", "content": choice.text, "refusal": None}
    body: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
    if message.reasoning is not None:
        body["reasoning_content"] = message.reasoning
    if message.tool_calls:
        body["content"] = message.content or None
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return body


def chat_logprobs(
    call: Call, tokens: Sequence[int], positions: Sequence[PositionLogprobs], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """The `logprobs` of a chat choice: of some tokens, with what is known of their places."""
    pairs = zip(tokens, positions, strict=True)
    return {"content": [_chat_position(token, position, call, tokenizer) for token, position in pairs], "refusal": None}


def _chat_position(
    token: int, position: PositionLogprobs, call: Call, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    def entry(number: int, value: Logprob) -> dict[str, Any]:
        data = tokenizer.token_bytes(number) if tokenizer is not None else None
        return {
            "token": value.decoded_token if value.decoded_token is not None else f"token_id:{number}",
            "logprob": value.logprob,
            "bytes": list(data) if data is not None else None,
        }

    likeliest = _likeliest(position, call.top_logprobs)
    return {**entry(token, position[token]), "top_logprobs": [entry(number, value) for number, value in likeliest]}


def _likeliest(position: PositionLogprobs, count: int | None) -> list[tuple[int, Logprob]]:
    ranked = sorted(position.items(), key=lambda item: item[1].rank)
    return [(number, value) for number, value in ranked if value.rank <= (count or 0)]


def _completion_choice(
    call: Call, output: RequestOutput, choice: CompletionOutput, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    prompt = prompt_text(output, tokenizer) if call.echo else ""
    logprobs = None
    if choice.logprobs is not None:
        tokens, positions = list(choice.token_ids), [*choice.logprobs]
        if call.echo and output.prompt_logprobs is not None:
            tokens = [*output.prompt_token_ids, *tokens]
            logprobs = completion_logprobs(tokens, [*output.prompt_logprobs, *positions], call, tokenizer)
        else:
            logprobs = completion_logprobs(tokens, [*positions], call, tokenizer)
    return {"text": prompt + choice.text, "logprobs": logprobs, "finish_reason": finish_reason(choice)}


def prompt_text(output: RequestOutput, tokenizer: Tokenizer | None) -> str:
    """The text of a prompt, also of one that was given as tokens."""
    return output.prompt if output.prompt is not None else decoded(output.prompt_token_ids, tokenizer)


def completion_logprobs(
    tokens: Sequence[int],
    positions: Sequence[PositionLogprobs | None],
    call: Call,
    tokenizer: Tokenizer | None,
    begin: int = 0,
) -> dict[str, Any]:
    """The `logprobs` of a completion's choice: of some tokens, the first of which begins at a character of its text."""
    offsets, end = [], begin
    for token in tokens:
        offsets.append(end)
        end += len(decoded([token], tokenizer))
    return {
        "tokens": [_piece(token, tokenizer) for token in tokens],
        "token_logprobs": [
            None if position is None else position[token].logprob
            for token, position in zip(tokens, positions, strict=True)
        ],
        "top_logprobs": [
            None
            if position is None
            else {
                _piece(number, tokenizer): value.logprob for number, value in _likeliest(position, call.top_logprobs)
            }
            for position in positions
        ],
        "text_offset": offsets,
    }


def _piece(token: int, tokenizer: Tokenizer | None) -> str:
    """A token's name: its text; its bytes where these are a part of a character, of which several would look equal."""
    if tokenizer is None:
        return f"token_id:{token}"
    data = tokenizer.token_bytes(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def decoded(tokens: Sequence[int], tokenizer: Tokenizer | None) -> str:
    """The text of tokens, control tokens spelled out; empty without a tokenizer."""
    return "" if tokenizer is None else b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", "replace")
