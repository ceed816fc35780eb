"""Batch files of the OpenAI interface: lines of requests, of results, and a file of results that survives a crash.

A line of input is `{"custom_id", "method": "POST", "url", "body"}`, or the body alone: with `messages` it is for chat,
with `prompt` for completions, with `input` for embeddings. A line without a `custom_id` is called `line-N`.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from puna.entrypoints.openai.requests import Endpoint
from puna.entrypoints.openai.responses import error_body, error_status
from puna.errors import InvalidRequestError, PunaError

__all__ = ["BatchInput", "BatchLine", "ResultFile", "lines_of", "read_line", "result_line", "scan"]

_LINE_FIELDS: Final = frozenset({"custom_id", "method", "url", "body"})
_BY_FIELD: Final = {"messages": Endpoint.CHAT, "prompt": Endpoint.COMPLETIONS, "input": Endpoint.EMBEDDINGS}
_RECORD_BEGIN: Final = b'{"id": "batch_req_'
_SYNC_S: Final = 1.0  # what a crash of the machine may cost; one of the process costs nothing


@dataclass(frozen=True, kw_only=True)
class BatchLine:
    """A line of input.

    Attributes:
        custom_id: Its name in the results.
        endpoint: What its body is sent to.
        body: The body.
        error: Why it cannot be served; endpoint and body mean nothing then.
    """

    custom_id: str
    endpoint: Endpoint = Endpoint.CHAT
    body: Mapping[str, Any]
    error: PunaError | None = None


def read_line(data: bytes, number: int) -> BatchLine:
    """Reads a line; what is wrong with it becomes its `error`.

    Args:
        data: The line's bytes.
        number: Which line it is, from 1.
    """
    name = f"line-{number}"
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        return BatchLine(custom_id=name, body={}, error=InvalidRequestError(f"line {number} is not JSON: {error}"))
    try:
        if not isinstance(value, dict):
            raise InvalidRequestError(f"line {number} is not a JSON object")
        given = value.pop("custom_id", name)
        if not isinstance(given, str) or not given:
            raise InvalidRequestError(f"must be text that is not empty, got {given!r}", param="custom_id")
        name = given
        return BatchLine(custom_id=name, endpoint=_endpoint(value), body=_body(value))
    except InvalidRequestError as error:
        return BatchLine(custom_id=name, body={}, error=error)


def _endpoint(value: dict[str, Any]) -> Endpoint:
    if "url" not in value and "body" not in value:
        found = [endpoint for name, endpoint in _BY_FIELD.items() if name in value]
        if len(found) != 1:
            raise InvalidRequestError(f"a line has url and body, or one of {', '.join(_BY_FIELD)}", param="body")
        return found[0]
    if unknown := sorted(value.keys() - _LINE_FIELDS):
        raise InvalidRequestError("there is no such field in a line", param=unknown[0])
    if value.get("method", "POST") != "POST":
        raise InvalidRequestError(f"must be POST, got {value['method']!r}", param="method")
    if value.get("url") not in tuple(Endpoint):
        raise InvalidRequestError(f"must be one of {', '.join(Endpoint)}, got {value.get('url')!r}", param="url")
    return Endpoint(value["url"])


def _body(value: dict[str, Any]) -> dict[str, Any]:
    body = value.get("body") if "url" in value else value
    if not isinstance(body, dict):
        raise InvalidRequestError(f"must be an object, got {body!r}", param="body")
    return body


@dataclass(frozen=True, slots=True)
class BatchInput:
    """What is in a file of requests.

    Attributes:
        custom_ids: The names of its lines -> the number of each.
        model: The model that the first of its bodies with a `model` names; None: no body names one.
    """

    custom_ids: dict[str, int]
    model: str | None


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers."""
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if data.strip():
                yield number, data


def scan(path: Path) -> BatchInput:
    """Looks through a file of requests before anything is loaded.

    Raises:
        InvalidRequestError: a name occurs twice.
        OSError: the file cannot be read.
    """
    ids: dict[str, int] = {}
    model = None
    for number, data in lines_of(path):
        line = read_line(data, number)
        if line.custom_id in ids:
            raise InvalidRequestError(
                f"{line.custom_id!r} is on lines {ids[line.custom_id]} and {number} of {path}", param="custom_id"
            )
        ids[line.custom_id] = number
        if model is None and isinstance(line.body.get("model"), str):
            model = line.body["model"]
    return BatchInput(ids, model)


def result_line(custom_id: str, body: Mapping[str, Any] | None, error: PunaError | None = None) -> dict[str, Any]:
    """A line of results.

    Args:
        custom_id: Whose.
        body: What it was answered with; None: with an error.
        error: The error.
    """
    status = 200
    if body is None:
        assert error is not None, "a line ends with a body or an error"
        status, body = error_status(error), error_body(error)
    name = uuid.uuid4().hex
    return {
        "id": f"batch_req_{name}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": name, "body": body},
        "error": None,
    }


class ResultFile:
    """A file of results that grows by whole lines. One that exists is gone on with.

    A last line that a crash cut off is removed; its request counts as not answered. Nobody else may write the file at
    the same time.

    Args:
        path: The file.
        custom_ids: The names of the requests that it may hold results of.

    Attributes:
        done: Names of requests that have their result.
        num_failed: How many results are errors.

    Raises:
        InvalidRequestError: it exists and is no file of results, holds results of other requests, or another process
            writes it.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, custom_ids: Mapping[str, int]) -> None:
        self._path = path
        self.done: set[str] = set()
        self.num_failed = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._last_sync = time.monotonic()
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidRequestError(f"another process writes {path}", param="output") from error
            os.ftruncate(self._file, self._read(custom_ids))
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def append(self, result: Mapping[str, Any]) -> None:
        """Writes a result of `result_line`, in one piece.

        Raises:
            OSError: it cannot be written; the part of it that was is removed by the next run.
        """
        data = json.dumps(result).encode() + b"\n"  # ASCII: some readers end lines at U+0085 or U+2028 too
        while data:
            data = data[os.write(self._file, data) :]
        self._count(result["custom_id"], result["response"]["status_code"])
        if time.monotonic() - self._last_sync > _SYNC_S:
            os.fsync(self._file)
            self._last_sync = time.monotonic()

    def _count(self, custom_id: str, status: int) -> None:
        self.done.add(custom_id)
        self.num_failed += status != 200

    def _read(self, custom_ids: Mapping[str, int]) -> int:
        """Takes in the results that are there; returns how many bytes of the file are whole lines."""
        end = 0
        with self._path.open("rb") as file:
            for number, data in enumerate(file, 1):
                begin = data[: len(_RECORD_BEGIN)]
                if begin != _RECORD_BEGIN[: len(begin)]:
                    raise self._foreign(f"line {number} is no result")
                if not data.endswith(b"\n"):
                    break
                try:
                    result = json.loads(data)
                    name, status = str(result["custom_id"]), int(result["response"]["status_code"])
                except (ValueError, KeyError, TypeError) as error:
                    raise self._foreign(f"line {number} is no result") from error
                if name not in custom_ids:
                    raise self._foreign(f"line {number} answers {name!r}, which is not asked")
                if name in self.done:
                    raise self._foreign(f"line {number} answers {name!r} a second time")
                self._count(name, status)
                end += len(data)
        return end

    def _foreign(self, reason: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self._path} exists, and {reason}; name another file", param="output")
