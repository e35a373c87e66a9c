"""Alive, ready, counted; and what importing the application brings along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
from live_server import LiveServer, error_of, user
from prometheus_client.parser import text_string_to_metric_families

from llmgallery.api.app import create_app
from llmgallery.cli.stack import build
from llmgallery.config.settings import Settings

CHAT = "/v1/chat/completions"


def samples(http: httpx.Client) -> dict[tuple[str, ...], float]:
    reply = http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_alive_and_ready(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready"}


async def test_it_is_alive_but_not_ready_before_the_folder_was_read(tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path)
    (tmp_path / "echo.yaml").write_text("backend: echo\n")
    stack = build(settings)
    transport = httpx.ASGITransport(create_app(stack.gallery, settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.get("/healthz")).status_code == 200
        reply = await http.get("/readyz")
        assert (reply.status_code, error_of(reply)["code"]) == (503, "not_ready")
        assert reply.headers["retry-after"] == "1"
        await stack.gallery.start()
        assert "echo" in (await http.get("/v1/models")).text  # waits for the reading that has just begun
        assert (await http.get("/readyz")).status_code == 200
    await stack.close()


def test_requests_are_counted(live: LiveServer, http: httpx.Client) -> None:
    name = live.add("counted")
    http.post(CHAT, json={"model": name, "messages": user("hello"), "n": 2})
    http.post(CHAT, json={"model": name, "messages": user("hello"), "stream": True})
    http.post(CHAT, json={"model": name, "messages": user("hello " * 1000)})
    seen = samples(http)
    assert seen["llmgallery_generations_total", name, "ok"] == 2
    assert seen["llmgallery_generations_total", name, "ContextExceeded"] == 1
    assert seen["llmgallery_generations_in_progress", name] == 0
    assert seen["llmgallery_tokens_total", "prompt", name] == 16  # once for the two copies, once for the stream
    assert seen["llmgallery_tokens_total", "completion", name] == 18
    assert seen["llmgallery_time_to_first_token_seconds_count", name] == 2
    assert seen["llmgallery_model_state", name, "ready"] == 1
    assert seen["llmgallery_model_state", name, "loading"] == 0
    assert seen["llmgallery_engine_most_sequences", name] >= 1
    assert seen["llmgallery_http_requests_total", "POST", CHAT, "200"] >= 2
    assert seen["llmgallery_http_request_seconds_count", CHAT] >= 3


def test_routes_are_counted_by_pattern(http: httpx.Client) -> None:
    for name in ("echo", "parrot", "nobody"):
        http.get(f"/v1/models/{name}")
    routes = {key[2] for key in samples(http) if key[0] == "llmgallery_http_requests_total"}
    assert "/v1/models/{id}" in routes
    assert not any("parrot" in route for route in routes)


def test_importing_the_application_brings_no_engine_along() -> None:
    heavy = ("torch", "llama_cpp", "transformers", "numpy")
    code = f"import sys, llmgallery.api.app; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
