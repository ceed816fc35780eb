"""Models on a Hugging Face hub: what is in its cache, what has to be fetched, and which files of a repository make a
model.

`huggingface_hub` does the talking and owns the cache, so that `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`
and `HF_ENDPOINT` mean what they mean everywhere. A model that is in the cache whole is used without asking the
network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.errors import ModelNotFoundError, UnsupportedModelError, WeightsError
from puna.models.files import (
    _PICKLES,
    ModelFiles,
    choose_gguf,
    gguf_sets,
    in_directory,
    quantization_tag,
    safetensors_from_names,
    shards_of_index,
    side_files,
)

_NAME = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?::(?P<tag>[\w./-]+))?$")


@dataclass(frozen=True, slots=True)
class HubName:
    """A parsed `org/name[:TAG]`."""

    repo: str
    tag: str | None
    revision: str

    @property
    def text(self) -> str:
        """As it is written."""
        return f"{self.repo}:{self.tag}" if self.tag else self.repo


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in the hub's cache: its name and the files that `remove` would free."""

    name: str
    kind: str
    path: Path
    size_bytes: int


def parse_name(name: str, revision: str | None = None) -> HubName | None:
    """`org/name`, `org/name:TAG`, with or without `hf://`; None when `name` has another form."""
    match = _NAME.match(name.removeprefix("hf://"))
    return HubName(match["repo"], match["tag"], revision or "main") if match else None


def cached(name: HubName) -> ModelFiles | None:
    """The model when all its files are in the cache, else None.

    Raises:
        ModelNotFoundError: The cache holds several models of this repository that the name could mean.
    """
    snapshot = _snapshot(name)
    if snapshot is None:
        return None
    names = _files_below(snapshot)
    sets = {
        first: parts for first, parts in gguf_sets(names).items() if all((snapshot / part).is_file() for part in parts)
    }
    if name.tag is None and "config.json" in names and safetensors_from_names(names):
        try:
            return ModelFiles(name.text, "huggingface", in_directory(name.text, snapshot).path, "hub")
        except ModelNotFoundError:  # a shard is missing: the download was not finished
            return None
    if name.tag is None and len(sets) != 1:
        return None
    try:
        return ModelFiles(name.text, "gguf", snapshot / choose_gguf(name.repo, sets, name.tag), "hub")
    except ModelNotFoundError:
        return None


def fetch(name: HubName) -> ModelFiles:
    """Downloads what the model needs and no more, checks sizes and hashes, and returns it.

    Raises:
        ModelNotFoundError: No such repository, revision or quantization; several fit; the hub cannot be reached.
        UnsupportedModelError: The repository has pickles only.
        WeightsError: A file differs from the hash that the hub states.
    """
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi(library_name="puna").model_info(name.repo, revision=name.revision, files_metadata=True)
        siblings = {item.rfilename: item for item in info.siblings or []}
        wanted, first = _choose(name, list(siblings))
        _require_space(name, [siblings[item] for item in wanted])
        paths = {item: _download(name, item, info.sha, siblings[item]) for item in wanted}
        if first.endswith(".index.json"):
            shards = [item for item in shards_of_index(paths[first]) if item not in paths]
            missing = [shard for shard in shards if shard not in siblings]
            if missing:
                raise ModelNotFoundError(name.text, f"its index names files that the hub has not: {', '.join(missing)}")
            _require_space(name, [siblings[item] for item in shards])
            paths |= {item: _download(name, item, info.sha, siblings[item]) for item in shards}
    except errors.GatedRepoError as error:
        reason = "access is restricted; accept its terms on the hub and set HF_TOKEN"
        raise ModelNotFoundError(name.text, reason) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(name.text, "the hub has no such repository, or HF_TOKEN may not see it") from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(name.text, f"the repository has no revision {name.revision!r}") from error
    except _network_errors() as error:
        raise ModelNotFoundError(name.text, _unreachable(error)) from error
    if first.endswith(".gguf"):
        return ModelFiles(name.text, "gguf", paths[first], "hub")
    return ModelFiles(name.text, "huggingface", paths[first].parent, "hub")


