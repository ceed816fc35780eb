"""Every family and rope kind from files to generated tokens, across the border of the original context.

The loop's greedy tokens are those that the NumPy executor finds when it reads the whole text anew for each of them, and
the same however requests are batched, chunked, threaded and stored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from puna.entrypoints.cli import run
from puna.entrypoints.llm import LLM
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams
from support.answers import answers
from support.checkpoints import (
    FAMILIES,
    GGUF_FAMILIES,
    ORIGINAL_LENGTH,
    ROPE_KINDS,
    tiny_config,
    tiny_tensors,
    write_huggingface,
)
from support.family_model import all_logits, load_family, random_prompt
from support.gguf_checkpoints import write_gguf

CASES = [
    *((family, "none") for family in FAMILIES),
    *(("llama", rope) for rope in ROPE_KINDS if rope != "none"),
    ("phi3", "longrope"),
]
EXACT: dict[str, Any] = {
    "dtype": "float32",
    "kv_cache_dtype": "float32",
    "block_size": 4,
    "enable_prefix_caching": False,
}
NEW_TOKENS = 8
LENGTHS = (ORIGINAL_LENGTH - 3, 5, ORIGINAL_LENGTH + 4)  # the first crosses the original context while it is generated
CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """Letters and made-up words, as the writer of GGUF files puts them, and a chat template."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<s>", "</s>", *letters, *(f"word{index}" for index in range(vocab_size))][:vocab_size]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    facts = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT}
    (directory / "tokenizer_config.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(family, rope) -> a directory, a GGUF file of the same weights, and the size of the vocabulary."""
    root, written = tmp_path_factory.mktemp("families"), {}

    def get(family: str, rope: str) -> tuple[Path, Path, int]:
        if (family, rope) not in written:
            config = tiny_config(family, rope)
            tensors = tiny_tensors(config)
            directory = write_huggingface(root / f"{family}-{rope}", config, tensors)
            write_tokenizer(directory, config["vocab_size"])
            gguf = root / f"{family}-{rope}.gguf"
            if rope != "dynamic" and family in GGUF_FAMILIES:  # it has no form in GGUF
                write_gguf(gguf, config, tensors)
            written[family, rope] = directory, gguf, config["vocab_size"]
        return written[family, rope]

    return get


def requests(vocab_size: int) -> list[GenerateRequest]:
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    prompts = [random_prompt(vocab_size, length, seed=length) for length in LENGTHS]
    return [GenerateRequest(token_ids=tuple(prompt), sampling_params=params) for prompt in prompts]


def generated(model: Path, vocab_size: int, **options: Any) -> list[tuple[int, ...]]:
    llm = LLM(str(model), **EXACT, max_model_len=48, **options)
    return [made.token_ids for made in answers(llm, requests(vocab_size))]


@pytest.mark.parametrize(("family", "rope"), CASES)
def test_generated_tokens_are_those_of_the_reference(checkpoints: Any, family: str, rope: str) -> None:
    directory, gguf, vocab_size = checkpoints(family, rope)
    found = generated(directory, vocab_size)
    reference = load_family(directory, "reference", max_length=48)
    for request, tokens in zip(requests(vocab_size), found, strict=True):
        prompt = list(request.token_ids or ())
        texts = [[*prompt, *tokens[:count]] for count in range(len(tokens))]
        # dynamic frequencies belong to the prompt's length, all others to the text's
        lengths = [len(prompt)] * len(texts) if rope == "dynamic" else None
        expected = tuple(int(rows[-1].argmax()) for rows in all_logits(reference, texts, lengths=lengths))
        assert tokens == expected
    # Qwen's windows have no form in GGUF either
    if gguf.exists() and family not in ("qwen2", "qwen3"):
        assert generated(gguf, vocab_size) == found


@pytest.mark.parametrize(("family", "rope"), CASES)
def test_tokens_do_not_depend_on_how_they_are_computed(checkpoints: Any, family: str, rope: str) -> None:
    directory, _, vocab_size = checkpoints(family, rope)
    alone = generated(directory, vocab_size)
    assert generated(directory, vocab_size, max_num_seqs=3, threads=1) == alone
    assert generated(directory, vocab_size, max_num_seqs=3, max_num_batched_tokens=7, threads=2) == alone


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_line_runs_every_family(
    checkpoints: Any, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, gguf, _ = checkpoints(family, "none")
    texts = []
    for model, chat in ((directory, "--chat"), (gguf, "--no-chat"))[: 1 + gguf.exists()]:
        arguments = ["generate", str(model), "-p", "abc", chat, "--max-tokens", "3", "--dtype", "float32", "--json"]
        assert run(arguments) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["usage"]["completion_tokens"] == len(answer["token_ids"])
        texts.append(answer["token_ids"][:1])
    assert all(texts)
