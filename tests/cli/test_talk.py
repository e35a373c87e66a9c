"""Conversations over a source that is played: history, display, statistics, and what a stream of chunks means."""

from __future__ import annotations

import io
import re
import threading

import click
import pytest
from terminal import DEADLINE

from llmgallery.cli import display
from llmgallery.cli.display import Display, size
from llmgallery.cli.given import server_url
from llmgallery.cli.portal import Portal
from llmgallery.cli.remote import Remote, is_loopback, read_events
from llmgallery.cli.talk import HELP, Talk, printable, sampling, statistics
from llmgallery.core.errors import GalleryError, ModelNotFound
from llmgallery.core.events import Done, Progress, TextDelta, Usage
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest
from llmgallery.core.sampling import Sampling


class Played:
    """A source that plays one list of events a question, and keeps the requests."""

    def __init__(self, *answers: list[object]) -> None:
        self.answers = list(answers)
        self.requests: list[ChatRequest] = []

    async def check(self, model: str) -> None:
        if model == "nobody":
            raise ModelNotFound("The model 'nobody' does not exist; GET /v1/models lists the models.")

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
    talk.chat(typed("one", "", "  ", "two", "/clear ", "three"))
    asked = [[(message.role, message.text) for message in request.messages] for request in source.requests]
    system = ("system", "Be brief.")
    assert asked == [
        [system, ("user", "one")],
        [system, ("user", "one"), ("assistant", "answer 1"), ("user", "two")],
        [system, ("user", "three")],
    ]
    assert capsys.readouterr().out == "answer 1\nanswer 2\nanswer 3\n"


def test_a_model_that_cannot_be_asked_is_told_before_the_first_prompt(portal, capsys):
    with pytest.raises(ModelNotFound):
        Talk(portal, Played(), "nobody").chat(lambda prompt: pytest.fail("it prompted"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("end", ["/bye", "/exit", "/quit", "/exit  "])
def test_a_chat_is_ended_by_a_word(portal, end):
    Talk(portal, source := Played(), "m").chat(typed(end, "never"))
    assert source.requests == []


@pytest.mark.parametrize("line", ["/x", "/Bye", "/set temperature 1", "/clear everything", "/help me"])
def test_an_unknown_command_is_not_sent(portal, capsys, line):
    talk = Talk(portal, source := Played(), "m", history=[say("system", "Be brief.")])
    talk.chat(typed(line))
    assert source.requests == [] and len(talk.history) == 1
    hint = capsys.readouterr().err.splitlines()[-1]
    assert hint.startswith(f"{line.split()[0]} was not sent: ") and "/clear" in hint and "/bye" in hint


@pytest.mark.parametrize("line", ["/help", "/?"])
def test_help_names_the_commands(portal, capsys, line):
    Talk(portal, source := Played(), "m").chat(typed(line))
    assert source.requests == []
    assert capsys.readouterr().err.splitlines()[-1] == HELP


@pytest.mark.parametrize("line", ["/etc/hosts: what is it?", " /bye", "// a comment", "/", "1/2"])
def test_what_only_looks_like_a_command_is_sent(portal, line):
    Talk(portal, source := Played([TextDelta("fine"), Done("stop")]), "m").chat(typed(line))
    assert [request.messages[-1].text for request in source.requests] == [line.strip()]


def test_an_error_names_commands_and_no_endpoints(portal, capsys):
    source = Played([ModelNotFound("The model 'm' does not exist; GET /v1/models lists the models.")])
    Talk(portal, source, "m").chat(typed("Hi"))
    assert "Error: The model 'm' does not exist; `llmgallery list` lists the models." in capsys.readouterr().err


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
        None,
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
    told = "first token after 0.50 s, 5 prompt tokens, 21 tokens in 2.50 s, decoding: 10.0 tokens/s"
    assert statistics(Usage(5, 21), 10.0, 10.5, 12.5) == told
    told = "first token after 0.50 s, 5 prompt tokens, 1 token in 0.50 s, decoding: n/a, too short to measure"
    assert statistics(Usage(5, 1), 10.0, 10.5, 10.5) == told
    assert statistics(Usage(1, 0), 10.0, None, 11.0) == "no text, 1 prompt token, 0 tokens in 1.00 s"


def test_an_answer_in_one_piece_has_no_speed():
    told = statistics(Usage(5, 8), 10.0, 10.5, 10.5013)
    assert told.endswith("8 tokens in 0.50 s, decoding: n/a, too short to measure")


def test_only_what_was_asked_is_sampling():
    assert sampling(temperature=0, max_tokens=None, seed=5) == Sampling(temperature=0.0, seed=5)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (4_914_976, "4.9 MB"), (7_200_000_000, "7.2 GB"), (2 * 10**12, "2.0 TB")]
)
def test_sizes(count, text):
    assert size(count) == text


def test_the_display_is_silent_while_it_only_waits():
    stream = io.StringIO()
    with Display("m", stream) as shown:
        shown.show(Progress("queued"))
        shown.show(None)
    assert stream.getvalue() == ""


class Screen(io.StringIO):
    """A terminal that tells when it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self._written = threading.Condition()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._written:
            self._written.notify_all()
            return super().write(text)

    def shows(self, text: str) -> bool:
        """Within the deadline."""
        with self._written:
            return self._written.wait_for(lambda: text in self.getvalue(), DEADLINE)


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    return Screen()


@pytest.mark.parametrize("progress", [Progress("queued"), Progress("loading"), Progress("loading", 0.0)])
def test_no_bar_flashes_for_a_model_that_is_there(screen, monkeypatch, progress):
    monkeypatch.setattr(display, "DELAY", 3600.0)
    with Display("m", screen) as shown:
        shown.show(Progress("queued"))
        shown.show(progress)
        shown.show(None)
    assert screen.getvalue() == ""


def test_a_bar_comes_when_a_model_stays_queued(screen):
    with Display("m", screen) as shown:
        shown.show(Progress("queued"))
        assert screen.getvalue() == ""
        assert screen.shows("queued m")


def test_real_progress_is_shown_at_once(screen, monkeypatch):
    monkeypatch.setattr(display, "DELAY", 3600.0)
    with Display("m", screen) as shown:
        shown.show(Progress("queued"))
        shown.show(Progress("downloading", 0.25, 250, 1000))
        assert screen.shows("downloading m") and screen.shows("25%")
        shown.show(Progress("loading"))
        assert screen.shows("loading m")
    assert "queued" not in screen.getvalue()


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
        None,
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
    ("text", "url"),
    [
        ("127.0.0.1:18311", "http://127.0.0.1:18311"),
        ("localhost:8080/v1", "http://localhost:8080/v1"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("llm.example.org", "http://llm.example.org"),
        ("HTTPS://llm.example.org/", "HTTPS://llm.example.org/"),
    ],
)
def test_an_address_needs_no_scheme(text, url):
    assert server_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["garbage://x", "ftp://llm.example.org", "unix:///run/x", "http://", "http://[::1", "http://h:port", "no url", "h:99999"],
)
def test_what_is_no_address_is_wrong_usage(text):
    with pytest.raises(click.UsageError, match=f"LLMGALLERY_URL={re.escape(text)} is no address"):
        server_url(text)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [("http://127.0.0.1:8080", True), ("http://[::1]:1", True), ("http://localhost", True), ("https://llm.example.org", False)],
)
def test_loopback_addresses(url, loopback):
    assert is_loopback(url) is loopback
