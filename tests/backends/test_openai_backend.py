"""The backend against an endpoint that says, and fails, as it is told."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import pytest
from loopback_endpoint import END, Asked, Client, LoopbackEndpoint, answered, chunk, event, far_model, head, piece, stream, whole

from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import Cancelled, UpstreamError, UpstreamUnavailable
from llmgallery.core.events import Done, TextDelta, Usage
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, CompletionRequest

SECRET = "sk-very-secret-0123456789"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with far_model() as client:
        yield client


@pytest.fixture
def far(shared: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    shared.server.asked.clear()
    return shared


def test_a_chat_is_streamed_as_it_comes(far: Client) -> None:
    far.server.reply = stream(
        chunk("", role="assistant"), chunk("He"), chunk("llo"), chunk(finish="stop"), {"choices": [], "usage": USAGE}
    )
    id = far.ask(config=far.config(upstream_model="gpt-x"))
    assert far.heard.said(id) == [
        TextDelta("He"),
        TextDelta("llo"),
        Done("stop", Usage(5, 2, 3), extra={"body": {"usage": USAGE}}),
    ]
    asked = far.server.asked[0]
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.body == {
        "model": "gpt-x",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_first_words_are_there_before_the_last_are_written(far: Client) -> None:
    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream")
        yield piece(event(chunk("first")))
        await asked.go.wait()
        yield piece(event(chunk(" last", "stop"))) + piece(event("[DONE]")) + END

    far.server.reply = reply
    id = far.begin()
    far.heard.wait(lambda: far.heard.text(id) == "first")
    far.server.release(far.server.wait_for_request())
    far.heard.wait_for_end(id)
    assert far.heard.text(id) == "first last"


def test_a_chat_that_nobody_streams_comes_whole(far: Client) -> None:
    far.server.reply = whole(
        answered("Hello", usage=USAGE, system_fingerprint="fp"), x_ratelimit_remaining_tokens="7", server="s"
    )
    id = far.ask(streamed=False)
    assert far.heard.said(id) == [
        TextDelta("Hello"),
        Done("stop", Usage(5, 2, 3), extra={"body": {"usage": USAGE, "system_fingerprint": "fp"}}),
    ]
    assert far.heard.heads[id] == {"x-ratelimit-remaining-tokens": "7"}
    assert far.server.asked[0].body == {"model": "far", "messages": [{"role": "user", "content": "Hi"}]}


def test_an_endpoint_may_answer_whole_what_was_to_be_streamed_and_the_other_way(far: Client) -> None:
    far.server.reply = whole(answered("all"))
    assert far.heard.text(far.ask()) == "all"
    far.server.reply = stream(chunk("by "), chunk("and by", "stop"))
    assert far.heard.text(far.ask(streamed=False)) == "by and by"


def test_a_completion(far: Client) -> None:
    far.server.reply = stream({"choices": [{"index": 0, "text": " was"}]}, {"choices": [{"text": "", "finish_reason": "length"}]})
    id = far.ask(CompletionRequest("There", suffix=" end", echo=True))
    assert far.heard.text(id) == " was" and far.heard.said(id)[-1] == Done("length")
    assert far.server.asked[0].path == "/v1/completions"
    assert far.server.asked[0].body.items() >= {"prompt": "There", "suffix": " end", "echo": True}.items()


def test_pieces_of_bytes_and_keep_alives_change_nothing(far: Client) -> None:
    text = "\ufeff: hello\r\n\r\n" + event(chunk("Grü")) + ": waiting\n\n" + "event: x\nid: 3\n" + event(chunk("ße 🌍", "stop"))

    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream; charset=utf-8")
        for byte in (text + event("[DONE]")).encode():
            yield piece(bytes([byte]))
        yield END

    far.server.reply = reply
    id = far.ask()
    assert [event.text for event in far.heard.said(id) if isinstance(event, TextDelta)] == ["Grü", "ße 🌍"]


def test_many_conversations_at_once(far: Client) -> None:
    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream")
        yield piece(event(chunk(asked.body["messages"][0]["content"])))
        await asked.go.wait()
        yield piece(event(chunk("!", "stop"))) + piece(event("[DONE]")) + END

    far.server.reply = reply
    ids = [far.begin(ChatRequest((say("user", str(number)),))) for number in range(30)]
    far.heard.wait(lambda: all(far.heard.text(id) for id in ids))
    for asked in list(far.server.asked):
        far.server.release(asked)
    far.heard.wait_for_end(*ids)
    assert [far.heard.text(id) for id in ids] == [f"{number}!" for number in range(30)]


def test_connections_are_used_again(far: Client) -> None:
    with far_model() as own:
        own.server.reply = stream(chunk("a", "stop"))
        own.ask()
        own.server.reply = whole(answered("b"))
        own.backend.cancel(1)  # is over, but for what comes after its end
        deadline = time.monotonic() + 5
        while own.backend._tasks and time.monotonic() < deadline:
            pass
        own.ask(streamed=False)
        own.ask(streamed=False)
        assert own.server.connections <= 2


# --- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False])
def test_an_error_is_passed_on_as_it_came(far: Client, streamed: bool) -> None:
    body = {"error": {"message": "You ask too much", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}
    far.server.reply = whole(body, 429, retry_after="7", x_request_id="req_1", x_ratelimit_limit_requests="60", set_cookie="a=b")
    error = far.refused(streamed=streamed)
    assert isinstance(error, UpstreamError) and error.upstream is not None
    assert (error.upstream.status, error.upstream.body, error.retry_after) == (429, body, 7)
    assert error.upstream.headers == {"retry-after": "7", "x-request-id": "req_1", "x-ratelimit-limit-requests": "60"}
    assert error.message == f"{far.server.url}/chat/completions answered 429: You ask too much"


def test_no_message_holds_the_key(far: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", SECRET)
    monkeypatch.setenv("FAR_HEADER", "another-secret-value")
    config = far.config(api_key_env="FAR_KEY", headers={"X-Team": "${FAR_HEADER}"})
    said = f"wrong key {SECRET} of another-secret-value"
    far.server.reply = whole({"error": {"message": said}}, 401, x_request_id=SECRET)
    error = far.refused(config)
    assert far.server.asked[0].headers["authorization"] == f"Bearer {SECRET}"
    assert far.server.asked[0].headers["x-team"] == "another-secret-value"
    shown = repr((error.message, error.upstream))
    assert SECRET not in shown and "another-secret-value" not in shown and "wrong key [secret] of [secret]" in shown
    far.server.reply = stream({"error": {"message": said, "code": 503}})
    done = far.heard.done(far.ask(config=config))
    assert done is not None and done.error is not None and SECRET not in repr(done)
    assert done.error.upstream is not None and done.error.upstream.status == 503


def test_what_the_model_says_is_never_changed(far: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_TEAM", "blue-team")
    far.server.reply = stream(chunk("hello blue-team", "stop"))
    assert far.heard.text(far.ask(config=far.config(headers={"X-Team": "${FAR_TEAM}"}))) == "hello blue-team"


def test_a_page_of_html(far: Client) -> None:
    page = b"<html><head><style>b {}</style></head><body><h1>Bad gateway</h1><p>sorry &amp; bye</p></body></html>"
    far.server.reply = whole(page, 502, "text/html")
    error = far.refused()
    assert error.upstream is not None and error.upstream.body == page.decode()
    assert error.message.endswith("answered 502: Bad gateway sorry &amp; bye")


def test_the_advice_of_an_address_without_v1(far: Client) -> None:
    far.server.reply = whole({"detail": "Not Found"}, 404)
    assert "is /v1 missing" in far.refused(far.config(base_url=f"http://127.0.0.1:{far.server.port}")).message
    assert "is /v1 missing" not in far.refused().message


def test_a_redirect_is_not_followed(far: Client) -> None:
    far.server.reply = whole(b"", 308, location="https://elsewhere.example/v1")
    error = far.refused()
    assert isinstance(error, UpstreamUnavailable) and "https://elsewhere.example/v1" in error.message
    assert len(far.server.asked) == 1


def test_nobody_is_there(far: Client) -> None:
    gone = LoopbackEndpoint()
    gone.close()
    began = time.monotonic()
    error = far.refused(far.config(base_url=gone.url, connect_retries=1))
    assert isinstance(error, UpstreamUnavailable) and error.message.startswith(f"{gone.url} cannot be reached: ")
    assert 0.15 < time.monotonic() - began < 5


def test_it_answers_too_late(far: Client) -> None:
    async def silent(asked: Asked) -> AsyncIterator[bytes]:
        await asked.go.wait()
        yield b""

    far.server.reply = silent
    error = far.refused(far.config(connect_timeout=0.1, first_byte_timeout=0.1))
    assert isinstance(error, UpstreamUnavailable) and "first_byte_timeout" in error.message
    assert far.server.wait_for_request().left.wait(5) and len(far.server.asked) == 1


@pytest.mark.parametrize("body", [b"garbage", b'"text"', b"[]", b'{"choices": []}', b"\xff\xfe", b"[" * 100_000])
def test_garbage(far: Client, body: bytes) -> None:
    far.server.reply = whole(body)
    error = far.refused(streamed=False)
    assert isinstance(error, UpstreamUnavailable) and "answered with" in error.message


# --- in the middle of an answer ----------------------------------------------------------------------------------------------


def broken_off(far: Client, config: ModelConfig | None = None) -> Done:
    id = far.ask(config=config)
    assert far.heard.text(id) == "so far"
    done = far.heard.done(id)
    assert done is not None and done.reason == "error" and done.error is not None
    return done


def test_the_connection_ends_in_mid_stream(far: Client) -> None:
    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream")
        yield piece(event(chunk("so far")))

    far.server.reply = reply
    assert broken_off(far).error.kind == "UpstreamUnavailable"

    async def complete(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream")
        yield piece(event(chunk("so far"))) + END

    far.server.reply = complete
    assert "in the middle of its answer" in broken_off(far).error.message


def test_an_answer_that_ended_needs_no_last_word(far: Client) -> None:
    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream")
        yield piece(event(chunk("done", "length"))) + END

    far.server.reply = reply
    assert far.heard.done(far.ask()) == Done("length")


def test_silence_and_garbage_in_mid_stream(far: Client) -> None:
    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream")
        yield piece(event(chunk("so far")))
        await asked.go.wait()

    far.server.reply = reply
    assert "idle_timeout" in broken_off(far, far.config(idle_timeout=0.1)).error.message
    far.server.reply = stream(chunk("so far"), "{no json")
    assert "no JSON" in broken_off(far).error.message
    far.server.reply = stream(chunk("so far"), {"error": {"message": "overloaded", "code": 529}})
    error = broken_off(far).error
    assert (error.kind, error.upstream.status) == ("UpstreamError", 529) and "overloaded" in error.message


def test_cancelling_closes_the_connection_at_once(far: Client) -> None:
    async def reply(asked: Asked) -> AsyncIterator[bytes]:
        yield head(kind="text/event-stream")
        yield piece(event(chunk("so far")))
        await asked.go.wait()

    far.server.reply = reply
    id = far.begin()
    far.heard.wait(lambda: far.heard.text(id) == "so far")
    far.backend.cancel(id)
    far.heard.wait_for_end(id)
    assert far.heard.said(id)[-1] == Done("cancelled")
    assert far.server.wait_for_request().left.wait(5)


def test_cancelling_before_there_is_an_answer(far: Client) -> None:
    async def silent(asked: Asked) -> AsyncIterator[bytes]:
        await asked.go.wait()
        yield b""

    far.server.reply = silent
    at_once, later = far.begin(), far.begin()
    far.backend.cancel(at_once)
    far.server.wait_for_request()
    far.backend.cancel(later)
    far.heard.wait_for_end(at_once, later)
    assert {type(far.heard.refusals[id]) for id in (at_once, later)} == {Cancelled}
    far.backend.cancel(later)
    far.backend.cancel(10**6)


def test_closing_tells_who_waits() -> None:
    async def silent(asked: Asked) -> AsyncIterator[bytes]:
        await asked.go.wait()
        yield b""

    with far_model() as own:
        own.server.reply = silent
        id = own.begin()
        own.server.wait_for_request()
        own.backend.close()
        assert isinstance(own.heard.refusals[id], Cancelled)
