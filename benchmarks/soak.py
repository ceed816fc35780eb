"""Mixed traffic against a server, good and bad, for a while: what breaks, what leaks.

Prints one JSON object; the exit status is 1 when an answer was a 5xx, a page or a descriptor did not come back, or
memory grew by more than 1 KB a request. `make soak` runs it for an hour, the slow tests for a few thousand requests.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from support.serving import NAME, Served, serving
from support.tiny_model import write_tiny_model

HELLO = [{"role": "user", "content": "Hello"}]
GROWTH_BYTES = 1024  # a request may leave behind


@dataclass
class Soak:
    """What was seen.

    Attributes:
        statuses: How often each status came.
        surprises: Answers that should not be.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)

    @property
    def num_requests(self) -> int:
        """Requests that were sent."""
        return sum(self.statuses.values())

    def saw(self, what: str, response: httpx2.Response) -> None:
        """Notes an answer."""
        self.statuses[str(response.status_code)] += 1
        if response.status_code >= 500 or ("[DONE]" not in response.text and response.is_success and what == "stream"):
            self.surprises.append(f"{what}: {response.status_code} {response.text[-200:]}")


def private_bytes() -> int:
    """Anonymous memory of this process, in memory or swapped out."""
    text = Path("/proc/self/status").read_text()
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(("RssAnon", "VmSwap")))


def num_descriptors() -> int:
    """Open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def send_one(served: Served, client: httpx2.Client, draw: random.Random, soak: Soak) -> None:
    """One request of some kind."""
    body: dict[str, Any] = {"max_tokens": draw.randint(1, 12), "seed": draw.randrange(1000)}
    match draw.randrange(10):
        case 0:
            soak.saw("chat", client.post("/v1/chat/completions", json={**body, "messages": HELLO}))
        case 1:
            response = client.post("/v1/chat/completions", json={**body, "messages": HELLO, "stream": True, "n": 2})
            soak.saw("stream", response)
        case 2:
            prompt = [draw.randrange(3, 800) for _ in range(draw.randint(1, 150))]
            soak.saw("completion", client.post("/v1/completions", json={**body, "prompt": prompt, "logprobs": 2}))
        case 3:
            soak.saw("embedding", client.post("/v1/embeddings", json={"input": "a cat"}))
        case 4:
            soak.saw("too long", client.post("/v1/completions", json={"prompt": [5] * 5000}))
        case 5:
            soak.saw("no JSON", client.post("/v1/completions", content=draw.randbytes(50)))
        case 6:
            temperatures: list[Any] = [-1, 3, "x", None, []]
            values = {"temperature": draw.choice(temperatures), "n": draw.choice([0, 1, 10**9])}
            soak.saw("bad values", client.post("/v1/completions", json={"prompt": "x", **values}))
        case 7:
            more = {"model": NAME, "messages": HELLO}
            soak.saw("messages", client.post("/v1/messages", json={**more, "max_tokens": 4}))
        case 8:
            endless = {"prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True}
            request = client.build_request("POST", "/v1/completions", json=endless)
            response = client.send(request, stream=True)
            next(response.iter_bytes(), None)
            response.close()
            soak.statuses["left"] += 1
        case _:
            with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
                parts = [b"GET /hea", b"nonsense\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n"]
                connection.sendall(draw.choice(parts))
            soak.statuses["bare"] += 1


def run(num_requests: int | None, seconds: float, num_threads: int = 6) -> dict[str, Any]:
    """Sends requests until there were enough of them, or the time is over; returns what was seen.

    Args:
        num_requests: How many; None: as many as there is time for.
        seconds: The longest time.
        num_threads: How many are sent at once.
    """
    soak, end = Soak(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as directory:
        path = write_tiny_model(Path(directory) / "model")
        with serving(path, engine={"max_num_seqs": 8, "block_size": 16}, limits={"header_timeout_s": 5.0}) as served:

            def work(number: int, until: int) -> None:
                draw = random.Random(number)
                with httpx2.Client(base_url=served.url, timeout=60) as client:
                    while soak.num_requests < until and time.monotonic() < end:
                        send_one(served, client, draw, soak)

            def send(until: int) -> None:
                threads = [threading.Thread(target=work, args=(i + until, until)) for i in range(num_threads)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                served.wait(lambda: served.used_blocks() == 0 and served.server.admission.num_running == 0, 30)

            whole = num_requests or 1 << 60
            send(min(2000, whole // 4))  # caches, pools and buffers fill up
            warm, memory, descriptors = soak.num_requests, private_bytes(), num_descriptors()
            send(whole)
            served.wait(lambda: num_descriptors() <= descriptors + 2, 30)
            growth = (private_bytes() - memory) / max(1, soak.num_requests - warm)
            return {
                "requests": soak.num_requests,
                "statuses": dict(soak.statuses),
                "surprises": soak.surprises[:10],
                "bytes_per_request": round(growth),
                "descriptors": [descriptors, num_descriptors()],
                "blocks_used": served.used_blocks(),
            }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, help="how many; as many as there is time for unless stated")
    parser.add_argument("--seconds", type=float, default=600.0, help="the longest time")
    arguments = parser.parse_args()
    found = run(arguments.requests, arguments.seconds)
    print(json.dumps(found, indent=2))
    return 1 if found["surprises"] or found["bytes_per_request"] > GROWTH_BYTES or found["blocks_used"] else 0


if __name__ == "__main__":
    sys.exit(main())
