"""Many prompts through one `LLM.generate`: tokens per second, memory, and what a step costs outside the model.

python benchmarks/throughput.py [--model smollm2] [--prompts 10000] [--rival 300] [--tokens 32] [--sequences 32]

llama-cpp-python answers some of the same prompts (`--rival 0`: none) on the same file and as many threads, one after
the other, as its interface does. Both sides decode greedily and get token ids; every answer has the same length. The
memory of the run itself (prompts, contexts, outputs) is in the figures.
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from environments import llamacpp_python
from machine import Bystanders, machine_name
from puna import LLM, SamplingParams
from puna.models import DEFAULT_MODEL, find_model
from worker import Worker, resident_bytes

_WORKER: Final = Path(__file__).parent / "throughput_rival.py"
_SHORTEST, _LONGEST = 16, 96
_SHOWN: Final = (0.1, 0.25, 0.5, 0.75, 1.0)


class Watch:
    """Notes this process's memory while something runs.

    Attributes:
        samples: Seconds since the beginning, and bytes.
    """

    def __init__(self, every_s: float = 0.25) -> None:
        self.samples: list[tuple[float, int]] = []
        self._every_s = every_s
        self._begin = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Takes a last sample."""
        self._stop.set()
        self._thread.join()

    def at(self, share: float) -> int:
        """Bytes when this share of the time had passed."""
        return self.samples[min(int(share * len(self.samples)), len(self.samples) - 1)][1]

    def _run(self) -> None:
        while True:
            self.samples.append((time.perf_counter() - self._begin, resident_bytes()))
            if self._stop.wait(self._every_s):
                self.samples.append((time.perf_counter() - self._begin, resident_bytes()))
                return


class Clock:
    """Adds up the seconds that calls of a function take, and counts them.

    Args:
        function: What is called.
        now: Seconds.
    """

    def __init__(self, function: Callable[..., Any], now: Callable[[], float] = time.perf_counter) -> None:
        self._function = function
        self._now = now
        self.seconds, self.calls = 0.0, 0

    def __call__(self, *arguments: Any) -> Any:
        begin = self._now()
        try:
            return self._function(*arguments)
        finally:
            self.seconds += self._now() - begin
            self.calls += 1


def prompts_of(count: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random tokens of random lengths: nothing is found in a cache."""
    draw = random.Random(seed)
    return [
        [draw.randrange(vocabulary) for _ in range(draw.randint(_SHORTEST, _LONGEST))] for _ in range(count)
    ]


def overhead(llm: LLM, prompts: Sequence[list[int]], tokens: int, **sampling: Any) -> tuple[float, float]:
    """Milliseconds of a step in which all of some sequences generate: in the native call, and outside it.

    They are the processor time of the loop's thread, which computes or spins through all of the native call: what else
    runs on the machine counts little.
    """
    model = llm.model.model
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=1, **sampling)
    inside: list[float] = []
    whole: list[float] = []
    clock = model.run = Clock(type(model).run.__get__(model), time.thread_time)
    pipeline, step = llm.pipeline, llm.pipeline.step

    def timed_step() -> Any:
        before, begin = clock.seconds, time.thread_time()
        deltas = step()
        whole.append(time.thread_time() - begin)
        inside.append(clock.seconds - before)
        return deltas

    pipeline.step = timed_step  # type: ignore[method-assign]
    try:
        llm.generate(list(prompts), params, progress=False)
    finally:
        del model.run
        del pipeline.step
    steps = range(len(whole) // 4, len(whole) - len(whole) // 4)  # all sequences generate by then, and none has ended
    native = sorted(inside[step] for step in steps)[len(steps) // 2]
    outside = sorted(whole[step] - inside[step] for step in steps)[len(steps) // 2]
    return 1000 * native, 1000 * outside


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--rival", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    path = find_model(options.model).path
    llm = LLM(str(path), max_num_seqs=options.sequences, max_model_len=256, threads=options.threads)
    threads = options.threads or len(os.sched_getaffinity(0))
    print(f"{options.model} on {threads} threads of {machine_name()}")
    prompts = prompts_of(options.prompts, llm.tokenizer.vocab_size, seed=0)
    greedy, filtered = {"temperature": 0}, {"top_k": 40, "top_p": 0.9}
    for count, name, sampling in ((1, "greedy", greedy), (options.sequences, "greedy", greedy),
                                  (options.sequences, "top-k 40, top-p 0.9", filtered)):  # fmt: skip
        inside, outside = overhead(llm, prompts[:count], 96, **sampling)
        print(
            f"a step of {count} sequences, {name}: {inside:.2f} ms in the native call, {outside:.2f} ms "
            f"outside it ({outside / (inside + outside):.1%})"
        )
    report_run(llm, prompts, options.tokens)
    llm.close()
    if options.rival:
        report_rival(path, threads, prompts[: options.rival], options.tokens)


def report_run(llm: LLM, prompts: list[list[int]], tokens: int) -> None:
    """All prompts in one call."""
    model = llm.model.model
    clock = model.run = Clock(type(model).run.__get__(model))
    others, watch, begin = Bystanders(os.getpid()), Watch(), time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), progress=False)
    seconds = time.perf_counter() - begin
    watch.end()
    assert all(len(output.outputs[0].token_ids) == tokens for output in outputs)
    read, made = sum(map(len, prompts)), tokens * len(prompts)
    print(
        f"Puna: {len(prompts)} prompts, {read} tokens read and {made} generated in {seconds:.1f} s: "
        f"{len(prompts) / seconds:.2f} prompts/s, {made / seconds:.1f} tokens/s generated; "
        f"{1000 * (seconds - clock.seconds) / clock.calls:.2f} ms of a step outside the native call "
        f"({1 - clock.seconds / seconds:.1%}); others used {others.share():.0%} of the processors"
    )
    shown = ", ".join(f"{share:.0%} {watch.at(share) / 1e6:.0f}" for share in _SHOWN)
    print(f"resident memory in MB, by share of the run: {shown}")


def report_rival(path: Path, threads: int, prompts: list[list[int]], tokens: int) -> None:
    """Some of the prompts through llama-cpp-python."""
    worker = Worker([llamacpp_python("native"), _WORKER, path, str(threads)])
    try:
        others = Bystanders(os.getpid(), worker.pid)
        seconds = worker.ask("run", prompts=prompts, tokens=tokens)["seconds"]
        made = tokens * len(prompts)
        print(
            f"llama-cpp-python {worker.greeting['version']}: {len(prompts)} of them in {seconds:.1f} s: "
            f"{len(prompts) / seconds:.2f} prompts/s, {made / seconds:.1f} tokens/s generated; others used "
            f"{others.share():.0%} of the processors"
        )
    finally:
        worker.close()


if __name__ == "__main__":
    main()
