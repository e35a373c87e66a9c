"""One server, two libraries: a folder through transformers and a GGUF through llama.cpp answer the same chat, each in a process
of its own, and neither minds the death of the other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from generated_models import POCKET
from live_server import LiveServer, user
from tiny_transformers import make_llama

CHAT: list[Any] = [{"role": "system", "content": "Be brief."}, *user("What is the capital of France?")]
HUB, GGUF = "from the hub", "from a file"
TOKENS, LONG = 12, 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "tiny-llama")
    with LiveServer(folder) as running:
        keys = {"context_size": 256, "parallel": 2, "threads": 1}
        running.add(HUB, backend="transformers", parameters={"model": "tiny-llama"}, **keys)
        running.add(GGUF, backend="llama-cpp", parameters={"model": str(POCKET)}, **keys)
        yield running


def answer(server: LiveServer, model: str) -> tuple[str, int]:
    """What it says, and of how many tokens."""
    with server.client.with_options(timeout=60) as client:
        reply = client.chat.completions.create(model=model, messages=CHAT, temperature=0, max_tokens=TOKENS, stop=None, seed=1)
    assert reply.usage is not None
    return reply.choices[0].message.content or "", reply.usage.completion_tokens


def endless(server: LiveServer, model: str) -> Iterator[str]:
    """A long answer, as it comes."""
    with server.client.with_options(timeout=60) as client:
        chunks = client.chat.completions.create(
            model=model, messages=CHAT, temperature=0, max_tokens=LONG, stream=True, extra_body={"ignore_eos": True}
        )
        yield from (chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)


def pid_of(server: LiveServer, model: str) -> int:
    state = server.state(model)
    assert state is not None and state.state == "ready" and state.pid is not None, state
    return state.pid


def test_both_answer_the_same_chat_in_processes_of_their_own(server: LiveServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        (hub_text, hub_tokens), (gguf_text, _) = pool.map(lambda model: answer(server, model), (HUB, GGUF))
    assert gguf_text == "The capital of France is Paris."
    assert hub_text and hub_text != gguf_text and hub_tokens <= TOKENS
    pids = {pid_of(server, HUB), pid_of(server, GGUF), os.getpid()}
    assert len(pids) == 3
    assert [answer(server, model)[0] for model in (HUB, GGUF)] == [hub_text, gguf_text], "and so it does again"
    assert {pid_of(server, HUB), pid_of(server, GGUF), os.getpid()} == pids


@pytest.mark.parametrize(("victim", "other"), [(HUB, GGUF), (GGUF, HUB)])
def test_each_survives_the_death_of_the_other(server: LiveServer, victim: str, other: str) -> None:
    said = {model: answer(server, model) for model in (victim, other)}
    whole = "".join(endless(server, other))
    killed, alive = pid_of(server, victim), pid_of(server, other)
    stream = endless(server, other)
    first = next(stream)
    os.kill(killed, signal.SIGKILL)
    assert first + "".join(stream) == whole, "an answer that was being streamed goes on"
    server.until(lambda: (state := server.state(victim)) is None or state.pid != killed)
    assert answer(server, other) == said[other] and pid_of(server, other) == alive
    assert answer(server, victim) == said[victim], "it is started again when it is asked for"
    assert pid_of(server, victim) not in (killed, alive) and pid_of(server, other) == alive


def test_a_request_that_its_death_met_is_told(server: LiveServer) -> None:
    """Only that one: the other model goes on."""
    assert answer(server, HUB)[0] and answer(server, GGUF)[0]
    stream = endless(server, HUB)
    next(stream)
    os.kill(pid_of(server, HUB), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="ended by signal 9"):
        list(stream)
    assert answer(server, GGUF)[0] == "The capital of France is Paris."


def test_the_folder_is_what_was_loaded(server: LiveServer) -> None:
    """What transformers itself says, through the whole stack."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(server.folder) / "tiny-llama"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        made = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert answer(server, HUB)[0] == tokenizer.decode(made, skip_special_tokens=True)
