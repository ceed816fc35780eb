"""The comparison with other programs: lines, turns, results, picture, what is published, random checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize
from safetensors import safe_open

import publish
import scaling
import synthetic
from environments import FLAVOURS
from lines import LARGE_LINES, LINES, Line, work_of
from machine import Bystanders, kind_of_machine, machine_name
from picture import Bars, picture
from puna import _native
from puna.entrypoints.benchmark.runner import Runner
from puna.entrypoints.benchmark.specs import Spec
from puna.entrypoints.llm import LLM
from results import Comparison, Measured, figure
from turns import CALM, Turns, take_turns
from versus_llamacpp import MEMORY_TITLE, START_TITLE
from worker import Worker

SVG = "{http://www.w3.org/2000/svg}"
TINY = synthetic.Shape("Tiny", 2, 256, 4, 2, 64, 512, 800, True, 32.0, context=1024)
LIMITS = {"read_gbps": 30.0, "f32_gflops": 200.0, "int8_gops": 900.0}


class Calm:
    """A watch that says what it is told."""

    def __init__(self, *shares: float) -> None:
        self._shares = [0.0, *shares]  # the first is asked for before the first turn

    def share(self) -> float:
        return self._shares.pop(0)


def comparison(**changes: object) -> Comparison:
    lines = [
        Measured(
            "1B Q4_K_M: prompt of 512",
            "tokens/s",
            Turns((300.0, 310.0, 305.0), (100.0, 155.0, 100.0), 0.01),
            400.0,
            "on",
        ),
        Measured("1B Q4_K_M: text", "tokens/s", Turns((30.0,), (25.0,), 0.05), 40.0, "flash attention off"),
        Measured("1B Q4_K_M: peak memory", "MB", Turns((1000.0, 900.0), (1500.0, 1500.0), 0.0), 0.0, "mapped"),
    ]
    values = {
        "machine": "Some & <processor>",
        "kind": "avx512",
        "variant": "avx512",
        "rival": "llama.cpp",
        "version": "1.2 (native build, AVX-512)",
        "threads": 2,
        "limits": LIMITS,
        "read_spread": (28.0, 30.0),
        "lines": lines,
    }
    return Comparison(**{**values, **changes})  # type: ignore[arg-type]


def test_turns_alternate_and_change_who_begins() -> None:
    calls: list[str] = []
    counter = iter(range(100))

    def side(name: str) -> float:
        calls.append(name)
        return float(next(counter))

    turns = take_turns(lambda: side("ours"), lambda: side("theirs"), 3, Calm(0.0, CALM, 0.01))
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert turns == Turns((0.0, 3.0, 4.0), (1.0, 2.0, 5.0), CALM)


def test_disturbed_turns_are_taken_again_and_the_calmest_count_in_order() -> None:
    counter = iter(range(100))
    turns = take_turns(lambda: float(next(counter)), lambda: 0.0, 2, Calm(0.5, 0.02, 0.9, 0.01))
    assert turns.ours == (1.0, 3.0) and turns.disturbance == 0.02
    counter = iter(range(100))
    turns = take_turns(lambda: float(next(counter)), lambda: 0.0, 2, Calm(0.5, 0.2, 0.9, 0.8, 0.3))  # never calm
    assert turns.ours == (1.0, 4.0) and turns.disturbance == 0.3


def test_bystanders_are_seen_and_own_work_is_not() -> None:
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code]
    begin = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as busy:
        everyone, others = Bystanders(), Bystanders(busy.pid)
        assert busy.stdout is not None and busy.stdout.readline() == "done\n"
        cores = os.cpu_count() or 1
        difference = (everyone.share() - others.share()) * (time.monotonic() - begin) * cores
        assert difference > 0.1  # seconds of the 0.3, some of which passed before
        busy.communicate()


def test_ratio_is_the_median_of_neighbours_and_less_memory_is_better() -> None:
    prompt, text, memory = comparison().lines
    assert prompt.ratios == [3.0, 2.0, 3.05] and prompt.ratio == 3.0  # not 305 / 100, the ratio of the medians
    assert prompt.medians == (305.0, 100.0) and prompt.shares == (305 / 400, 0.25)
    assert text.ratio == pytest.approx(1.2)
    assert memory.ratio == pytest.approx((1.5 + 1500 / 900) / 2) and memory.shares == (0.0, 0.0)


def test_results_survive_json() -> None:
    result = comparison()
    assert Comparison.from_json(json.loads(json.dumps(result.as_json()))) == result
    assert result.name == "llamacpp-avx512" and comparison(variant="avx2").name == "llamacpp-avx512-avx2"


def test_lines_that_are_measured_anew_replace_the_old_ones() -> None:
    old = comparison()
    text = Measured("1B Q4_K_M: text", "tokens/s", Turns((36.0,), (25.0,), 0.0), 38.0, "flash attention on")
    new = comparison(lines=[text], limits={**LIMITS, "read_gbps": 29.0}, read_spread=(27.0, 29.0))
    both = old.with_lines_of(new)
    assert [line.title for line in both.lines] == [line.title for line in old.lines] and both.lines[1] == text
    assert both.limits == LIMITS and both.read_spread == (27.0, 30.0)
    memory = comparison(lines=old.lines[2:], limits={**LIMITS, "read_gbps": 99.0}, read_spread=(1.0, 99.0))
    assert old.with_lines_of(memory) == old
    with pytest.raises(ValueError, match="cannot be mixed"):
        old.with_lines_of(comparison(threads=3))


def test_disturbed_lines_are_not_published() -> None:
    disturbed = Measured("1B Q4_K_M: text", "tokens/s", Turns((36.0,), (5.0,), 0.6), 38.0, "flash attention on")
    old = comparison()
    assert publish.calm(comparison(lines=[*old.lines, disturbed])) == (old, ["1B Q4_K_M: text"])


def test_table_states_medians_ratios_spread_and_limits() -> None:
    rows = comparison().as_markdown().splitlines()
    assert rows[2] == (
        "| 1B Q4_K_M: prompt of 512 | 305.0 tokens/s | 100.0 tokens/s | 3.00 (2.00 – 3.05) | 76% · 25% | on |"
    )
    assert rows[4].startswith("| 1B Q4_K_M: peak memory | 950.0 MB | 1,500 MB | 1.58 (1.50 – 1.67) | – |")
    assert "at most 5% of the cores" in rows[-1] and "memory 30.0 GB/s (28.0 – 30.0)" in rows[-1]
    assert [figure(value) for value in (0.1234, 12.34, 123.4, 1234.5)] == ["0.12", "12.3", "123.4", "1,234"]


def test_picture_is_xml_with_all_lines_and_both_schemes() -> None:
    result = comparison()
    root = ElementTree.fromstring(result.as_svg())
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    for line in result.lines:
        assert line.title in texts and f"{line.ratio:.2f} ×" in texts
    assert "76% of the limit" in texts and "less is better" in texts and "305.0 : 100.0 tokens/s" in texts
    assert any("Some & <processor>" in text for text in texts)
    assert "prefers-color-scheme: dark" in (root.find(f"{SVG}style").text or "")  # type: ignore[union-attr]
    bars = [float(bar.get("width", "0")) for bar in root.iter(f"{SVG}rect") if bar.get("class") == "ours"][1:]
    others = [float(bar.get("width", "0")) for bar in root.iter(f"{SVG}rect") if bar.get("class") == "theirs"][1:]
    assert len(bars) == len(others) == 3
    assert bars[0] / others[0] == pytest.approx(3.05, rel=1e-2) and bars[2] < others[2]


def test_limit_is_drawn_where_it_is_near() -> None:
    def lines(share: float) -> int:
        root = ElementTree.fromstring(picture("h", "r", "f", [Bars("t", "tokens/s", 10.0, 5.0, 2.0, share)]))
        return len(list(root.iter(f"{SVG}path"))) - 1  # one is in the legend

    assert (lines(0.9), lines(0.5), lines(0.2), lines(0.0)) == (1, 1, 0, 0)


def test_published_pages_are_those_of_the_stored_results() -> None:
    results = publish.stored()
    assert results, "there are no stored results"
    text = publish.PAGE.read_text(encoding="utf-8")
    assert publish.page(text, results) == text, "run benchmarks/publish.py"
    assert publish.PICTURE.read_text(encoding="utf-8") == publish.shown(results).as_svg(), "run benchmarks/publish.py"
    assert all(name == result.name for name, result in results.items())
    known = {line.title for line in (*LINES, *LARGE_LINES)} | {MEMORY_TITLE, START_TITLE}
    for result in results.values():
        assert result.lines and (result.rival != "llama.cpp" or {line.title for line in result.lines} <= known)
        assert publish.calm(result) == (result, [])
    assert "docs/speed.svg" in (publish.ROOT / "README.md").read_text(encoding="utf-8")


def test_text_between_markers() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end of x -->\nb"
    assert publish.between(text, "x", "new\n") == "a\n<!-- x -->\n\nnew\n\n<!-- end of x -->\nb"
    with pytest.raises(ValueError, match="not found"):
        publish.between(text, "y", "new")


def test_lines_have_titles_of_their_own_and_tests_that_exist() -> None:
    titles = [line.title for line in (*LINES, *LARGE_LINES)]
    assert len(set(titles)) == len(titles)
    assert Line("1B", "Q4_K_M", "tg32@d2048@b8").title == "1B Q4_K_M: text at depth 2,048, 8 at once"
    assert all(line.encoding in synthetic.ENCODINGS for line in LINES if line.model == "1B")


@pytest.mark.parametrize("encoding", synthetic.ENCODINGS)
def test_random_checkpoints_load_run_and_are_counted_right(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "tiny.gguf"
    synthetic.write(path, TINY, encoding)
    work = work_of(path)
    layer = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 512
    assert (work.layer_products, work.output_products) == (2 * layer, 800 * 256)
    assert (work.width, work.layers, work.cache_bytes) == (256, 2, 2 * 2 * 2 * 128)
    assert work.is_integer == (encoding != "BF16")
    bits = {"Q4_K_M": (4.5, 6.6), "Q4_0": (4.5, 6.6), "Q8_0": (8.5, 8.5), "BF16": (16, 16)}[encoding]
    assert bits[0] <= 8 * work.matrix_bytes / (work.layer_products + work.output_products) <= bits[1]
    runner = Runner(str(path), [Spec("pp", 20), Spec("tg", 2)], threads=1)
    assert runner.run(Spec("pp", 20)) > 0 and runner.run(Spec("tg", 2)) > 0
    model = LLM(str(path))
    assert model.tokenizer.decode(model.tokenizer.encode("Hello, world")) == "Hello, world"


def test_random_safetensors_load_and_run_with_their_tokenizer(tmp_path: Path) -> None:
    directory = tmp_path / "tiny"
    synthetic.write_directory(directory, TINY)
    with safe_open(directory / "model.safetensors", "numpy") as file:
        names = set(file.keys())
    assert len(names) == 2 + 2 * 9 and "lm_head.weight" not in names  # tied
    runner = Runner(str(directory), [Spec("pp", 20), Spec("tg", 2)], threads=1)
    assert runner.run(Spec("tg", 2)) > 0
    model = LLM(str(directory))
    assert model.tokenizer.decode(model.tokenizer.encode("Hello, world")) == "Hello, world"
    synthetic.write(tmp_path / "tiny.gguf", TINY, "BF16")
    ids = LLM(str(tmp_path / "tiny.gguf")).tokenizer.encode("Hello, world")
    assert ids[0] == 800 - synthetic.SPECIAL_TOKENS and ids[1:] == model.tokenizer.encode("Hello, world")


def test_work_is_bounded_by_memory_or_by_products(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    synthetic.write(path, TINY, "Q8_0")
    work = work_of(path)
    text = work.best_tokens_per_s(Spec("tg", 4), {**LIMITS, "int8_gops": 1e9, "f32_gflops": 1e9})
    cache = work.cache_bytes * 2
    assert text == pytest.approx(30e9 / (work.matrix_bytes + cache))
    deep = work.best_tokens_per_s(Spec("tg", 4, depth=1000), {**LIMITS, "int8_gops": 1e9, "f32_gflops": 1e9})
    assert deep == pytest.approx(30e9 / (work.matrix_bytes + cache + 1000 * work.cache_bytes))
    eight = work.best_tokens_per_s(Spec("tg", 4, sequences=8), {**LIMITS, "int8_gops": 1e9, "f32_gflops": 1e9})
    assert eight == pytest.approx(8 * 30e9 / (work.matrix_bytes + 8 * cache))
    prompt = work.best_tokens_per_s(Spec("pp", 512), {**LIMITS, "read_gbps": 1e9})
    attention = 4 * 2 * 256 * 256 / 200e9
    products = 2 * (work.layer_products + work.output_products / 512) / 900e9
    assert prompt == pytest.approx(1 / (products + attention))


def test_no_limit_is_stated_where_the_peak_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    synthetic.write(path, TINY, "BF16")
    work = work_of(path)
    assert work.best_tokens_per_s(Spec("pp", 512), LIMITS) == 0.0
    assert work.best_tokens_per_s(Spec("tg", 4), LIMITS) > 0.0


@pytest.mark.parametrize("kind", [k for k in GGMLQuantizationType if k.name in ("Q4_0", "Q8_0", "Q4_K", "Q6_K")])
def test_random_blocks_have_the_deviation_that_is_asked_for(kind: GGMLQuantizationType) -> None:
    data = synthetic.random_blocks(np.random.default_rng(0), kind, 256 * 200, 0.05)
    values = dequantize(data, kind)
    assert abs(values.mean()) < 0.01 and values.std() == pytest.approx(0.05, rel=0.1)


def test_worker_answers_and_says_how_it_died(tmp_path: Path) -> None:
    script = tmp_path / "far.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom worker import peak_bytes, serve\n"
        "serve({'hello': 1}, {'add': lambda a, b: {'sum': a + b}, 'peak': lambda: {'bytes': peak_bytes()}})\n"
    )
    worker = Worker([sys.executable, script, publish.ROOT / "benchmarks"])
    assert worker.greeting == {"hello": 1} and worker.ask("add", a=2, b=3) == {"sum": 5}
    assert 1e6 < worker.ask("peak")["bytes"] < 1e9
    worker.close()
    worker = Worker([sys.executable, script, publish.ROOT / "benchmarks"])
    with pytest.raises(RuntimeError, match="ended with status 1"):
        worker.ask("nothing of the kind")
    worker.close()


def test_machine_has_a_name_and_a_kind() -> None:
    assert kind_of_machine() in _native.supported_variants() and "cores)" in machine_name()
    assert set(FLAVOURS) == {"native", "avx512", "avx2"}


def test_paper_model_gives_what_was_measured_and_grows() -> None:
    result = comparison()
    rows = [row.split("|") for row in scaling.as_markdown(result).splitlines()[4:]]
    texts = [float(row[4].split("·")[0].replace(",", "")) for row in rows]
    prompts = [float(row[4].split("·")[1].replace(",", "")) for row in rows]
    assert prompts == sorted(prompts) and len(rows) == 5
    assert texts[0] < texts[1] < texts[3] < texts[2] < texts[4]  # more cores at the same memory only wait longer
    assert "prompt of 512" in scaling.as_markdown(comparison(lines=result.lines[1:]))
    load = scaling.load_of(synthetic.SHAPES["1B"])
    assert load.bytes == pytest.approx(803.6e6 - 8e6, rel=0.01)  # the file, less its tokens
    large = scaling.load_of(synthetic.SHAPES["8B"])
    assert 6.9e9 < large.products < 7.1e9  # of eight billion weights, less two matrices of the vocabulary
    kernels = scaling.Kernels(450.0, 0.8, 0.5)
    two = scaling.Machine("m", 2, 30.0)
    assert kernels.text_per_s(load, two) == pytest.approx(1 / (load.bytes / 24e9), rel=0.01)
    assert kernels.prompt_per_s(load, two) == pytest.approx(450e9 / (2 * load.products), rel=0.01)
