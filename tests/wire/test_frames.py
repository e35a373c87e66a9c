"""Every frame survives the wire, and nothing else does."""

import asyncio
import socket
import typing
from collections.abc import Callable

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.config.model import ModelConfig, Parameters, Template
from llmgallery.core.errors import ErrorInfo
from llmgallery.core.events import Alternative, Done, TextDelta, TokenLogprob, Usage
from llmgallery.core.messages import ImagePart, Message, TextPart, Tool, ToolCall, say
from llmgallery.core.rendering import Rendering
from llmgallery.core.requests import ChatRequest, CompletionRequest, EmbedRequest, RerankRequest
from llmgallery.core.sampling import Sampling
from llmgallery.wire import frames
from llmgallery.wire.channel import ChildChannel, FrameError, ParentChannel, decode_command, decode_report, encode

CONFIG = ModelConfig(name="m", parameters=Parameters(temperature=0.5), template=Template(preset="chatml"), options={"a": [1]})
CHAT = ChatRequest(
    (
        say("user", "é😀"),
        Message("assistant", tool_calls=(ToolCall("1", "f", "{}"),)),
        Message("user", (TextPart("a"), ImagePart(b"\x00\xff"))),
    ),
    Sampling(temperature=0.1, logit_bias={3: -1.5}),
    ("stop",),
    (Tool("f", parameters={"type": "object"}),),
)
TOP = (Alternative(6, b"x", -0.5), Alternative(7, b"\xff", -1.5))
COMMANDS = [
    frames.Load(CONFIG, "echo", ("/a", "/b")),
    frames.Load(CONFIG, "", render=True),
    frames.Configure("d", CONFIG),
    frames.Submit(1, "d", CHAT, True),
    frames.Submit(2, "d", CompletionRequest((1, 2, 3), echo=True, suffix="é", logprobs=0)),
    frames.Embed(3, EmbedRequest(("é", (1, 2)), 64, False, True)),
    frames.Rerank(4, RerankRequest("q", ("a", ""), True)),
    frames.Cancel(7),
    frames.Tokenize(8, "text", True, True),
    frames.Detokenize(9, (1, 2)),
    frames.Render(10, "d", CHAT),
    frames.Render(11, "d", CompletionRequest("é")),
    frames.Stop(),
]
REPORTS = [
    frames.Hello(1, "0", 12),
    frames.Loading(0.5),
    frames.Ready(2048, 4, ("chat",), 1 << 40, 512),
    frames.Accepted(1, 10, ("suffix was ignored",)),
    frames.Rejected(1, ErrorInfo("InvalidField", "no", "messages", ("a", "b"), 1.5)),
    frames.Events(((1, TextDelta("x")), (2, Done("stop", Usage(1, 2, 3), stop="\n", mean_logprob=-1.5)))),
    frames.Events(((1, TextDelta("x", (TokenLogprob(5, b"\xc3", None), TokenLogprob(6, b"x", -0.5, TOP)), (0, 0))),)),
    frames.Result(3, "text", (1,), ErrorInfo("GalleryError", "x")),
    frames.Result(4, rendering=Rendering("é", (1, 2), ("stop",), "template.chat", ("repaired",), ("warned",))),
    frames.Result(5, rendering=Rendering("")),
    frames.Vectors(4, (b"\x00\xff\x00\x80", b""), 5, ErrorInfo("Cancelled", "x")),
    frames.Stats(1, 2, 3, 4, 5),
    frames.Fatal(ErrorInfo("LoadError", "x")),
]


def test_every_frame_is_sampled() -> None:
    assert {type(frame) for frame in COMMANDS} == set(typing.get_args(frames.Command))
    assert {type(frame) for frame in REPORTS} == set(typing.get_args(frames.Report))


@pytest.mark.parametrize("frame", COMMANDS, ids=lambda frame: type(frame).__name__)
def test_commands_come_back_equal(frame) -> None:
    assert decode_command(encode(frame)[4:]) == frame


@pytest.mark.parametrize("frame", REPORTS, ids=lambda frame: type(frame).__name__)
def test_reports_come_back_equal(frame) -> None:
    assert decode_report(encode(frame)[4:]) == frame


@given(st.binary(max_size=200))
def test_noise_is_a_frame_error_or_a_frame(body: bytes) -> None:
    for decode in (decode_command, decode_report):
        try:
            frame = decode(body)
        except FrameError:
            continue
        assert isinstance(frame, frames.Frame)


def test_a_frame_above_the_limit_is_not_sent() -> None:
    with pytest.raises(FrameError, match="exceeds"):
        encode(frames.Tokenize(1, "x" * (frames.MAX_FRAME + 1)))


async def test_both_ends_talk_and_hear_of_the_end() -> None:
    ours, theirs = socket.socketpair()
    parent = await ParentChannel.open(ours)
    child = ChildChannel(theirs)
    for command in COMMANDS:
        parent.send(command)
    await asyncio.to_thread(lambda: [child.send(encode(report)) for report in REPORTS])
    assert [await parent.receive() for _ in REPORTS] == REPORTS
    parent.close()
    assert await asyncio.to_thread(lambda: list(child.commands())) == COMMANDS
    theirs.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_frame_to_a_child_that_is_gone_goes_nowhere(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def talk() -> None:
        ours, theirs = socket.socketpair()
        parent = await ParentChannel.open(ours)
        theirs.close()
        assert await parent.receive() is None
        for _ in range(3):
            parent.send(frames.Stop())
            await asyncio.sleep(0)
        parent.close()
        parent.send(frames.Stop())
        parent.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(talk())


async def test_a_length_above_the_limit_is_refused_before_it_is_read() -> None:
    ours, theirs = socket.socketpair()
    parent = await ParentChannel.open(ours)
    theirs.sendall((frames.MAX_FRAME + 1).to_bytes(4, "little"))
    with pytest.raises(FrameError, match="exceeds"):
        await parent.receive()
    parent.close()
    theirs.close()
