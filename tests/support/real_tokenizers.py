"""Real vocabularies that installed packages bring along, in the forms the tests need. For tests/oracle."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers


def package_file(package: str, *parts: str) -> Path:
    """A data file of an installed package, which is not imported.

    Args:
        package: Import name.
        parts: Path within it.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed: make oracles"
    path = Path(spec.submodule_search_locations[0]).joinpath(*parts)
    assert path.is_file(), path
    return path


@cache
def byte_characters() -> dict[int, str]:
    """GPT-2's character for each byte, from the library: encoding one byte at a time."""
    table = {}
    for byte in range(256):
        visible = 0x21 <= byte < 0x7F or 0xA1 <= byte < 0xAD or byte >= 0xAE
        table[byte] = chr(byte) if visible else ""
    hidden = [byte for byte, character in table.items() if not character]
    table.update({byte: chr(0x100 + place) for place, byte in enumerate(hidden)})
    assert set(table.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    return table


def spelled(data: bytes) -> str:
    """Bytes in the spelling of byte-level vocabularies."""
    table = byte_characters()
    return "".join([table[byte] for byte in data])


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Ranks from a file of base64 tokens and ranks."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def read_tekken(path: Path) -> tuple[dict[bytes, int], str]:
    """Ranks and word pattern of Mistral's tekken files."""
    content = json.loads(path.read_bytes())
    config = content["config"]
    count = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in content["vocab"][:count]}
    return ranks, config["pattern"]


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[str]:
    """The merges that joining by rank amounts to: every cut of every token into two tokens, by rank."""
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = ranks.get(token[:cut]), ranks.get(token[cut:])
            if left is not None and right is not None:
                found.append((rank, left, right, f"{spelled(token[:cut])} {spelled(token[cut:])}"))
    found.sort()
    return [merge for *_, merge in found]


def metadata_of_ranks(ranks: Mapping[bytes, int], pre: str, special: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """GGUF metadata of a vocabulary of ranks, special tokens behind it."""
    tokens = [spelled(token) for token, _ in sorted(ranks.items(), key=lambda item: item[1])]
    types = [1] * len(tokens) + [3] * len(special)
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*tokens, *special],
        "token_type": types,
        "merges": merges_of_ranks(ranks),
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def strings_of(texts: Sequence[str], seed: int, count: int) -> Iterator[str]:
    """Strings of pieces of `texts`, in random order: many borders between scripts, spaces and digits."""
    import random

    draw = random.Random(seed)
    characters = sorted({character for text in texts for character in text if character != "\x00"})
    words = [word for text in texts for word in text.replace("\x00", "").split(" ")]
    for _ in range(count):
        parts = [
            draw.choice(words) if draw.random() < 0.4 else draw.choice(characters) * draw.choice((1, 1, 1, 2, 3, 7))
            for _ in range(draw.randint(1, 20))
        ]
        yield "".join(parts)
