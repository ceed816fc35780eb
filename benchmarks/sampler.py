"""What choosing tokens costs: microseconds a step, by way of choosing and number of sequences, on a model's own logits.

python benchmarks/sampler.py [MODEL]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from puna import LLM, SamplingParams
from puna.models import DEFAULT_MODEL
from puna.pipelines.sampling import Sampler, SamplingRow

WAYS: Final[dict[str, dict[str, Any]]] = {
    "greedy": {"temperature": 0},
    "greedy, repetition penalty": {"temperature": 0, "repetition_penalty": 1.1},
    "greedy, 5 log-probabilities": {"temperature": 0, "logprobs": 5},
    "temperature alone": {},
    "top-k 40": {"top_k": 40},
    "top-p 0.9": {"top_p": 0.9},
    "top-k 40, top-p 0.9": {"top_k": 40, "top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "mirostat": {"mirostat": 2},
}
COUNTS: Final = (1, 8, 32)
TEXT: Final = (
    "The history of the city begins with a small settlement on the river, where traders met to exchange goods and news "
    "from far away. Over the centuries it grew into a place of workshops, schools and markets, and its walls were "
    "moved outwards three times."
)


def microseconds(call: Callable[[], object]) -> float:
    """The least of many times, of the processor: neighbours count little."""
    best, end = float("inf"), time.perf_counter() + 1.0
    while time.perf_counter() < end:
        begin = time.thread_time()
        call()
        best = min(best, time.thread_time() - begin)
    return best * 1e6


def main() -> None:
    """Prints a table."""
    llm = LLM(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL, max_num_seqs=1)
    ids = llm.tokenize(TEXT)
    logits = np.ascontiguousarray(llm.logits([ids])[0][-max(COUNTS) :])
    tokens, nothing, sampler = np.array(ids), np.zeros(0, np.int64), Sampler()
    print(f"| {logits.shape[1]} tokens, microseconds a step | {' | '.join(f'{count} seq.' for count in COUNTS)} |")
    print(f"|---|{'---|' * len(COUNTS)}")
    for name, values in WAYS.items():
        cells = []
        for count in COUNTS:
            rows = [
                SamplingRow(SamplingParams(**values), tokens, len(tokens) // 2, nothing, seed=seed)
                for seed in range(count)
            ]
            part = logits[:count]
            cells.append(f"{microseconds(partial(sampler.sample, part, rows)):.0f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
