"""What a client asked, run for as long as it is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from puna.entrypoints.server.generation import Generation, unless_disconnected
from puna.entrypoints.server.reading import vectors_of
from puna.entrypoints.server.state import server_of, tenant_of, timeline_of
from puna.pipelines.prompt_reading import Pooling
from puna.pipelines.request import GenerateRequest

__all__ = ["embedded", "prepared"]


async def prepared(request: Request, requests: Sequence[GenerateRequest]) -> Generation:
    """The client's requests, prepared; errors are those of `Generation.prepare`."""
    return await Generation.prepare(server_of(request), tenant_of(request), timeline_of(request), requests)


async def embedded(
    request: Request, requests: Sequence[GenerateRequest], *, pooling: Pooling = "mean", normalize: bool = True
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """`vectors_of` the client's prompts; ends when it goes away."""
    server, tenant, timeline = server_of(request), tenant_of(request), timeline_of(request)
    work = vectors_of(server, tenant, timeline, requests, pooling=pooling, normalize=normalize)
    return await unless_disconnected(request, work)
