"""LocalAI's routes for models: apply, jobs, available, galleries, delete; and our streams of jobs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import DEADLINE, LiveServer, error_of, user
from loopback_hub import LoopbackHub
from terminal import serving

from llmgallery import paths
from llmgallery.api.dialects.localai.convert import job_body
from llmgallery.api.dialects.localai.events import JobEvents
from llmgallery.core.errors import ErrorInfo
from llmgallery.core.installs import FileProgress, Install

REPO, FILE = "tiny/pocket-GGUF", "pocket-f16.gguf"
LOCALAI = {
    "deletion": bool, "file_name": str, "error": str | None, "processed": bool, "message": str, "progress": float, "phase": str,
    "current_bytes": int, "total_bytes": int, "file_size": str, "downloaded_size": str, "gallery_element_name": str,
    "cancelled": bool, "cancellable": bool, "nodes": list,
}  # fmt: skip


class Shop(LiveServer):
    """A server with one gallery, whose files lie on a Hub on loopback."""

    hub: LoopbackHub
    files: dict[str, bytes]

    def job(self, id: str) -> dict[str, Any]:
        with self.http() as http:
            body: dict[str, Any] = http.get(f"/models/jobs/{id}").json()
        return body

    def apply(self, **fields: Any) -> str:
        with self.http() as http:
            reply = http.post("/models/apply", json=fields)
        assert reply.status_code == 200, reply.text
        body = reply.json()
        assert body["status"] == f"{self.url}/models/jobs/{body['uuid']}"
        return str(body["uuid"])

    def over(self, id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            body = self.job(id)
            return body if body["processed"] else None

        return self.until(ended) or {}

    def held(self, name: str) -> threading.Event:
        """Half of the file comes, and the rest once the event is set."""
        half = len(self.files[name]) // 2
        return self.hub.hold(f"{name}.gguf", half, least=half)

    def half_is_here(self, id: str) -> dict[str, Any]:
        def downloading() -> dict[str, Any] | None:
            body = self.job(id)
            return body if body["current_bytes"] else None

        return self.until(downloading) or {}

    def names(self) -> set[str]:
        with self.http() as http:
            return {model["id"] for model in http.get("/v1/models").json()["data"]}


def entry(name: str, weights: bytes, file: str = FILE, **more: Any) -> dict[str, Any]:
    """As LocalAI's index writes them."""
    digest = hashlib.sha256(weights).hexdigest()
    return {
        "name": name,
        "description": f"The model {name}.",
        "license": "mit",
        "tags": ["chat", "tiny"],
        "urls": [f"https://huggingface.co/{REPO}"],
        "overrides": {"parameters": {"model": file, "temperature": 0}},
        "files": [{"filename": file, "uri": f"huggingface://{REPO}/{file}", "sha256": digest}],
        **more,
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("shop")
    weights = (paths.builtin("models") / FILE).read_bytes()
    files = {name: weights + name.encode() for name in ("red", "blue", "green", "held", "doomed", "gone", "told")}
    entries = [entry(name, data, f"{name}.gguf") for name, data in files.items()]
    entries += [entry("base", files["red"], "red.gguf", variants=[{"model": "blue"}]), entry("away", weights, "away.gguf")]
    (root / "shelf").mkdir()
    (root / "shelf" / "index.yaml").write_text(json.dumps(entries))
    (root / "models").mkdir()
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(root / "hf"))
        patch.setenv("LLMGALLERY_DATA_DIR", str(root / "data"))
        for name, data in files.items():
            hub.add(REPO, f"{name}.gguf", data)
        with Shop(root / "models", auto_install="hub", galleries=[f"shelf={root / 'shelf'}"]) as server:
            server.hub, server.files = hub, files
            yield server


def is_like_localai(body: dict[str, Any]) -> bool:
    """All its fields, first and in its order, each of its type."""
    names = list(LOCALAI)
    return list(body)[: len(names)] == names and all(isinstance(body[name], LOCALAI[name]) for name in names)


# --- apply and jobs ----------------------------------------------------------------------------------------------------------


def test_an_entry_is_installed_and_answers(shop: Shop) -> None:
    body = shop.over(shop.apply(id="red"))
    assert is_like_localai(body), body
    size = len(shop.files["red"])
    assert (body["message"], body["progress"], body["error"], body["deletion"]) == ("completed", 100.0, None, False)
    assert (body["current_bytes"], body["total_bytes"], body["gallery_element_name"]) == (size, size, "red")
    assert (body["name"], body["source"], body["cancellable"]) == ("red", "shelf@red", False)
    assert [(file["done"], file["total"]) for file in body["files"]] == [(size, size)]
    with shop.client as client:
        reply = client.chat.completions.create(model="red", messages=user("What is the capital of France?"))  # type: ignore[arg-type]
    assert "Paris" in (reply.choices[0].message.content or "")


