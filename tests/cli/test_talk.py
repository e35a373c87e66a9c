"""Conversations over a source that is played: history, display, statistics, and what a stream of chunks means."""

from __future__ import annotations

import io

import pytest

from llmgallery.cli.display import Display, size
from llmgallery.cli.portal import Portal
from llmgallery.cli.remote import Remote, is_loopback, read_events
from llmgallery.cli.talk import Talk, printable, sampling, statistics
from llmgallery.core.errors import GalleryError
from llmgallery.core.events import Done, Progress, TextDelta, Usage
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest
from llmgallery.core.sampling import Sampling


class Played:
    """A source that plays one list of events a question, and keeps the requests."""

    def __init__(self, *answers: list[object]) -> None:
        self.answers = list(answers)
        self.requests: list[ChatRequest] = []

    async def ask(self, model: str, request: ChatRequest):
        self.requests.append(request)
        for event in self.answers.pop(0):
            if isinstance(event, BaseException):
                raise event
            yield event


@pytest.fixture
def portal():
    with Portal() as portal:
        yield portal


def typed(*lines: str):
    """A keyboard: these lines, then Ctrl-D."""
    left = list(lines)

    def read(prompt: str) -> str:
        if not left:
            raise EOFError
        return left.pop(0)

    return read


def test_a_chat_keeps_its_history_until_it_is_cleared(portal, capsys):
    source = Played(*([TextDelta(f"answer {number}"), Done("stop")] for number in (1, 2, 3)))
    talk = Talk(portal, source, "m", history=[say("system", "Be brief.")])
    talk.chat(typed("one", "", "two", "/clear", "three"))
    asked = [[(message.role, message.text) for message in request.messages] for request in source.requests]
    system = ("system", "Be brief.")
    assert asked == [
        [system, ("user", "one")],
        [system, ("user", "one"), ("assistant", "answer 1"), ("user", "two")],
        [system, ("user", "three")],
    ]
    assert capsys.readouterr().out == "answer 1\nanswer 2\nanswer 3\n"


def test_ctrl_c_at_the_prompt_gives_up_the_line(portal, capsys):
    source = Played([TextDelta("fine"), Done("stop")])
    lines: list[str | type[BaseException]] = [KeyboardInterrupt, "go on", EOFError]

    def read(prompt: str) -> str:
        line = lines.pop(0)
        if isinstance(line, str):
            return line
        raise line

    Talk(portal, source, "m").chat(read)
    assert capsys.readouterr().out == "fine\n"


def test_an_answer_cannot_steer_the_terminal():
    assert printable("a\tb\nc\x1b[2Jd\x9be\rf") == "a\tb\nc\ufffd[2Jd\ufffde\ufffdf"


def test_an_error_costs_one_answer_and_no_history(portal, capsys):
    source = Played([TextDelta("half"), GalleryError("it broke")], [TextDelta("whole\n"), Done("stop")])
    talk = Talk(portal, source, "m")
    talk.chat(typed("one", "two", "/bye", "never"))
    assert [message.text for message in source.requests[1].messages] == ["two"]
    captured = capsys.readouterr()
    assert captured.out.endswith("whole\n") and "Error: it broke" in captured.err


def test_progress_goes_to_stderr_and_numbers_are_right(portal, capsys):
    source = Played([
        Progress("queued"),
        Progress("downloading", 0.1, 100, 1000),
        Progress("downloading", 0.2, 200, 1000),
        Progress("downloading", 0.3, 300, 1000),
        Progress("loading", 0.5),
        TextDelta("a"),
        TextDelta("b"),
        Done("length", Usage(7, 2)),
    ])  # fmt: skip
    talk = Talk(portal, source, "m", verbose=True)
    assert talk.ask("Hi") == "ab"
    captured = capsys.readouterr()
    assert captured.out == "ab\n"
    lines = captured.err.splitlines()
    assert lines[:3] == ["downloading m 10% of 1.0 kB", "downloading m 30% of 1.0 kB", "loading m 50%"]
    assert "7 prompt tokens, 2 tokens" in lines[3]
    assert "cut" in lines[4]


def test_statistics():
    assert statistics(Usage(5, 21), 10.0, 10.5, 12.5) == "first token after 0.50 s, 5 prompt tokens, 21 tokens, 10.0 tokens/s"
    assert statistics(Usage(5, 1), 10.0, 10.5, 10.5) == "first token after 0.50 s, 5 prompt tokens, 1 tokens"
    assert statistics(Usage(5, 0), 10.0, None, 11.0) == "no token in 1.00 s, 5 prompt tokens, 0 tokens"


def test_only_what_was_asked_is_sampling():
    assert sampling(temperature=0, max_tokens=None, seed=5) == Sampling(temperature=0.0, seed=5)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (4_914_976, "4.9 MB"), (7_200_000_000, "7.2 GB"), (2 * 10**12, "2.0 TB")]
)
def test_sizes(count, text):
    assert size(count) == text


def test_the_display_is_silent_while_it_only_waits():
    stream = io.StringIO()
    with Display("m", stream) as display:
        display.show(Progress("queued"))
        display.show(None)
    assert stream.getvalue() == ""


# --- chunks of a server ------------------------------------------------------------------------------------------------------

CHUNK = 'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}],"usage":null}'
LAST = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"%s"}]}'
USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'


async def collect(*lines: str) -> list[object]:
    async def stream():
        for line in lines:
            yield line

    return [event async for event in read_events(stream())]


async def test_chunks_become_events():
    events = await collect(
        ": queued", ": downloading 7%", ": loading 34%", ": keep-alive", "", CHUNK % "a", CHUNK % "", LAST % "length", USAGE
    )
    assert events == [
        Progress("queued"),
        Progress("downloading", 0.07),
        Progress("loading", 0.34),
        TextDelta("a"),
        Done("length", Usage(3, 2)),
    ]
    assert (await collect(LAST % "stop", "data: [DONE]"))[-1] == Done("stop")


async def test_an_error_in_the_stream_is_raised():
    with pytest.raises(GalleryError, match="the worker died"):
        await collect(CHUNK % "a", 'data: {"error": {"message": "the worker died", "code": null}}')


async def test_a_stream_without_an_end_is_an_error():
    with pytest.raises(GalleryError, match="broke off"):
        await collect(CHUNK % "a")


async def test_what_is_no_server_of_ours_is_told(stranger):
    async with Remote(stranger) as remote:
        assert not await remote.answers()
        with pytest.raises(GalleryError, match="answered 404"):
            await remote.get("/v1/models")
        with pytest.raises(GalleryError, match="answered 404"):
            async for _ in remote.ask("m", ChatRequest((say("user", "Hi"),))):
                pass


@pytest.fixture
def stranger():
    """A web server that knows nothing of models."""
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_nobody_at_the_address():
    async with Remote("http://127.0.0.1:9/v1") as remote:
        assert remote.url == "http://127.0.0.1:9"
        assert not await remote.answers()
        with pytest.raises(GalleryError, match=r"the server at http://127\.0\.0\.1:9 does not answer"):
            await remote.get("/v1/models")
    async with Remote("no url at all") as remote:
        assert not await remote.answers()


@pytest.mark.parametrize(
    ("url", "loopback"),
    [("http://127.0.0.1:8080", True), ("http://[::1]:1", True), ("http://localhost", True), ("https://llm.example.org", False)],
)
def test_loopback_addresses(url, loopback):
    assert is_loopback(url) is loopback
