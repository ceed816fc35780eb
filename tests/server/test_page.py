"""How the chat page is served. What it does is tested in a browser: `tests/page`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

import pytest

from puna.entrypoints.server.routes.page import OPERATIONS
from puna.pipelines.sampling_params import SamplingParamsInput
from support.serving import NAME, Served, serving
from support.tiny_model import write_tiny_model

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE = files("puna.entrypoints.server.page")
FILES = sorted(file.name for file in PAGE.iterdir() if file.name.rpartition(".")[2] in TYPES)


def address(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    limits = {"max_output_tokens": 100, "max_top_logprobs": 3}
    with serving(
        path, api_keys={"one": "the-only-key"}, limits=limits, sampling=SamplingParamsInput(temperature=0.5)
    ) as server:
        yield server


@pytest.mark.parametrize("name", FILES)
def test_files_are_served_as_they_are(served: Served, name: str) -> None:
    response = served.client.get(address(name))
    assert response.status_code == 200 and response.content == (PAGE / name).read_bytes()
    assert response.headers["content-type"] == TYPES[name.rpartition(".")[2]]
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    assert not {"script-src", "style-src", "connect-src"} & policy.keys()  # nothing is wider than the default
    assert policy["require-trusted-types-for"] == "'script'" and policy["trusted-types"] == "'none'"


@pytest.mark.parametrize("name", ["index.html", "app.js"])
def test_a_browser_asks_whether_its_copy_is_still_good(served: Served, name: str) -> None:
    first = served.client.get(address(name))
    assert first.headers["cache-control"] == "no-cache"
    for tags in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = served.client.get(address(name), headers={"If-None-Match": tags})
        assert again.status_code == 304 and not again.content and again.headers["etag"] == first.headers["etag"]
    assert served.client.get(address(name), headers={"If-None-Match": '"other"'}).status_code == 200


def test_every_file_that_is_named_is_there_and_none_is_elsewhere() -> None:
    assert {operation.path for operation in OPERATIONS} == {"/page/settings", *map(address, FILES)}
    used = set()
    for name in FILES:
        text = (PAGE / name).read_text("utf-8")
        used |= {a or b for a, b in re.findall(r'from "\./([^"]+)"|(?:src|href)="page/([^"]+)"', text)}
        without_namespaces = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(?:https?:)?//[\w-]+\.\w|@import|url\(", without_namespaces), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text) or (
            name == "dom.js"  # which says in a comment that they are not used
        )
        assert not re.search(r"""<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=""", text), name
    assert used == set(FILES) - {"index.html"}


def test_settings_need_the_key_and_are_the_servers(served: Served) -> None:
    assert served.client.get("/page/settings").status_code == 401
    response = served.client.get("/page/settings", headers={"Authorization": "Bearer the-only-key"})
    body = response.json()
    assert body["model"] == NAME and body["max_top_logprobs"] == 3
    assert body["defaults"]["temperature"] == 0.5 and body["defaults"]["max_tokens"] == 100
    assert body["ranges"]["temperature"] == {"kind": "number", "low": 0, "high": 2, "is_low_left_out": False}
    assert body["ranges"]["repetition_penalty"]["is_low_left_out"] and body["ranges"]["max_tokens"]["high"] == 100


def test_the_page_is_not_in_the_document(served: Served) -> None:
    document = served.client.get("/openapi.json", headers={"x-api-key": "the-only-key"}).json()
    assert not [path for path in document["paths"] if path == "/" or path.startswith("/page")]
