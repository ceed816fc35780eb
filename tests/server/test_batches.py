"""Files and batches: OpenAI's life cycle, on disk, over restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.serving import Served, serving
from support.tiny_model import write_tiny_model

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def served(path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(path, storage_dir=tmp_path_factory.mktemp("state"), limits={"max_file_bytes": 200_000}) as server:
        yield server


def line(name: str, url: str = COMPLETIONS, **body: Any) -> bytes:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}).encode() + b"\n"


def upload(served: Served, content: bytes, name: str = "in.jsonl", purpose: str = "batch") -> httpx2.Response:
    return served.client.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})


def begin(served: Served, content: bytes, url: str = COMPLETIONS) -> dict[str, Any]:
    body = {"input_file_id": upload(served, content).json()["id"], "endpoint": url, "completion_window": "24h"}
    response = served.post("/v1/batches", metadata={"a": "b"}, **body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def ended(served: Served, name: str) -> dict[str, Any]:
    served.wait(lambda: served.client.get(f"/v1/batches/{name}").json()["completed_at"] is not None, 60)
    return dict(served.client.get(f"/v1/batches/{name}").json())


def lines(served: Served, name: str) -> dict[str, Any]:
    text = served.client.get(f"/v1/files/{name}/content").text
    return {entry["custom_id"]: entry["response"] for entry in map(json.loads, text.splitlines())}


def test_files(served: Served) -> None:
    made = upload(served, b"content", "../../x.jsonl", "user_data").json()
    assert made["filename"] == "x.jsonl" and made["bytes"] == 7 and made["object"] == "file"
    assert served.client.get(f"/v1/files/{made['id']}").json() == made
    assert served.client.get(f"/v1/files/{made['id']}/content").content == b"content"
    second = upload(served, b"more").json()
    found = served.client.get("/v1/files", params={"purpose": "user_data"}).json()["data"]
    assert [entry["id"] for entry in found] == [made["id"]]
    page = served.client.get("/v1/files", params={"limit": 1}).json()
    assert len(page["data"]) == 1 and page["has_more"]
    for name in (made["id"], second["id"]):
        assert served.client.delete(f"/v1/files/{name}").json()["deleted"]
    for name in (made["id"], "file-", "..%2Fx", "file-" + "0" * 32):
        assert served.client.get(f"/v1/files/{name}").status_code == 404
    assert upload(served, b"x" * 300_000).status_code == 413
    assert upload(served, b"x", purpose="fine-tune").json()["error"]["param"] == "purpose"
    assert served.client.post("/v1/files", json={}).status_code == 415
    bad = served.client.post("/v1/files", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert bad.status_code == 400


def test_a_batch(served: Served) -> None:
    content = b"".join(line(f"n{i}", prompt=[5 + i], max_tokens=4, seed=i) for i in range(8))
    content += line("bad", prompt="x", n=0) + line("chat", "/v1/chat/completions", messages=[])
    batch = begin(served, content)
    assert batch["object"] == "batch" and batch["metadata"] == {"a": "b"}
    batch = ended(served, batch["id"])
    assert batch["status"] == "completed" and batch["request_counts"] == {"total": 10, "completed": 8, "failed": 2}
    found = lines(served, batch["output_file_id"])
    for i in range(8):
        alone = served.post(COMPLETIONS, prompt=[5 + i], max_tokens=4, seed=i).json()
        assert found[f"n{i}"]["body"]["choices"] == alone["choices"]
    errors = lines(served, batch["error_file_id"])
    assert {name: entry["status_code"] for name, entry in errors.items()} == {"bad": 400, "chat": 400}
    assert batch["id"] in [entry["id"] for entry in served.client.get("/v1/batches").json()["data"]]
    assert served.client.post(f"/v1/batches/{batch['id']}/cancel").status_code == 409


def test_embeddings_are_batched_too(served: Served) -> None:
    batch = ended(served, begin(served, line("e", "/v1/embeddings", input="a cat"), "/v1/embeddings")["id"])
    expected = served.post("/v1/embeddings", input="a cat").json()["data"]
    assert lines(served, batch["output_file_id"])["e"]["body"]["data"] == expected


def test_a_batch_is_cancelled(served: Served) -> None:
    content = b"".join(line(f"n{i}", prompt="x", max_tokens=200, ignore_eos=True) for i in range(200))
    name = begin(served, content)["id"]
    cancelled = served.client.post(f"/v1/batches/{name}/cancel").json()
    assert cancelled["status"] == "cancelled" and cancelled["cancelled_at"] is not None
    served.wait(lambda: served.used_blocks() == 0)


def test_a_fault_of_the_servers_own_ends_a_batch(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("a secret of the machine")

    with monkeypatch.context() as patch:
        patch.setattr(served.server.batches, "_split", break_down)
        route = f"/v1/batches/{begin(served, line('a', prompt='x', max_tokens=2))['id']}"
        served.wait(lambda: served.client.get(route).json()["failed_at"] is not None)
    batch = served.client.get(route).json()
    assert batch["status"] == "failed" and batch["errors"]["data"] and "secret" not in str(batch)
    again = ended(served, begin(served, line("a", prompt="x", max_tokens=2))["id"])
    assert again["status"] == "completed"


@pytest.mark.parametrize("content", [b"", line("a", prompt="x") * 2])
def test_a_file_that_is_no_batch(served: Served, content: bytes) -> None:
    name = begin(served, content)["id"]
    served.wait(lambda: served.client.get(f"/v1/batches/{name}").json()["failed_at"] is not None)
    batch = served.client.get(f"/v1/batches/{name}").json()
    assert batch["status"] == "failed" and batch["errors"]["data"][0]["message"]


def test_what_is_refused(served: Served, path: str) -> None:
    good = {"input_file_id": upload(served, b"x").json()["id"], "endpoint": COMPLETIONS, "completion_window": "24h"}
    for change, status in (
        ({"endpoint": "/v1/images"}, 400),
        ({"completion_window": "1h"}, 400),
        ({"input_file_id": "file-" + "0" * 32}, 404),
        ({"input_file_id": 1}, 400),
        ({"metadata": {"a": 1}}, 400),
    ):
        assert served.post("/v1/batches", **{**good, **change}).status_code == status
    with serving(path) as without:
        assert without.client.get("/v1/files").json()["error"]["code"] == "no_storage"


@pytest.mark.slow
def test_a_restart_goes_on_with_a_batch(path: str, tmp_path: Path) -> None:
    content = b"".join(line(f"n{i}", prompt=[5 + i], max_tokens=40, seed=i, ignore_eos=True) for i in range(30))
    with serving(path, storage_dir=tmp_path) as served:
        name = begin(served, content)["id"]
        served.wait(lambda: served.client.get(f"/v1/batches/{name}").json()["request_counts"]["completed"] >= 3)
    (results,) = (tmp_path / "batches").glob("*.results")
    before = {json.loads(entry)["custom_id"]: json.loads(entry)["id"] for entry in results.read_text().splitlines()}
    assert 3 <= len(before) < 30
    assert (tmp_path / "files").stat().st_mode & 0o077 == 0
    with serving(path, storage_dir=tmp_path) as served:
        batch = ended(served, name)
        assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
        text = served.client.get(f"/v1/files/{batch['output_file_id']}/content").text
        found = {entry["custom_id"]: entry["id"] for entry in map(json.loads, text.splitlines())}
        assert len(found) == 30 and before.items() <= found.items()
        alone = served.post(COMPLETIONS, prompt=[34], max_tokens=40, seed=29, ignore_eos=True).json()
        assert lines(served, batch["output_file_id"])["n29"]["body"]["choices"] == alone["choices"]
