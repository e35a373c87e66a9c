"""What a dialect asks for, in one language. n > 1 and lists of prompts are lists of these."""

from __future__ import annotations

from typing import Any

import msgspec

from llmgallery.core.messages import Message, Tool
from llmgallery.core.sampling import Sampling


class ChatRequest(msgspec.Struct, frozen=True, tag="chat", omit_defaults=True):
    """One answer to a conversation. `stop` are strings; `template_vars` reach the chat template;
    `continue_final`: the last assistant message is to be continued, not followed. `logprobs`: None = none; k = of each token,
    with the k likeliest of its place. `extra`: fields that nobody here knows.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    template_vars: dict[str, Any] = {}
    continue_final: bool = False
    logprobs: int | None = None
    extra: dict[str, Any] = {}


class CompletionRequest(msgspec.Struct, frozen=True, tag="completion", omit_defaults=True):
    """The continuation of one prompt: text, or token ids as they are. `suffix`: what follows the text to be filled in.
    `echo`: the answer starts with the prompt. `logprobs`: as in a ChatRequest; with `echo` the prompt's tokens' too."""

    prompt: str | tuple[int, ...]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    suffix: str | None = None
    echo: bool = False
    logprobs: int | None = None
    extra: dict[str, Any] = {}


class EmbedRequest(msgspec.Struct, frozen=True, tag="embed", omit_defaults=True):
    """Vectors of texts, or of token ids as they are. `dimensions`: only the first ones. `truncate`: cut what is too long."""

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    normalize: bool = True
    truncate: bool = False


class RerankRequest(msgspec.Struct, frozen=True, tag="rerank", omit_defaults=True):
    """How well each document answers the query. `truncate`: cut what is too long."""

    query: str
    documents: tuple[str, ...]
    truncate: bool = False


Request = ChatRequest | CompletionRequest
