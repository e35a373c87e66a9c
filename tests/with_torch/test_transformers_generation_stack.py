"""Chats and completions of a transformers model through the running server, as the official client asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
from server_process import ServerProcess
from tiny_transformers import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "What is the capital of France?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("weights") / "llama")


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    models = tmp_path_factory.mktemp("models")
    text = f"name: tiny\nbackend: huggingface\nparameters: {{model: {folder}}}\nthreads: 1\nparallel: 4\ncontext_size: 256\n"
    (models / "tiny.yaml").write_text(text)
    (models / "broken.yaml").write_text(text.replace("tiny", "broken") + "options: {config_params: {num_attention_heads: 7}}\n")
    with ServerProcess(models) as running, running.client as made:
        yield made


def own_greedy(folder: Path, text: str, count: int) -> str:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_completion_is_the_librarys_own(client: openai.OpenAI, folder: Path) -> None:
    made = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, temperature=0)
    assert made.choices[0].text == own_greedy(folder, PROMPT, 20)


def test_a_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert len(chunks) > 5


def test_many_clients_at_once(client: openai.OpenAI, folder: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(client.completions.create, model="tiny", prompt=f"{number}, {PROMPT}", max_tokens=12, temperature=0)
            for number in range(8)
        ]
    for number, answer in enumerate(asked):
        assert answer.result().choices[0].text == own_greedy(folder, f"{number}, {PROMPT}", 12)


def test_an_echo_with_log_probabilities(client: openai.OpenAI) -> None:
    made = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2, echo=True, logprobs=2)
    told = made.choices[0].logprobs
    assert made.choices[0].text.startswith(PROMPT) and told.token_logprobs[0] is None
    assert all(value < 0 for value in told.token_logprobs[1:])


def test_arguments_of_generate(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8}
    beams = client.completions.create(**asked, extra_body={"num_beams": 2})
    also = client.completions.create(**asked, extra_body={"generation_config": {"num_beams": 2}})
    assert beams.choices[0].text == also.choices[0].text
    with pytest.raises(openai.BadRequestError, match="num_beems") as caught:
        client.completions.create(**asked, extra_body={"generation_config": {"num_beems": 2}})
    assert "num_beams" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="num_beams"):
        client.completions.create(**asked, logprobs=1, extra_body={"num_beams": 2})


def test_what_is_longer_than_the_context_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context holds 256"):
        client.completions.create(model="tiny", prompt="word " * 400)


def test_a_model_that_does_not_load_says_why(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="llama"):
        client.completions.create(model="broken", prompt=PROMPT)
