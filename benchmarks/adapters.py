"""What adapters cost: `python benchmarks/adapters.py [DIRECTORY]`.

A step of 8 sequences of a random model with the sizes of Llama 3.2 1B in bfloat16, without adapters, with one and with
8 different ones of rank 16, in turn, on the attention's products and on all products. The model (2.5 GB) and the
adapters are written to the directory once.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from puna.entrypoints.benchmark.runner import Runner
from puna.entrypoints.benchmark.specs import parse_spec

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
SIZES = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (512, 2048),
    "self_attn.v_proj": (512, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (8192, 2048),
    "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}
TARGETS = {"qkvo": list(SIZES)[:4], "all-linear": list(SIZES)}
RANK, ADAPTERS, TURNS = 16, 8, 5


def random(draw: np.random.Generator, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Values of about the size that weights have."""
    values = draw.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
    return values.astype(ml_dtypes.bfloat16)


def write_model(directory: Path) -> Path:
    """Writes the model, unless it is there."""
    if not (directory / "model.safetensors").exists():
        directory.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(0)
        tensors = {"model.embed_tokens.weight": random(draw, 128256, 2048)}
        tensors["model.norm.weight"] = np.ones(2048, ml_dtypes.bfloat16)
        for layer in range(CONFIG["num_hidden_layers"]):  # type: ignore[call-overload]
            prefix = f"model.layers.{layer}."
            tensors |= {f"{prefix}{name}.weight": random(draw, *shape) for name, shape in SIZES.items()}
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{name}.weight"] = np.ones(2048, ml_dtypes.bfloat16)
        (directory / "config.json").write_text(json.dumps(CONFIG))
        save_file(tensors, directory / "model.safetensors")
    return directory


def write_adapter(directory: Path, targets: list[str], seed: int) -> Path:
    """Writes an adapter, unless it is there."""
    if not (directory / "adapter_model.safetensors").exists():
        directory.mkdir(parents=True, exist_ok=True)
        draw, tensors = np.random.default_rng(seed), {}
        for layer in range(CONFIG["num_hidden_layers"]):  # type: ignore[call-overload]
            for name in targets:
                outputs, inputs = SIZES[name]
                module = f"base_model.model.model.layers.{layer}.{name}"
                tensors[f"{module}.lora_A.weight"] = random(draw, RANK, inputs)
                tensors[f"{module}.lora_B.weight"] = random(draw, outputs, RANK)
        names = [name.split(".")[1] for name in targets]
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": names}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def main() -> None:
    """Writes what is missing, measures, prints a table."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "build/adapters")
    model = write_model(root / "model")
    specs = [parse_spec(name) for name in ("tg8@b8", "tg8@b8@a1", "tg8@b8@a8", "pp256", "pp256@a1")]
    for kind, targets in TARGETS.items():
        paths = [f"{n}={write_adapter(root / kind / str(n), targets, n)}" for n in range(ADAPTERS)]
        runner = Runner(str(model), specs, lora_paths=paths)
        for spec in specs:
            runner.warm(spec)
        # In turn, so that whatever else the machine does is shared.
        found: dict[str, list[float]] = {spec.name: [] for spec in specs}
        for _ in range(TURNS):
            for spec in specs:
                found[spec.name].append(spec.total_tokens / runner.run(spec))
        for spec in specs:
            bare = found["tg8@b8" if spec.kind == "tg" else "pp256"]
            ratios = [time / other for time, other in zip(found[spec.name], bare, strict=True)]
            unit = statistics.median(found[spec.name]) / (spec.tokens if spec.kind == "tg" else 1) * 1e3
            print(f"{kind:11} {spec.name:10} {unit:8.1f} ms  {statistics.median(ratios):5.3f}", flush=True)


if __name__ == "__main__":
    main()
