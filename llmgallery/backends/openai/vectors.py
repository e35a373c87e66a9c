"""From an endpoint's embeddings and scores to vectors: little-endian float32. Pure."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Mapping
from typing import Any

from llmgallery.backends.openai.failures import said_error
from llmgallery.core.errors import UpstreamUnavailable

MOST = 48 * 1024 * 1024
"""Bytes of all vectors of one answer, which must fit into a frame."""


def embeddings(value: Any, count: int) -> tuple[tuple[bytes, ...], int]:
    """One vector for each of `count` inputs in their order, and the tokens of the inputs. Raises UpstreamError,
    UpstreamUnavailable."""
    vectors = tuple(_vector(item.get("embedding")) for item in _ordered(value, "data", count))
    if sum(map(len, vectors)) > MOST:
        raise UpstreamUnavailable(f"the endpoint answered with vectors of more than {MOST} bytes: ask for fewer at once")
    return vectors, _tokens(value)


def scores(value: Any, count: int) -> tuple[tuple[bytes, ...], int]:
    """The same for the documents of a rerank: vectors of one number."""
    found = [item.get("relevance_score", item.get("score")) for item in _ordered(value, "results", count)]
    if not all(isinstance(score, (int, float)) for score in found):
        raise UpstreamUnavailable("the endpoint answered with results without relevance_score")
    return tuple(_packed([float(score)]) for score in found), _tokens(value)


def _ordered(value: Any, name: str, count: int) -> list[Mapping[str, Any]]:
    """The items of the list `name` in the order of their `index`."""
    if not isinstance(value, Mapping):
        raise UpstreamUnavailable(f"the endpoint answered with no {name}: {str(value)[:80]!r}")
    if value.get("error"):
        raise said_error(value)
    items = [item for item in value[name] if isinstance(item, Mapping)] if isinstance(value.get(name), list) else []
    places = {_index(item, place): item for place, item in enumerate(items)}
    if len(items) != count or places.keys() != set(range(count)):
        raise UpstreamUnavailable(f"the endpoint answered {count} inputs with {len(items)} {name}")
    return [places[index] for index in range(count)]


def _index(item: Mapping[str, Any], place: int) -> int:
    index = item.get("index")
    return index if type(index) is int else place


def _vector(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            data = base64.b64decode(value, validate=True)
        except ValueError as exc:
            raise UpstreamUnavailable("the endpoint answered with an embedding that is no base64") from exc
        if not data or len(data) % 4:
            raise UpstreamUnavailable(
                f"the endpoint answered with an embedding of {len(data)} bytes, which are no float32 numbers"
            )
        return data
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        message = f"the endpoint answered with {len(value)} vectors for one input, one for each token: it must pool them"
        raise UpstreamUnavailable(message)
    if not isinstance(value, list) or not value or not all(isinstance(number, (int, float)) for number in value):
        raise UpstreamUnavailable("the endpoint answered with an embedding that is no list of numbers")
    return _packed(value)


def _packed(numbers: list[float]) -> bytes:
    try:
        packed = array("f", numbers)
    except OverflowError:
        packed = array("f", [math.inf])
    if not all(map(math.isfinite, packed)):
        raise UpstreamUnavailable("the endpoint answered with numbers that no float32 holds")
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _tokens(value: Mapping[str, Any]) -> int:
    usage = value.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    found = usage.get("prompt_tokens", usage.get("total_tokens"))
    return found if type(found) is int and found >= 0 else 0
