"""Which files make up a checkpoint, and opening them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final, NoReturn

from puna.errors import WeightsError
from puna.graph.weights.gguf import GGUFWeights
from puna.graph.weights.json_scan import JsonScanner
from puna.graph.weights.mapping import PICKLE_SUFFIXES, MappedWeights
from puna.graph.weights.safetensors import MAX_TENSORS, SafetensorWeights
from puna.graph.weights.weights import Weights

__all__ = ["WeightsFormat", "find_weight_files", "inside", "load_weights", "weights_format"]

INDEX_NAME: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 1 << 25
_INDEX_SUFFIX: Final = ".safetensors.index.json"


class WeightsFormat(StrEnum):
    """The kind of a checkpoint's files."""

    gguf = "gguf"
    safetensors = "safetensors"


def _paths(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    return [Path(path) for path in several]


def weights_format(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> WeightsFormat:
    """The kind of some files, by their suffixes.

    Raises:
        WeightsError: no files, files of two kinds, or a suffix that is neither `.gguf` nor `.safetensors`.
    """
    files = _paths(paths)
    if not files:
        raise WeightsError("no weight file is named")
    kinds = set()
    for file in files:
        suffix = file.suffix.lower()
        if suffix in PICKLE_SUFFIXES:
            MappedWeights(file)  # refuses pickles by name
        if suffix.removeprefix(".") not in {kind.value for kind in WeightsFormat}:
            raise WeightsError(f"suffix {suffix!r} is no kind of weight file; there is: .gguf, .safetensors", file=file)
        kinds.add(WeightsFormat(suffix.removeprefix(".")))
    if len(kinds) > 1:
        raise WeightsError(f"files of two kinds are named together: {', '.join(file.name for file in files)}")
    return kinds.pop()


def load_weights(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Weights:
    """Opens a checkpoint: safetensors files, one GGUF file (the first of a split set), or a directory that holds
    either.

    Every header is checked; no tensor is read.

    Raises:
        WeightsError: nothing is named, a file is missing or breaks its format, kinds are mixed, or several GGUF files
            are named (a `ValueError`).
        UnsupportedModelError: a tensor type or a version that Puna does not read.
    """
    files = _paths(paths)
    if len(files) == 1 and files[0].is_dir():
        index = files[0] / INDEX_NAME
        files = [index] if index.exists() else find_weight_files(files[0])
    if len(files) == 1 and files[0].name.endswith(_INDEX_SUFFIX):
        return _load_index(files[0])
    if weights_format(files) is WeightsFormat.safetensors:
        return SafetensorWeights(files)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise WeightsError(f"one GGUF file is expected (of a split set the first), {len(files)} are named: {names}")
    return GGUFWeights(files[0])


def _load_index(path: Path) -> SafetensorWeights:
    places = read_index(path)
    weights = SafetensorWeights(sorted(set(places.values())))
    for tensor, file in places.items():
        if not weights[tensor].exists():
            raise WeightsError(f"the index promises it in {file.relative_to(path.parent)}", file=path, tensor=tensor)
    return weights


def find_weight_files(directory: str | os.PathLike[str]) -> list[Path]:
    """The weight files of a model directory in Hugging Face layout.

    `model.safetensors.index.json` decides if it is there; else `model.safetensors`, else the only `.safetensors` file,
    else the only
    `.gguf` file or the only first file of a split set.

    Raises:
        WeightsError: there is no such file or several, or the index names a file outside the directory.
    """
    folder = Path(directory)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise WeightsError(f"cannot be listed: {error.strerror}", file=folder) from error
    if INDEX_NAME in names:
        return sorted(set(read_index(folder / INDEX_NAME).values()))
    if "model.safetensors" in names:
        return [inside(folder, "model.safetensors", folder)]
    tensors = [name for name in names if name.lower().endswith(".safetensors")]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    choices = tensors or [name for name in ggufs if "-of-" not in name or "-00001-of-" in name]
    if len(choices) == 1:
        return [inside(folder, choices[0], folder)]
    if choices:
        raise WeightsError(f"has several checkpoints, name one: {', '.join(choices)}", file=folder)
    pickles = [name for name in names if Path(name).suffix.lower() in PICKLE_SUFFIXES]
    if pickles:
        message = f"has only pickles ({', '.join(pickles)}), which can run code when they are opened and are never read"
        raise WeightsError(message, file=folder)
    raise WeightsError("has no .safetensors or .gguf file", file=folder)


def read_index(path: Path) -> dict[str, Path]:
    """The file of each tensor that a `*.safetensors.index.json` names, each checked to lie inside the index's
    directory.

    Raises:
        WeightsError: the index breaks its format, or a file is missing or outside the directory.
    """
    file = MappedWeights(path)
    if file.size > MAX_INDEX_BYTES:
        raise WeightsError(f"has {file.size} bytes; an index of at most {MAX_INDEX_BYTES} is read", file=path)
    scan = JsonScanner(file.data, 0, file.size, path)
    shards: dict[str, Path] = {}
    places: dict[str, Path] = {}
    for key in scan.members(16):
        if key != "weight_map":
            scan.skip()
            continue
        for tensor in scan.members(MAX_TENSORS):
            scan.peek()
            at = scan.position
            name = scan.string(4096)
            if name not in shards:
                shards[name] = inside(path.parent, name, path, tensor, at)
            places[tensor] = shards[name]
    scan.finish()
    file.check()
    if not places:
        scan.fail("has no weight_map that names a file", at=0)
    return places


def inside(
    directory: Path, name: str, source: Path, tensor: str | None = None, offset: int | None = None
) -> Path:
    """The file of this name in a directory, if it really is in there; errors are reported at a place in `source`.

    Links may not leave the directory either, with one exception: in the hub's cache, `snapshots/<revision>/` holds
    links to
    `blobs/<hash>` of the same repository, and a link that ends in that very folder is followed.
    """

    def fail(message: str) -> NoReturn:
        raise WeightsError(message, file=source, tensor=tensor, offset=offset)

    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\0" in name or "\\" in name:
        fail(f"{name!r} is not a file name inside the directory")
    path = directory / name
    try:
        root, target = directory.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
        fail(f"{name!r} is missing")
    in_blobs = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if not target.is_relative_to(root) and not in_blobs:
        fail(f"{name!r} leads out of the directory, to {target}")
    return path
