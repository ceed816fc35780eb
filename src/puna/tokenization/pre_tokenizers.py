"""The pre-tokenizers that `tokenizer.ggml.pre` names, as sections of tokenizer.json.

A GGUF file carries only a name for the rules by which text is cut into words before byte-pair encoding. A wrong rule
gives slightly wrong ids and a model that is slightly worse, which nobody notices; so a name is in this table only
when the rules of the model family behind it are known exactly, and every other name is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from puna.errors import UnsupportedModelError
from puna.tokenization.definition import Section

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SEED = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" + "\r\n" + r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[""" + "\r\n" + r"""]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut before byte-pair encoding, and what comes with a family by convention.

    Attributes:
        steps: Pre-tokenizer sections, applied in order; the last one maps bytes to characters.
        normalizer: Section, or None.
        ignore_merges: A word that is a piece is taken whole, whatever the merges say.
        add_bos: BOS is added when the file does not say.
    """

    steps: tuple[Section, ...]
    normalizer: Section | None = None
    ignore_merges: bool = False
    add_bos: bool = False

    @property
    def section(self) -> Section:
        """The pre_tokenizer section."""
        return {"type": "Sequence", "pretokenizers": list(self.steps)}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    # With use_regex the library cuts by GPT-2's expression first.
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


_NFC: Section = {"type": "NFC"}
_SINGLE_DIGITS: Section = {"type": "Digits", "individual_digits": True}

_GPT2 = PreTokenizer((_byte_level(use_regex=True),))
_GPT2_NFC = PreTokenizer((_byte_level(use_regex=True),), normalizer=_NFC)
_DIGITS_GPT2 = PreTokenizer((_SINGLE_DIGITS, _byte_level(use_regex=True)))
_CL100K = PreTokenizer((_split(_LLAMA3), _byte_level(use_regex=False)))
_LLAMA = PreTokenizer((_split(_LLAMA3), _byte_level(use_regex=False)), ignore_merges=True, add_bos=True)
_QWEN = PreTokenizer((_split(_QWEN2), _byte_level(use_regex=False)), normalizer=_NFC)
_NEMO = PreTokenizer((_split(_TEKKEN), _byte_level(use_regex=False)), ignore_merges=True, add_bos=True)
_SEED_CODER = PreTokenizer((_split(_SEED), _byte_level(use_regex=False)))
_DIGITS_GPT2_NFC = PreTokenizer((_SINGLE_DIGITS, _byte_level(use_regex=True)), normalizer=_NFC)
_O200K = PreTokenizer((_split(_GPT4O), _byte_level(use_regex=False)))
_DEEPSEEK_V3 = PreTokenizer(
    (
        _split(r"\p{N}{1,3}"),
        _split("[一-龥\u3040-ゟ゠-ヿ]+"),
        _split(_DEEPSEEK_V3_WORDS),
        _byte_level(use_regex=False),
    )
)
_DEEPSEEK_CODER = PreTokenizer(
    (
        _split(r"[\r\n]"),
        _split(r"\s?\p{L}+"),
        _split(r"\s?\p{P}+"),
        _split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
        _SINGLE_DIGITS,
        _byte_level(use_regex=False),
    )
)
# What llama.cpp does for a file without a name: no model family's own rules, but the meaning that such files have.
_UNNAMED = PreTokenizer(
    (
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(_GPT2_WORDS),
        _split(r"\p{N}+"),
        _split(r"[0-9][0-9][0-9]"),
        _byte_level(use_regex=False),
    )
)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {
        "default": _UNNAMED,
        "gpt-2": _GPT2,
        "phi-2": _GPT2,
        "mpt": _GPT2_NFC,
        "olmo": _GPT2_NFC,
        "smollm": _DIGITS_GPT2,
        "starcoder": _DIGITS_GPT2,
        "refact": _DIGITS_GPT2,
        "llama3": _LLAMA,
        "llama-v3": _LLAMA,
        "llama-bpe": _LLAMA,
        "falcon3": _LLAMA,
        "command-r": _DIGITS_GPT2_NFC,
        "dbrx": _CL100K,
        "chatglm-bpe": _CL100K,
        "glm4": _CL100K,
        "seed-coder": _SEED_CODER,
        "stablelm2": _QWEN,
        "deepseek-r1-qwen": _QWEN,
        "smaug-bpe": _CL100K,
        "qwen2": _QWEN,
        "tekken": _NEMO,
        "mistral": _NEMO,
        "gpt-4o": _O200K,
        "llama4": _O200K,
        "deepseek-coder": _DEEPSEEK_CODER,
        "deepseek-v3": _DEEPSEEK_V3,
    }
)


def pre_tokenizer(name: str, source: str) -> PreTokenizer:
    """The pre-tokenizer that a GGUF file names.

    Args:
        name: The value of `tokenizer.ggml.pre`.
        source: The file, for the message.

    Raises:
        UnsupportedModelError: The rules behind the name are not known exactly.
    """
    found = PRE_TOKENIZERS.get(name)
    if found is None:
        raise UnsupportedModelError(
            "tokenizer.ggml.pre", name, file=source, supported=", ".join(sorted(PRE_TOKENIZERS))
        )
    return found
