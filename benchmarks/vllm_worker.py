"""vLLM's side of a comparison: a worker over one model (see worker.py), in an environment with vLLM for CPUs.

Random tokens, greedy choice, no text; prefix caching is off, so every prompt is read. All else is as vLLM does it
by default, compilation included.
"""

from __future__ import annotations

import os
import random
import sys
import time
from typing import Any

from worker import peak_bytes, serve


class Rival:
    """A model.

    Args:
        path: A directory with config.json and safetensors.
        threads: Threads that work on a step.
        longest: Most tokens of a sequence.
        sequences: Most sequences at once.
    """

    def __init__(self, path: str, threads: int, longest: int, sequences: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GB
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in this process, and can be stepped
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        import vllm

        self.version = str(vllm.__version__)
        self._params = vllm.SamplingParams
        self._engine = vllm.LLM(
            path,
            dtype="bfloat16",
            max_model_len=longest,
            max_num_seqs=sequences,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        ).llm_engine
        self._draw = random.Random(0)
        self._count = 0

    def measure(self, kind: str, tokens: int, sequences: int) -> float:
        """Runs a test and returns tokens per second."""
        length, new = (tokens, 1) if kind == "pp" else (1, tokens + 1)
        params = self._params(max_tokens=new, temperature=0.0, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        waiting = set()
        for _ in range(sequences):
            self._count += 1
            ids = [self._draw.randrange(1000, 100000) for _ in range(length)]
            self._engine.add_request(str(self._count), {"prompt_token_ids": ids}, params)
            waiting.add(str(self._count))
        while waiting:  # until every sequence has its first token
            waiting -= {output.request_id for output in self._engine.step() if output.outputs[0].token_ids}
        if kind == "tg":
            begin = time.perf_counter()
            while self._engine.has_unfinished_requests():
                self._engine.step()
        return tokens * sequences / (time.perf_counter() - begin)


def main() -> None:
    """Arguments: model, threads, longest sequence, most sequences."""
    # What the libraries print must not come between the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    begin = time.perf_counter()
    rival = Rival(sys.argv[1], *map(int, sys.argv[2:5]))
    load = time.perf_counter() - begin
    sys.stdout.flush()
    sys.stdout = os.fdopen(answers, "w", encoding="utf-8")

    def run(**settings: Any) -> dict[str, Any]:
        return {"tokens_per_s": rival.measure(**settings)}

    greeting = {"version": rival.version, "load_s": load}
    serve(greeting, {"run": run, "peak": lambda: {"bytes": peak_bytes()}})


if __name__ == "__main__":
    main()
