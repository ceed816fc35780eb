"""Prompts that are read and not continued: tokens, and vectors of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from puna.entrypoints.server.keys import Tenant
from puna.entrypoints.server.timeline import Timeline
from puna.errors import PromptTooLongError
from puna.pipelines.prompt_reading import Pooling
from puna.pipelines.request import GenerateRequest

if TYPE_CHECKING:
    from puna.entrypoints.server.state import Server

__all__ = ["vectors_of"]


async def vectors_of(
    server: Server,
    tenant: Tenant,
    timeline: Timeline,
    requests: Sequence[GenerateRequest],
    *,
    pooling: Pooling = "mean",
    normalize: bool = True,
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """One vector per prompt, float32 `[n, H]`, and the number of tokens of each.

    Raises:
        InvalidRequestError: a prompt is empty or does not fit.
        Refusal: the line is full, or the model is not ready.
    """
    server.admission.check(tenant)
    llm, most = server.llm, server.limits.max_prompt_tokens
    prompts = [(await llm.encode_prompt(request))[1] for request in requests]
    longest = max(map(len, prompts))
    if most is not None and longest > most:
        raise PromptTooLongError(longest, most, "this server takes")
    lengths = [len(prompt) for prompt in prompts]
    timeline.num_prompt_tokens = sum(lengths)
    timeline.mark("prepared")
    async with server.admission.place(tenant, 0, len(prompts)):
        timeline.mark("admitted")
        adapter = requests[0].adapter  # one body names one model
        vectors = await llm.embed(prompts, pooling=pooling, normalize=normalize, adapter=adapter)
    timeline.mark("finished")
    return vectors, lengths
