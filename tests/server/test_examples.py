"""The examples of how a server is run use options that there are."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from puna.entrypoints.commands.serve import serve

EXAMPLES = Path(__file__).parents[2] / "examples" / "server"


@pytest.mark.parametrize(("name", "begin"), [("puna.service", "ExecStart="), ("Dockerfile", "CMD [\"/model")])
def test_options_of_examples_exist(name: str, begin: str) -> None:
    text = (EXAMPLES / name).read_text().replace("\\\n", " ")
    (line,) = [entry for entry in text.splitlines() if entry.startswith(begin)]
    flags = re.findall(r"--[a-z-]+", line)
    known = {flag for param in serve.params if isinstance(param, click.Option) for flag in param.opts}
    assert flags and set(flags) <= known
