"""OpenAI's files and batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message

from puna.entrypoints.openai.requests import Endpoint
from puna.entrypoints.server.batches import Batches
from puna.entrypoints.server.body import read_object
from puna.entrypoints.server.file_store import FileRecord, FileStore
from puna.entrypoints.server.operation import Operation
from puna.entrypoints.server.problems import Refusal
from puna.entrypoints.server.routes.openai import json_response, note_ignored
from puna.entrypoints.server.state import Server, server_of, tenant_of
from puna.errors import InvalidRequestError

__all__ = ["OPERATIONS"]

_FORM_BYTES: Final = 64 << 10  # of everything in a form but the file
_FIELDS: Final = frozenset({"input_file_id", "endpoint", "completion_window", "metadata"})


def _files(server: Server) -> FileStore:
    if server.files is None:
        raise Refusal(404, "no_storage", "this server keeps no files (--no-storage)")
    return server.files


def _batches(server: Server) -> Batches:
    if server.batches is None:
        raise Refusal(404, "no_storage", "this server keeps no batches (--no-storage)")
    return server.batches


async def _upload(request: Request) -> Response:
    server = server_of(request)
    files, most = _files(server), server.limits.max_file_bytes
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(415, "unsupported_media_type", "a body of type multipart/form-data is expected")
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > most + _FORM_BYTES:
            raise Refusal(413, "request_too_large", f"a file has at most {most} bytes here")
        return message

    stream = Request(request.scope, receive).stream()
    try:
        async with asyncio.timeout(server.limits.body_timeout_s * 10):
            form = await MultiPartParser(request.headers, stream, max_files=1, max_fields=16).parse()
    except MultiPartException as error:
        raise InvalidRequestError(f"the form cannot be read: {error.message}") from error
    except TimeoutError as error:
        raise Refusal(408, "body_timeout", "the file did not arrive in time") from error
    except (ValueError, KeyError) as error:
        raise InvalidRequestError("the form cannot be read") from error
    try:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise InvalidRequestError("a file is expected", param="file")
        if purpose not in ("batch", "user_data"):
            raise InvalidRequestError("must be batch or user_data", param="purpose")
        name = (file.filename or "file").replace("\\", "/").rpartition("/")[2][:255]
        path = files.new_path()
        record = await asyncio.to_thread(_keep, file, path, files, tenant_of(request).name, name, str(purpose))
        return json_response(record.body())
    finally:
        await form.close()


def _keep(file: UploadFile, path: Path, files: FileStore, tenant: str, name: str, purpose: str) -> FileRecord:
    try:
        with path.open("wb") as target:
            while part := file.file.read(1 << 20):
                target.write(part)
        return files.take(path, tenant, name, purpose)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Refusal(503, "storage_failed", f"the file cannot be kept: {error.strerror}") from error


def _page(request: Request, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A part of a list, as `limit` and `after` ask for it."""
    limit, after = request.query_params.get("limit", "20"), request.query_params.get("after")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 10_000:
        raise InvalidRequestError("must be an integer from 1 to 10000", param="limit")
    names = [item["id"] for item in items]
    begin = names.index(after) + 1 if after in names else 0
    page = list(items[begin : begin + int(limit)])
    return {
        "object": "list",
        "data": page,
        "has_more": begin + len(page) < len(items),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


async def _list_files(request: Request) -> Response:
    purpose = request.query_params.get("purpose")
    records = _files(server_of(request)).of(tenant_of(request).name)
    return json_response(_page(request, [r.body() for r in records if purpose in (None, r.purpose)]))


async def _file(request: Request) -> Response:
    files = _files(server_of(request))
    return json_response(files.find(request.path_params["file_id"], tenant_of(request).name).body())


async def _content(request: Request) -> Response:
    files = _files(server_of(request))
    record = files.find(request.path_params["file_id"], tenant_of(request).name)
    return FileResponse(files.path_of(record), media_type="application/octet-stream")


async def _delete(request: Request) -> Response:
    files = _files(server_of(request))
    record = files.find(request.path_params["file_id"], tenant_of(request).name)
    files.delete(record)
    return json_response({"id": record.id, "object": "file", "deleted": True})


async def _create_batch(request: Request) -> Response:
    server = server_of(request)
    batches, files = _batches(server), _files(server)
    body = {name: value for name, value in (await read_object(request, server.limits)).items() if value is not None}
    unknown = tuple(sorted(body.keys() - _FIELDS))
    if unknown and server.settings.is_strict:
        raise InvalidRequestError("there is no such field here", param=unknown[0])
    headers = note_ignored(server, request, unknown)
    endpoint, window, metadata = body.get("endpoint"), body.get("completion_window", "24h"), body.get("metadata")
    if endpoint not in tuple(Endpoint):
        raise InvalidRequestError(f"must be one of {', '.join(Endpoint)}", param="endpoint")
    if window != "24h":
        raise InvalidRequestError("must be 24h", param="completion_window")
    if metadata is not None and (
        not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values())
    ):
        raise InvalidRequestError("must be an object of texts", param="metadata")
    if not isinstance(body.get("input_file_id"), str):
        raise InvalidRequestError("must be the id of a file", param="input_file_id")
    tenant = tenant_of(request)
    record = files.find(body["input_file_id"], tenant.name)
    return json_response(batches.create(tenant, record, str(endpoint), metadata), headers=headers)


async def _list_batches(request: Request) -> Response:
    return json_response(_page(request, _batches(server_of(request)).of(tenant_of(request).name)))


async def _batch(request: Request) -> Response:
    batches = _batches(server_of(request))
    return json_response(batches.find(request.path_params["batch_id"], tenant_of(request).name))


async def _cancel(request: Request) -> Response:
    batches = _batches(server_of(request))
    return json_response(await batches.cancel(request.path_params["batch_id"], tenant_of(request).name))


_PAGE: Final[Mapping[str, Mapping[str, Any]]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 10_000},
    "after": {"type": "string"},
}


def _operation(
    method: str, path: str, endpoint: Callable[[Request], Any], summary: str, response: str | None, **more: Any
) -> Operation:
    statuses = more.pop("statuses", (200, 404))
    return Operation(
        method=method,
        path=path,
        endpoint=endpoint,
        summary=summary,
        tag="OpenAI",
        response=response,
        statuses=statuses,
        **more,
    )


OPERATIONS: Final = (
    _operation("POST", "/v1/files", _upload, "Send a file.", "File", body="FileUpload",
               body_media_type="multipart/form-data"),
    _operation("GET", "/v1/files", _list_files, "The files that are kept.", "FileList",
               query={**_PAGE, "purpose": {"type": "string"}}),
    _operation("GET", "/v1/files/{file_id}", _file, "What a file is.", "File"),
    _operation("GET", "/v1/files/{file_id}/content", _content, "A file's content.", None,
               media_types=("application/octet-stream",)),
    _operation("DELETE", "/v1/files/{file_id}", _delete, "Delete a file.", "Deleted"),
    _operation("POST", "/v1/batches", _create_batch, "Answer the requests in a file.", "Batch", body="BatchRequest"),
    _operation("GET", "/v1/batches", _list_batches, "The batches that are known.", "BatchList", query=_PAGE),
    _operation("GET", "/v1/batches/{batch_id}", _batch, "How far a batch is.", "Batch"),
    _operation("POST", "/v1/batches/{batch_id}/cancel", _cancel, "End a batch.", "Batch",
               statuses=(200, 404, 409)),
)  # fmt: skip
