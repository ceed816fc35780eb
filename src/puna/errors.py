"""The one error hierarchy.

Each class holds the facts as fields and builds its own sentence from them: what failed, the value that was met, what
was expected, what to do. `exit_code` is what the command line ends with, `http_status` what a server answers (None:
never sent to a client).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class PunaError(Exception):
    """Root of every error that Puna raises on purpose."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int | None] = 500


class InvalidRequestError(PunaError, ValueError):
    """A request asks for something that cannot be served: a sampling value, an unknown field, too long a prompt."""

    exit_code = 2
    http_status = 400

    def __init__(self, message: str, *, param: str | None = None) -> None:
        self.param = param
        super().__init__(f"{param}: {message}" if param else message)


class PromptTooLongError(InvalidRequestError):
    """A prompt has more tokens than there is room for."""

    def __init__(self, num_tokens: int, limit: int, where: str, hint: str = "") -> None:
        self.num_tokens = num_tokens
        self.limit = limit
        advice = f"; {hint}" if hint else ""
        message = f"it has {num_tokens} tokens, {num_tokens - limit} more than {where}{advice}"
        super().__init__(message, param="prompt")
        self.args = (f"prompt is too long: {message}",)  # clients look for these words


class ModelNotFoundError(PunaError, LookupError):
    """No model has this name; `choices` lists what there is."""

    exit_code = 2
    http_status = 404

    def __init__(self, name: str, reason: str, *, choices: list[str] | None = None) -> None:
        self.name = name
        self.choices = choices or []
        listing = f"; there is: {', '.join(self.choices)}" if self.choices else ""
        super().__init__(f"model {name!r} not found: {reason}{listing}")


class AdapterNotFoundError(PunaError, LookupError):
    """No adapter has this name."""

    exit_code = 2
    http_status = 404

    def __init__(self, name: str, *, choices: list[str] | None = None) -> None:
        self.name = name
        self.choices = choices or []
        listing = f" Loaded: {', '.join(self.choices)}." if self.choices else " None is loaded."
        super().__init__(f"adapter {name!r} not found.{listing}")


class AdapterError(PunaError, ValueError):
    """An adapter cannot be used: its files are missing or damaged, or it does not fit the model."""

    exit_code = 3
    http_status = 400

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"adapter {name!r} cannot be used: {reason}")


class AdapterExistsError(PunaError, ValueError):
    """The name stands for another adapter."""

    exit_code = 2
    http_status = 409

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        super().__init__(f"adapter {name!r} is loaded, from {path} with other content; unload it, or load in place")


class UnsupportedModelError(PunaError, ValueError):
    """The checkpoint is of a kind that is not run: architecture, rope type, activation, encoding."""

    exit_code = 3
    http_status = None

    def __init__(
        self, key: str, value: object, *, file: str | Path | None = None, supported: str | None = None
    ) -> None:
        self.key = key
        self.value = value
        self.file = str(file) if file is not None else None
        where = f" in {self.file}" if self.file else ""
        hint = f"; supported: {supported}" if supported else ""
        super().__init__(f"{key} = {value!r}{where} is not supported{hint}")


class WeightsError(PunaError, ValueError):
    """A weight file is damaged, incomplete or does not fit the model."""

    exit_code = 3
    http_status = None

    def __init__(
        self, message: str, *, file: str | Path | None = None, tensor: str | None = None, offset: int | None = None
    ) -> None:
        self.file = str(file) if file is not None else None
        self.tensor = tensor
        self.offset = offset
        where = [self.file] if self.file else []
        where += [f"{tensor!r}"] if tensor is not None else []
        where += [f"byte {offset}"] if offset is not None else []
        super().__init__(f"{', '.join(where)}: {message}" if where else message)


class MissingWeightError(WeightsError, KeyError):
    """A checkpoint has no tensor of this name; `closest` is the most similar one that it has."""

    def __init__(self, name: str, *, closest: str | None = None, file: str | Path | None = None) -> None:
        self.closest = closest
        hint = f"; the closest name is {closest!r}" if closest else ""
        super().__init__(f"there is no tensor of this name{hint}", file=file, tensor=name)

    def __str__(self) -> str:
        return str(self.args[0])


class ShapeError(PunaError, ValueError):
    """An array has another shape than the operation takes."""

    exit_code = 70

    def __init__(self, what: str, got: object, expected: object) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        super().__init__(f"{what} has shape {got}, expected {expected}")


class DTypeError(PunaError, TypeError):
    """An array has another element type than the operation takes."""

    exit_code = 70

    def __init__(self, what: str, got: object, expected: object) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        super().__init__(f"{what} has dtype {got}, expected {expected}")


class InsufficientBlocksError(PunaError, RuntimeError):
    """The KV cache has too few free blocks; the scheduler answers by preempting."""

    http_status = None

    def __init__(self, needed: int, free: int, total: int) -> None:
        self.needed = needed
        self.free = free
        self.total = total
        super().__init__(f"{needed} KV cache blocks are needed, {free} of {total} are free ({needed - free} too few)")


class InsufficientMemoryError(PunaError, RuntimeError):
    """The model and its cache do not fit the memory that this process may use."""

    http_status = None

    def __init__(self, what: str, needed_bytes: int, available_bytes: int, advice: str) -> None:
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        gib = 1 << 30
        super().__init__(
            f"{what} needs {needed_bytes / gib:.2f} GiB, {available_bytes / gib:.2f} GiB may be used "
            f"({(needed_bytes - available_bytes) / gib:.2f} GiB too little); {advice}"
        )


class StepFailedError(PunaError, RuntimeError):
    """A forward pass failed twice for a request, the second time with nothing beside it; the engine lives on."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause
        super().__init__(f"the model failed on this request: {type(cause).__name__}: {cause}")
        self.__cause__ = cause


class EngineStoppedError(PunaError, RuntimeError):
    """The engine takes no requests any more: it drains, or was shut down."""

    http_status = 503

    def __init__(self, state: str) -> None:
        self.state = state
        super().__init__(f"the engine {state}; it takes no further requests")


class QueueFullError(PunaError, RuntimeError):
    """Back-pressure: the waiting line is full, try again later."""

    http_status = 429

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the queue is full ({limit} requests are waiting); try again later")
