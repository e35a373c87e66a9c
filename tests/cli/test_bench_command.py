"""`llmgallery bench` against servers: one of its own, one that runs, and ones that cannot be measured."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner
from live_server import LiveServer
from terminal import llmgallery

from llmgallery.cli import main
from llmgallery.cli.bench.client import Client, Recording, Target
from llmgallery.cli.bench.drive import measure, run_wave, tokens_per_word
from llmgallery.cli.bench.workload import Workload
from llmgallery.core.errors import GalleryError

SHORT = ("-c", "1,2", "--requests", "2", "--prompt-tokens", "12", "--max-tokens", "4")


@pytest.fixture
def server(tmp_path):
    with LiveServer(tmp_path) as server:
        server.add("parrot")
        yield server


def invoke(*arguments: object, **env: str):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)], env={"LLMGALLERY_URL": None, **env})


def test_a_row_for_each_number_of_streams_and_two_that_share(server):
    result = invoke("parrot", "--url", server.url, *SHORT, "--shared-tokens", "20", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    told = [(row["figures"]["concurrency"], row["figures"]["requests"], row["cached"]) for row in rows]
    assert told == [(1, 2, False), (2, 2, False), (2, 2, False), (2, 2, True)]
    assert [row["figures"]["completion_tokens"] for row in rows] == [8, 8, 8, 8]
    assert rows[2]["workload"] == {"concurrency": 2, "waves": 1, "prompt_tokens": 32, "max_tokens": 4, "shared_tokens": 20}
    assert "1 at once: 2 requests\n" in result.stderr and "again" in result.stderr


def test_the_table_goes_to_stdout_and_the_server_comes_from_the_environment(server):
    result = invoke("parrot", *SHORT, "--shared-tokens", "0", LLMGALLERY_URL=server.url)
    assert result.exit_code == 0, result.output
    assert f"parrot at {server.url}" in result.stdout and "decode tok/s" in result.stdout
    assert [line.split()[:4] for line in result.stdout.splitlines() if " + " in line] == [
        ["12", "+", "4", "1"],
        ["12", "+", "4", "2"],
    ]


def test_without_a_server_it_starts_one(tmp_path):
    (tmp_path / "polly.yaml").write_text("backend: echo\n")
    result = llmgallery("bench", tmp_path / "polly.yaml", *SHORT, "--shared-tokens", "0", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    body = json.loads(result.stdout)
    assert body["model"] == "polly" and len(body["rows"]) == 2


def test_a_server_that_does_not_start_says_why(tmp_path):
    (tmp_path / "models").mkdir()
    flags = ("--models-dir", tmp_path / "models")
    result = llmgallery("bench", "parrot", *SHORT, *flags, cwd=tmp_path, LLMGALLERY_API_KEY_FILE=str(tmp_path / "none"))
    assert result.returncode == 1
    assert "none" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nobody",), "'nobody' does not exist"),
        (("small", "--prompt-tokens", "400"), "answered 400"),
    ],
)
def test_what_the_server_refuses_is_told(server, arguments, message):
    server.add("small", context_size=64)
    result = invoke(*arguments, "--url", server.url, "-c", "1", "--requests", "1", "--shared-tokens", "0")
    assert result.exit_code == 1
    assert message in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("counts", ["", "0", "1,x", "-1", "1,,2"])
def test_wrong_numbers_of_streams(counts):
    result = invoke("parrot", "-c", counts)
    assert result.exit_code == 2 and "--concurrency" in result.stderr


async def test_nothing_listens():
    async with Client(Target("http://127.0.0.1:9", "m")) as client:
        with pytest.raises(GalleryError, match=r"127\.0\.0\.1:9 does not answer"):
            await client.count_tokens("ab")


async def test_another_kind_of_server():
    """Something that speaks HTTP and no OpenAI."""

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(page, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with Client(Target(f"http://127.0.0.1:{port}", "m")) as client:
            with pytest.raises(GalleryError, match="does not answer as an OpenAI-compatible server"):
                await client.count_tokens("ab")
            with pytest.raises(GalleryError, match="closed the connection before the answer was complete"):
                await client.complete("ab", 4)


async def test_the_client_counts_as_the_server_does(server):
    async with Client(Target(server.url, "parrot")) as client:
        assert await client.count_tokens("one two three") > 0
        assert await tokens_per_word(client) > 0
        recording = Recording()
        trace = await client.complete("ab cd ef gh", 4, recording)
        assert trace == recording.trace()
        assert trace.completion_tokens == 4 and trace.finish == "length"
        assert trace.sent < trace.times[0] <= trace.times[-1]


async def test_one_failure_ends_the_wave(server):
    server.add("small", context_size=32)
    async with Client(Target(server.url, "small")) as client:
        with pytest.raises(GalleryError, match="answered 400"):
            await run_wave(client, ["ab cd", "ab " * 200], 4)
        found = await measure(client, Workload(2, 2, 4, 3), "salt", 1.0)
        assert found.requests == 4
