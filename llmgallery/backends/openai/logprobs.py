"""Log probabilities from OpenAI's wire, by the tokens' bytes: what numbers the endpoint gives them nobody says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llmgallery.core.events import Alternative, TokenLogprob

NO_ID = -1
MOST_TOKENS = 1_000_000
"""Of one answer that comes whole; no model says so many."""
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")


class Scored(NamedTuple):
    """Tokens, and of completions the character of the whole text in which each begins."""

    tokens: tuple[TokenLogprob, ...] = ()
    offsets: tuple[int, ...] = ()


def of_chat(value: Any) -> Scored:
    """A chat's `logprobs`, whole or in a chunk; what is malformed counts as not there."""
    content = value.get("content") if isinstance(value, Mapping) else None
    return Scored(tuple(map(_token, _mappings(content))))


def of_completion(value: Any, begin: int) -> Scored:
    """A completion's. llama-server writes them as a chat's: then offsets are counted from `begin`, the text that came before."""
    if not isinstance(value, Mapping):
        return Scored()
    if "content" in value:
        tokens = of_chat(value).tokens
        return Scored(tokens, tuple(_offsets(tokens, begin)))
    pieces = [text for text in _list(value.get("tokens"))[:MOST_TOKENS] if isinstance(text, str)]
    scores, tops, starts = (_list(value.get(name)) for name in ("token_logprobs", "top_logprobs", "text_offset"))
    tokens = tuple(
        TokenLogprob(NO_ID, _bytes(text), _number(_at(scores, index)), tuple(_likeliest(_at(tops, index))))
        for index, text in enumerate(pieces)
    )
    if len(starts) == len(tokens) and all(isinstance(start, int) for start in starts):
        return Scored(tokens, tuple(starts))
    return Scored(tokens, tuple(_offsets(tokens, begin)))


def _token(entry: Mapping[str, Any]) -> TokenLogprob:
    top = tuple(
        Alternative(NO_ID, _piece(other), score)
        for other in _mappings(entry.get("top_logprobs"))
        if (score := _number(other.get("logprob"))) is not None
    )
    return TokenLogprob(NO_ID, _piece(entry), _number(entry.get("logprob")), top)


def _piece(entry: Mapping[str, Any]) -> bytes:
    numbers = entry.get("bytes")
    if isinstance(numbers, list) and all(type(number) is int and 0 <= number < 256 for number in numbers):
        return bytes(numbers)
    return _bytes(str(entry.get("token") or ""))


def _bytes(text: str) -> bytes:
    """Of a token's name; `bytes:\\xe2\\x82` are no whole characters."""
    if found := _BYTES.fullmatch(text):
        return bytes.fromhex(found[1].replace("\\x", ""))
    return text.encode(errors="replace")


def _likeliest(top: Any) -> Iterator[Alternative]:
    """Best first."""
    scores = top.items() if isinstance(top, Mapping) else ()
    known = [(str(text), number) for text, score in scores if (number := _number(score)) is not None]
    for text, score in sorted(known, key=lambda each: each[1], reverse=True):
        yield Alternative(NO_ID, _bytes(text), score)


def _offsets(tokens: Sequence[TokenLogprob], begin: int) -> Iterator[int]:
    seen = b""
    for token in tokens:
        yield begin + len(seen.decode(errors="ignore"))
        seen += token.piece


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in _list(value) if isinstance(item, Mapping)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _at(values: list[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
