"""What went wrong at an endpoint, or on the way there, as our errors: complete for the reader, without any secret."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from llmgallery.backends.openai.endpoint import Endpoint
from llmgallery.core.errors import Upstream, UpstreamError, UpstreamUnavailable

LONGEST = 400
MOST = 56 * 1024 * 1024
SPARE_LEVELS = 64
"""Of nesting: what comes is put into frames, and encoded where the stack is deeper."""
_KEPT = re.compile(
    r"x-ratelimit-.*|ratelimit.*|anthropic-ratelimit-.*|retry-after(-ms)?|x-request-id|x-should-retry|"
    r"openai-(processing-ms|version|model)"
)
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def kept(headers: Mapping[str, str]) -> dict[str, str]:
    """Those that the client should know, with small letters."""
    return {name.lower(): value for name, value in headers.items() if _KEPT.fullmatch(name.lower())}


def refused(endpoint: Endpoint, path: str, status: int, headers: Mapping[str, str], raw: bytes) -> UpstreamError:
    """Of an answer with an error's status. A body that is JSON is kept as it came, but for secrets."""
    text = endpoint.without_secrets(raw.decode(errors="replace"))
    try:
        body: Any = portable(text.encode())
    except ValueError:
        body = text
    said = message_of(body) or _visible(text) or "without a word"
    advice = ""
    if status == 404 and not endpoint.shown().rstrip("/").rpartition("://")[2].partition("/")[2]:
        advice = f" (is /v1 missing in options.base_url, {endpoint.shown()}?)"
    message = f"{endpoint.shown(path)} answered {status}: {said[:LONGEST]}{advice}"
    safe = {name: endpoint.without_secrets(value) for name, value in kept(headers).items()}
    return UpstreamError(message, retry_after=retry_after(safe), upstream=Upstream(status, body, safe))


def moved(endpoint: Endpoint, path: str, status: int, location: str) -> UpstreamUnavailable:
    """Of a redirect, which no request with a key follows."""
    where = endpoint.without_secrets(location) or "nowhere"
    advice = "write the endpoint's right address into options.base_url"
    return UpstreamUnavailable(f"{endpoint.shown(path)} answered {status}, which leads to {where}: {advice}")


def said_error(value: Mapping[str, Any]) -> UpstreamError:
    """Of an error that stands in an answer of status 200, such as in a stream."""
    error = value.get("error")
    codes = [error.get(name) for name in ("code", "status")] if isinstance(error, Mapping) else []
    status = next((code for code in codes if type(code) is int and 400 <= code < 600), 500)
    said = message_of(value) or "an error without a word"
    return UpstreamError(f"the endpoint broke off: {said[:LONGEST]}", upstream=Upstream(status, dict(value)))


def message_of(body: Any) -> str:
    """The text in the shapes that errors have: {error: {message}}, {error}, {message}, {detail}, and FastAPI's list of them."""
    if isinstance(body, str):
        return _visible(body)
    if isinstance(body, list):
        return "; ".join(filter(None, map(message_of, body[:3])))
    if not isinstance(body, Mapping):
        return ""
    return next((said for name in ("error", "message", "msg", "detail") if (said := message_of(body.get(name)))), "")


def _visible(text: str) -> str:
    """Without tags, should it be a page of HTML."""
    plain = _TAGS.sub(" ", text) if "<" in text else text
    return " ".join(plain.split())


def portable(data: bytes) -> Any:
    """The value of JSON. Raises ValueError for what is none, and for what no frame could hold: it would end the worker."""
    try:
        value = _value(data)
        deep = value
        for _ in range(SPARE_LEVELS):
            deep = [deep]
        size = len(msgspec.msgpack.encode(deep))
    except (msgspec.MsgspecError, RecursionError, OverflowError, UnicodeError) as exc:
        raise ValueError(str(exc)) from exc
    if size > MOST:
        raise ValueError(f"{size} bytes")
    return value


def _value(data: bytes) -> Any:
    """Endpoints that cut text by UTF-16 may write half a character, which msgspec does not read; it becomes a question mark."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        if b"\\u" not in data:
            raise
    return msgspec.json.decode(json.dumps(json.loads(data), ensure_ascii=False).encode(errors="replace"))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, by retry-after-ms or Retry-After, which may be a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        if not value:
            return None
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
