"""Keys where there are some; without them no forged names and no foreign pages."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from litestar.datastructures import Headers
from live_server import LiveServer, error_of, user

from llmgallery.api import auth
from llmgallery.api.errors import ForeignHost, ForeignOrigin, Unauthorized

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("locked")
    (folder / "echo.yaml").write_text("backend: echo\n")
    with LiveServer(folder, api_keys=["first-key", "second-key"], allowed_origins=["https://chat.example.org"]) as server:
        yield server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer first-ke"}, 401),
        ({"authorization": "Bearer first-keyy"}, 401),
        ({"authorization": "Basic first-key"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer first-key"}, 200),
        ({"authorization": "bearer second-key"}, 200),
        ({"x-api-key": "second-key"}, 200),
        ({"authorization": "Bearer first-key", "host": "anything.example.org"}, 200),
        ({"authorization": "Bearer first-key", "origin": "https://anywhere.example.org"}, 200),
    ],
)
def test_a_key_opens_and_nothing_else(locked: LiveServer, headers: dict[str, str], status: int) -> None:
    with locked.http() as http:
        for reply in (
            http.get("/v1/models", headers=headers),
            http.get("/metrics", headers=headers),
            http.post(CHAT, json={"model": "echo", "messages": user("hi")}, headers=headers),
        ):
            assert reply.status_code == status, reply.text
            if status == 401:
                assert error_of(reply)["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"] == "Bearer"
                assert "-key" not in reply.text


def test_the_official_client_is_told_that_its_key_is_wrong(locked: LiveServer) -> None:
    with locked.client as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with locked.client.with_options(api_key="first-key") as client:
        assert "echo" in [model.id for model in client.models.list()]


def test_a_key_is_never_taken_for_a_model(locked: LiveServer) -> None:
    with locked.http(headers={"authorization": "Bearer first-key"}) as http:
        reply = http.post(CHAT, json={"messages": user("hi")})
        assert reply.status_code == 400
        assert "first-key" not in reply.text


def test_supervisors_need_no_key_and_no_name(locked: LiveServer, http: httpx.Client) -> None:
    with locked.http() as keyless:
        for ask in (keyless, http):
            for path in ("/healthz", "/readyz"):
                assert ask.get(path, headers={"host": "10.1.2.3:80"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example.org", "evil.example.org:8080", "127.0.0.1.evil.org", "10.0.0.1:8080", ""])
def test_a_foreign_host_is_misdirected(http: httpx.Client, host: str) -> None:
    reply = http.get("/v1/models", headers={"host": host})
    assert (reply.status_code, error_of(reply)["code"]) == (421, "misdirected_request")
    assert "allowed_hosts" in error_of(reply)["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "127.3.2.1:80", "[::1]:8080", "app.localhost:3000"])
def test_loopback_names_are_ours(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example.org", "null", "http://localhost.evil.org", "https://127.0.0.1.evil.org"]
)
def test_foreign_pages_are_forbidden(http: httpx.Client, origin: str) -> None:
    for reply in (
        http.get("/v1/models", headers={"origin": origin}),
        # What a form of that page could send without asking first.
        http.post(CHAT, content=b'{"model": "echo"}', headers={"origin": origin, "content-type": "text/plain"}),
    ):
        assert (reply.status_code, error_of(reply)["code"]) == (403, "foreign_origin")
        assert "access-control-allow-origin" not in reply.headers


def test_pages_of_this_machine_may_read_the_answers(http: httpx.Client) -> None:
    reply = http.get("/v1/models", headers={"origin": "http://localhost:3000"})
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_configured_pages_pass_the_preflight(locked: LiveServer) -> None:
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with locked.http() as http:
        reply = http.options(CHAT, headers={"origin": "https://chat.example.org", **asking})
        assert reply.status_code == 204
        assert reply.headers["access-control-allow-origin"] == "https://chat.example.org"
        refused = http.options(CHAT, headers={"origin": "https://evil.example.org", **asking})
        assert (refused.status_code, error_of(refused)["code"]) == (403, "foreign_origin")
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", "http://["])
def test_a_foreign_preflight_is_forbidden_as_its_request_would_be(http: httpx.Client, origin: str) -> None:
    asking = {"origin": origin, "access-control-request-method": "POST"}
    for reply in (http.options(CHAT, headers=asking), http.post(CHAT, headers=asking)):
        assert (reply.status_code, error_of(reply)["code"]) == (403, "foreign_origin")
        assert reply.headers["content-type"] == "application/json"
        assert not [name for name in reply.headers if name == "access-control-allow-origin"]
    rebound = http.options(CHAT, headers={"origin": "http://evil.example.org", "host": "evil.example.org"})
    assert (rebound.status_code, error_of(rebound)["code"]) == (421, "misdirected_request")


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://[::1]", "http://127.3.2.1:80"])
def test_pages_of_this_machine_pass_the_preflight(http: httpx.Client, origin: str) -> None:
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "x-own"}
    reply = http.options(CHAT, headers={"origin": origin, **asking})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (204, origin)
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "x-own" in reply.headers["access-control-allow-headers"]


def test_options_without_cors_tells_the_methods(http: httpx.Client, locked: LiveServer) -> None:
    own = {"host": "gallery.localhost:80", "origin": "http://gallery.localhost:80"}  # a page of the server's own
    with locked.http() as keyed:
        keyed.headers["authorization"] = "Bearer first-key"
        for reply in (
            http.options("/v1/models"),
            http.options("/v1/models", headers=own),
            keyed.options("/v1/models", headers=own),
        ):
            assert (reply.status_code, reply.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
            assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    ("host", "name"),
    [("[::1]:8080", "::1"), ("[::1]", "::1"), ("::1", "::1"), ("LocalHost:80", "localhost"), ("a.b", "a.b"), ("", "")],
)
def test_host_names(host: str, name: str) -> None:
    assert auth.host_name(host) == name


def test_configured_hosts_and_origins_pass() -> None:
    auth.check_host("gallery.example.org:80", frozenset({"gallery.example.org"}))
    auth.check_host("anything", frozenset({"*"}))
    with pytest.raises(ForeignHost):
        auth.check_host("gallery.example.org.evil", frozenset({"gallery.example.org"}))
    auth.check_origin(Headers({"origin": "https://a.example.org"}), ["https://a.example.org"])
    auth.check_origin(Headers({"origin": "https://a.example.org"}), ["*"])
    auth.check_origin(Headers({"origin": "https://me.example.org", "host": "me.example.org"}), [])
    with pytest.raises(ForeignOrigin):
        auth.check_origin(Headers({"origin": "https://b.example.org"}), ["https://a.example.org"])


def test_keys_that_are_no_ascii_are_wrong_keys() -> None:
    with pytest.raises(Unauthorized):
        auth.check_key(Headers({"authorization": "Bearer schlüssel"}), ["key"])
