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


def _say_nothing(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    """Swallows what the library has to say."""


_QUIET: Final = llama_cpp.llama_log_callback(_say_nothing)  # kept: the library holds no reference


class Rival:
    """A model, and a context for each kind of test.

    Args:
        path: A GGUF file.
        threads: Threads that work on a step.
        adapter: A GGUF file of a low-rank adapter; None: there is none.
    """

    def __init__(self, path: str, threads: int, adapter: str | None = None) -> None:
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._adapter = None
        if adapter is not None:
            self._adapter = llama_cpp.llama_adapter_lora_init(self._model, adapter.encode())
            if not self._adapter:
                raise RuntimeError(f"llama.cpp cannot load {adapter}")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._threads = threads
        self._draw = random.Random(0)
        self._contexts: dict[tuple[bool, int, int, int], Any] = {}
        self._batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def measure(
        self,
        kind: str,
        tokens: int,
        depth: int,
        sequences: int,
        flash: bool,
        is_brief: bool = False,
        has_adapter: bool = False,
    ) -> float:
        """Runs a test and returns tokens per second.

        Args:
            kind: `pp` or `tg`.
            tokens: Read or generated, per sequence.
            depth: Tokens of each sequence in the cache before.
            sequences: At once.
            flash: Whether attention is ggml's flash attention.
            is_brief: Whether a small part of the tokens will do, because the time does not matter.
            has_adapter: Whether the adapter is added to the weights.
        """
        context = self._context(tokens, depth, sequences, flash)
        self._set_adapter(context, has_adapter)
        memory = llama_cpp.llama_get_memory(context)
        for sequence in range(sequences):
            llama_cpp.llama_memory_seq_rm(memory, sequence, depth, -1)
        count = min(tokens, 64 if kind == "pp" else 2) if is_brief else tokens
        begin = time.perf_counter()
        if kind == "pp":
            for sequence in range(sequences):
                self._read(context, count, sequence, depth)
        else:
            for step in range(count):
                self._decode(context, [(sequence, depth + step) for sequence in range(sequences)], last_only=False)
        return count * sequences / (time.perf_counter() - begin)

    def _set_adapter(self, context: Any, is_on: bool) -> None:
        if self._adapter is None:
            return
        count = int(is_on)
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        scales = (ctypes.c_float * 1)(1.0)
        if llama_cpp.llama_set_adapters_lora(context, adapters, count, scales) != 0:
            raise RuntimeError("llama.cpp cannot use the adapter")

    def forget(self) -> None:
        """Frees all contexts."""
        for context in self._contexts.values():
            llama_cpp.llama_free(context)
        self._contexts.clear()

    def _context(self, tokens: int, depth: int, sequences: int, flash: bool) -> Any:
        """A context of these settings, in whose cache every sequence has `depth` tokens at least."""
        key = (flash, sequences, depth, tokens)
        if key not in self._contexts:
            params = llama_cpp.llama_context_default_params()
            # Each sequence has a part of the cache to itself, which is the faster arrangement.
            params.n_ctx = -(-(depth + tokens + _SLACK) // 256) * 256 * sequences
            params.n_seq_max = sequences
            params.kv_unified = False
            params.n_batch = params.n_ubatch = CHUNK
            params.n_threads = params.n_threads_batch = self._threads
            on, off = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.flash_attn_type = on if flash else off
            context = llama_cpp.llama_init_from_model(self._model, params)
            if not context:
                raise RuntimeError("llama.cpp cannot make a context")
            self._contexts[key] = context
            for sequence in range(sequences):
                self._read(context, depth, sequence, 0)
        return self._contexts[key]

    def _read(self, context: Any, count: int, sequence: int, position: int) -> None:
        """Reads random tokens of a sequence, in pieces."""
        for begin in range(0, count, CHUNK):
            size = min(CHUNK, count - begin)
            self._decode(context, [(sequence, position + begin + i) for i in range(size)], last_only=True)

    def _decode(self, context: Any, rows: list[tuple[int, int]], last_only: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (sequence, position) in enumerate(rows):
            batch.token[i] = self._draw.randrange(self._vocabulary)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = not last_only or i == len(rows) - 1
        status = llama_cpp.llama_decode(context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode ended with status {status}")
        llama_cpp.llama_synchronize(context)


def first_token(path: str, threads: int) -> None:
    """Loads a model, reads a prompt and prints the likeliest token: what a start is measured with."""
    model = llama_cpp.Llama(path, n_ctx=256, n_threads=threads, n_threads_batch=threads, verbose=False)
    model.eval(model.tokenize(b"Hello"))
    print(model.sample(temp=0.0), flush=True)


def main() -> None:
    """Arguments: model, threads, perhaps an adapter; or `--first-token`, model, threads."""
    if sys.argv[1] == "--first-token":
        first_token(sys.argv[2], int(sys.argv[3]))
        return
    begin = time.perf_counter()
    rival = Rival(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
    load = time.perf_counter() - begin

    def run(**settings: Any) -> dict[str, Any]:
        return {"tokens_per_s": rival.measure(**settings)}

    def forget() -> dict[str, Any]:
        rival.forget()
        return {}

    parts = llama_cpp.llama_print_system_info().decode().replace("CPU :", "").split("|")
    features = [name for name, _, value in (part.strip().partition(" = ") for part in parts) if value == "1"]
    greeting = {"version": llama_cpp.__version__, "features": features, "load_s": load}
    serve(greeting, {"run": run, "forget": forget, "peak": lambda: {"bytes": peak_bytes()}})


if __name__ == "__main__":
    main()
