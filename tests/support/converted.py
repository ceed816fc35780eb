"""Directories that can be converted: a tiny checkpoint with a tokenizer, and the file that comes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.conversion import Checkpoint, file_type, float_tensors, open_checkpoint, write_gguf
from support.checkpoints import tiny_config, tiny_tensors, write_huggingface
from support.tiny_tokenizers import byte_level_tokenizer_json

VOCABULARY = 1000
"""Rows of the embedding: more than the tokenizer has tokens."""


def write_model(
    directory: Path, family: str, rope: str = "none", *, dtype: str = "float32", seed: int = 0, **changes: Any
) -> Path:
    """A model directory of a family, with a byte-level tokenizer and a chat template."""
    changes.setdefault("vocab_size", VOCABULARY)
    if family in ("qwen2", "qwen3"):  # GGUF has no key for their windows
        changes.setdefault("use_sliding_window", False)
    config = tiny_config(family, rope, **changes)
    if changes.get("sliding_window", 0) is None:  # absent it would have the family's default
        config["sliding_window"] = None
    write_huggingface(directory, config, tiny_tensors(config, seed), dtype=dtype)
    (directory / "tokenizer.json").write_text(byte_level_tokenizer_json())
    settings = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def convert(directory: Path, path: Path, encoding: str = "F32") -> Checkpoint:
    """Converts a directory."""
    checkpoint = open_checkpoint(directory)
    metadata: Mapping[str, Any] = {**checkpoint.metadata, "general.file_type": file_type(encoding)}
    write_gguf(path, metadata, float_tensors(checkpoint.tensors, encoding))
    return checkpoint
