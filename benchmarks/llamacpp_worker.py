"""llama.cpp's side of a comparison: a worker over one model (see worker.py), in an environment with llama-cpp-python.

It does what llama-bench does: random tokens, logits of the last one only, no choice of a token. Generating at a depth
starts from a cache that is kept and cut back.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time
from typing import Any, Final

import llama_cpp
from worker import peak_bytes, serve

CHUNK: Final = 512
_SLACK: Final = 64


@llama_cpp.llama_log_callback
def _quiet(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    """Swallows what the library has to say."""


class Rival:
    """A model and its contexts.

    Args:
        path: A GGUF file.
        threads: Threads that work on a step.
        longest: Most tokens of a sequence.
        sequences: Most sequences at once.
    """

    def __init__(self, path: str, threads: int, longest: int, sequences: int) -> None:
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._threads, self._longest = threads, longest
        self._draw = random.Random(0)
        self._context: Any = None
        self._settings: tuple[bool, int] | None = None
        self._depth = 0  # tokens that every sequence keeps in the cache
        self._batch = llama_cpp.llama_batch_init(max(CHUNK, sequences), 0, 1)

    def prepare(self, flash: bool, sequences: int, depth: int) -> None:
        """Has a context of these settings, in whose cache every sequence has `depth` tokens."""
        if self._settings != (flash, sequences):
            self._open(flash, sequences)
        memory = llama_cpp.llama_get_memory(self._context)
        if depth == self._depth:
            for sequence in range(sequences):
                llama_cpp.llama_memory_seq_rm(memory, sequence, depth, -1)
            return
        llama_cpp.llama_memory_clear(memory, False)
        for sequence in range(sequences):
            self.read(depth, sequence, 0)
        self._depth = depth

    def read(self, count: int, sequence: int, position: int) -> None:
        """Reads random tokens of a sequence."""
        for begin in range(0, count, CHUNK):
            size = min(CHUNK, count - begin)
            rows = [(sequence, position + begin + i) for i in range(size)]
            self._decode(rows, last_only=True)

    def generate(self, count: int, sequences: int, position: int) -> None:
        """A random token for every sequence, `count` times."""
        for step in range(count):
            self._decode([(sequence, position + step) for sequence in range(sequences)], last_only=False)

    def measure(self, kind: str, tokens: int, depth: int, sequences: int, flash: bool) -> float:
        """Runs a test and returns tokens per second."""
        self.prepare(flash, sequences, depth)
        begin = time.perf_counter()
        if kind == "pp":
            for sequence in range(sequences):
                self.read(tokens, sequence, depth)
        else:
            self.generate(tokens, sequences, depth)
        return tokens * sequences / (time.perf_counter() - begin)

    def _open(self, flash: bool, sequences: int) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        length = -(-(self._longest + _SLACK) // 256) * 256
        params.n_ctx = length * sequences  # each sequence has a part of its own
        params.n_seq_max = sequences
        params.kv_unified = False
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = self._threads
        on, off = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = on if flash else off
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._settings, self._depth = (flash, sequences), 0

    def _decode(self, rows: list[tuple[int, int]], last_only: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (sequence, position) in enumerate(rows):
            batch.token[i] = self._draw.randrange(self._vocabulary)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = not last_only or i == len(rows) - 1
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode ended with status {status}")
        llama_cpp.llama_synchronize(self._context)


def first_token(path: str, threads: int) -> None:
    """Loads a model, reads a prompt and prints the likeliest token: what a start is measured with."""
    model = llama_cpp.Llama(path, n_ctx=256, n_threads=threads, n_threads_batch=threads, verbose=False)
    model.eval(model.tokenize(b"Hello"))
    print(model.sample(temp=0.0), flush=True)


def main() -> None:
    """Arguments: model, threads, longest sequence, most sequences; or `--first-token`, model, threads."""
    if sys.argv[1] == "--first-token":
        first_token(sys.argv[2], int(sys.argv[3]))
        return
    begin = time.perf_counter()
    rival = Rival(sys.argv[1], *map(int, sys.argv[2:5]))
    load = time.perf_counter() - begin

    def run(kind: str, tokens: int, depth: int, sequences: int, flash: bool, **_names: Any) -> dict[str, Any]:
        return {"tokens_per_s": rival.measure(kind, tokens, depth, sequences, flash)}

    def warm(kind: str, tokens: int, depth: int, sequences: int, flash: bool, **_names: Any) -> dict[str, Any]:
        rival.measure(kind, tokens if kind == "pp" else 2, depth, sequences, flash)
        return {}

    features = llama_cpp.llama_print_system_info().decode()
    greeting = {"version": llama_cpp.__version__, "features": features, "load_s": load}
    serve(greeting, {"warm": warm, "run": run, "peak": lambda: {"bytes": peak_bytes()}})


if __name__ == "__main__":
    main()
