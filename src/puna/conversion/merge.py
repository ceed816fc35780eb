"""Adapters merged into a checkpoint's weights: `W + scale * B A`, tensor by tensor."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from puna.conversion.checkpoint import Checkpoint, open_directory
from puna.conversion.encode import FLOAT_FORMATS
from puna.conversion.gguf_file import EncodedTensor
from puna.conversion.quantize import encoded_tensors
from puna.conversion.tensors import TensorSource
from puna.engine.adapters import AdapterKey, LowRank
from puna.errors import InvalidRequestError, UnsupportedModelError, WeightsError
from puna.graph.quantization import TARGETS
from puna.graph.weights import WeightData, WeightsFormat, quantized_pieces
from puna.graph.weights.safetensors import read_safetensors
from puna.models.files import ModelFiles, side_files
from puna.pipelines.lib.config_values import read_value
from puna.pipelines.lora import ModelProducts, read_updates

__all__ = ["merged_checkpoint", "merged_tensors", "write_merged_directory"]

_PIECE_ELEMENTS: Final = 1 << 20
_INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True)
class _Update:
    """What is added to some rows of a tensor: `scale * left @ right`.

    Attributes:
        rows: The tensor's rows, int64 `[rows]`.
        left: float32, float16 or bfloat16 `[rows, rank]`.
        right: Likewise, `[rank, columns]`.
        scale: The factor.
    """

    rows: NDArray[np.int64]
    left: np.ndarray[Any, Any]
    right: np.ndarray[Any, Any]
    scale: float


def merged_checkpoint(checkpoint: Checkpoint, adapter: Path) -> tuple[Checkpoint, list[str]]:
    """A checkpoint whose tensors have an adapter in them: those that it updates are float32 now.

    The adapter is read and checked; tensors are not read before their turn comes.

    Args:
        checkpoint: The model.
        adapter: A directory in PEFT's layout, or a GGUF file of llama.cpp's.

    Returns:
        The checkpoint, and the names of the tensors that are updated.

    Raises:
        WeightsError: The adapter is missing or damaged, or does not fit the model.
        UnsupportedModelError: It asks for something that is not computed, or cannot be merged.
    """
    updates = read_updates(adapter, checkpoint.products)
    shapes = {source.name: source.shape for source in checkpoint.tensors}
    found = _by_tensor(shapes, updates, checkpoint.products, WeightsFormat.gguf, adapter)
    sources = tuple(
        TensorSource(source.name, source.shape, "F32", partial(_merged, source.load, found[source.name]))
        if source.name in found
        else source
        for source in checkpoint.tensors
    )
    return replace(checkpoint, tensors=sources), list(found)


def merged_tensors(
    checkpoint: Checkpoint, merged: Checkpoint, threads: int | None = None
) -> list[EncodedTensor]:
    """The tensors of a GGUF file with an adapter in them, in the formats that they had.

    Args:
        checkpoint: The model without the adapter.
        merged: The same with it, of `merged_checkpoint`.
        threads: How many quantize at once; None: as many as this process should use.

    Raises:
        UnsupportedModelError: An updated tensor has a format that nothing is quantized to.
    """
    formats = [source.format for source in checkpoint.tensors]
    for source, new, format in zip(checkpoint.tensors, merged.tensors, formats, strict=True):
        if new is not source and format not in TARGETS:
            supported = f"{', '.join(TARGETS)}; --to and --allow-requantize write another one"
            what = f"merging into the format of {source.name}"
            raise UnsupportedModelError(what, format, file=checkpoint.files.path, supported=supported)
    return encoded_tensors(merged.tensors, formats, threads=threads)


def write_merged_directory(
    files: ModelFiles,
    adapter: Path,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
    threads: int | None = None,
) -> list[str]:
    """Writes a directory in Hugging Face layout with an adapter in its weights, in the dtypes that they had.

    Files of configuration, tokenizer and licence are copied. The directory has its name only when all of it is on the
    disk; what goes wrong leaves nothing behind.

    Args:
        files: The model, a directory in Hugging Face layout with float weights.
        adapter: A directory in PEFT's layout, or a GGUF file of llama.cpp's.
        out: The directory.
        overwrite: Whether a model of this name may be replaced.
        progress: Told the name of each weight file that was written.
        threads: As for `merged_tensors`.

    Returns:
        The names of the tensors that were updated.

    Raises:
        InvalidRequestError: The model is no such directory; `out` exists and may not be replaced.
        WeightsError: As `merged_checkpoint`; a sum is not a number of the dtype.
        UnsupportedModelError: As `merged_checkpoint`, or weights are quantized.
        OSError: The system refuses to write.
    """
    if files.kind != "huggingface":
        message = "a directory takes a model in Hugging Face layout, the model is a GGUF file; name OUT.gguf"
        raise InvalidRequestError(message, param=str(out))
    if out.exists() and not overwrite:
        raise InvalidRequestError("exists; --force replaces it", param=str(out))
    if out.exists() and not (out / "config.json").is_file():
        raise InvalidRequestError("exists and is no model's directory; name another one", param=str(out))
    for read in (files.path, adapter):
        if out.resolve() in (read.resolve(), *read.resolve().parents):
            raise InvalidRequestError(f"{read} is in it; name another directory", param=str(out))
    stored = open_directory(files)
    updates = read_updates(adapter, stored.products)
    places = dict(stored.weights.items())
    shapes = {name: place.shape for name, place in places.items()}
    found = _by_tensor(shapes, updates, stored.products, WeightsFormat.safetensors, adapter)
    for name in found:
        data = places[name].data()
        if data.format not in FLOAT_FORMATS:
            supported = ", ".join(FLOAT_FORMATS)
            raise UnsupportedModelError(f"dtype of {name}", data.format, file=files.path, supported=supported)
    if not out.parent.is_dir():
        raise InvalidRequestError(f"there is no directory {out.parent}", param=str(out))
    with _new_directory(out) as directory:
        names = [path.name for path in files.path.iterdir() if path.is_file()]
        for name in [*side_files(names), *({_INDEX} & {*names})]:
            shutil.copyfile(files.path / name, directory / name)
        for path in files.weight_paths:
            target = directory / path.relative_to(files.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_file(path, target, found, threads)
            if progress is not None:
                progress(path.name)
    return list(found)


def _write_file(path: Path, target: Path, found: Mapping[str, Sequence[_Update]], threads: int | None) -> None:
    """A weight file with updates in its tensors: everything else of it stays as it is, byte by byte."""
    shutil.copyfile(path, target)
    _, entries, _ = read_safetensors(path)
    with target.open("r+b") as file:
        for name in entries.keys() & found.keys():
            entry = entries[name]
            data = _merged(entry.load, found[name])
            file.seek(entry.begin)
            for piece in quantized_pieces(data, entry.load().format, threads=threads):
                file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _by_tensor(
    shapes: Mapping[str, tuple[int, ...]],
    updates: Mapping[AdapterKey, LowRank],
    products: ModelProducts,
    kind: WeightsFormat,
    adapter: Path,
) -> dict[str, list[_Update]]:
    """The updates of each tensor of a file of this kind; every one of `updates` is in one."""
    vocabulary = {key for key in updates if key.target in ("embed_tokens", "lm_head")}
    is_tied = read_value(products.huggingface_config, "tie_word_embeddings") is True
    found: dict[str, list[_Update]] = {}
    placed: set[AdapterKey] = set()
    has_head = False
    for name, shape in shapes.items():
        if len(shape) != 2 or not name.endswith(".weight"):
            continue
        for part in products.parts(name.removesuffix(".weight"), shape[0], kind):
            has_head |= part.key.target == "lm_head"
            update = updates.get(part.key)
            if update is None:
                continue
            placed.add(part.key)
            a, b = update.a.data, update.b.data
            left, right = (a, b.T) if part.key.target == "embed_tokens" else (b, a)
            found.setdefault(name, []).append(_Update(part.rows, left, right, update.scale))
    if vocabulary and (is_tied or not has_head):
        what = f"merging into {' and '.join(sorted(map(str, vocabulary)))}"
        supported = "models that store embedding and output matrix apart"
        shared = "one tensor for both (tie_word_embeddings)"
        raise UnsupportedModelError(what, shared, file=adapter, supported=supported)
    missing = sorted(updates.keys() - placed)
    if missing:
        raise WeightsError(f"updates {missing[0]}, which the model has no tensor for", file=adapter)
    return found


def _merged(load: Callable[[], WeightData], updates: Sequence[_Update]) -> WeightData:
    """The sum, float32 `[rows, columns]`: products in float64, one rounding."""
    stored = load()
    rows, columns = stored.shape
    values = np.empty((rows, columns), np.float32)
    step = max(1, _PIECE_ELEMENTS // columns)
    factors = [(update, update.right.astype(np.float64) * update.scale) for update in updates]
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        part = stored.rows(begin, end).to_float32().astype(np.float64)
        for update, right in factors:
            inside = (update.rows >= begin) & (update.rows < end)
            part[update.rows[inside] - begin] += update.left[inside].astype(np.float64) @ right
        with np.errstate(over="ignore"):
            values[begin:end] = part
    stored.check()
    stored.release()
    if not np.isfinite(values).all():
        file = stored.source.path if stored.source is not None else None
        raise WeightsError("holds numbers that are not finite when the adapter is in it", file=file, tensor=stored.name)
    return WeightData.from_numpy(values, stored.name)


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """A directory beside `out`, which becomes it at the end, or is deleted."""
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        new = work / "new"
        new.mkdir()  # with the permissions of new directories, which mkdtemp's is without
        yield new
        if out.exists():
            out.replace(work / "old")
        new.replace(out)
    except BaseException:
        if (work / "old").exists() and not out.exists():
            (work / "old").replace(out)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