def test_a_name_of_ones_own_with_overrides(shop: Shop) -> None:
    id = shop.apply(id="shelf@blue", name="mine/own", overrides={"context_size": 512, "description": "My own."})
    assert shop.over(id)["name"] == "mine/own"
    [written] = [path for path in shop.folder.glob("*.yaml") if path.name.startswith("mine__own")]
    assert "context_size: 512" in written.read_text()
    assert "mine/own" in shop.names()


def test_a_variant_keeps_the_name_of_the_entry(shop: Shop) -> None:
    body = shop.over(shop.apply(id="base", variant="blue"))
    assert (body["name"], body["source"]) == ("base", "shelf@blue")


def test_a_hub_id_and_an_address_of_it(shop: Shop) -> None:
    id = f"{REPO}/green.gguf"
    assert shop.over(shop.apply(id=id))["message"] == "completed"
    with shop.http() as http:
        reply = http.post("/models/import-uri", json={"uri": f"huggingface://{id}", "preferences": {"name": "imported"}})
    assert shop.over(reply.json()["uuid"])["name"] == "imported"
    assert {id, "imported"} <= shop.names()


def test_two_who_ask_for_the_same_get_one_job(shop: Shop) -> None:
    release = shop.held("held")
    first = shop.apply(id="held")
    body = shop.half_is_here(first)
    assert shop.apply(id="held") == first
    assert body["cancellable"] and not body["processed"] and body["message"].startswith("downloading")
    assert body["total_bytes"] == len(shop.files["held"]) > body["current_bytes"]
    with shop.http() as http:
        every = http.get("/models/jobs").json()
    assert every[first]["gallery_element_name"] == "held" and all(is_like_localai(job) for job in every.values())
    release.set()
    assert shop.over(first)["message"] == "completed"


def test_what_fails_says_why(shop: Shop) -> None:
    body = shop.over(shop.apply(id="away"))
    assert body["message"] == f"error: {body['error']}" and "away.gguf" in body["error"]
    assert (body["failure"]["kind"], body["cancelled"]) == ("HubNotFound", False)


def test_a_job_that_nobody_knows(shop: Shop) -> None:
    with shop.http() as http:
        for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
            reply = http.request(method, f"/models/jobs/no-such-job{path}")
            assert (reply.status_code, error_of(reply)["code"]) == (404, "job_not_found")
            assert error_of(reply)["message"].startswith("could not find any status for ID")


def test_a_cancelled_job_leaves_nothing(shop: Shop) -> None:
    release = shop.held("doomed")
    id = shop.apply(id="doomed")
    shop.half_is_here(id)
    with shop.http() as http:
        body = http.post(f"/models/jobs/{id}/cancel").json()
    release.set()
    assert is_like_localai(body) and body["cancelled"] and body["processed"] and not body["cancellable"]
    assert "doomed" not in shop.names()
    assert not list(shop.folder.glob("doomed*"))


@pytest.mark.parametrize("path", ["gone", "shelf%2Fgone"])
def test_a_model_is_removed(shop: Shop, path: str) -> None:
    name = path.replace("%2F", "/")
    assert shop.over(shop.apply(id="gone", name=name))["name"] == name
    with shop.http() as http:
        reply = http.post(f"/models/delete/{path}")
        assert reply.status_code == 200, reply.text
        body = shop.over(reply.json()["uuid"])
        assert (body["deletion"], body["message"], body["gallery_element_name"]) == (True, "completed", name)
        assert name not in shop.names()
        again = shop.over(http.post(f"/models/delete/{path}").json()["uuid"])
    assert again["failure"]["kind"] == "ModelNotFound"


def test_the_folder_is_read_again(shop: Shop) -> None:
    (shop.folder / "dropped.yaml").write_text("backend: echo\n")
    assert "dropped" not in shop.names()
    with shop.http() as http:
        assert http.post("/models/reload").status_code == 200
    assert "dropped" in shop.names()


# --- galleries ---------------------------------------------------------------------------------------------------------------


def test_what_there_is(shop: Shop) -> None:
    shop.over(shop.apply(id="red"))
    with shop.http() as http:
        every = {body["name"]: body for body in http.get("/models/available").json()}
        tagged = http.get("/models/available", params={"term": "red", "tag": "tiny"}).json()
        nothing = http.get("/models/available", params={"term": "zebra-of-nobody"}).json()
    red = every["red"]
    assert list(red)[:12] == [
        "url", "name", "description", "license", "urls", "icon", "tags", "files", "size", "gallery", "installed", "backend",
    ]  # fmt: skip
    assert (red["license"], red["tags"], red["installed"]) == ("mit", ["chat", "tiny"], True)
    assert red["gallery"]["name"] == "shelf" and red["files"][0]["filename"] == "red.gguf"
    assert every["told"]["installed"] is False
    assert tagged[0]["name"] == "red" and nothing == []


