"""Files that clients send, on disk: each with a record of what it is, both of which survive a restart."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from puna.entrypoints.server.problems import Refusal

__all__ = ["FileRecord", "FileStore", "read_record", "write_record"]

_NAME: Final = re.compile(r"file-[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file is.

    Attributes:
        id: Its id.
        tenant: Whose it is.
        filename: What its sender called it; nothing is opened by this name.
        purpose: What it is for.
        created_at: When it came, in seconds since 1970.
        bytes: Its length.
    """

    id: str
    tenant: str
    filename: str
    purpose: str
    created_at: int
    bytes: int

    def body(self) -> dict[str, Any]:
        """What OpenAI's interface says about it."""
        record = asdict(self)
        del record["tenant"]
        return {**record, "object": "file", "status": "processed", "status_details": None, "expires_at": None}


def write_record(path: Path, values: dict[str, Any]) -> None:
    """Writes a small JSON file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    with temporary.open("w") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_record(path: Path) -> dict[str, Any] | None:
    """A JSON file of `write_record`; None where there is none, or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class FileStore:
    """The files of all tenants, in one directory that only its owner can read.

    Args:
        directory: Made when the first file comes.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def new_path(self) -> Path:
        """Where a file that comes is written before it is taken in.

        Raises:
            Refusal: the directory cannot be made.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(503, "storage_failed", f"files cannot be kept: {error.strerror}") from error
        return self._directory / f"{uuid.uuid4().hex}.part"

    def take(self, path: Path, tenant: str, filename: str, purpose: str) -> FileRecord:
        """Takes a complete file in.

        Args:
            path: A path of `new_path`, written and closed.
            tenant: Whose it is.
            filename: What it is called.
            purpose: What it is for.
        """
        name = f"file-{uuid.uuid4().hex}"
        record = FileRecord(
            id=name,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            created_at=int(time.time()),
            bytes=path.stat().st_size,
        )
        path.replace(self._directory / name)
        write_record(self._directory / f"{name}.json", asdict(record))
        return record

    def copy(self, source: Path, tenant: str, filename: str, purpose: str) -> FileRecord:
        """Takes a copy of a file in."""
        path = self.new_path()
        shutil.copyfile(source, path)
        return self.take(path, tenant, filename, purpose)

    def find(self, name: str, tenant: str) -> FileRecord:
        """A tenant's file.

        Raises:
            Refusal: there is none of this id; 404.
        """
        record = self._record(name)
        if record is None or record.tenant != tenant:
            raise Refusal(404, "file_not_found", f"there is no file {name[:80]!r}", param="file_id")
        return record

    def path_of(self, record: FileRecord) -> Path:
        """Where a file's content is."""
        return self._directory / record.id

    def of(self, tenant: str) -> Iterator[FileRecord]:
        """A tenant's files, the newest first."""
        names = [path.stem for path in self._directory.glob("file-*.json")] if self._directory.is_dir() else []
        records = [record for record in map(self._record, names) if record is not None and record.tenant == tenant]
        yield from sorted(records, key=lambda record: (-record.created_at, record.id))

    def delete(self, record: FileRecord) -> None:
        """Deletes a file."""
        for path in (self._directory / f"{record.id}.json", self.path_of(record)):
            path.unlink(missing_ok=True)

    def _record(self, name: str) -> FileRecord | None:
        if not _NAME.fullmatch(name):  # so that no name leads out of the directory
            return None
        values = read_record(self._directory / f"{name}.json")
        return None if values is None else FileRecord(**values)
