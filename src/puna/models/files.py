"""What makes a set of files a model: GGUF split sets, quantization tags, directories in Hugging Face layout.

Everything here works on names of files, so that a directory on disk and a listing of the hub follow the same rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puna.errors import ModelNotFoundError, UnsupportedModelError, WeightsError

ModelKind = Literal["gguf", "huggingface"]

_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})$")
_TAG = re.compile(r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32|FP16|FP32))$", re.IGNORECASE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SIDE_FILES = re.compile(
    r"^(config|generation_config|quantize_config|quant_config|hf_quant_config)\.json$"
    r"|^(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json$"
    r"|^(chat_template\.jinja|chat_template\.json|merges\.txt|tokenizer\.model|LICENSE.*|NOTICE.*|USE_POLICY.*)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are.

    Attributes:
        name: The name as it was given.
        kind: `gguf` (one file, or the first of a split set) or `huggingface` (a directory with `config.json`).
        path: The GGUF file, or the directory.
        source: Where the name led: `file`, `directory`, `hub` or `default`.
    """

    name: str
    kind: ModelKind
    path: Path
    source: Literal["file", "directory", "hub", "default"]

    @property
    def weight_paths(self) -> list[Path]:
        """The weight files, in the order of the set."""
        if self.kind == "gguf":
            return [self.path.parent / part for part in split_parts(self.path.name)]
        return [self.path / name for name in safetensors_files(self.path)]

    @property
    def size_bytes(self) -> int:
        """Size of the weight files."""
        return sum(path.stat().st_size for path in self.weight_paths)


def split_parts(file_name: str) -> list[str]:
    """The names of all files of the split set that `file_name` belongs to; itself alone when it is whole."""
    match = _SPLIT.match(file_name.removesuffix(".gguf"))
    if match is None:
        return [file_name]
    count = int(match["count"])
    return [f"{match['stem']}-{index:05d}-of-{count:05d}.gguf" for index in range(1, count + 1)]


def gguf_sets(names: Iterable[str]) -> dict[str, list[str]]:
    """GGUF models among `names` (paths with `/`): the first file of each → all its files.

    Projectors of multimodal models (`mmproj-…`) are not models.
    """
    sets: dict[str, list[str]] = {}
    for name in sorted(names):
        if not name.endswith(".gguf") or name.rsplit("/", 1)[-1].lower().startswith("mmproj"):
            continue
        folder, slash, base = name.rpartition("/")
        parts = [f"{folder}{slash}{part}" for part in split_parts(base)]
        sets.setdefault(parts[0], parts)
    return sets


def quantization_tag(file_name: str) -> str | None:
    """The quantization that a GGUF file's name ends in, upper case: `model-Q4_K_M.gguf` → `Q4_K_M`."""
    stem = file_name.removesuffix(".gguf")
    split = _SPLIT.match(stem)
    match = _TAG.search(split["stem"] if split else stem)
    return match[1].upper() if match else None


def choose_gguf(name: str, sets: dict[str, list[str]], tag: str | None) -> str:
    """The one set that `tag` means: its first file's name.

    Args:
        name: The model's name, for messages.
        sets: As `gguf_sets` gives.
        tag: A quantization (`Q4_K_M`), a file name, or None.

    Raises:
        ModelNotFoundError: None or several fit; the message lists all there are.
    """
    if tag is None:
        fitting = list(sets)
    else:
        wanted = tag.upper()
        fitting = [first for first in sets if tag in (first, first.rpartition("/")[2])]
        fitting = fitting or [first for first in sets if quantization_tag(first) == wanted]
    if len(fitting) == 1:
        return fitting[0]
    tags = [quantization_tag(first) for first in sets]
    has_plain_tags = None not in tags and len(set(tags)) == len(tags)
    choices = [f"{name}:{label}" for label in (tags if has_plain_tags else sets)]
    if not sets:
        raise ModelNotFoundError(name, "it has no GGUF file")
    if not fitting:
        raise ModelNotFoundError(f"{name}:{tag}", "no file has this quantization or name", choices=choices)
    raise ModelNotFoundError(name if tag is None else f"{name}:{tag}", "several files fit; name one", choices=choices)


