"""What a dialect asks for, in one language. n > 1 and lists of prompts are lists of these."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llmgallery.core.messages import Message, Tool
from llmgallery.core.sampling import Sampling


class ChatRequest(msgspec.Struct, frozen=True, tag="chat", omit_defaults=True):
    """One answer to a conversation. `stop` are strings; `template_vars` reach the chat template;
    `continue_final`: the last message is to be continued, not followed. `add_generation_prompt`: the prompt ends with the
    beginning of an assistant's message. `logprobs`: None = none; k = of each token,
    with the k likeliest of its place. `extra`: fields as they came that nobody here reads, under OpenAI's names; models that are
    elsewhere get them, and where they say what another field of this says, they are the client's own words.

    `tool_choice`: whether one of `tools` may or must be called; `forced_tool`: the one that must be.
    `parallel_tool_calls`: more than one may be called at once. `reasoning_effort` and
    `metadata` reach templates that ask for them. `adapter`: KoboldCpp's keys, or the name of some, in place of the
    model's template.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    forced_tool: str | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None
    metadata: dict[str, str] = {}
    adapter: dict[str, Any] | str | None = None
    template_vars: dict[str, Any] = {}
    continue_final: bool = False
    add_generation_prompt: bool = True
    logprobs: int | None = None
    extra: dict[str, Any] = {}


class CompletionRequest(msgspec.Struct, frozen=True, tag="completion", omit_defaults=True):
    """The continuation of one prompt: text, or token ids as they are. `suffix`: what follows the text to be filled in.
    `echo`: the answer starts with the prompt. `logprobs`: as in a ChatRequest; with `echo` the prompt's tokens' too.
    `instruction`: what is to be done with the prompt (an edit); None = it is to be continued."""

    prompt: str | tuple[int, ...]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    suffix: str | None = None
    echo: bool = False
    logprobs: int | None = None
    extra: dict[str, Any] = {}
    instruction: str | None = None


class EmbedRequest(msgspec.Struct, frozen=True, tag="embed", omit_defaults=True):
    """Vectors of texts, or of token ids as they are. `dimensions`: only the first ones. `truncate`: cut what is too long.
    `extra`: fields as they came that only models that are elsewhere may know."""

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    normalize: bool = True
    truncate: bool = False
    extra: dict[str, Any] = {}


class RerankRequest(msgspec.Struct, frozen=True, tag="rerank", omit_defaults=True):
    """How well each document answers the query. `truncate`: cut what is too long. `extra`: as in EmbedRequest."""

    query: str
    documents: tuple[str, ...]
    truncate: bool = False
    extra: dict[str, Any] = {}


Request = ChatRequest | CompletionRequest
