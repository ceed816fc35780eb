"""A tokenizer from a model directory: tokenizer.json, or tokenizer.model alone, and the small files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.errors import UnsupportedModelError, WeightsError
from puna.tokenization.definition import (
    AddedToken,
    RankedMerges,
    Section,
    TokenizerDefinition,
    begin_end_template,
)
from puna.tokenization.gguf_source import sentencepiece_definition
from puna.tokenization.sentencepiece_model import SentencePieceModel, read_sentencepiece

_ROLES = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class DirectoryConfig:
    """What the small files of a model directory say.

    Attributes:
        tokenizer: tokenizer_config.json.
        special: special_tokens_map.json under the fields of tokenizer_config.json.
        end_ids: `eos_token_id` of generation_config.json, else of config.json.
    """

    tokenizer: Mapping[str, Any]
    special: Mapping[str, str]
    end_ids: tuple[int, ...]


def read_json(path: Path) -> Any:
    """Parsed JSON of a file.

    Raises:
        WeightsError: Not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"is not JSON: {error}", file=path) from error


def _read_object(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise WeightsError("is not a JSON object", file=path)
    return value


def read_config(directory: Path) -> DirectoryConfig:
    """Reads the files beside the tokenizer; absent ones count as empty.

    Raises:
        WeightsError: A file is damaged.
    """
    config = _read_object(directory / "tokenizer_config.json")
    special: dict[str, str] = {}
    for source in (_read_object(directory / "special_tokens_map.json"), config):
        for key, value in source.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                special[key] = text
    ids: Any = None
    for name in ("generation_config.json", "config.json"):
        ids = _read_object(directory / name).get("eos_token_id")
        if ids is not None:
            break
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(i) is int and i >= 0 for i in listed):
        raise WeightsError(f"eos_token_id {ids!r} is not a token id or a list of them", file=directory / name)
    return DirectoryConfig(config, special, tuple(listed))


def definition_from_directory(directory: Path, config: DirectoryConfig) -> TokenizerDefinition:
    """Builds the definition from `tokenizer.json`, else from `tokenizer.model`.

    Raises:
        UnsupportedModelError: Neither file is there, or its kind is not implemented.
        WeightsError: A file is damaged.
    """
    if (directory / "tokenizer.json").is_file():
        return _from_tokenizer_json(directory / "tokenizer.json", config)
    if (directory / "tokenizer.model").is_file():
        return _from_sentencepiece(directory / "tokenizer.model", config)
    raise UnsupportedModelError(
        "tokenizer", "none", file=directory, supported="a directory with tokenizer.json or tokenizer.model"
    )


def _from_tokenizer_json(path: Path, config: DirectoryConfig) -> TokenizerDefinition:
    data = path.read_bytes()
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"is not JSON: {error}", file=path) from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise WeightsError("has no model section", file=path)
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    vocabulary = _vocabulary(model.get("vocab"), path)
    added = _added_tokens(content.get("added_tokens") or [], path, "added_tokens")
    added = _with_configured(added, config, vocabulary, path)
    ids = {**vocabulary, **{token.content: token.id for token in added}}
    special_ids = {role: ids[t] for role in _ROLES if (t := config.special.get(f"{role}_token")) in ids}
    post_processor: Section | None = content.get("post_processor")
    if any(isinstance(config.tokenizer.get(key), bool) for key in ("add_bos_token", "add_eos_token")):
        post_processor = _configured_post_processor(config, special_ids)
    merges = model.get("merges")
    if merges is not None and not isinstance(merges, list):
        raise WeightsError("the model's merges are not a list", file=path)
    return TokenizerDefinition(
        source=str(path),
        model_type=str(kind),
        vocabulary=vocabulary,
        merges=RankedMerges(merges) if merges is not None else None,
        model_options={key: value for key, value in model.items() if key not in ("type", "vocab", "merges")},
        added_tokens=added,
        normalizer=content.get("normalizer"),
        pre_tokenizer=content.get("pre_tokenizer"),
        post_processor=post_processor,
        decoder=content.get("decoder"),
        label=f"{kind} from {path.name}",
        library_json=data,
        special_ids=special_ids,
        end_ids=_end_ids(config, special_ids, ids, path),
    )


def _vocabulary(vocab: Any, path: Path) -> dict[str, int]:
    if isinstance(vocab, list):  # Unigram: [piece, score] in id order
        if not all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) for item in vocab):
            raise WeightsError("the model's vocabulary is not a list of pieces with scores", file=path)
        return {item[0]: i for i, item in enumerate(vocab)}
    if not isinstance(vocab, dict):
        raise WeightsError("the model has no vocabulary", file=path)
    if not set(map(type, vocab.values())) <= {int}:
        raise WeightsError("the vocabulary holds ids that are not integers", file=path)
    ids = set(vocab.values())
    if vocab and (min(ids) < 0 or len(ids) != len(vocab)):
        raise WeightsError("the vocabulary gives one id to two pieces, or a negative one", file=path)
    return vocab


