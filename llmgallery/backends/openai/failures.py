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
LEVELS = 200
"""Of nesting in JSON: what comes is put into frames, and walked through by functions that call themselves."""
OBJECTS = 1_000_000
"""In one JSON: empty ones take much more room here than on their way."""
LEVELS_OF_ERROR = 5
LONGEST_PAGE = 4000
"""Characters of a text that is looked through for what it says to people."""
LONGEST_PLACE = 300
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
        body: Any = harmless(portable(text.encode()), endpoint)
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
    where = endpoint.without_secrets(location)[:LONGEST_PLACE] or "nowhere"
    advice = "write the endpoint's right address into options.base_url"
    return UpstreamUnavailable(f"{endpoint.shown(path)} answered {status}, which leads to {where}: {advice}")


def said_error(value: Mapping[str, Any]) -> UpstreamError:
    """Of an error that stands in an answer of status 200, such as in a stream."""
    error = value.get("error")
    codes = [error.get(name) for name in ("code", "status")] if isinstance(error, Mapping) else []
    status = next((code for code in codes if type(code) is int and 400 <= code < 600), 502)
    said = message_of(value) or "an error without a word"
    return UpstreamError(f"the endpoint broke off: {said[:LONGEST]}", upstream=Upstream(status, dict(value)))


def message_of(body: Any, levels: int = LEVELS_OF_ERROR) -> str:
    """The text in the shapes that errors have: {error: {message}}, {error}, {message}, {detail}, and FastAPI's list of them."""
    if isinstance(body, str):
        return _visible(body)
    if levels == 0 or not isinstance(body, (list, Mapping)):
        return ""
    if isinstance(body, list):
        return "; ".join(filter(None, (message_of(item, levels - 1) for item in body[:3])))
    names = ("error", "message", "msg", "detail")
    return next((said for name in names if (said := message_of(body.get(name), levels - 1))), "")


def harmless(value: Any, endpoint: Endpoint) -> Any:
    """JSON without the secrets that requests to the endpoint hold, however it wrote them."""
    if isinstance(value, str):
        return endpoint.without_secrets(value)
    if isinstance(value, list):
        return [harmless(item, endpoint) for item in value]
    if isinstance(value, dict):
        return {endpoint.without_secrets(name): harmless(item, endpoint) for name, item in value.items()}
    return value


def _visible(text: str) -> str:
    """Without tags, should it be a page of HTML."""
    text = text[:LONGEST_PAGE]
    plain = _TAGS.sub(" ", text) if "<" in text else text
    return " ".join(plain.split())


def portable(data: bytes) -> Any:
    """The value of JSON. Raises ValueError for what is none, and for what no frame could hold: it would end the worker."""
    if data.count(b"{") > OBJECTS:
        raise ValueError(f"more than {OBJECTS} objects")
    try:
        value = _value(data)
        size = len(msgspec.msgpack.encode(value))
    except (msgspec.MsgspecError, RecursionError, OverflowError, UnicodeError) as exc:
        raise ValueError(str(exc)) from exc
    if size > MOST:
        raise ValueError(f"{size} bytes")
    if data.count(b"[") + data.count(b"{") > LEVELS and _is_deep(value):
        raise ValueError(f"nested more than {LEVELS} levels deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(LEVELS):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


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
