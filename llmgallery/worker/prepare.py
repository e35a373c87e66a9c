"""From a request to a job: render, tokenise, check that it fits. Everything that can refuse a request is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from llmgallery.backends.base import Backend, Job, Loaded
from llmgallery.chat.prompt import Rendered, render_chat
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ContextExceeded, InvalidField, TemplateError
from llmgallery.core.requests import ChatRequest, CompletionRequest, Request

LONGEST_TOKEN = 512
"""Characters; the longest that known vocabularies have are runs of 128 or 256 spaces."""


@dataclass(frozen=True)
class Prepared:
    """A job that fits, the strings that end it, and text that comes before its answer (echo)."""

    job: Job
    stops: tuple[str, ...]
    preamble: str = ""


def prepare(id: int, request: Request, config: ModelConfig, backend: Backend, loaded: Loaded) -> Prepared:
    """Raises InvalidField, TemplateError, ContextExceeded."""
    check_bias(request.sampling.logit_bias or {}, config, loaded.vocab_size)
    if isinstance(request, ChatRequest):
        rendered, tokens = chat_tokens(request, config, backend, loaded)
        stops, preamble = rendered.stops, ""
    else:
        tokens, stops = completion_tokens(request, backend, loaded), ()
        preamble = _prompt_text(request, backend) if request.echo else ""
    check_fits(len(tokens), loaded.context_size, "messages" if isinstance(request, ChatRequest) else "prompt")
    sampling = request.sampling
    if sampling.max_tokens is not None and sampling.max_tokens < 0:
        sampling = msgspec.structs.replace(sampling, max_tokens=None)
    return Prepared(Job(id, tokens, sampling), tuple(dict.fromkeys((*request.stop, *stops))), preamble)


def chat_tokens(request: ChatRequest, config: ModelConfig, backend: Backend, loaded: Loaded) -> tuple[Rendered, list[int]]:
    """The prompt of a chat, with the stop strings that its template brings, and its tokens."""
    rendered = _rendered(request, config, loaded)
    check_length(rendered.prompt, loaded.context_size, "messages")
    bos = loaded.add_bos and not rendered.bos_in_text
    tokens = backend.tokenize(rendered.prompt, special=True, bos=bos)
    if not tokens:
        raise InvalidField("the chat template made an empty prompt of these messages", field="messages")
    return rendered, tokens


def _rendered(request: ChatRequest, config: ModelConfig, loaded: Loaded) -> Rendered:
    """A template that gives up on more messages than the context has tokens is not what is wrong."""
    try:
        return render_chat(request, config, loaded)
    except TemplateError as exc:
        count = len(request.messages)
        if count < loaded.context_size:
            raise
        raise ContextExceeded(
            f"the chat has {count} messages, too many for a context of {loaded.context_size} tokens: send fewer messages",
            field="messages",
        ) from exc


def completion_tokens(request: CompletionRequest, backend: Backend, loaded: Loaded) -> list[int]:
    """The prompt of a completion as tokens; token ids are taken as they are, once they are known to the vocabulary."""
    if isinstance(request.prompt, str):
        check_length(request.prompt, loaded.context_size, "prompt")
        tokens = backend.tokenize(request.prompt, special=True, bos=loaded.add_bos)
    else:
        tokens = list(request.prompt)
        check_tokens(tokens, loaded.vocab_size, "prompt")
    if not tokens:
        raise InvalidField("the prompt is empty", field="prompt")
    return tokens


def check_tokens(tokens: Sequence[int], vocab_size: int, field: str) -> None:
    """Token ids that came in `field` must be in the vocabulary: engines trust them."""
    if strange := [token for token in tokens if not 0 <= token < vocab_size]:
        raise InvalidField(f"token {strange[0]} is not in the vocabulary of {vocab_size} tokens", field=field)


def check_bias(biases: Mapping[int, float], config: ModelConfig, vocab_size: int) -> None:
    """Every token must be in the vocabulary, where its size is known. The YAML's own are not the request's fault."""
    own = config.parameters.logit_bias or {}
    strange = [token for token in biases if token >= vocab_size > 0 and str(token) not in own]
    if strange:
        message = f"logit_bias: token {strange[0]} is not in the vocabulary of {vocab_size} tokens"
        raise InvalidField(message, field="logit_bias")


def check_length(prompt: str, context_size: int, field: str) -> None:
    """Refuses, before time is spent on tokens, what no vocabulary could make fit; check_fits judges the rest."""
    if len(prompt) > context_size * LONGEST_TOKEN:
        raise ContextExceeded(
            f"the prompt has {len(prompt)} characters, far too many for a context of {context_size} tokens: "
            f"shorten the {field}, or raise context_size in the model's YAML",
            field=field,
        )


def check_fits(prompt_tokens: int, context_size: int, field: str) -> None:
    """A prompt, which came in `field`, must leave room for one token at least. An answer that meets the end of the context
    ends with "length"."""
    if prompt_tokens >= context_size:
        raise ContextExceeded(
            f"the prompt has {prompt_tokens} tokens, but the context holds {context_size} with the answer: "
            f"shorten the {field}, or raise context_size in the model's YAML",
            field=field,
        )


def _prompt_text(request: CompletionRequest, backend: Backend) -> str:
    return request.prompt if isinstance(request.prompt, str) else backend.detokenize(request.prompt)
