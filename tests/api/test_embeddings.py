"""POST /v1/embeddings against the running server: OpenAI's own client, every form of input, what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import socket
from array import array
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from live_server import DEADLINE, LiveServer, error_of, user
from openai import AsyncOpenAI, OpenAI

URL = "/v1/embeddings"
ONE_INPUT = "expected text, or a list of token ids (whole numbers from 0) that is not empty"
SHAPES = json.loads((Path(__file__).parent / "cases" / "pooled_shapes.json").read_text())


@pytest.fixture(scope="module")
def vec(live: LiveServer) -> str:
    return live.add("vec", embeddings=True, aliases=["text-embedding-3*"], context_size=100)


def fits(shape: str, body: Any) -> Any:
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{shape}", "$defs": SHAPES["$defs"]}).validate(body)
    return body


def vectors(reply: httpx.Response) -> list[list[float]]:
    """By their indices, which must be in order; base64 as numbers."""
    assert reply.status_code == 200, reply.text
    data = fits("embeddings", reply.json())["data"]
    assert [row["index"] for row in data] == list(range(len(data)))
    return [numbers(row["embedding"]) for row in data]


def numbers(embedding: Any) -> list[float]:
    return array("f", base64.b64decode(embedding)).tolist() if isinstance(embedding, str) else embedding


# --- the official client -----------------------------------------------------------------------------------------------------


def test_the_official_client_gets_vectors(client: OpenAI, vec: str) -> None:
    """It asks for base64 and decodes, unless it is told otherwise."""
    decoded = client.embeddings.create(model=vec, input=["red fox", "blue bird", "fox red"])
    plain = client.embeddings.create(model=vec, input=["red fox", "blue bird", "fox red"], encoding_format="float")
    assert [row.embedding for row in decoded.data] == [row.embedding for row in plain.data]
    first, second, third = (row.embedding for row in decoded.data)
    assert first == third != second and len(first) == 64
    assert math.hypot(*first) == pytest.approx(1, abs=1e-6)
    assert (decoded.model, decoded.object, [row.index for row in decoded.data]) == ("vec", "list", [0, 1, 2])
    assert decoded.usage.prompt_tokens == decoded.usage.total_tokens == 7 + 9 + 7


async def test_the_official_asynchronous_client_gets_them_too(live: LiveServer, vec: str) -> None:
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as client:
        replies = await asyncio.gather(*(client.embeddings.create(model=vec, input=f"text {index}") for index in range(8)))
    assert len({tuple(reply.data[0].embedding) for reply in replies}) == 8


def test_the_official_client_s_errors(client: OpenAI, vec: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=vec, input=["a", ""])
    assert caught.value.param == "input[1]"
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="absent", input="a")
    assert missing.value.code == "model_not_found"


# --- what may be asked -------------------------------------------------------------------------------------------------------


def test_all_forms_of_input_mean_the_same(http: httpx.Client, vec: str) -> None:
    text, ids = "hé", list("hé".encode())
    (alone,) = vectors(http.post(URL, json={"model": vec, "input": text}))
    for several in ([text], ids, [ids], [text, ids], [ids, text, ids]):
        found = vectors(http.post(URL, json={"model": vec, "input": several}))
        assert found == [alone] * (1 if several is ids else len(several))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_both_paths_answer(http: httpx.Client, vec: str, path: str) -> None:
    assert len(vectors(http.post(path, json={"model": vec, "input": "x"}))) == 1


def test_names_are_resolved_as_for_chats(http: httpx.Client, vec: str) -> None:
    assert http.post(URL, json={"model": "text-embedding-3-small", "input": "x"}).json()["model"] == "vec"
    reply = http.post(URL, json={"input": "x"}, headers={"authorization": "Bearer vec"})
    assert reply.json()["model"] == "vec"
    assert error_of(http.post(URL, json={"input": "x"}))["param"] == "model"


def test_base64_is_little_endian_float32(http: httpx.Client, vec: str) -> None:
    body = {"model": vec, "input": ["one two", "two"]}
    texts = [row["embedding"] for row in http.post(URL, json={**body, "encoding_format": "base64"}).json()["data"]]
    assert all(isinstance(text, str) and len(base64.b64decode(text)) == 64 * 4 for text in texts)
    assert [numbers(text) for text in texts] == vectors(http.post(URL, json={**body, "encoding_format": "float"}))


def test_fewer_dimensions_are_the_first_ones_normalised_again(http: httpx.Client, vec: str) -> None:
    (whole,) = vectors(http.post(URL, json={"model": vec, "input": "a b c d e f g h"}))
    (first,) = vectors(http.post(URL, json={"model": vec, "input": "a b c d e f g h", "dimensions": 32}))
    length = math.hypot(*whole[:32])
    assert 0 < length < 1
    assert first == pytest.approx([number / length for number in whole[:32]], abs=1e-6)
    (raw,) = vectors(http.post(URL, json={"model": vec, "input": "a a a b", "normalize": False}))
    assert sorted(raw)[-2:] == [1, 3]


def test_long_inputs_are_refused_by_their_place_or_cut(http: httpx.Client, vec: str) -> None:
    inputs = ["x"] * 300 + ["y" * 101]
    error = error_of(http.post(URL, json={"model": vec, "input": inputs}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input[300]")
    assert error["message"].startswith("input[300] has 101 tokens")
    assert error_of(http.post(URL, json={"model": vec, "input": "y" * 101}))["param"] == "input"
    cut = vectors(http.post(URL, json={"model": vec, "input": [*inputs, "y" * 100], "truncate": True}))
    assert cut[300] == cut[301] and len(cut) == 302


def test_2048_inputs_are_answered_in_order(http: httpx.Client, vec: str) -> None:
    texts = [f"number {index % 50}" for index in range(2048)]
    found = vectors(http.post(URL, json={"model": vec, "input": texts}))
    assert all(found[index] == found[index % 50] for index in range(2048))
    assert len({tuple(vector) for vector in found}) == len({tuple(vector) for vector in found[:50]}) > 25


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "input", "input is missing"),
        ({"input": None}, "input", "input: expected text, token ids, or a list of either that is not empty"),
        ({"input": ""}, "input", "input: expected text that is not empty"),
        ({"input": []}, "input", "input: expected text, token ids, or a list of either that is not empty"),
        ({"input": [[]]}, "input[0]", f"input[0]: {ONE_INPUT}"),
        ({"input": ["a", "b", "c", ""]}, "input[3]", "input[3]: expected text that is not empty"),
        ({"input": ["a", 5]}, "input[1]", f"input[1]: {ONE_INPUT}"),
        ({"input": [5, -1]}, "input[1]", "input[1]: token ids are whole numbers from 0 to 2147483647, not -1"),
        ({"input": ["a"] * 2049}, "input", "input: expected 2048 inputs at most, got 2049"),
        ({"input": [[1], [261]]}, "input[1]", "token 261 is not in the vocabulary of 261 tokens"),
        ({"input": [261]}, "input", "token 261 is not in the vocabulary of 261 tokens"),
        ({"input": "a", "dimensions": 0}, "dimensions", "dimensions: expected a whole number of at least 1"),
        ({"input": "a", "dimensions": 65}, "dimensions", "dimensions: the model's vectors have 64 numbers, not 65"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "encoding_format: 'int8' is not one of float, base64"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(http: httpx.Client, vec: str, fields: Any, param: str, message: str) -> None:
    reply = http.post(URL, json={"model": vec, **fields})
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["message"]) == (400, param, message)


def test_fields_that_nobody_knows_are_hints(live: LiveServer, http: httpx.Client, vec: str) -> None:
    body = {"input": "a", "user": "me", "colour": "red"}
    assert "warnings" not in http.post(URL, json={"model": vec, **body}).json()
    live.add("warning-vec", embeddings=True, on_unsupported={"hints": "warn"})
    reply = http.post(URL, json={"model": "warning-vec", **body})
    assert [warning.split(" was ignored")[0] for warning in fits("embeddings", reply.json())["warnings"]] == ["user", "colour"]
    assert reply.headers["x-llmgallery-warnings"] == "2"


# --- models that cannot ------------------------------------------------------------------------------------------------------


def test_the_bundled_chat_model_makes_none_and_is_not_loaded_for_that(live: LiveServer, http: httpx.Client) -> None:
    reply = http.post(URL, json={"model": "pocket", "input": "a"})
    error = error_of(reply)
    assert (reply.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", "model")
    assert "model pocket makes no embeddings" in error["message"] and "`embeddings: true`" in error["message"]
    assert live.state("pocket") is None


def test_an_encoder_does_not_chat(live: LiveServer, http: httpx.Client) -> None:
    live.add("encoder", embeddings=True, options={"encoder": True})
    for stream in (False, True):
        reply = http.post("/v1/chat/completions", json={"model": "encoder", "messages": user("hi"), "stream": stream})
        assert (reply.status_code, error_of(reply)["code"]) == (400, "unsupported_parameter")
        assert "made" in error_of(reply)["message"] or "loaded for embeddings" in error_of(reply)["message"]
    assert len(vectors(http.post(URL, json={"model": "encoder", "input": "a"}))) == 1


# --- when it takes long ------------------------------------------------------------------------------------------------------


def test_a_model_that_still_loads_is_waited_for_as_the_client_prefers(
    live: LiveServer, http: httpx.Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    live.add("slow-vec", embeddings=True, options={"load_gate": str(gate)})
    reply = http.post(URL, json={"model": "slow-vec", "input": "a"}, headers={"prefer": "wait=0"})
    assert (reply.status_code, error_of(reply)["code"]) == (503, "overloaded")
    assert int(reply.headers["retry-after"]) >= 1
    gate.touch()
    reply = http.post(URL, json={"model": "slow-vec", "input": "a"}, headers={"prefer": "wait=20"})
    assert reply.headers["preference-applied"] == "wait=20"
    assert len(vectors(reply)) == 1


def test_a_client_that_leaves_cancels_its_request(live: LiveServer, http: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    name = live.add("left-vec", embeddings=True, options={"gate": str(gate)})
    body = json.dumps({"model": name, "input": "a"}).encode()
    raw = socket.create_connection(("127.0.0.1", http.base_url.port))
    raw.sendall(f"POST {URL} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    live.until(lambda: (state := live.state(name)) and state.state == "ready" and state.busy == 1)
    raw.close()
    live.until(lambda: (state := live.state(name)) and state.busy == 0)
    live.until(lambda: f'generations_total{{model="{name}",outcome="cancelled"}} 1.0' in http.get("/metrics").text)
    gate.touch()
    assert len(vectors(http.post(URL, json={"model": name, "input": "b"}))) == 1


def test_a_full_model_says_when_to_come_again(live: LiveServer, http: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    limits = {"max_concurrent": 1, "retry_after_seconds": 3}
    name = live.add("full-vec", embeddings=True, limits=limits, options={"gate": str(gate)})
    with live.http() as other:
        body = other.build_request("POST", URL, json={"model": name, "input": "a"}).read()
        raw = socket.create_connection(("127.0.0.1", http.base_url.port))
        raw.sendall(f"POST {URL} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        live.until(lambda: (state := live.state(name)) and state.busy == 1)
        reply = http.post(URL, json={"model": name, "input": "b"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "3")
        gate.touch()
        assert raw.recv(16).startswith(b"HTTP/1.1 200")
        raw.close()


def test_a_dead_worker_is_a_clear_error_and_the_next_request_is_answered(live: LiveServer, http: httpx.Client) -> None:
    live.add("fragile-vec", embeddings=True, options={"crash_on": "die"})
    reply = http.post(URL, json={"model": "fragile-vec", "input": "die"})
    assert (reply.status_code, error_of(reply)["code"]) == (502, "worker_died")
    assert "SIGSEGV" in error_of(reply)["message"]
    assert len(vectors(http.post(URL, json={"model": "fragile-vec", "input": "live"}))) == 1
