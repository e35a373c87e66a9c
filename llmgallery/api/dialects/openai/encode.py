"""From core to OpenAI's wire: whole bodies, and the chunks of streams."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from llmgallery.api.dialects.openai.logprobs import chat_logprobs, completion_logprobs
from llmgallery.api.errors import Failure, envelope
from llmgallery.api.respond import describe
from llmgallery.core.events import Done, Event, Progress, Reason, ToolCallDelta, Usage
from llmgallery.service.gallery import ModelInfo
from llmgallery.service.generation import Choice, Generation

OWNER = "llmgallery"


class Head:
    """What every body and chunk of one answer says alike."""

    def __init__(self, generation: Generation, prefix: str, object: str) -> None:
        self.fields: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": object,
            "created": int(time.time()),
            "model": generation.entry.name,
        }
        if not generation.is_elsewhere:  # an endpoint tells its own
            self.fields["system_fingerprint"] = generation.fingerprint


def chat_body(generation: Generation, choices: Sequence[Choice], *, older_calls: bool = False) -> bytes:
    """CreateChatCompletionResponse. `older_calls`: a call is told as a function_call."""
    return _body(
        Head(generation, "chatcmpl", "chat.completion"),
        generation,
        [
            {
                **choice.extra.get("choice", {}),
                "index": index,
                "message": _message(choice, older_calls),
                "logprobs": chat_logprobs(choice.logprobs) if generation.logprobs else None,
                "finish_reason": _reason(choice.reason, choice.extra, older_calls),
            }
            for index, choice in enumerate(choices)
        ],
    )


def _message(choice: Choice, older_calls: bool) -> dict[str, Any]:
    """ChatCompletionResponseMessage: content is null where there is something else in its place."""
    instead = choice.tool_calls or choice.message.get("refusal") or choice.message.get("audio")
    content = None if instead and not choice.text else choice.text
    own = {"role": "assistant", "content": content}
    message: dict[str, Any] = {**own, "refusal": None, **choice.message, **own}
    if not choice.tool_calls:
        return message
    if older_calls:
        return {**message, "function_call": _function(choice.tool_calls[0])}
    return {**message, "tool_calls": [_call(call) for call in choice.tool_calls]}


def _call(call: ToolCallDelta) -> dict[str, Any]:
    """A call, or a part of one: of a function, or of what an endpoint tells in `extra`. Only its beginning has id and name."""
    head = {"id": call.id, "type": "function"} if call.id or call.name else {}
    if call.extra and not (call.name or call.arguments):
        return {**head, **call.extra}
    return {**head, "function": _function(call), **call.extra}


def _function(call: ToolCallDelta) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments} if call.name else {"arguments": call.arguments}


def _reason(reason: Reason, extra: Mapping[str, Any], older_calls: bool) -> str:
    """`extra`: Done's, where an endpoint has a word of its own."""
    return "function_call" if older_calls and reason == "tool_calls" else str(extra.get("finish_reason", reason))


def completion_body(generation: Generation, choices: Sequence[Choice]) -> bytes:
    """CreateCompletionResponse"""
    return _body(
        Head(generation, "cmpl", "text_completion"),
        generation,
        [
            {
                **choice.extra.get("choice", {}),
                "index": index,
                "text": choice.text,
                "logprobs": completion_logprobs(choice.logprobs, choice.offsets) if generation.logprobs else None,
                "finish_reason": _reason(choice.reason, choice.extra, False),
            }
            for index, choice in enumerate(choices)
        ],
    )


def _body(head: Head, generation: Generation, choices: list[dict[str, Any]]) -> bytes:
    warned = {"warnings": generation.warnings} if generation.warnings else {}
    return msgspec.json.encode({**others(generation), **head.fields, "choices": choices, "usage": usage(generation), **warned})


def others(generation: Generation) -> dict[str, Any]:
    """Fields of an endpoint's answer that are none of ours."""
    return {name: value for name, value in generation.body.items() if name != "usage"}


