"""From exceptions to HTTP: the only place that knows which kind of error is which status."""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from llmgallery.core import errors as kinds
from llmgallery.core.errors import GalleryError

logger = logging.getLogger("llmgallery.api")

JSON = "application/json"
ORIGIN = "x-llmgallery-error-from"
"""The header of errors that are not this server's own."""
JOB = "/models/jobs/{}"
"""Where an install is told of, by its id."""


class BadBody(GalleryError):
    """The body is not what the route reads."""


class BodyTooLarge(GalleryError):
    """The body is longer than the server takes."""


class Unauthorized(GalleryError):
    """No API key, or a wrong one."""


class ForeignOrigin(GalleryError):
    """A web page of another site asks."""


class ForeignHost(GalleryError):
    """The Host header names somebody else."""


class JobNotFound(GalleryError):
    """No install or removal has this id, or it was long ago."""


class NotReady(GalleryError):
    """The models folder has not been read yet."""


class ClientGone(Exception):
    """The client left before the answer."""


class Rule(msgspec.Struct, frozen=True):
    """How one kind of error is told. `retry` False: the same request would fail again; the official clients are told."""

    status: int
    code: str
    type: str = "server_error"
    retry: bool = True


_CLIENT = "invalid_request_error"

RULES: dict[type[Exception], Rule] = {
    BadBody: Rule(400, "invalid_body", _CLIENT),
    BodyTooLarge: Rule(413, "request_too_large", _CLIENT),
    Unauthorized: Rule(401, "invalid_api_key", "authentication_error"),
    ForeignOrigin: Rule(403, "foreign_origin", "permission_error"),
    ForeignHost: Rule(421, "misdirected_request", _CLIENT),
    NotReady: Rule(503, "not_ready"),
    JobNotFound: Rule(404, "job_not_found", _CLIENT),
    kinds.InvalidField: Rule(400, "invalid_value", _CLIENT),
    kinds.UnsupportedField: Rule(400, "unsupported_parameter", _CLIENT),
    kinds.ContextExceeded: Rule(400, "context_length_exceeded", _CLIENT),
    kinds.TemplateError: Rule(400, "template_error", _CLIENT),
    kinds.RequestError: Rule(400, "invalid_request", _CLIENT),
    kinds.ModelNotFound: Rule(404, "model_not_found", _CLIENT),
    kinds.NotAllowed: Rule(403, "not_allowed", "permission_error"),
    # The request is right and the server is sound: a file of the operator's is not. 500 would say that it is our bug.
    kinds.ModelBroken: Rule(503, "model_broken", retry=False),
    kinds.ConfigError: Rule(503, "config_error", retry=False),
    kinds.HubNotFound: Rule(404, "hub_not_found", _CLIENT),
    kinds.HubGated: Rule(403, "hub_gated", "permission_error"),
    kinds.HubOffline: Rule(503, "hub_offline", retry=False),
    kinds.HubUnavailable: Rule(503, "hub_unavailable"),
    kinds.HubCorrupt: Rule(502, "hub_corrupt"),
    kinds.NoSpace: Rule(507, "no_space", retry=False),
    kinds.HubError: Rule(502, "hub_error"),
    kinds.BackendMissing: Rule(503, "backend_missing", retry=False),
    kinds.BadWeights: Rule(503, "bad_weights", retry=False),
    kinds.LoadError: Rule(503, "load_error", retry=False),
    kinds.UpstreamError: Rule(502, "upstream_error"),
    kinds.UpstreamUnavailable: Rule(502, "upstream_unavailable"),
    # Perhaps this very request ended the process: a client that repeats it by itself would end the next one, too.
    kinds.WorkerDied: Rule(502, "worker_died", retry=False),
    kinds.Overloaded: Rule(503, "overloaded"),
    kinds.Cancelled: Rule(503, "cancelled"),
}

_INTERNAL = Rule(500, "internal_error")
_UPSTREAM_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class Failure(msgspec.Struct, frozen=True):
    """An error as a client is told of it, in any dialect. `job`: where the install is told of that it is about. `body`: the
    error as a remote endpoint wrote it, in OpenAI's dialect."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    hints: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    job: str | None = None
    body: dict[str, Any] | None = None


PASSED_ON = re.compile(
    r"(x-|anthropic-)?ratelimit(-[a-z0-9-]+)?|retry-after(-ms)?|x-should-retry|openai-(processing-ms|version|model)"
)
"""Headers of a remote endpoint's answer that are for the client: not those that tell whose key was used."""
MOST_PASSED_ON = 40
"""Clients take a hundred headers, and some are ours."""
_RENAMED = {"x-request-id": "x-upstream-request-id"}
_VALUE = re.compile(r"[\x20-\x7e]{1,1000}")


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of a remote endpoint's headers that its client should see, in lower case."""
    named = {_RENAMED.get(name.lower(), name.lower()): value for name, value in headers.items()}
    kept = {name: value for name, value in named.items() if name in _RENAMED.values() or PASSED_ON.fullmatch(name)}
    fit = [(name, value) for name, value in kept.items() if _VALUE.fullmatch(value)]
    return dict(fit[:MOST_PASSED_ON])


