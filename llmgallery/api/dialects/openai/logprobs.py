"""Log probabilities on OpenAI's wire: the shape of chats, and the older one of completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmgallery.core.events import Alternative, TokenLogprob

LEAST = -9999.0
"""What OpenAI writes for a token that is as good as impossible; JSON knows no infinity."""


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat's choice, whole or in a chunk."""
    content = [{**_entry(token), "top_logprobs": [_entry(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob], offsets: Sequence[int]) -> dict[str, Any]:
    """`logprobs` of a completion's choice, whole or in a chunk. The token itself is among the likeliest of its place even
    when it is not; the first token of an echoed prompt has none."""
    return {
        "tokens": [_named(token.piece) for token in tokens],
        "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": list(offsets),
    }


def _entry(token: TokenLogprob | Alternative) -> dict[str, Any]:
    # A token without one was not asked of the model: a constraint left no other.
    logprob = 0.0 if token.logprob is None else _finite(token.logprob)
    return {"token": token.piece.decode(errors="replace"), "logprob": logprob, "bytes": list(token.piece)}


def _top(token: TokenLogprob) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    found = {_named(other.piece): _finite(other.logprob) for other in reversed(token.top)}
    found.setdefault(_named(token.piece), _finite(token.logprob))
    return found


def _named(piece: bytes) -> str:
    """OpenAI's way for bytes that are no whole characters, which would all have one name else: `bytes:\\xe2\\x82`"""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float) -> float:
    return LEAST if math.isnan(logprob) else max(LEAST, logprob)
