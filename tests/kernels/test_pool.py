"""The threads: sharing, forking, modes of the processor, and the interpreter lock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from puna import _native
from support.native_steps import VARIANTS, Rig, bits, random_rows


def make_rig(rows: int = 64, width: int = 256, products: int = 1) -> tuple[Rig, int]:
    """A program with a few products, and the buffer of the last."""
    rig = Rig(random_rows(rows, width), VARIANTS[-1])
    weight = rig.program.weight(_native.PackedMatrix("F32", random_rows(width, width, 1), width, width, threads=1))
    source, target = rig.x, rig.buffer(width)
    for _ in range(products):
        rig.emit(
            "matmul",
            x=source,
            width=width,
            weights=[weight],
            out=target,
            out_col=0,
            biases=[-1],
            clip=3.0,
            residual=-1,
            multiplier=0.1,
            two_terms=False,
        )
        source, target = target, source
    rig.output(source, width)
    return rig, source


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 16])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    rig, _ = make_rig(products=4)
    assert bits(rig.run(threads=threads)[0]) == bits(rig.run(threads=1)[0])


def test_more_threads_than_cores_do_not_crawl() -> None:
    """A barrier that spun while the thread it waits for has no core would take a time slice each."""
    rig, _ = make_rig(rows=1, width=32, products=200)
    rig.run(threads=16)
    begin = time.perf_counter()
    rig.run(threads=16)
    assert time.perf_counter() - begin < 2.0


CROWDED = """
import os, sys, time
import numpy as np
from puna import _native

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
program = _native.Program(_native.default_variant())
weight = program.weight(_native.PackedMatrix("F32", np.eye(256, dtype=np.float32), 256, 256, threads=1))
buffers = [program.buffer("T", 1024) for _ in range(2)]
program.emit("embed", weight=weight, out=buffers[0], scale=1.0)
for _ in range(400):
    program.emit("matmul", x=buffers[0], width=256, weights=[weight], out=buffers[1], out_col=0, biases=[-1], clip=0.0,
                 residual=-1, multiplier=1.0, two_terms=False)
    buffers.reverse()
program.emit("copy_out", x=buffers[0], col=0, width=256, output=0, out_col=0, rows="T")
program.finish()
inputs = {"tokens": np.array([7]), "input_row_offsets": np.array([0, 1], np.uint32)}
out = np.empty((1, 256), np.float32)

def seconds(threads):
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        program.execute(inputs, [out], threads)
        best = min(best, time.perf_counter() - begin)
    assert out[0, 7] == 1.0 and out.sum() == 1.0
    return best

alone = seconds(1)
print(seconds(8) / alone)
"""


def test_threads_without_a_core_keep_nobody_waiting() -> None:
    """Eight threads on one core take about twice the time of one: whoever has the core does the work.

    Were they to meet after each of the 400 products, they would take six times as long.
    """
    done = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True, timeout=60, check=True)
    assert float(done.stdout) < 3.5


def test_two_sessions_share_the_pool() -> None:
    """Programs executed from several Python threads at once: each gets what it gets alone."""
    rigs = [make_rig(rows=8 + i, products=3)[0] for i in range(4)]
    alone = [bits(rig.run(threads=2)[0]) for rig in rigs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for threads in (1, 2, 5, 2, 1, 3) * 5:
            if bits(rigs[index].run(threads=threads)[0]) != alone[index]:
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_one_program_may_be_executed_from_several_threads() -> None:
    rig, _ = make_rig(products=3)
    wanted = bits(rig.run(threads=2)[0])
    found: list[bytes] = []
    workers = [threading.Thread(target=lambda: found.append(bits(rig.run(threads=2)[0]))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [wanted] * 4


def test_the_interpreter_runs_on_during_an_execution() -> None:
    rig, _ = make_rig(rows=256, width=512, products=20)
    rig.run(threads=1)
    steps, is_done = 0, threading.Event()

    def count() -> None:
        nonlocal steps
        while not is_done.is_set():
            steps += 1
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    while steps == 0:
        time.sleep(0.001)
    before = steps
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.2:
        rig.run(threads=1)
    progress = steps - before
    is_done.set()
    counter.join()
    assert progress > 10


def test_the_caller_keeps_its_subnormals() -> None:
    rig, _ = make_rig()
    rig.run(threads=2)
    tiny = np.float32(1e-39)
    assert tiny * np.float32(0.5) > 0


CHILD = """
import os, sys, warnings
import numpy as np
from puna import _native

warnings.simplefilter("ignore")
used_before = sys.argv[1] == "used"
matrix = np.ones((16, 32), np.float32)

def multiply(threads):
    packed = _native.PackedMatrix("F32", matrix, 16, 32, threads=threads)
    return float(_native.matmul([packed], matrix[:1], _native.default_variant(), threads)[0, 0])

if used_before:
    assert multiply(2) == 32.0
pid = os.fork()
if pid == 0:
    try:
        print("child", multiply(int(sys.argv[2])), flush=True)
    except RuntimeError as error:
        print("child refused:", error, flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print("parent", multiply(2))
"""


def run_child(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_fork_of_a_process_that_used_threads_is_refused(threads: str) -> None:
    child, parent = run_child("used", threads)
    assert child.startswith("child refused: this process was forked from one that had used Puna's threads")
    assert parent == "parent 32.0"


def test_a_fork_before_any_use_is_fine() -> None:
    assert run_child("unused", "2") == ["child 32.0", "parent 32.0"]


def test_idle_threads_sleep() -> None:
    """After a run the workers park: the process uses no processor time while nothing is executed."""
    rig, _ = make_rig()
    rig.run(threads=2)
    time.sleep(0.05)
    before = _process_seconds()
    time.sleep(0.3)
    assert _process_seconds() - before < 0.1


def _process_seconds() -> float:
    times = os.times()
    return times.user + times.system


def test_workers_have_names() -> None:
    rig, _ = make_rig()
    rig.run(threads=3)
    names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert {"puna-1", "puna-2"} <= names
