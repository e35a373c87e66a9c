"""What every backend of level chat must do: tell what the endpoint tells, no more and no less."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conformance_cases import Case
from conformance_checks import check, lack
from conformance_driving import GREEDY, PROMPTS, TEXTS, png, request
from conformance_openai import write_models
from conformance_remote import Remote, Told
from conformance_worker import Worker, done_of, text_of
from loopback_endpoint import LoopbackEndpoint, answered, whole
from msgspec.structs import replace
from server_process import ServerProcess

from llmgallery.backends.base import Files
from llmgallery.core.errors import ConfigError, UpstreamError, UpstreamUnavailable
from llmgallery.core.messages import ImagePart, Message, TextPart, Tool, say
from llmgallery.core.requests import ChatRequest, CompletionRequest, EmbedRequest, RerankRequest
from llmgallery.core.sampling import Sampling

LIMITS = {"temperature": 0, "max_tokens": 24}
"""GREEDY, as the endpoint is told of it."""
SAMPLED = Sampling(temperature=2.0, top_p=1.0, seed=7, max_tokens=12)
ENDLESS = Sampling(temperature=0)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = write_models(tmp_path_factory.mktemp("endpoint"))
    environment = {"LLMGALLERY_AUTO_INSTALL": "off", "LLMGALLERY_WATCH": "off"}
    with ServerProcess(folder, environment=environment) as server:
        yield server.url, folder


@pytest.fixture(scope="session")
def remote(case: Case, served: tuple[str, Path]) -> Iterator[Remote]:
    with Remote(case, *served) as started:
        yield started


@check("load", "remote")
def test_it_loads_and_asks_nobody(remote: Remote) -> None:
    spec = remote.case.spec
    assert "generate" in remote.loaded.capabilities <= spec.capabilities | {"probabilities"}
    assert not spec.needs_weights and remote.loaded.chat_template is None
    assert remote.heard.failure is None and not remote.heard.heads


@check("greedy", "remote")
def test_answers_are_the_endpoints_own(remote: Remote) -> None:
    for text in PROMPTS:
        expected = remote.chat("pocket", text, **LIMITS)
        told = remote.ask("pocket", request(text))
        assert (told.text, told.done.reason) == (expected["message"]["content"], expected["finish_reason"])
        assert told.done.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
        assert told.done.usage.completion_tokens == expected["usage"]["completion_tokens"]
    completion = remote.post("/completions", model="pocket", prompt="Once upon", **LIMITS)["choices"][0]
    assert remote.ask("pocket", CompletionRequest("Once upon", GREEDY)).text == completion["text"]


@check("streaming", "remote")
def test_streamed_or_whole_it_is_the_same(remote: Remote) -> None:
    for model in ("pocket", "slow"):
        streamed, alone = (remote.ask(model, request(PROMPTS[0]), streamed=streamed) for streamed in (True, False))
        assert _told(streamed) == _told(alone)
        assert len(alone.deltas) == 1
    assert len(streamed.deltas) > 5, "pieces came as they came"


def _told(told: Told) -> tuple[object, ...]:
    return told.text, told.done.reason, told.done.usage.completion_tokens


@check("stop", "remote")
def test_stop_strings_end_answers(remote: Remote) -> None:
    text = remote.ask("pocket", request(PROMPTS[0])).text
    told = remote.ask("pocket", request(PROMPTS[0], stop=("never said", text[5:9])))
    assert (told.text, told.done.reason) == (text[: text.index(text[5:9])], "stop")


@check("max_tokens", "remote")
def test_answers_end_at_max_tokens(remote: Remote) -> None:
    for count in (1, 7):
        told = remote.ask("endless", request(PROMPTS[0], Sampling(temperature=0, max_tokens=count)))
        assert (told.done.reason, told.done.usage.completion_tokens) == ("length", count)


@check("seed", "remote")
def test_seeds_reach_the_endpoint(remote: Remote) -> None:
    first, again, *others = (
        remote.ask("pocket", CompletionRequest("Once upon", replace(SAMPLED, seed=seed))).text
        for seed in (7, 7, *range(100, 104))
    )
    assert first == again and len({first, *others}) > 2


@check("logprobs", "remote")
def test_log_probabilities_are_the_endpoints_own(remote: Remote) -> None:
    expected = remote.chat("pocket", PROMPTS[0], logprobs=True, top_logprobs=3, **LIMITS)["logprobs"]["content"]
    for streamed in (True, False):
        told = remote.ask("pocket", request(PROMPTS[0], logprobs=3), streamed=streamed).logprobs
        assert [entry.piece for entry in told] == [bytes(each["bytes"]) for each in expected]
        for entry, each in zip(told, expected, strict=True):
            assert entry.logprob is not None and math.isclose(entry.logprob, each["logprob"], abs_tol=remote.case.tolerance)
            assert [bytes(other.piece) for other in entry.top] == [bytes(other["bytes"]) for other in each["top_logprobs"]]
    assert remote.ask("pocket", request(PROMPTS[0])).logprobs == (), "nobody asked"


@check("prompt_logprobs", "remote")
def test_log_probabilities_of_the_prompt(remote: Remote) -> None:
    expected = remote.post("/completions", model="pocket", prompt="Once upon", echo=True, logprobs=2, temperature=0, max_tokens=3)
    listed = expected["choices"][0]["logprobs"]
    told = remote.ask("pocket", CompletionRequest("Once upon", replace(GREEDY, max_tokens=3), echo=True, logprobs=2))
    assert told.text == expected["choices"][0]["text"] and told.text.startswith("Once upon")
    assert [entry.piece.decode() for entry in told.logprobs] == listed["tokens"]
    assert told.logprobs[0].logprob is None
    values = [entry.logprob for entry in told.logprobs[1:]]
    assert values == pytest.approx(listed["token_logprobs"][1:], abs=remote.case.tolerance)


@check("cancel", "remote")
def test_a_cancelled_answer_ends_and_its_place_is_free(remote: Remote) -> None:
    """The endpoint has one place, and hears of it when the connection closes."""
    running = remote.begin("slow", request("a" * 1500, ENDLESS))
    remote.heard.wait(lambda: bool(remote.heard.text(running)))
    waiting, withdrawn = (remote.begin("slow", request(text)) for text in ("next", "never"))
    remote.backend.cancel(withdrawn)
    remote.backend.cancel(running)
    remote.heard.wait_for_end(running, withdrawn)
    assert remote.told(running).done.reason == "cancelled" and len(remote.told(running).text) < 1500
    assert remote.told(waiting).text == "next"
    if withdrawn in remote.heard.refusals:
        assert remote.heard.refusals[withdrawn].info().kind == "Cancelled"
    else:
        assert remote.told(withdrawn).done.reason == "cancelled"
    remote.backend.cancel(running)
    assert remote.ask("slow", request("again")).text == "again"


@check("concurrent", "remote")
def test_conversations_go_on_beside_each_other(remote: Remote) -> None:
    """None can end before the gate is open, and the endpoint has all of them by then."""
    texts = [f"{text} {index}" for index, text in enumerate(PROMPTS * 2)]
    ids = [remote.begin("gated", request(text, ENDLESS)) for text in texts]
    remote.heard.wait(lambda: all(id in remote.heard.heads for id in ids))
    assert not any(remote.heard.done(id) for id in ids)
    (remote.folder / "gate").touch()
    assert [remote.told(id).text for id in ids] == texts
    alone = [_told(remote.ask("pocket", request(text))) for text in PROMPTS]
    ids = [remote.begin("pocket", request(text)) for text in PROMPTS]
    assert [_told(remote.told(id)) for id in ids] == alone


@check("context_overflow", "remote")
def test_what_the_endpoint_refuses_is_refused_in_its_words(remote: Remote) -> None:
    refusal = remote.refusal("pocket", request("far too long " * 400))
    assert isinstance(refusal, UpstreamError) and refusal.upstream is not None and refusal.upstream.status == 400
    assert refusal.upstream.body["error"]["code"] == "context_length_exceeded"
    told = remote.ask("endless", request("Hi", ENDLESS))
    assert told.done.reason == "length"
    assert told.done.usage.prompt_tokens + told.done.usage.completion_tokens == 256


@check("unicode", "remote")
def test_characters_are_never_split(remote: Remote) -> None:
    for text in TEXTS:
        for streamed in (True, False):
            told = remote.ask("echo", request(text, ENDLESS), streamed=streamed)
            assert told.text == text and all("\ufffd" not in delta.text for delta in told.deltas)


@lack("constraints", "remote")
def test_no_constraints_are_promised(remote: Remote) -> None:
    assert "constraints" not in remote.loaded.capabilities


@lack("lora", "remote")
def test_no_adapters_are_promised(remote: Remote) -> None:
    assert "lora" not in remote.loaded.capabilities
    assert not {"lora_adapter", "lora_adapters"} & remote.case.spec.keys, "a model file that names one is warned about"


@check("embed", "remote")
def test_vectors_are_the_endpoints_own(remote: Remote) -> None:
    texts = ("tea is a drink", "the rain", "7")
    expected = [row["embedding"] for row in remote.post("/embeddings", model="vectors", input=texts)["data"]]
    made = remote.pool("vectors", EmbedRequest(texts))
    assert np.abs(made - np.array(expected)).max() < 1e-6 and made.shape[1] > 8
    short = remote.pool("vectors", EmbedRequest(texts, dimensions=8))
    assert np.abs(short - made[:, :8] / np.linalg.norm(made[:, :8], axis=1, keepdims=True)).max() < 1e-5


@check("rerank", "remote")
def test_scores_are_the_endpoints_own(remote: Remote) -> None:
    documents = ("rain falls on the roof", "tea is a drink", "what?")
    results = remote.post("/rerank", model="scores", query="what is tea?", documents=documents)["results"]
    expected = [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]
    made = remote.pool("scores", RerankRequest("what is tea?", documents))
    assert made[:, 0] == pytest.approx(expected, abs=1e-6) and len(set(expected)) == 3


@check("images", "remote")
def test_images_reach_the_endpoint_as_they_are(remote: Remote) -> None:
    image = png(255, 0, 0)
    endpoint = LoopbackEndpoint()
    endpoint.reply = whole(answered("red"))
    try:
        message = Message("user", (ImagePart(image), TextPart("What is it?")))
        told = remote.ask("seeing", ChatRequest((message,)), streamed=False, base_url=endpoint.url)
    finally:
        endpoint.close()
    (asked,) = endpoint.asked
    picture, text = asked.body["messages"][0]["content"]
    address = picture["image_url"]["url"]
    assert address.startswith("data:image/png;base64,") and base64.b64decode(address.partition(",")[2]) == image
    assert (text, told.text) == ({"type": "text", "text": "What is it?"}, "red")


@check("suffix", "remote")
def test_prefix_and_suffix_reach_the_endpoint(remote: Remote) -> None:
    expected = remote.post("/completions", model="filling", prompt="def one():", suffix="return 1")["choices"][0]["text"]
    assert remote.ask("filling", CompletionRequest("def one():", suffix="return 1")).text == expected == "return 1"
    assert isinstance(remote.refusal("echo", CompletionRequest("def one():", suffix="return 1")), UpstreamError)


@check("tools", "remote")
def test_calls_of_functions_come_as_calls(remote: Remote) -> None:
    tools = (Tool("look", parameters={"type": "object", "properties": {"where": {"type": "string"}}}),)
    for streamed in (True, False):
        told = remote.ask("calling", ChatRequest((say("user", "Hi"),), tools=tools), streamed=streamed)
        assert told.done.reason == "tool_calls" and told.text == "Well."
        assert {call.index for call in told.calls} == {0} and [call.name for call in told.calls if call.name] == ["look"]
        assert "".join(call.arguments for call in told.calls) == '{"where":"here"}' and told.calls[0].id


@lack("bad_files", "remote")
def test_it_needs_no_files_and_says_what_it_cannot_reach(remote: Remote, tmp_path: Path) -> None:
    assert (
        not remote.case.spec.needs_weights
        and not remote.case.spec.formats
        and remote.case.model("generate", tmp_path).files == Files()
    )
    with_key = remote.refusal("echo", request("Hi"), api_key_file=str(tmp_path / "no-key"))
    assert isinstance(with_key, ConfigError) and "no-key" in with_key.message and with_key.field == "options.api_key_file"
    away = remote.refusal("echo", request("Hi"), base_url="http://127.0.0.1:9/v1", connect_retries=0)
    assert isinstance(away, UpstreamUnavailable) and "127.0.0.1:9" in away.message
    unknown = remote.refusal("never-heard-of", request("Hi"))
    assert isinstance(unknown, UpstreamError) and unknown.upstream is not None and unknown.upstream.status == 404


@check("unload", "remote")
def test_closing_tells_everybody(case: Case, served: tuple[str, Path]) -> None:
    with Remote(case, *served) as remote:
        id = remote.begin("slow", request("a" * 1500, ENDLESS))
        remote.heard.wait(lambda: bool(remote.heard.text(id)))
        remote.backend.close()
        assert remote.told(id).done.reason == "cancelled"


@check("unload", "remote")
def test_stopping_its_worker_leaves_no_process(remote: Remote) -> None:
    model = remote.case.model("generate", remote.folder)
    with Worker(remote.case, model) as worker:
        pid = worker.handle.pid
        events = worker.ask(request("Grüße"), config=remote.config("echo"))
        assert (text_of(events), done_of(events).reason) == ("Grüße", "stop")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
