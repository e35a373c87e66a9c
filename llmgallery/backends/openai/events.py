"""From an endpoint's chunks and whole answers to core events. Pure; knows no connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from llmgallery.backends.openai import logprobs
from llmgallery.backends.openai.failures import said_error
from llmgallery.core.errors import UpstreamUnavailable
from llmgallery.core.events import Done, Event, Reason, TextDelta, ToolCallDelta, Usage

Kind = Literal["chat", "completion"]

MOST_CALLS = 10_000
MOST_BESIDE = 16 * 1024 * 1024
"""Bytes of the fields that stand beside the text of an answer, of all its chunks."""

_REASONS: dict[str, Reason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "tool_call": "tool_calls",
}
_SAME = ("stop", "length", "tool_calls")
_OF_ANSWER = frozenset({"id", "object", "created", "model", "choices", "usage"})
_OF_CHOICE = frozenset({"index", "delta", "message", "text", "logprobs", "finish_reason"})
_OF_MESSAGE = frozenset({"role", "content", "tool_calls", "function_call"})
_OF_CALL = frozenset({"index", "id", "type", "function"})


class AnswerReader:
    """One answer. `chunk` for each of a stream and then `done`, or `whole` once. All raise UpstreamError for an error that the
    endpoint tells in place of an answer, and UpstreamUnavailable for what is no answer."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._characters = 0
        self._reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._body: dict[str, Any] = {}
        self._choice: dict[str, Any] = {}
        self._kept_bytes = 0
        self._scores: list[float] = []
        self._called = False

    @property
    def has_ended(self) -> bool:
        """The endpoint has said why the answer ended."""
        return self._reason is not None

    def chunk(self, value: Any) -> list[Event]:
        """What one chunk says."""
        return [event for choice in self._choices(value) for event in self._events(choice, "delta")]

    def whole(self, value: Any) -> list[Event]:
        """All of an answer that came at once, its Done last."""
        choices = self._choices(value)
        if not choices:
            raise UpstreamUnavailable(f"the endpoint answered with no {self._kind}: its choices are missing")
        return [*(event for choice in choices for event in self._events(choice, "message")), self.done()]

    def done(self) -> Done:
        """The end, as far as the endpoint told of it."""
        extra: dict[str, Any] = {"body": {"usage": dict(self._usage)}} if self._usage else {}
        if self._body:
            extra["body"] = {**extra.get("body", {}), **self._body}
        if self._reason is not None and self._reason not in _SAME:
            extra["finish_reason"] = self._reason
        if self._choice:
            extra["choice"] = self._choice
        reason = _REASONS.get(self._reason or ("tool_calls" if self._called else "stop"), "stop")
        mean = sum(self._scores) / len(self._scores) if self._scores else None
        return Done(reason, _usage(self._usage), mean_logprob=mean, extra=extra)

    def _choices(self, value: Any) -> list[Mapping[str, Any]]:
        """The first choice, if there is any, after what stands beside it is noted."""
        if not isinstance(value, Mapping):
            raise UpstreamUnavailable(f"the endpoint answered with what is no {self._kind}: {str(value)[:80]!r}")
        if value.get("error"):
            raise said_error(value)
        self._keep(self._body, {name: item for name, item in value.items() if name not in _OF_ANSWER})
        if isinstance(usage := value.get("usage"), Mapping):
            self._usage = usage
        choices = value.get("choices")
        found = [choice for choice in choices if isinstance(choice, Mapping)] if isinstance(choices, list) else []
        return [choice for choice in found if choice.get("index", 0) in (0, None)]

    def _keep(self, kept: dict[str, Any], said: Mapping[str, Any]) -> None:
        """Until the end of the answer, which tells all of it at once."""
        news = {name: item for name, item in said.items() if item is not None and kept.get(name) != item}
        if news:
            self._kept_bytes += len(msgspec.msgpack.encode(news))
            if self._kept_bytes > MOST_BESIDE:
                raise UpstreamUnavailable(f"the endpoint said more than {MOST_BESIDE} bytes beside its answer")
            kept |= news

    def _events(self, choice: Mapping[str, Any], place: str) -> Iterator[Event]:
        self._keep(self._choice, {name: item for name, item in choice.items() if name not in _OF_CHOICE})
        if isinstance(reason := choice.get("finish_reason"), str):
            self._reason = reason
        if self._kind == "completion":
            yield from self._said(_text(choice.get("text")), choice, {})
            return
        other = "message" if place == "delta" else "delta"
        message = choice.get(place) or choice.get(other)
        message = message if isinstance(message, Mapping) else {}
        extra = {name: item for name, item in message.items() if name not in _OF_MESSAGE and item not in (None, "", [])}
        content = message.get("content")
        if isinstance(content, list):
            texts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
            if others := [part for part in content if part not in texts]:
                extra["content_parts"] = others
            content = "".join(_text(part.get("text")) for part in texts)
        yield from self._said(_text(content), choice, extra)
        yield from self._calls(message)

    def _said(self, text: str, choice: Mapping[str, Any], extra: dict[str, Any]) -> Iterator[Event]:
        scored = logprobs.Scored()
        if choice.get("logprobs") is not None:
            of_completion = self._kind == "completion"
            found = choice["logprobs"]
            scored = logprobs.of_completion(found, self._characters) if of_completion else logprobs.of_chat(found)
            self._scores += [token.logprob for token in scored.tokens if token.logprob is not None]
        self._characters += len(text)
        if text or extra or scored.tokens:
            yield TextDelta(text, scored.tokens, scored.offsets, extra)

    def _calls(self, message: Mapping[str, Any]) -> Iterator[Event]:
        calls = message.get("tool_calls")
        calls = calls if isinstance(calls, list) else []
        if len(calls) > MOST_CALLS:
            raise UpstreamUnavailable(f"the endpoint answered with {len(calls)} calls at once, and {MOST_CALLS} are read")
        for place, call in enumerate(calls):
            if isinstance(call, Mapping):
                self._called = True
                yield _call(call, place)
        if isinstance(older := message.get("function_call"), Mapping):
            self._called = True
            yield ToolCallDelta(0, "", _text(older.get("name")), _text(older.get("arguments")))


def _call(call: Mapping[str, Any], place: int) -> ToolCallDelta:
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    extra = {name: item for name, item in call.items() if name not in _OF_CALL and item is not None}
    if call.get("type") not in (None, "function"):
        extra["type"] = call["type"]
    index = call.get("index")
    return ToolCallDelta(
        index if type(index) is int else place,
        _text(call.get("id")),
        _text(function.get("name")),
        _text(function.get("arguments")),
        extra,
    )


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached))


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