def list_cached() -> list[CachedModel]:
    """Every model in the hub's cache that Puna could read, by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found: list[CachedModel] = []
    for repository in sorted(repositories, key=lambda item: item.repo_id):
        if repository.repo_type == "model":
            for revision in repository.revisions:
                if "main" in revision.refs or len(repository.revisions) == 1:
                    found += _models_of(repository.repo_id, revision.snapshot_path)
    return found


def remove(name: HubName) -> int:
    """Deletes the model from the hub's cache: with a tag that quantization, else the whole repository.

    Returns:
        The bytes that became free; 0 when it was not there.
    """
    snapshot = _snapshot(name)
    if snapshot is None:
        return 0
    if name.tag is None:
        folder = snapshot.parent.parent
        freed = sum(path.stat().st_size for path in (folder / "blobs").glob("*") if path.is_file())
        shutil.rmtree(folder)
        return freed
    sets = gguf_sets(_files_below(snapshot))
    freed = 0
    for part in sets[choose_gguf(name.repo, sets, name.tag)]:
        freed += _remove_file(snapshot / part)
    return freed


def _remove_file(path: Path) -> int:
    """Deletes a snapshot's entry and, unless another revision needs it, the blob that it points to."""
    if not path.exists():
        return 0
    blob = path.resolve()
    size = blob.stat().st_size
    path.unlink()
    others = path.parents[0].glob("../*/**/*") if path.parent.parent.name == "snapshots" else iter(())
    if blob.exists() and not any(other.is_symlink() and other.resolve() == blob for other in others):
        blob.unlink()
    return size


def _models_of(repo: str, snapshot: Path) -> list[CachedModel]:
    names = _files_below(snapshot)
    sets = gguf_sets(names)
    found = []
    for first, parts in sets.items():
        files = [snapshot / part for part in parts]
        if all(file.is_file() for file in files):
            label = quantization_tag(first) or first
            size = sum(file.stat().st_size for file in files)
            found.append(CachedModel(f"{repo}:{label}", "gguf", files[0], size))
    if "config.json" in names and safetensors_from_names(names):
        try:
            model = in_directory(repo, snapshot)
            found.append(CachedModel(repo, "huggingface", snapshot, model.size_bytes))
        except (ModelNotFoundError, WeightsError):
            pass  # an unfinished download is no model yet
    return found


def _snapshot(name: HubName) -> Path | None:
    """The cache's directory of the revision, by the layout `models--org--name/{refs,snapshots}`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}"
    reference = folder / "refs" / name.revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else name.revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _files_below(snapshot: Path) -> list[str]:
    return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _choose(name: HubName, names: Sequence[str]) -> tuple[list[str], str]:
    """The files to fetch at once, and the one that leads to the weights."""
    sets = gguf_sets(names)
    described_by = safetensors_from_names(names)
    if name.tag is None and "config.json" in names and described_by:
        return [*side_files(names), described_by], described_by
    if sets:
        first = choose_gguf(name.repo, sets, name.tag)
        missing = [part for part in sets[first] if part not in names]
        if missing:
            raise ModelNotFoundError(name.text, f"the set lacks {', '.join(missing)}")
        licences = [item for item in side_files(names) if not item.endswith((".json", ".txt", ".model", ".jinja"))]
        return [*licences, *sets[first]], first
    if name.tag is not None:
        raise ModelNotFoundError(name.text, "the repository has no GGUF files, so it takes no tag", choices=[name.repo])
    pickles = [item for item in names if item.endswith(_PICKLES)]
    if pickles:
        raise UnsupportedModelError(
            "weights file", pickles[0], file=name.text, supported=".safetensors and .gguf files"
        )
    raise ModelNotFoundError(
        name.text, "the repository has neither config.json with .safetensors files nor .gguf files"
    )


def _download(name: HubName, item: str, commit: str | None, sibling: Any) -> Path:
    """Fetches one file into the cache and compares size and SHA-256 with what the hub states."""
    from huggingface_hub import hf_hub_download

    # By revision and not by commit, so that the cache's reference is written and later look-ups need no network.
    path = Path(hf_hub_download(name.repo, item, revision=name.revision, library_name="puna"))
    if sibling.size is not None and path.stat().st_size != sibling.size:
        problem = f"has {path.stat().st_size} bytes, the hub states {sibling.size}"
    elif sibling.lfs is not None and _sha256(path) != sibling.lfs.sha256:
        problem = f"differs from the SHA-256 that the hub states ({sibling.lfs.sha256})"
    else:
        return path
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)
    raise WeightsError(f"{problem}; the copy was deleted, try again", file=path)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _require_space(name: HubName, siblings: Sequence[Any]) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    blobs = cache / f"models--{name.repo.replace('/', '--')}" / "blobs"
    needed = 0
    for sibling in siblings:
        etag = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
        if not (etag and (blobs / etag).exists()):
            needed += sibling.size or 0
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise ModelNotFoundError(name.text, f"{needed:,} bytes are needed in {cache}, {free:,} are free")


def _network_errors() -> tuple[type[Exception], ...]:
    """What asking the hub can end in; the HTTP library behind `huggingface_hub` differs between its releases."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http = [base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    return (OSError, EntryNotFoundError, *(base for base in http if issubclass(base, Exception)))


def _unreachable(error: Exception) -> str:
    offline = next((key for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(key)), None)
    if offline is not None:
        return f"it is not in the cache, and {offline} forbids asking the hub"
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"it is not in the cache, and the hub could not be asked ({first_line})"