def test_the_galleries(shop: Shop) -> None:
    with shop.http() as http:
        states = {state["name"]: state for state in http.get("/models/galleries").json()}
        assert http.head("/models/galleries").status_code == 200
    assert states["shelf"]["entries"] == 9 and states["shelf"]["error"] is None
    assert {"url", "mirrors", "name", "verification"} <= set(states["llmgallery"])


# --- what is refused ---------------------------------------------------------------------------------------------------------

LOCAL = [
    ({"url": "file:///etc/passwd"}, "url"),
    ({"config_url": "/etc/passwd"}, "url"),
    ({"url": "../other.yaml"}, "url"),
    ({"url": "ftp://example.org/x.yaml"}, "url"),
    ({"url": "plain-name"}, "url"),
    ({"id": "file:///etc/passwd"}, "id"),
    ({"id": "/etc/passwd"}, "id"),
    ({"id": "~/x.gguf"}, "id"),
    ({"id": "red", "files": [{"uri": "https://example.org/x"}, {"uri": "file:///etc/passwd", "filename": "x"}]}, "files[1].uri"),
    ({}, "id"),
    ({"id": "red", "files": [{"filename": "x"}]}, "files[0].uri"),
    ({"url": "https://example.org/a.yaml", "config_url": "https://example.org/b.yaml"}, "config_url"),
    ({"id": "base", "variant": "nothing-like-it"}, "variant"),
    ({"id": f"{REPO}/green.gguf", "variant": "Q8_0"}, "variant"),
    ({"id": "red", "files": [{"uri": "http://127.0.0.1:9/x.gguf"}]}, "files[0].uri"),
    ({"id": "red", "files": [{"uri": "https://169.254.169.254/latest"}]}, "files[0].uri"),
    ({"id": "red", "overrides": {"mmproj": "http://localhost:9/x.gguf"}}, "overrides.mmproj"),
    ({"id": "red", "overrides": {"parameters": {"model": "file:///etc/passwd"}}}, "overrides.parameters.model"),
    ({"id": "red", "overrides": {"trust_remote_code": True}}, "overrides.trust_remote_code"),
    ({"id": "red", "overrides": {"parameters": {"trust_remote_code": True}}}, "overrides.trust_remote_code"),
    (
        {"id": "red", "overrides": {"backend": "openai", "options": {"headers": {"x": "${HF_TOKEN}"}}}},
        "overrides.options.headers",
    ),
    ({"id": "red", "overrides": {"options": ["base-url:https://x.example/v1"]}}, "overrides.options.base_url"),
    ({"id": "red", "overrides": {"template": {"chat_template_file": "x"}}}, "overrides.template.chat_template_file"),
]


@pytest.mark.parametrize(("fields", "param"), LOCAL)
def test_what_no_request_may_name(shop: Shop, fields: dict[str, Any], param: str) -> None:
    with shop.http() as http:
        before = http.get("/models/jobs").json()
        reply = http.post("/models/apply", json=fields)
        assert (reply.status_code, error_of(reply)["param"]) == (400, param), reply.text
        assert http.get("/models/jobs").json() == before


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "owner/repo"},
        {"url": "https://example.org/x.yaml"},
        {"id": "red", "files": [{"uri": "hf://owner/repo/x.gguf"}]},
        {"id": "red", "overrides": {"parameters": {"model": "owner/repo/x.gguf"}}},
        {"id": "red", "overrides": {"download_files": [{"filename": "x", "uri": "https://example.org/x"}]}},
    ],
)
def test_who_may_install_what_galleries_have_brings_no_files(modest: LiveServer, fields: dict[str, Any]) -> None:
    with modest.http() as http:
        reply = http.post("/models/apply", json=fields)
    assert (reply.status_code, error_of(reply)["code"]) == (403, "not_allowed"), reply.text
    assert "auto_install: hub" in error_of(reply)["message"]


