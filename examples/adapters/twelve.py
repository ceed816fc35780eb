"""Twelve adapters on one model, all in one batch: `python examples/adapters/twelve.py [MODEL] [DIRECTORY]`.

The adapters are random numbers in PEFT's layout, written to the directory: they stand for twelve fine-tunes of one
base. Writing them takes the `safetensors` package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from puna import LLM, SamplingParams

COUNT, RANK, SIZE = 12, 8, 0.02


def write_adapter(directory: Path, model: LLM, seed: int) -> Path:
    """An adapter of the queries and values of every layer."""
    config, draw = model.model.config, np.random.default_rng(seed)
    outputs = {"q_proj": config.num_attention_heads, "v_proj": config.num_key_value_heads}
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for name, heads in outputs.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            shapes = {"lora_A": (RANK, config.hidden_size), "lora_B": (heads * config.head_dim, RANK)}
            for part, shape in shapes.items():
                tensors[f"{module}.{part}.weight"] = draw.standard_normal(shape).astype(np.float16) * np.float16(SIZE)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": list(outputs)}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def main(model: str, directory: Path) -> None:
    """Loads the adapters, and asks the model and each of them the same in one batch."""
    llm = LLM(model, enable_lora=True, max_num_loras=COUNT, max_num_seqs=COUNT + 1)
    for number in range(COUNT):
        name = f"adapter-{number}"
        llm.load_lora_adapter(name, write_adapter(directory / name, llm, number))
    loaded = llm.list_lora_adapters()
    print(f"{len(loaded)} adapters, {sum(info.nbytes for info in loaded) / 1e6:.1f} MB")
    names = [None, *(info.name for info in loaded)]
    prompts = ["Once upon a time"] * len(names)
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12), adapter=names, progress=False)
    for name, output in zip(names, outputs, strict=True):
        print(f"{name or 'the model':12} {output.outputs[0].text!r}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(arguments[0] if arguments else "smollm2", Path(arguments[1] if len(arguments) > 1 else "adapters"))
