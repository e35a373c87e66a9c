"""What may be installed on request, by the settings: through HTTP, with the real planner, against a hub on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from installing_home import BIG, REPO, SMALL, Home
from live_server import LiveServer, error_of, user
from loopback_hub import LoopbackHub

ANSWER = "The capital of France is Paris."


@pytest.fixture
def home(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    found = Home(hub, tmp_path)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def serving(home: Home, **settings: Any) -> LiveServer:
    return LiveServer(home.models, **{"auto_install": None, "galleries": [f"mine={home.gallery}"], **settings})


def post(server: LiveServer, model: str | None, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": user("What is the capital of France?"), "temperature": 0, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=more.pop("headers", None), timeout=60)


def answer(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    content: str = reply.json()["choices"][0]["message"]["content"]
    return content


@pytest.mark.parametrize(
    ("settings", "asked", "status", "hint"),
    [
        ({"auto_install": "off"}, "tiny", 404, "auto_install: gallery"),
        ({"auto_install": "off"}, f"{REPO}:Q8_0", 404, "auto_install: hub"),
        ({"auto_install": "gallery"}, f"{REPO}:Q8_0", 404, "auto_install: hub"),
        ({"hub_owners": ["Qwen", "bart*"]}, f"{REPO}:Q8_0", 403, "hub_owners: [Qwen, bart*, tiny]"),
        ({"hub_owners": ["Qwen"]}, "tiny", 403, "hub_owners: [Qwen, tiny]"),
        ({"licences": ["apache-2.0"]}, "tiny", 403, "licences: [apache-2.0, mit]"),
        ({"licences": ["apache-2.0"]}, f"{REPO}:Q8_0", 403, "licences: [apache-2.0, mit]"),
        ({"install_size_limit": 1 << 20}, "tiny", 403, "install_size_limit: 1GiB"),
    ],
)
def test_a_refusal_names_the_setting(home: Home, settings: dict[str, Any], asked: str, status: int, hint: str) -> None:
    with serving(home, **settings) as server:
        reply = post(server, asked)
        assert reply.status_code == status, reply.text
        error = error_of(reply)
        assert hint in error["hints"] and hint in error["message"]
        assert error["param"] == "model"
    assert not home.downloads(BIG) + home.downloads(SMALL)
    if "auto_install" in settings or (asked != "tiny" and "hub_owners" in settings):
        assert not home.hub.requests  # it is refused before anybody is asked
    assert not list(home.models.glob("*.yaml"))


def test_jobs_at_once_are_bounded_and_a_running_one_can_be_joined(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmgallery.service.install.installing.MOST_RUNNING", 1)
    release = home.hub.hold(BIG, after=1000, least=100_000)
    with serving(home) as server:
        first = post(server, f"{REPO}:Q8_0", headers={"Prefer": "wait=0"})
        again = post(server, f"{REPO}:Q8_0", headers={"Prefer": "wait=0"})
        assert first.status_code == again.status_code == 503
        assert error_of(first)["job"] == error_of(again)["job"] is not None
        other = post(server, f"{REPO}:Q4_K_M")
        assert (other.status_code, other.headers["retry-after"]) == (503, "10")
        assert "installs are under way" in error_of(other)["message"]
        release.set()
        assert answer(post(server, f"{REPO}:Q8_0")) == ANSWER
        assert answer(post(server, f"{REPO}:Q4_K_M")) == ANSWER


def test_what_the_settings_allow_any_valid_key_may_install(home: Home) -> None:
    with serving(home, api_keys=["right"], auto_install="gallery") as server, server.http() as client:
        body = {"model": "tiny", "messages": user("What is the capital of France?"), "temperature": 0}
        right = {"Authorization": "Bearer right"}
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        assert client.post("/v1/chat/completions", json={**body, "model": f"{REPO}:Q8_0"}, headers=right).status_code == 404
        assert not home.hub.requests
        assert answer(client.post("/v1/chat/completions", json=body, headers=right)) == ANSWER


@pytest.mark.parametrize("asked", ["tiny", "tiny:q4_k_m", f"{REPO}:Q8_0", REPO])
def test_what_is_too_large_for_the_machine_is_refused_before_its_first_byte(home: Home, asked: str) -> None:
    with serving(home, memory_budget=3 << 20) as server:
        reply = post(server, asked)
        assert (reply.status_code, error_of(reply)["code"]) == (503, "load_error"), reply.text
        assert reply.headers["x-should-retry"] == "false"
    assert not home.downloads(BIG) + home.downloads(SMALL)


def test_what_would_fit_is_named(home: Home, tmp_path: Path) -> None:
    """A large file by its header alone: the hub has zeros for its tensors."""
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.write(home.data)
        file.truncate(64 << 20)
    home.hub.add("tiny/two-GGUF", "two-Q8_0.gguf", large)
    home.hub.add("tiny/two-GGUF", "two-Q4_K_M.gguf", home.data)
    with serving(home, memory_budget=48 << 20) as server:
        reply = post(server, "tiny/two-GGUF:Q8_0")
        assert reply.status_code == 503, reply.text
        assert "tiny/two-GGUF:Q4_K_M would fit" in error_of(reply)["message"]
        assert "0.05 GiB can be had" in error_of(reply)["message"]
        assert answer(post(server, "tiny/two-GGUF")) == ANSWER  # left to us, it is the one that fits
    assert home.downloads("two-Q8_0.gguf") == []


def test_reading_never_installs(home: Home) -> None:
    with serving(home) as server, server.http() as client:
        for name in ("tiny", f"{REPO}:Q8_0"):
            assert client.get(f"/v1/models/{name}").status_code == 404
            assert client.head(f"/v1/models/{name}").status_code == 404
        assert client.get("/models/jobs").json() == {}
    assert not home.hub.requests


def test_the_default_model_is_installed_for_who_names_none(home: Home) -> None:
    with serving(home, default_model="tiny", unknown_model="default", auto_install="gallery") as server:
        assert answer(post(server, None)) == ANSWER
        # what may not be installed is unknown, and unknown names get the default
        assert post(server, f"{REPO}:Q8_0").json()["model"] == "tiny"


def test_embeddings_and_scores_install_too(home: Home) -> None:
    with serving(home) as server, server.http() as client:
        for route, body in (("embeddings", {"input": "x"}), ("rerank", {"query": "x", "documents": ["y"]})):
            reply = client.post(f"/v1/{route}", json={"model": "tiny", **body})
            assert reply.status_code == 400, reply.text  # it is made for text, which its header tells once it is here
            assert error_of(reply)["code"] == "unsupported_parameter"
    assert len(home.downloads(BIG)) == 1


def test_a_model_of_the_users_is_never_written_over(home: Home) -> None:
    (home.models / "tiny.yaml").write_text("name: mine\nbackend: echo\n")
    with serving(home) as server:
        reply = post(server, "tiny")
        assert reply.status_code == 404
        assert "names its model 'mine'" in error_of(reply)["message"]
    assert (home.models / "tiny.yaml").read_text() == "name: mine\nbackend: echo\n"


def test_an_entry_is_no_cover_for_other_files(home: Home) -> None:
    """Through the jobs' route: what is laid over a gallery's entry must not bring what auto_install keeps out."""
    with serving(home, auto_install="gallery") as server, server.http() as client:
        for more in ({"overrides": {"parameters": {"model": f"{REPO}/{SMALL}"}}}, {"files": [{"uri": f"hf://{REPO}/{SMALL}"}]}):
            reply = client.post("/models/apply", json={"id": "tiny", **more})
            assert (reply.status_code, error_of(reply)["hints"]) == (403, ["auto_install: hub"]), reply.text
        assert not home.hub.requests
        assert client.post("/models/apply", json={"id": "tiny", "overrides": {"context_size": 512}}).status_code == 200
        server.until(lambda: (home.models / "tiny.yaml").exists())
    assert "context_size: 512" in (home.models / "tiny.yaml").read_text()


def test_a_name_that_is_nearly_an_entrys_brings_the_entry(home: Home) -> None:
    with serving(home) as server:
        error = error_of(post(server, "tiny-q4-k-m"))
        assert error["hints"] and error["hints"][0] == "tiny-q4_k_m"
        assert "The galleries have 'tiny-q4_k_m'" in error["message"]
    assert not home.hub.requests
    with serving(home, auto_install="off") as server:
        assert "hints" not in error_of(post(server, "tiny-q4-k-m"))


# --- once more ---------------------------------------------------------------------------------------------------------------


def apply(server: LiveServer, **fields: Any) -> dict[str, Any]:
    """The job, once it is over."""
    with server.http() as client:
        reply = client.post("/models/apply", json=fields)
        assert reply.status_code == 200, reply.text
        path = f"/models/jobs/{reply.json()['uuid']}"
        body: dict[str, Any] = client.get(path).json()
        return body if body["processed"] else (server.until(lambda: _over(client.get(path).json())) or {})


def _over(body: dict[str, Any]) -> dict[str, Any] | None:
    return body if body["processed"] else None


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "tiny"},
        {"id": "mine@tiny", "name": "other"},
        {"id": "tiny", "variant": "tiny-q4_k_m"},
        {"id": "tiny", "overrides": {"context_size": 512}},
        {"id": f"{REPO}:Q8_0"},
        {"id": REPO, "variant": "Q4_K_M", "name": "small-one"},
    ],
)
def test_who_applies_at_each_boot_finds_it_done(home: Home, fields: dict[str, Any]) -> None:
    with serving(home) as server:
        first = apply(server, **fields)
        assert first["message"] == "completed", first
        [path] = home.models.glob("*.yaml")
        edited = path.read_text() + "stopwords: [mine]\n"
        path.write_text(edited)
        asked = len(home.hub.requests)
        again = apply(server, **fields)
        assert again["id"] == first["id"]
    with serving(home) as server:
        job = apply(server, **fields)
        assert (job["message"], job["name"], job["source"]) == ("completed", first["name"], first["source"])
        assert [(file["done"], file["total"]) for file in job["files"]] == [
            (file["done"], file["total"]) for file in first["files"]
        ]
    assert len(home.hub.requests) == asked  # nobody was asked for anything
    assert path.read_text() == edited and list(home.models.glob("*.bak")) == []


def test_a_finished_job_is_made_up_once_where_the_first_is_forgotten(home: Home) -> None:
    with serving(home) as server:
        apply(server, id="tiny", name="mine")
        for journal in (home.folder / "data" / "jobs").glob("*.json"):
            journal.unlink()
    with serving(home) as server, server.http() as client:
        first = apply(server, id="tiny", name="mine")
        assert (first["message"], first["progress"], first["total_bytes"]) == ("completed", 100.0, len(home.data))
        assert apply(server, id="tiny", name="mine")["id"] == first["id"]
        assert len(client.get("/models/jobs").json()) == 1


def test_what_asks_for_something_else_is_work(home: Home) -> None:
    with serving(home) as server:
        first = apply(server, id="tiny")
        [path] = home.models.glob("*.yaml")
        more = apply(server, id="tiny", overrides={"context_size": 512})
        assert more["id"] != first["id"] and "context_size: 512" in path.read_text()
        assert path.with_name("tiny.yaml.bak").exists()
        assert apply(server, id="tiny", name="second")["name"] == "second"
        files = {file for file in (home.folder / "hf").rglob("*.gguf") if file.is_file()}
        for file in files:
            file.unlink()
        mended = apply(server, id="tiny")
        assert mended["message"] == "completed" and mended["id"] not in (first["id"], more["id"])
        assert {file for file in (home.folder / "hf").rglob("*.gguf") if file.is_file()} == files


def test_an_update_is_asked_for(home: Home) -> None:
    with serving(home) as server:
        first = apply(server, id=f"{REPO}:Q8_0")
        [path] = home.models.glob("*.yaml")
        path.write_text(path.read_text() + "stopwords: [mine]\n")
        home.hub.add(REPO, BIG, home.data + bytes(8))
        assert apply(server, id=f"{REPO}:Q8_0")["id"] == first["id"]
        newer = apply(server, id=f"{REPO}:Q8_0", update=True)
        assert newer["message"] == "completed" and newer["source"] != first["source"]
        assert newer["total_bytes"] == len(home.data) + 8
        assert newer["source"].rpartition("@")[2] in path.read_text()
        assert "stopwords: [mine]" in path.with_name(f"{path.name}.bak").read_text()


def test_a_preload_is_done_once_and_again_when_it_is_changed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home.models / "mine.yaml"
    for size, extra in ((512, "# edited\n"), (512, ""), (1024, "")):
        monkeypatch.setenv("PRELOAD_MODELS", f'[{{"id": "tiny", "name": "mine", "overrides": {{"context_size": {size}}}}}]')
        with serving(home, auto_install="off") as server, server.http() as client:
            server.until(lambda size=size: path.exists() and f"context_size: {size}" in path.read_text())
            server.until(lambda: all(body["processed"] for body in client.get("/models/jobs").json().values()))
            bodies = client.get("/models/jobs").json()
        assert len(bodies) == (1 if size == 512 else 2)
        path.write_text(path.read_text() + extra)
    assert "edited" in path.with_name("mine.yaml.bak").read_text()
