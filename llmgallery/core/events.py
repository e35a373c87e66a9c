"""An answer as it comes. Every request ends with exactly one Done."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llmgallery.core.errors import ErrorInfo

Reason = Literal["stop", "length", "cancelled", "error"]


class Usage(msgspec.Struct, frozen=True):
    """Tokens: of the prompt, of the answer, and how many of the prompt's were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class TextDelta(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    """More text of the answer: whole characters, never part of a stop sequence."""

    text: str
    extra: dict[str, Any] = {}


class Done(msgspec.Struct, frozen=True, tag="done", omit_defaults=True):
    """The end. `error` is set when reason is "error"; `stop` is the stop string that matched, if one did."""

    reason: Reason
    usage: Usage = Usage()
    error: ErrorInfo | None = None
    stop: str | None = None
    extra: dict[str, Any] = {}


Event = TextDelta | Done


class Progress(msgspec.Struct, frozen=True):
    """How far a model is on its way to ready. `phase`: queued, downloading, loading. `fraction`: 0 to 1, None = unknown.
    `done_bytes` and `total_bytes` belong to the phase; total 0 = unknown.
    """

    phase: Literal["queued", "downloading", "loading"]
    fraction: float | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    detail: str = ""
