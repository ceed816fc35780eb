"""A file that is cut while its model is loaded ends in an error that names it, never in a signal."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from puna.engine import InferenceSession
from puna.entrypoints.llm import LLM
from puna.errors import WeightsError
from puna.pipelines.request import GenerateRequest
from puna.pipelines.sampling_params import SamplingParams
from support.answers import answers
from support.checkpoints import tiny_config, tiny_tensors
from support.gguf_checkpoints import write_gguf
from support.tiny_model import write_tiny_model


@pytest.fixture(params=["directory", "gguf"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The model's name and its file of weights."""
    if request.param == "directory":
        directory = write_tiny_model(tmp_path / "m")
        return directory, directory / "model.safetensors"
    config = tiny_config("llama")
    path = write_gguf(tmp_path / "model.gguf", config, tiny_tensors(config))
    return path, path


def test_a_file_that_is_cut_while_it_is_loaded(model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers were read and checked; then, before any weight is read, the file loses its data."""
    name, file = model
    load = InferenceSession.load

    def cut_and_load(self: InferenceSession, *arguments: Any, **options: Any) -> Any:
        os.truncate(file, 4096)
        return load(self, *arguments, **options)

    monkeypatch.setattr(InferenceSession, "load", cut_and_load)
    with pytest.raises(WeightsError, match="was cut or changed while it was being read") as error:
        LLM(str(name))
    assert file.name in str(error.value)


def test_a_loaded_model_needs_its_file_no_more(model: tuple[Path, Path]) -> None:
    name, file = model
    llm = LLM(str(name))
    asked = GenerateRequest(token_ids=[2, 3, 4], sampling_params=SamplingParams(temperature=0, max_tokens=8))
    (before,) = answers(llm, [asked])
    os.truncate(file, 100)
    assert answers(llm, [asked])[0].token_ids == before.token_ids
    if name.is_dir():
        shutil.rmtree(name)
    else:
        file.unlink()
    assert answers(llm, [asked])[0].token_ids == before.token_ids