def _added_tokens(items: Any, path: Path, key: str) -> tuple[AddedToken, ...]:
    tokens = []
    for item in items:
        try:
            token = AddedToken(
                id=item["id"],
                content=item["content"],
                **{
                    flag: bool(item.get(flag, False))
                    for flag in ("special", "normalized", "lstrip", "rstrip", "single_word")
                },
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise WeightsError(f"{key} holds {item!r}", file=path) from error
        if type(token.id) is not int or token.id < 0 or not isinstance(token.content, str) or not token.content:
            raise WeightsError(f"{key} holds {item!r}", file=path)
        tokens.append(token)
    return tuple(tokens)


def _with_configured(
    added: tuple[AddedToken, ...], config: DirectoryConfig, vocabulary: Mapping[str, int], path: Path
) -> tuple[AddedToken, ...]:
    """`added` and the tokens that only tokenizer_config.json lists, in id order."""
    listed = config.tokenizer.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return added
    beside = path.parent / "tokenizer_config.json"
    known = {token.content for token in added}
    extra = []
    for key, item in listed.items():
        if not isinstance(item, dict) or not key.isdecimal():
            raise WeightsError(f"added_tokens_decoder holds {key!r}: {item!r}", file=beside)
        if item.get("content") not in known:
            extra.append({"id": int(key), **item})
    more = _added_tokens(extra, beside, "added_tokens_decoder")
    for token in more:
        if vocabulary.get(token.content, token.id) != token.id:
            raise WeightsError(
                f"{token.content!r} has id {token.id} here and {vocabulary[token.content]} in {path.name}", file=beside
            )
    return tuple(sorted((*added, *more), key=lambda token: token.id))


def _configured_post_processor(config: DirectoryConfig, special_ids: Mapping[str, int]) -> Section | None:
    def token(role: str) -> tuple[str, int] | None:
        wanted = config.tokenizer.get(f"add_{role}_token") is True and role in special_ids
        return (config.special[f"{role}_token"], special_ids[role]) if wanted else None

    return begin_end_template(token("bos"), token("eos"))


def _end_ids(
    config: DirectoryConfig, special_ids: Mapping[str, int], ids: Mapping[str, int], path: Path
) -> tuple[int, ...]:
    named = [*config.end_ids, *([special_ids["eos"]] if "eos" in special_ids else [])]
    return tuple(dict.fromkeys(named))


def _from_sentencepiece(path: Path, config: DirectoryConfig) -> TokenizerDefinition:
    model = read_sentencepiece(path)
    tokens, kinds = list(model.tokens), {i: kind for i, kind in enumerate(model.types) if kind != 1}
    scores = list(model.scores)
    added = [
        AddedToken(i, tokens[i], special=kind != 4) for i, kind in kinds.items() if kind in (2, 3, 4) and tokens[i]
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise WeightsError("holds a piece twice", file=path)
    everything = _with_configured(tuple(added), config, vocabulary, path)
    roles = {"bos": model.bos_id, "eos": model.eos_id, "unk": model.unknown_id, "pad": model.pad_id}
    special_ids = {role: i for role, i in roles.items() if i >= 0}
    by_text = {token.content: token.id for token in everything}
    special_ids.update(
        (role, by_text[t]) for role in _ROLES if (t := config.special.get(f"{role}_token")) in by_text and t is not None
    )
    return sentencepiece_definition(
        source=str(path),
        tokens=tokens,
        kinds=kinds,
        scores=scores,
        added=everything,
        unknown=model.unknown_id if model.unknown_id >= 0 else None,
        # "legacy": false is the later convention: no space behind a special token.
        prefix=_prefix(model, config),
        charsmap=model.charsmap,
        post_processor=_sentencepiece_post_processor(model, config, special_ids, by_text),
        special_ids=special_ids,
        end_ids=_end_ids(config, special_ids, by_text, path),
    )


def _prefix(model: SentencePieceModel, config: DirectoryConfig) -> str:
    if not model.add_dummy_prefix or config.tokenizer.get("add_prefix_space") is False:
        return "none"
    return "first" if config.tokenizer.get("legacy") is False else "segment"


def _sentencepiece_post_processor(
    model: SentencePieceModel, config: DirectoryConfig, special_ids: Mapping[str, int], by_text: Mapping[str, int]
) -> Section | None:
    texts = {token_id: text for text, token_id in by_text.items()}

    def token(role: str, default: bool) -> tuple[str, int] | None:
        wanted = config.tokenizer.get(f"add_{role}_token", default)
        token_id = special_ids.get(role)
        return (texts[token_id], token_id) if wanted and token_id in texts and token_id is not None else None

    return begin_end_template(token("bos", True), token("eos", False))
