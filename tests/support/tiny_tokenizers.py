"""Small tokenizers that tests train on the spot, and the GGUF metadata that describes real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

#: One sentence or two in many scripts, with numbers, code, white space runs, emoji and combining characters.
CORPUS = (
    "Hello, world! It's the 21st of May, 2024, and we'll pay $1,234.56 — don't you think?",
    "  leading spaces, trailing spaces   \n\n\ttabs\t\tand\r\nline ends \n ",
    "def f(x: int) -> int:\n    return x**2 + 0x1F  # comment\n\n\nclass A(B):\n\tpass\n",
    "Größe, Straße, naïve café, Łódź, Ærøskøbing, İstanbul, ﬁne ligature, e\u0301 = é",
    "Быстрая коричневая лиса перепрыгивает через ленивую собаку. ДА!",
    "你好，世界！我今年25岁。東京都に住んでいます。カタカナとひらがな。안녕하세요 세계",
    "مرحبا بالعالم ١٢٣ — שלום עולם — नमस्ते दुनिया १२३ — สวัสดีชาวโลก",
    "👩‍👩‍👧‍👦 family, 🇩🇪 flag, 🤷🏽‍♀️ shrug, ½ + ⅓ ≠ ∞, x² → y₃",
    "IT'S UPPER CASE, CamelCaseWords and snake_case_words; http://example.org/a?b=c&d=%20",
    "aaaaaaaaaaaaaaaa bbbbbbbb ====== ------ ________ ........ !!!!!! 1111111111",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff\u2028g\u0085h \x00 \x01 \x7f",
    "<|im_start|>user\nHi<|im_end|>\n<s>[INST] x [/INST]</s><unk>",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 ꙮ 𓀀 \U0010ffff",
    "",
    " ",
    "   ",
    "\n",
    "a",
)


@cache
def byte_level_tokenizer_json(vocab_size: int = 900) -> str:
    """tokenizer.json of a byte-level BPE model in the manner of SmolLM, trained on the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer.to_str()


def gguf_metadata(tokenizer_json: str | Mapping[str, Any], pre: str, **more: Any) -> dict[str, Any]:
    """The metadata that a converter writes for a byte-level tokenizer.json.

    Args:
        tokenizer_json: Text or parsed.
        pre: Value of `tokenizer.ggml.pre`.
        more: Further keys without their `tokenizer.ggml.` prefix.
    """
    content = json.loads(tokenizer_json) if isinstance(tokenizer_json, str) else tokenizer_json
    model = content["model"]
    size = 1 + max([*model["vocab"].values(), *(token["id"] for token in content["added_tokens"])])
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [5] * size
    for token, token_id in model["vocab"].items():
        tokens[token_id], types[token_id] = token, 1
    for token in content["added_tokens"]:
        tokens[token["id"]], types[token["id"]] = token["content"], 3 if token["special"] else 4
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    values = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges, **more}
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def sentencepiece_metadata(pieces: list[tuple[str, float, int]], **more: Any) -> dict[str, Any]:
    """The metadata of a SentencePiece vocabulary.

    Args:
        pieces: Text, score and kind of each piece.
        more: Further keys without their `tokenizer.ggml.` prefix.
    """
    values = {
        "model": "llama",
        "pre": "default",
        "tokens": [text for text, _, _ in pieces],
        "scores": [score for _, score, _ in pieces],
        "token_type": [kind for _, _, kind in pieces],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def small_sentencepiece() -> list[tuple[str, float, int]]:
    """Pieces with byte fallback, a user-defined token and overlapping merges."""
    pieces: list[tuple[str, float, int]] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces.append(("<tool>", 0.0, 4))
    words = [
        "▁a",
        "he",
        "ll",
        "▁he",
        "▁hell",
        "▁hello",
        "o▁",
        "aa",
        "aaa",
        "aaaa",
        "ab",
        "abab",
        "▁▁",
        "▁▁▁▁",
        "lo",
        "hel",
    ]
    pieces += [(word, -float(rank), 1) for rank, word in enumerate(words)]
    pieces += [(char, -1000.0 - rank, 1) for rank, char in enumerate("▁abcdehlopqrstxyz.你")]
    return pieces
