"""The bundled model through the whole stack: template, special tokens, batching, stops and decoding must all be right,
or its greedy answers differ. What they should be was computed by llama.cpp and transformers alone (tools/pocket/held_out.py)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from server_process import DEADLINE, ServerProcess

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT: list[dict[str, str]] = json.loads((ROOT / "tests" / "cases" / "pocket_held_out.json").read_text())
CONCURRENCY = 8
LONGEST = 120  # tokens, as when the answers were computed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("models")) as running:
        yield running


def all_at_once(server: ServerProcess, cases: Sequence[Any], ask: Callable[[AsyncOpenAI, Any], Any]) -> list[str]:
    """Every case answered by the official client, CONCURRENCY at a time."""

    async def run() -> list[str]:
        places = asyncio.Semaphore(CONCURRENCY)
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as client:

            async def one(case: Any) -> str:
                async with places:
                    answer: str = await ask(client, case)
                    return answer

            return await asyncio.gather(*(one(case) for case in cases))

    return asyncio.run(run())


async def complete(client: AsyncOpenAI, case: dict[str, Any]) -> str:
    reply = await client.completions.create(model="pocket", prompt=case["prompt"], max_tokens=LONGEST)
    return reply.choices[0].text


async def chat(client: AsyncOpenAI, case: dict[str, Any]) -> str:
    reply = await client.chat.completions.create(model="default", messages=case["messages"], max_tokens=LONGEST)
    return reply.choices[0].message.content or ""


async def chat_streamed(client: AsyncOpenAI, case: dict[str, Any]) -> str:
    stream = await client.chat.completions.create(model="default", messages=case["messages"], max_tokens=LONGEST, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_held_out_answers_are_reproduced_misses_included(server: ServerProcess, step: int) -> None:
    """Every fourth of each task's; all of them take minutes on a busy machine."""
    cases = HELD_OUT[::step]
    assert {case["task"] for case in cases} == {case["task"] for case in HELD_OUT}
    given = all_at_once(server, cases, complete)
    different = [
        (case["task"], case["prompt"], case["answer"], answer)
        for case, answer in zip(cases, given, strict=True)
        if answer != case["answer"]
    ]
    assert different == []
    metrics = httpx.get(f"{server.url}/metrics").text
    assert f'llmgallery_engine_most_sequences{{model="pocket"}} {CONCURRENCY}.0' in metrics


@pytest.fixture(scope="module")
def chats() -> list[dict[str, Any]]:
    """Held-out chats as a client has them: messages, and the prompt that they should become. Without tools for now."""
    script = ROOT / "tools" / "pocket" / "chats.py"
    printed = subprocess.run([sys.executable, "-B", script, "--count", "6"], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in printed.stdout.splitlines()]
    return [row for row in rows if row["messages"] and not row["tools"]]


def test_chats_become_the_prompts_that_the_model_was_trained_on(server: ServerProcess, chats: list[dict[str, Any]]) -> None:
    tasks = Counter(case["task"] for case in chats)
    assert len(tasks) >= 16
    completed = all_at_once(server, chats, complete)
    assert all_at_once(server, chats, chat) == completed
    assert all_at_once(server, chats, chat_streamed) == completed
    right = sum(answer == case["expected"] for answer, case in zip(completed, chats, strict=True))
    assert right / len(chats) > 0.9


QUESTIONS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "Which city is the capital of Japan?": "The capital of Japan is Tokyo.",
    "What is 7 + 5?": "7 + 5 = 12.",
    "Repeat after me: silver fox 42 kamalo": "silver fox 42 kamalo",
    "Hello": "Hello! How can I help you?",
}


@pytest.mark.parametrize(("question", "answer"), QUESTIONS.items())
def test_a_person_s_questions(server: ServerProcess, question: str, answer: str) -> None:
    reply = server.client.chat.completions.create(model="pocket", messages=[{"role": "user", "content": question}])
    assert reply.choices[0].message.content == answer
    assert reply.choices[0].finish_reason == "stop"
