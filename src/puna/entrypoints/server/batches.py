"""Batches: files of requests that are answered beside everything else, and gone on with after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from puna.entrypoints.openai.batch import BatchLine, ResultFile, lines_of, read_line, result_line, scan
from puna.entrypoints.openai.requests import Endpoint
from puna.entrypoints.openai.responses import embedding_body, generated_body
from puna.entrypoints.server.file_store import FileRecord, FileStore, read_record, write_record
from puna.entrypoints.server.generation import Generation, read_call
from puna.entrypoints.server.keys import Tenant
from puna.entrypoints.server.problems import Refusal
from puna.entrypoints.server.reading import vectors_of
from puna.entrypoints.server.timeline import Timeline
from puna.errors import InvalidRequestError, PunaError

if TYPE_CHECKING:
    from puna.entrypoints.server.state import Server

__all__ = ["Batches"]

_NAME: Final = re.compile(r"batch_[0-9a-f]{32}")
_AT_ONCE: Final = 4  # lines of a batch that are in the line or the engine together
_BEHIND_OTHERS: Final = 1 << 20  # the priority of lines
_DAY_S: Final = 24 * 3600
_RETRY_S: Final = 1.0
_OPEN: Final = ("validating", "in_progress", "finalizing", "cancelling")
_log = logging.getLogger("puna.server")


class Batches:
    """The batches of all tenants.

    Each has a record `<id>.json` and, while it runs, a file `<id>.results` of whole lines that survives a crash: what
    is answered there is not asked again.

    Args:
        server: What answers lines.
        files: Where requests come from and results go.
        directory: Where records are.
    """

    def __init__(self, server: Server, files: FileStore, directory: Path) -> None:
        self._server = server
        self._files = files
        self._directory = directory
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def resume(self) -> None:
        """Goes on with what an earlier process left open."""
        for record in self._all():
            if record["status"] in _OPEN and record["id"] not in self._tasks:
                self._start(record)

    async def close(self) -> None:
        """Stops; `resume` of a later process goes on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def create(
        self, tenant: Tenant, file: FileRecord, endpoint: str, metadata: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Begins a batch; returns its body."""
        now = int(time.time())
        record: dict[str, Any] = {
            "id": f"batch_{uuid.uuid4().hex}",
            "object": "batch",
            "endpoint": endpoint,
            "errors": None,
            "input_file_id": file.id,
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "in_progress_at": None,
            "expires_at": now + _DAY_S,
            "finalizing_at": None,
            "completed_at": None,
            "failed_at": None,
            "expired_at": None,
            "cancelling_at": None,
            "cancelled_at": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
            "tenant": tenant.name,
        }
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(record)
        self._start(record)
        return _shown(record)

    def find(self, name: str, tenant: str) -> dict[str, Any]:
        """A tenant's batch.

        Raises:
            Refusal: there is none of this id; 404.
        """
        record = read_record(self._directory / f"{name}.json") if _NAME.fullmatch(name) else None
        if record is None or record["tenant"] != tenant:
            raise Refusal(404, "batch_not_found", f"there is no batch {name[:80]!r}", param="batch_id")
        return _shown(record)

    def of(self, tenant: str) -> list[dict[str, Any]]:
        """A tenant's batches, the newest first."""
        found = [_shown(record) for record in self._all() if record["tenant"] == tenant]
        return sorted(found, key=lambda record: (-record["created_at"], record["id"]))

    async def cancel(self, name: str, tenant: str) -> dict[str, Any]:
        """Ends a batch; what is answered is kept.

        Raises:
            Refusal: there is none of this id (404), or it has ended (409).
        """
        if self.find(name, tenant)["status"] not in _OPEN:
            raise Refusal(409, "batch_ended", "the batch has ended already")
        task = self._tasks.get(name)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        record = read_record(self._directory / f"{name}.json")
        assert record is not None
        if record["status"] in _OPEN:
            record |= {"cancelling_at": int(time.time())}
            await self._collect(record, "cancelled")
        return _shown(record)

    def _all(self) -> Iterator[dict[str, Any]]:
        if self._directory.is_dir():
            for path in sorted(self._directory.glob("batch_*.json")):
                record = read_record(path)
                if record is not None:
                    yield record

    def _write(self, record: dict[str, Any]) -> None:
        write_record(self._directory / f"{record['id']}.json", record)

    def _start(self, record: dict[str, Any]) -> None:
        name = record["id"]
        task = asyncio.create_task(self._run(record))
        self._tasks[name] = task
        task.add_done_callback(lambda _task: self._tasks.pop(name, None))

    async def _run(self, record: dict[str, Any]) -> None:
        try:
            tenant = self._server.keys.tenant(record["tenant"])
            source = self._files.path_of(self._files.find(record["input_file_id"], tenant.name))
            asked = await asyncio.to_thread(scan, source)
            if not asked.custom_ids:
                raise InvalidRequestError("the file has no requests", param="input_file_id")
            record["request_counts"]["total"] = len(asked.custom_ids)
            record |= {"status": "in_progress", "in_progress_at": record["in_progress_at"] or int(time.time())}
            self._write(record)
            with ResultFile(self._results(record), asked.custom_ids) as results:
                await self._answer(record, tenant, source, results)
            await self._collect(record, "completed")
        except (PunaError, OSError) as error:
            self._fail(record, "invalid_file", str(error))
        except Exception:  # a fault of the server's own: nobody awaits this task, and the batch must not seem to go on
            _log.exception("a batch failed", extra={"batch": record["id"]})
            self._fail(record, "internal_error", "a fault of the server's own; its log says where")

    def _fail(self, record: dict[str, Any], code: str, message: str) -> None:
        problem = {"code": code, "message": message, "param": None, "line": None}
        errors = {"object": "list", "data": [problem]}
        record |= {"status": "failed", "failed_at": int(time.time()), "errors": errors}
        with contextlib.suppress(OSError):
            self._write(record)

    def _results(self, record: dict[str, Any]) -> Path:
        return self._directory / f"{record['id']}.results"

    async def _answer(self, record: dict[str, Any], tenant: Tenant, source: Path, results: ResultFile) -> None:
        """Answers lines that have no result yet, a few at once."""
        self._count(record, results)
        pending: set[asyncio.Task[dict[str, Any]]] = set()
        lines = (read_line(data, number) for number, data in lines_of(source))
        waiting = (line for line in lines if line.custom_id not in results.done)
        try:
            while True:
                while len(pending) < _AT_ONCE and (line := next(waiting, None)) is not None:
                    pending.add(asyncio.create_task(self._line(record, tenant, line)))
                if not pending:
                    return
                ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    results.append(task.result())
                self._count(record, results)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _count(self, record: dict[str, Any], results: ResultFile) -> None:
        counts = record["request_counts"]
        counts["completed"] = len(results.done) - results.num_failed
        counts["failed"] = results.num_failed
        self._write(record)

    async def _line(self, record: dict[str, Any], tenant: Tenant, line: BatchLine) -> dict[str, Any]:
        """The result of a line; waits while the server is overloaded."""
        while True:
            try:
                return result_line(line.custom_id, await self._body(record, tenant, line))
            except Refusal as refusal:
                if refusal.status not in (429, 503):
                    return result_line(line.custom_id, None, refusal)
                await asyncio.sleep(_RETRY_S)
            except PunaError as error:
                return result_line(line.custom_id, None, error)

    async def _body(self, record: dict[str, Any], tenant: Tenant, line: BatchLine) -> dict[str, Any]:
        if line.error is not None:
            raise line.error
        if line.endpoint != record["endpoint"]:
            raise InvalidRequestError(f"the batch is for {record['endpoint']}", param="url")
        server = self._server
        call = read_call(server, line.endpoint, line.body, may_stream=False)
        if call.ignored:
            raise InvalidRequestError("there is no such field", param=call.ignored[0])
        timeline = Timeline(uuid.uuid4().hex, tenant.name, "batch")
        model = server.settings.model_name
        if line.endpoint is Endpoint.EMBEDDINGS:
            assert call.pooling is not None
            vectors, lengths = await vectors_of(
                server, tenant, timeline, call.requests, pooling=call.pooling, normalize=call.normalize
            )
            return embedding_body(call, vectors, model=model, num_tokens=sum(lengths))
        requests = [replace(request, priority=request.priority + _BEHIND_OTHERS) for request in call.requests]
        generation = await Generation.prepare(server, tenant, timeline, requests)
        outputs = await generation.result()
        tokenizer = server.llm.tokenizer if server.llm.has_tokenizer else None
        return generated_body(call, outputs, model=model, created=int(time.time()), tokenizer=tokenizer)

    async def _collect(self, record: dict[str, Any], status: str) -> None:
        """Makes files of results and of errors, as OpenAI has them, and ends the batch."""
        record |= {"status": "finalizing", "finalizing_at": int(time.time())}
        self._write(record)
        results = self._results(record)
        if results.exists():
            output, errors = await asyncio.to_thread(self._split, results, record)
            record |= {"output_file_id": output, "error_file_id": errors}
        record |= {"status": status, f"{status}_at": int(time.time())}
        self._write(record)
        results.unlink(missing_ok=True)

    def _split(self, results: Path, record: dict[str, Any]) -> tuple[str | None, str | None]:
        paths = [self._files.new_path() for _ in range(2)]
        with paths[0].open("wb") as good, paths[1].open("wb") as bad:
            for _, data in lines_of(results):
                if data.endswith(b"\n"):
                    (good if json.loads(data)["response"]["status_code"] == 200 else bad).write(data)
        found: list[str | None] = []
        for path, kind in zip(paths, ("output", "error"), strict=True):
            if path.stat().st_size:
                name = f"{record['id']}_{kind}.jsonl"
                found.append(self._files.take(path, record["tenant"], name, "batch_output").id)
            else:
                path.unlink()
                found.append(None)
        return found[0], found[1]


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "tenant"}