def safetensors_from_names(names: Sequence[str]) -> str | None:
    """Which top-level safetensors file describes the weights: the index, the single file, or None."""
    for candidate in ("model.safetensors.index.json", "model.safetensors"):
        if candidate in names:
            return candidate
    single = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    return single[0] if len(single) == 1 else None


def side_files(names: Iterable[str]) -> list[str]:
    """Configuration, tokenizer, template and licence files at the top level."""
    return [name for name in names if _SIDE_FILES.match(name)]


def shards_of_index(index: Path) -> list[str]:
    """The files that a `model.safetensors.index.json` names, sorted.

    Raises:
        WeightsError: It is no such index, or a path leads out of the directory.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"is no index of safetensors files ({type(error).__name__})", file=index) from error
    for shard in shards:
        if not isinstance(shard, str) or not shard or Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise WeightsError(f"the index names the file {shard!r}, which is not inside its directory", file=index)
    return shards


def safetensors_files(directory: Path) -> list[str]:
    """The safetensors files of a directory in Hugging Face layout, relative to it."""
    names = [path.name for path in directory.iterdir()]
    described_by = safetensors_from_names(names)
    if described_by is None:
        return []
    return shards_of_index(directory / described_by) if described_by.endswith(".json") else [described_by]


def in_file(name: str, path: Path) -> ModelFiles:
    """The model of a single weight file.

    Raises:
        UnsupportedModelError: It is not a GGUF file.
        ModelNotFoundError: It is a later file of a split set, or the set is incomplete.
    """
    if path.suffix != ".gguf":
        hint = "a .gguf file, or a directory with config.json and .safetensors files"
        raise UnsupportedModelError("weights file", path.name, file=path.parent, supported=hint)
    parts = split_parts(path.name)
    if path.name != parts[0]:
        raise ModelNotFoundError(name, "name the first file of the set", choices=[str(path.parent / parts[0])])
    missing = [part for part in parts if not (path.parent / part).is_file()]
    if missing:
        raise ModelNotFoundError(name, f"the set lacks {', '.join(missing)}")
    return ModelFiles(name, "gguf", path, "file")


def in_directory(name: str, directory: Path) -> ModelFiles:
    """The model of a directory: Hugging Face layout first, else the only GGUF set in it.

    Raises:
        ModelNotFoundError: There is no model in it, or there are several.
        UnsupportedModelError: There are weights, but only as pickles, which run code when they are read.
    """
    names = sorted(path.name for path in directory.iterdir())
    has_config = "config.json" in names
    if has_config and safetensors_from_names(names):
        found = ModelFiles(name, "huggingface", directory, "directory")
        missing = [str(path) for path in found.weight_paths if not path.is_file()]
        if missing:
            raise ModelNotFoundError(name, f"the index names files that are not there: {', '.join(missing)}")
        return found
    sets = gguf_sets(names)
    if len(sets) == 1:
        return in_file(name, directory / next(iter(sets)))
    if sets:
        choices = [str(directory / first) for first in sets]
        raise ModelNotFoundError(name, "the directory has several GGUF models; name one", choices=choices)
    pickles = [item for item in names if item.endswith(_PICKLES)]
    if pickles:
        raise UnsupportedModelError(
            "weights file", pickles[0], file=directory, supported=".safetensors and .gguf files"
        )
    if any(item.endswith(".safetensors") for item in names):
        reason = "it has no config.json" if not has_config else "it has several safetensors files and no index"
        raise ModelNotFoundError(name, reason)
    raise ModelNotFoundError(name, "the directory has neither config.json with .safetensors files nor a .gguf file")