def to_failure(error: Exception) -> Failure:
    """What to tell of `error`. Anything that nobody foresaw is logged under an id, and the client gets the id."""
    if isinstance(error, kinds.UpstreamError) and error.upstream is not None:
        return _upstream(error, error.upstream)
    for kind in type(error).__mro__:
        if isinstance(error, GalleryError) and kind in RULES:
            return _known(error, RULES[kind])
    if isinstance(error, HTTPException) and error.status_code < 500:
        return _routing(error)
    id = secrets.token_hex(4)
    logger.error("internal error %s", id, exc_info=error)
    return Failure(500, _INTERNAL.type, _INTERNAL.code, f"an internal error; the server's log has it under {id}")


def _upstream(error: GalleryError, upstream: kinds.Upstream) -> Failure:
    """As the endpoint told it; what is no error of HTTP, our client cannot be told as one. Its words may read as if they were
    ours (a wrong key, an unknown model): the log and a header say whose they are."""
    logger.warning("passed on: %s", error.message)
    rule = RULES[kinds.UpstreamError]
    status = upstream.status if 400 <= upstream.status <= 599 else rule.status
    type = _UPSTREAM_TYPES.get(status, _CLIENT if status < 500 else rule.type)
    body = upstream.body
    verbatim = body if isinstance(body, dict) and isinstance(body.get("error"), dict) else None
    headers = {**passed_on(upstream.headers), ORIGIN: "endpoint"}
    return Failure(status, type, rule.code, error.message, headers=headers, body=verbatim)


def _known(error: GalleryError, rule: Rule) -> Failure:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    elif rule.status >= 500 and not rule.retry:
        headers["x-should-retry"] = "false"
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    job = JOB.format(error.job) if error.job is not None else None
    if job is not None:
        headers["Link"] = f'<{job}>; rel="status"'  # RFC 8631: where the state of this is told
    return Failure(rule.status, rule.type, rule.code, error.message, _param(error, rule), error.hints, headers, job)


def _param(error: GalleryError, rule: Rule) -> str | None:
    """The request's field at fault. Errors that are not about the request name keys of files in `field`; a client can only
    ask for another model, and where the operator must act, not even that is its fault."""
    if isinstance(error, kinds.RequestError):
        return error.field
    about_model = kinds.ModelNotFound | kinds.NotAllowed | kinds.HubError
    return "model" if rule.status < 500 and isinstance(error, about_model) else None


def _routing(error: HTTPException) -> Failure:
    """Of the framework's own: unknown routes and wrong methods."""
    status = error.status_code
    headers = dict(error.headers or {})
    if "allow" in headers:
        headers["allow"] = ", ".join(sorted(headers["allow"].split(", ")))
    code = _HTTP_CODES.get(status, "invalid_request")
    return Failure(status, _CLIENT, code, _detail(error, headers), headers=headers)


def _detail(error: HTTPException, headers: dict[str, str]) -> str:
    if error.status_code == 405:
        return f"this route does not take that method; it takes {headers.get('allow', 'others')}"
    return error.detail


def envelope(failure: Failure) -> dict[str, Any]:
    """The body of an error for routes that belong to no other dialect: OpenAI's. `hints` (near names, problems, log lines)
    and `job` (the path of an install that goes on) are ours and only there when there are some. That of a remote endpoint goes as
    it came."""
    if failure.body is not None:
        return failure.body
    body: dict[str, Any] = {
        "message": failure.message,
        "type": failure.type,
        "param": failure.param,
        "code": failure.code,
    }
    ours = {"hints": list(failure.hints) or None, "job": failure.job}
    return {"error": body | {name: value for name, value in ours.items() if value is not None}}


def to_response(failure: Failure) -> Response[bytes]:
    return Response(msgspec.json.encode(envelope(failure)), status_code=failure.status, headers=failure.headers, media_type=JSON)


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's handler for every exception."""
    if isinstance(error, ClientGone):
        return Response(b"", status_code=499, media_type=JSON)
    failure = to_failure(error)
    if failure.status == 404 and isinstance(error, HTTPException):
        known = "see GET /v1/models, POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank, /models/apply"
        failure = msgspec.structs.replace(failure, message=f"there is no {request.method} {request.url.path}; {known}")
    return to_response(failure)
