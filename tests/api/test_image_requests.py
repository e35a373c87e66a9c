"""Images on their way to a model that is here: read, or fetched, before its worker hears of the request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer, error_of

from llmgallery.backends.loader import specs

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Echo, said to be of a kind of which some models see. This one does not, which its worker alone knows."""
    folder: Path = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch, LiveServer(folder) as server, server.http() as client:
        seeing = replace(specs()["echo"], capabilities=specs()["echo"].capabilities | {"images"})
        patch.setitem(specs(), "echo", seeing)
        server.add("echo")
        yield client


def ask(http: httpx.Client, image: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": image}]
    reply = http.post(CHAT, json={"model": "echo", "messages": [{"role": "user", "content": parts}]})
    assert reply.status_code == 400, reply.text
    return error_of(reply)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"url": "data:image/png;base64,e*A="}, "valid base64"),
        ({"url": "data:image/png;base64"}, "comma"),
        ({"url": "http://127.0.0.1:9/a.png"}, "media_hosts"),
        ({"url": "http://169.254.169.254/latest"}, "media_hosts"),
        ({"url": "file:///etc/passwd"}, "expected a data: URI"),
        ({"uri": "x"}, "expected a data: URI"),
    ],
)
def test_a_bad_image_is_named(http: httpx.Client, image: dict[str, str], words: str) -> None:
    error = ask(http, image)
    assert error["param"] == "messages[0].content[1].image_url.url" and words in error["message"]
    assert error["code"] == "invalid_value"


def test_a_good_one_reaches_the_worker_which_says_that_the_model_does_not_see(http: httpx.Client) -> None:
    error = ask(http, {"url": "data:image/png;base64,iVBORw0KGgo="})
    assert error["code"] == "unsupported_parameter" and "image" in error["message"]
