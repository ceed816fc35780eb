"""llama-cpp-python's side of benchmarks/throughput.py, in an environment of its own: prompts one after the other."""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

import llama_cpp

from worker import serve


def main() -> None:
    """Arguments: a GGUF file and the threads."""
    threads = int(sys.argv[2])
    llm = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def run(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        begin = time.perf_counter()
        for prompt in prompts:
            llm.reset()
            made = list(itertools.islice(llm.generate(prompt, temp=0.0, reset=True), tokens))
            assert len(made) == tokens
        return {"seconds": time.perf_counter() - begin}

    serve({"version": llama_cpp.__version__}, {"run": run})


if __name__ == "__main__":
    main()
