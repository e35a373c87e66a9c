"""What a dialect asks for, in one language. n > 1 and lists of prompts are lists of these."""

from __future__ import annotations

from typing import Any

import msgspec

from llmgallery.core.messages import Message, Tool
from llmgallery.core.sampling import Sampling


class ChatRequest(msgspec.Struct, frozen=True, tag="chat", omit_defaults=True):
    """One answer to a conversation. `stop` are strings; `template_vars` reach the chat template;
    `continue_final`: the last assistant message is to be continued, not followed. `extra`: fields that nobody here knows.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    template_vars: dict[str, Any] = {}
    continue_final: bool = False
    extra: dict[str, Any] = {}


class CompletionRequest(msgspec.Struct, frozen=True, tag="completion", omit_defaults=True):
    """The continuation of one prompt: text, or token ids as they are. `echo`: the answer starts with the prompt."""

    prompt: str | tuple[int, ...]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    suffix: str | None = None
    echo: bool = False
    extra: dict[str, Any] = {}


Request = ChatRequest | CompletionRequest
