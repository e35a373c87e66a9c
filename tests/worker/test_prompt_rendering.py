"""Prompts that are only shown: with a vocabulary, and by the YAML alone."""

from __future__ import annotations

import pytest

from llmgallery.backends.base import Files, Loaded
from llmgallery.backends.echo.backend import EchoBackend
from llmgallery.backends.loader import specs
from llmgallery.config.model import ModelConfig, Template
from llmgallery.core.errors import InvalidField, LoadError, TemplateError, UnsupportedField
from llmgallery.core.messages import Tool, say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.worker.prepare import prepare
from llmgallery.worker.rendering import ANY_SIZE, load_vocabulary, render

ECHO = ModelConfig(stopwords=["</s>"])
HI = ChatRequest((say("user", "Hi"),), stop=("END",))


def vocabulary(config: ModelConfig = ECHO) -> tuple[EchoBackend, Loaded]:
    backend, loaded = load_vocabulary(specs(), "echo", config, Files())
    assert isinstance(backend, EchoBackend)
    return backend, loaded


def test_a_rendering_is_what_a_job_gets() -> None:
    backend, loaded = vocabulary()
    shown, prepared = render(HI, ECHO, backend, loaded), prepare(1, HI, ECHO, backend, loaded)
    assert shown.prompt == "<|user|>Hi<|end|><|assistant|>" and shown.origin == "the backend's own chat template"
    assert shown.tokens == tuple(prepared.job.prompt) and shown.stops == prepared.stops == ("END", "</s>")
    assert not shown.warnings and not shown.repairs


def test_completions_are_shown_as_they_came() -> None:
    backend, loaded = vocabulary()
    for prompt in ("é<|end|>", tuple("é".encode())):
        request = CompletionRequest(prompt, stop=("END",))
        shown = render(request, ECHO, backend, loaded)
        assert shown.tokens == tuple(prepare(1, request, ECHO, backend, loaded).job.prompt)
        assert shown.prompt.startswith("é") and shown.origin == "the request's own prompt" and shown.stops == ("END",)
    config = ModelConfig(options={"fills_in": True})
    backend, loaded = vocabulary(config)
    assert render(CompletionRequest("a", suffix="b"), config, backend, loaded).prompt == "<|system|>a<|user|>b<|assistant|>"
    with pytest.raises(InvalidField, match="not in the vocabulary"):
        render(CompletionRequest((70_000,)), ECHO, *vocabulary())


def test_a_prompt_that_does_not_fit_is_shown_with_a_warning() -> None:
    config = ModelConfig(context_size=16)
    shown = render(HI, config, *vocabulary(config))
    assert not shown.warnings
    shown = render(ChatRequest((say("user", "x" * 20),)), config, *vocabulary(config))
    assert "x" * 20 in shown.prompt and shown.warnings[0].startswith("the prompt has 23 tokens, but the context holds 16")


def test_without_a_vocabulary_the_yaml_says_it_all() -> None:
    config = ModelConfig(template=Template(chat_template="{{ bos_token }}{{ messages[0].content }}{{ tools | length }}"))
    backend, loaded = load_vocabulary(specs(), "", config, Files())
    assert backend is None and loaded.context_size == ANY_SIZE
    shown = render(ChatRequest(HI.messages, tools=(Tool("f"),)), config, None, loaded)
    assert (shown.prompt, shown.tokens, shown.origin) == ("Hi1", None, "template.chat_template")
    assert len(shown.warnings) == 1 and shown.warnings[0].endswith("set template.bos_token")
    known = ModelConfig(template=Template(chat_template="{{ bos_token }}!", bos_token="<s>"))
    shown = render(HI, known, None, loaded)
    assert shown.prompt == "<s>!" and "bos_token" not in shown.warnings[0]
    assert render(CompletionRequest("Hi"), config, None, loaded).prompt == "Hi"
    for request, field in ((CompletionRequest((1, 2)), "prompt"), (CompletionRequest("a", suffix="b"), "suffix")):
        with pytest.raises(UnsupportedField, match="only the model's vocabulary could tell the prompt") as caught:
            render(request, config, None, loaded)
        assert caught.value.field == field
    with pytest.raises(TemplateError, match="no robots"):
        refusing = ModelConfig(template=Template(chat_template="{{ raise_exception('no robots') }}"))
        render(HI, refusing, None, loaded)


def test_a_worker_without_that_backend_says_so() -> None:
    with pytest.raises(LoadError, match="no backend nothing"):
        load_vocabulary(specs(), "nothing", ECHO, Files())