def usage(generation: Generation) -> dict[str, Any]:
    """CompletionUsage, with the details that an endpoint tells."""
    told: Mapping[str, Any] = generation.body.get("usage") or {}
    ours = usage_body(generation.usage)
    return {**ours, **{name: value for name, value in told.items() if _fits(ours.get(name), value)}} if told else ours


def _fits(ours: Any, value: Any) -> bool:
    """Clients count on numbers and objects where OpenAI has them."""
    if isinstance(ours, int):
        return type(value) is int and value >= 0
    return ours is None or isinstance(value, dict)


def usage_body(usage: Usage) -> dict[str, Any]:
    """CompletionUsage"""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def model_body(info: ModelInfo) -> dict[str, Any]:
    """Model; `aliases` and `description` are ours."""
    body = {"id": info.name, "object": "model", "created": info.created, "owned_by": info.owned_by or OWNER}
    if info.aliases:
        body["aliases"] = info.aliases
    return {**body, "description": info.description} if info.description else body


class Chunks:
    """respond.Encoder of server-sent events. `kind`: chat chunks are deltas with a role first, completion chunks are text."""

    media_type = "text/event-stream; charset=utf-8"

    def __init__(
        self, generation: Generation, kind: Literal["chat", "completion"], include_usage: bool, *, older_calls: bool = False
    ) -> None:
        prefix, object = ("chatcmpl", "chat.completion.chunk") if kind == "chat" else ("cmpl", "text_completion")
        self._head = Head(generation, prefix, object).fields
        self._kind = kind
        self._older_calls = older_calls
        self._include_usage = include_usage
        self._answers = len(generation)
        self._said: Mapping[str, Any] = {}
        self._generation: Generation | None = generation

    def begin(self) -> bytes:
        if self._kind == "completion":
            return b""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(index, {"delta": delta}) for index in range(self._answers))

    def event(self, index: int, event: Event) -> bytes:
        if isinstance(event, Done):
            reason = _reason(event.reason, event.extra, self._older_calls)
            content: dict[str, Any] = {"delta": {}} if self._kind == "chat" else {"text": ""}
            if self._answers == 1:
                self._said = {name: value for name, value in event.extra.get("body", {}).items() if name != "usage"}
            return self._chunk(index, {**event.extra.get("choice", {}), **content}, reason, warnings=event.warnings)
        if isinstance(event, ToolCallDelta):
            return self._chunk(index, {"delta": self._called(event)})
        if self._kind == "chat":
            logprobs = chat_logprobs(event.logprobs) if event.logprobs else None
            text = {"content": event.text} if event.text or not event.extra else {}
            return self._chunk(index, {"delta": {**text, **event.extra}}, logprobs=logprobs)
        logprobs = completion_logprobs(event.logprobs, event.offsets) if event.logprobs else None
        return self._chunk(index, {"text": event.text}, logprobs=logprobs)

    def _called(self, call: ToolCallDelta) -> dict[str, Any]:
        if self._older_calls:
            return {"function_call": _function(call)}
        return {"tool_calls": [{"index": call.index, **_call(call)}]}

    def end(self, generation: Generation) -> bytes:
        last = b""
        if self._include_usage:
            last = _data({**self._said, **self._head, "choices": [], "usage": usage(generation)})
        return last + b"data: [DONE]\n\n"

    def progress(self, progress: Progress) -> bytes:
        return f": {describe(progress)}\n\n".encode()

    def keep_alive(self) -> bytes:
        return b": keep-alive\n\n"

    def failure(self, failure: Failure) -> bytes:
        return _data(envelope(failure))

    def _chunk(
        self,
        index: int,
        content: dict[str, Any],
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        warnings: Sequence[str] = (),
    ) -> bytes:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        body = {**self._said, **self._head, "choices": [choice]}
        if self._include_usage:
            body["usage"] = None
        body |= self._warnings() or ({"warnings": warnings} if warnings else {})
        return _data(body)

    def _warnings(self) -> dict[str, Any]:
        """For the first chunk. What is found out later stands in an answer's last one."""
        generation, self._generation = self._generation, None
        return {"warnings": generation.warnings} if generation is not None and generation.warnings else {}


def _data(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
