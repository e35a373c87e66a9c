"""An answer as it comes. Every request ends with exactly one Done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from llmgallery.core.errors import ErrorInfo

Reason = Literal["stop", "length", "tool_calls", "cancelled", "error"]


class Usage(msgspec.Struct, frozen=True):
    """Tokens: of the prompt, of the answer, and how many of the prompt's were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Alternative(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token that could stand at a place, and its log probability."""

    token: int
    piece: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token of a text, and how likely it was: the natural logarithm of the softmax over the whole vocabulary, as the model
    gave it, before any sampler, bias or constraint.

    `piece`: the token's bytes; a control token's as the vocabulary writes it. `logprob`: None for the first token of a
    prompt, which nothing precedes. `top`: the likeliest tokens of this place, best first, as many as were asked for.
    """

    token: int
    piece: bytes
    logprob: float | None
    top: tuple[Alternative, ...] = ()


class TextDelta(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    """More text of the answer: whole characters, never part of a stop sequence. `logprobs`, if asked for: of the tokens
    whose text has come, each once; a token whose characters are not whole yet comes with the delta that completes them.
    `offsets`: for each of them, the character of the whole text, echo included, in which it begins. `extra`: other fields of the
    message, as a remote endpoint told them."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    offsets: tuple[int, ...] = ()
    extra: dict[str, Any] = {}


class ToolCallDelta(msgspec.Struct, frozen=True, tag="tool_call", omit_defaults=True):
    """A call of a function. `arguments`: JSON text, or what the model wrote in its place. `index` counts the answer's calls.
    Ours are whole. A remote endpoint's may come in parts: the first has id and name, those that follow only more of
    `arguments`."""

    index: int
    id: str
    name: str
    arguments: str
    extra: dict[str, Any] = {}


class Done(msgspec.Struct, frozen=True, tag="done", omit_defaults=True):
    """The end. `error` is set when reason is "error"; `stop` is the stop string that matched, if one did.
    `mean_logprob`: of the tokens of the answer, without echo and end token, if log probabilities were asked for and any came.
    `warnings`: what the model file wants done to answers and was not. `extra`: of a remote endpoint, its own `finish_reason`
    where it has others, and under `body` the fields of its whole answer that nobody here knows."""

    reason: Reason
    usage: Usage = Usage()
    error: ErrorInfo | None = None
    stop: str | None = None
    mean_logprob: float | None = None
    warnings: tuple[str, ...] = ()
    extra: dict[str, Any] = {}


Event = TextDelta | ToolCallDelta | Done


def joined(deltas: Sequence[TextDelta]) -> TextDelta:
    """Adjacent deltas, none of which has `extra`, as one."""
    return TextDelta(
        "".join(delta.text for delta in deltas),
        tuple(entry for delta in deltas for entry in delta.logprobs),
        tuple(offset for delta in deltas for offset in delta.offsets),
    )


class Progress(msgspec.Struct, frozen=True):
    """How far a model is on its way to ready. `fraction`: 0 to 1, None = unknown. `done_bytes` and `total_bytes` belong to the
    phase; total 0 = unknown."""

    phase: Literal["queued", "planning", "downloading", "loading"]
    fraction: float | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    detail: str = ""