@pytest.fixture(scope="module")
def modest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Installs what galleries have, and nothing else."""
    root = tmp_path_factory.mktemp("modest")
    (root / "shelf.yaml").write_text(json.dumps([entry("red", b"x")]))
    (root / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMGALLERY_DATA_DIR", str(root / "data"))
        with LiveServer(root / "models", auto_install="gallery", galleries=[f"shelf={root / 'shelf.yaml'}"]) as server:
            yield server


def test_an_entry_that_nobody_has(shop: Shop) -> None:
    with shop.http() as http:
        reply = http.post("/models/apply", json={"id": "reed"})
    assert (reply.status_code, error_of(reply)["code"]) == (404, "model_not_found")
    assert "red" in error_of(reply)["message"]


def test_fields_that_are_not_read_are_told(shop: Shop) -> None:
    with shop.http() as http:
        reply = http.post("/models/apply", json={"id": "red", "override": {}, "overrides": {"contxt_size": 5}, "tags": []})
    assert reply.status_code == 200
    [warning, other] = reply.json()["warnings"]
    assert warning.startswith("override ") and "did you mean context_size" in other
    assert reply.headers["x-llmgallery-warnings"] == "2"
    shop.over(reply.json()["uuid"])


def test_who_may_install_nothing_may_remove_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMGALLERY_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "shelf.yaml").write_text(json.dumps([entry("red", b"x")]))
    (tmp_path / "models").mkdir()
    with LiveServer(tmp_path / "models", auto_install="off", galleries=[f"shelf={tmp_path / 'shelf.yaml'}"]) as server:
        server.add("parrot")
        with server.http() as http:
            for path, body in (("apply", {"id": "red"}), ("apply", {"id": "owner/repo"}), ("delete/parrot", None)):
                reply = http.post(f"/models/{path}", json=body)
                assert (reply.status_code, error_of(reply)["code"]) == (403, "not_allowed"), reply.text
                assert "auto_install" in error_of(reply)["message"]
            assert http.get("/models/available").status_code == 200


# --- streams -----------------------------------------------------------------------------------------------------------------


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_a_stream_tells_a_job_to_its_end(shop: Shop) -> None:
    release = shop.held("told")
    id = shop.apply(id="told")
    with shop.http() as http, http.stream("GET", f"/models/jobs/{id}/events") as reply:
        assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        told = []
        for state in events(reply.iter_lines()):
            told.append(state)
            if state["current_bytes"]:
                release.set()
    assert all(is_like_localai(state) and state["id"] == id for state in told)
    counts = [state["current_bytes"] for state in told]
    assert counts == sorted(counts) and counts[-1] == len(shop.files["told"])
    assert [state["processed"] for state in told] == [False] * (len(told) - 1) + [True]
    with shop.http() as http:
        once = http.get(f"/models/jobs/{id}/events")
        assert "\nid: over\ndata: " in once.text and once.text.count("data:") == 1
        assert http.get(f"/models/jobs/{id}/events", headers={"last-event-id": "over"}).status_code == 204


def test_all_jobs_in_one_stream(shop: Shop) -> None:
    shop.over(shop.apply(id="red"))
    with shop.http() as http, http.stream("GET", "/models/jobs/events") as reply:
        coming = events(reply.iter_lines())
        first = next(coming)
        new = shop.apply(id="blue", name="streamed")
        assert first["id"] != new
        assert next(state for state in coming if state["id"] == new and state["processed"])["message"] == "completed"


def test_an_open_stream_does_not_hold_up_the_end(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with serving(tmp_path / "models", "--drain", "20") as server:
        url = f"{server.url}/models/jobs/events"
        with httpx.Client(timeout=DEADLINE) as http, http.stream("GET", url) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith(":")
            server.process.send_signal(signal.SIGTERM)
            assert not [line for line in lines if line.startswith("data:")]
        assert server.process.wait(5) == 0


async def test_a_silent_stream_is_kept_open_and_a_client_that_leaves_ends_it() -> None:
    begun, heard, closed = Install("1", "m"), asyncio.Event(), asyncio.Event()
    sent: list[bytes] = []

    async def states() -> AsyncGenerator[Install, None]:
        try:
            yield begun
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def receive() -> Any:
        await heard.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if b"keep-alive" in sent[-1]:
            heard.set()

    async with asyncio.timeout(DEADLINE):
        await JobEvents(states(), asyncio.Event(), idle=0.01)({}, receive, send)  # type: ignore[arg-type]
    assert sent[2].startswith(b'data: {"deletion":false') and sent[3] == b": keep-alive\n\n"
    assert closed.is_set()


# --- bodies ------------------------------------------------------------------------------------------------------------------


def test_the_words_of_a_job() -> None:
    files = (FileProgress("a.gguf", 1024, 1024), FileProgress("b.gguf", 512, 1024))
    running = job_body(Install("1", "m", "downloading", files=files))
    assert (running.file_name, running.message, running.progress) == ("b.gguf", "downloading b.gguf", 75.0)
    assert (running.file_size, running.downloaded_size) == ("2.0 KiB", "1.5 KiB")
    unknown = job_body(Install("1", "m", "downloading", files=(FileProgress("a", 5),)))
    assert (unknown.file_size, unknown.total_bytes, unknown.progress) == ("", 0, 0.0)
    failed = job_body(Install("1", "m", "failed", error=ErrorInfo("HubCorrupt", "wrong bytes")))
    assert (failed.message, failed.error, failed.processed) == ("error: wrong bytes", "wrong bytes", True)
    assert job_body(Install("1", "m", "removing", deletion=True)).cancellable is False
