"""Three small tasks over data that is written here: one of each kind of request that the harness makes."""

from __future__ import annotations

from typing import Any

CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo", "Spain": "Madrid", "Greece": "Athens",
    "Norway": "Oslo", "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Austria": "Vienna", "Portugal": "Lisbon",
}  # fmt: skip
TEXTS = (
    "The river rises in the hills, runs past three mills and a market town, and reaches the sea in a wide, slow bay.",
    "To make bread you need flour, water, salt and yeast; to make good bread you also need time.",
    "When the clock in the hall struck nine, everybody knew that the train had left without them.",
)


def capitals() -> dict[str, Any]:
    """Multiple choice: which of four cities is the capital?"""
    names = list(CAPITALS)
    rows = []
    for number, country in enumerate(names):
        others = [CAPITALS[names[(number + step) % len(names)]] for step in (3, 5, 8)]
        choices = sorted([CAPITALS[country], *others])
        rows.append({"country": country, "choices": choices, "gold": choices.index(CAPITALS[country])})
    return {
        "task": "capitals",
        "custom_dataset": _dataset(rows),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "The capital of {{country}} is",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def counting() -> dict[str, Any]:
    """Generation: go on counting."""
    rows = [
        {"begin": ", ".join(str(n) for n in range(first, first + 5)), "next": str(first + 5)} for first in range(1, 13)
    ]
    return {
        "task": "counting",
        "custom_dataset": _dataset(rows),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{begin}}, ",
        "doc_to_target": "{{next}}",
        "generation_kwargs": {"until": [","], "do_sample": False, "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def sentences() -> dict[str, Any]:
    """Perplexity of whole texts."""
    return {
        "task": "sentences",
        "custom_dataset": _dataset([{"text": text} for text in TEXTS]),
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": metric, "aggregation": aggregation, "higher_is_better": False}
            for metric, aggregation in (("word_perplexity", "weighted_perplexity"), ("bits_per_byte", "bits_per_byte"))
        ],
    }


def _dataset(rows: list[dict[str, Any]]) -> Any:
    def make(**_kwargs: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    return make
