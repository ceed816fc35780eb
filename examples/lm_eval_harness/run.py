"""Evaluates a model with lm-eval-harness on three small tasks whose data is written in tasks.py; needs no network.

pip install lm-eval, then: python examples/lm_eval_harness/run.py [MODEL]
"""

from __future__ import annotations

import sys
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from puna_lm import PunaLM
from tasks import capitals, counting, sentences

from puna import LLM


def evaluate(model: Any) -> dict[str, Any]:
    """Runs the tasks with a model of the harness; task -> metric -> value."""
    found = simple_evaluate(
        model=model,
        tasks=[capitals(), counting(), sentences()],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    assert found is not None
    return dict(found["results"])


def main() -> None:
    """Prints one line per task."""
    with LLM(sys.argv[1] if len(sys.argv) > 1 else "smollm2", max_model_len=1024) as llm:
        for task, metrics in evaluate(PunaLM(llm)).items():
            values = {name.split(",")[0]: value for name, value in metrics.items() if isinstance(value, float)}
            print(task, *(f"{name} {value:.4f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
