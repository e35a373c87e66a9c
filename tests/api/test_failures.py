"""From every kind of error to its status, without a server."""

from __future__ import annotations

import logging

import pytest
from litestar.exceptions import NotFoundException
from live_server import fits

from llmgallery.api import errors
from llmgallery.api.errors import ORIGIN, envelope, passed_on, to_failure
from llmgallery.core import errors as kinds
from llmgallery.core.errors import KINDS, GalleryError, Upstream

STATUS = {
    "InvalidField": 400,
    "UnsupportedField": 400,
    "ContextExceeded": 400,
    "TemplateError": 400,
    "ModelNotFound": 404,
    "NotAllowed": 403,
    "ModelBroken": 503,
    "ConfigError": 503,
    "HubNotFound": 404,
    "HubGated": 403,
    "HubOffline": 503,
    "HubUnavailable": 503,
    "HubCorrupt": 502,
    "NoSpace": 507,
    "LoadError": 503,
    "BackendMissing": 503,
    "BadWeights": 503,
    "UpstreamError": 502,
    "UpstreamUnavailable": 502,
    "WorkerDied": 502,
    "Overloaded": 503,
    "Cancelled": 503,
}
PARAMS = {
    **dict.fromkeys(("InvalidField", "UnsupportedField", "ContextExceeded", "TemplateError"), "a.b"),
    **dict.fromkeys(("ModelNotFound", "NotAllowed", "HubNotFound", "HubGated"), "model"),
}
"""Only requests' fields are named to clients: the others' `field` is a key of a file that they cannot see."""


@pytest.mark.parametrize(("kind", "status"), STATUS.items())
def test_each_kind_has_its_status(kind: str, status: int) -> None:
    failure = to_failure(KINDS[kind]("it is so", field="a.b", hints=("one", "two")))
    assert (failure.status, failure.message) == (status, "it is so")
    body = fits("error", envelope(failure))
    assert body["error"]["hints"] == ["one", "two"]
    assert body["error"]["param"] == PARAMS.get(kind)


def test_no_kind_is_forgotten() -> None:
    assert set(KINDS) - set(STATUS) == {"GalleryError", "RequestError", "HubError"}
    assert all(to_failure(kind("x")).status != 500 for kind in KINDS.values() if kind is not GalleryError)


def test_when_to_come_back_is_told_in_whole_seconds() -> None:
    assert to_failure(kinds.Overloaded("x", retry_after=2.1)).headers == {"Retry-After": "3"}
    assert to_failure(kinds.Overloaded("x", retry_after=0)).headers == {"Retry-After": "1"}
    assert to_failure(kinds.BadWeights("x")).headers == {"x-should-retry": "false"}
    assert to_failure(kinds.InvalidField("x")).headers == {}


TOO_MANY = {"error": {"message": "slow down", "type": "tokens", "param": None, "code": "rate_limit_exceeded", "more": [1]}}


@pytest.mark.parametrize(("status", "told"), [(429, 429), (401, 401), (599, 599), (200, 502), (302, 502), (999, 502)])
def test_an_endpoint_s_error_goes_as_it_came(status: int, told: int) -> None:
    failure = to_failure(kinds.UpstreamError("x", upstream=Upstream(status, TOO_MANY)))
    assert (failure.status, envelope(failure)) == (told, TOO_MANY)


@pytest.mark.parametrize("body", [None, "<html>", {"detail": "no"}, {"error": "no"}, [TOO_MANY]])
def test_what_is_no_error_of_openai_s_becomes_the_message_in_one(body: object) -> None:
    failure = to_failure(kinds.UpstreamError("the endpoint said so", upstream=Upstream(429, body)))
    error = fits("error", envelope(failure))["error"]
    assert (failure.status, error["message"]) == (429, "the endpoint said so")
    assert (error["type"], error["code"]) == ("rate_limit_error", "upstream_error")


def test_of_an_endpoint_s_headers_the_client_gets_what_is_for_it() -> None:
    came = {
        "X-RateLimit-Remaining-Tokens": "7",
        "retry-after": "3",
        "Retry-After-Ms": "2500",
        "x-request-id": "req_1",
        "anthropic-ratelimit-requests-limit": "50",
        "openai-processing-ms": "12",
        "openai-organization": "the operator's",
        "set-cookie": "a=b",
        "content-length": "5",
        "x-ratelimit-limit-requests": "a\r\nx: y",
    }
    expected = {
        "x-ratelimit-remaining-tokens": "7",
        "retry-after": "3",
        "retry-after-ms": "2500",
        "x-upstream-request-id": "req_1",
        "anthropic-ratelimit-requests-limit": "50",
        "openai-processing-ms": "12",
    }
    assert passed_on(came) == expected
    assert to_failure(kinds.UpstreamError("x", upstream=Upstream(429, TOO_MANY, came))).headers == {
        **expected,
        ORIGIN: "endpoint",
    }


def test_no_endpoint_has_clients_choke_on_headers() -> None:
    """Python's http.client gives up at a hundred."""
    came = {f"x-ratelimit-{number}": "1" for number in range(2000)}
    assert 10 < len(passed_on(came)) < 60


def test_what_nobody_foresaw_is_logged_under_the_id_that_the_client_gets(caplog: pytest.LogCaptureFixture) -> None:
    for error in (ZeroDivisionError("secret"), GalleryError("secret")):
        with caplog.at_level(logging.ERROR, logger="llmgallery.api"):
            caplog.clear()
            failure = to_failure(error)
        assert (failure.status, failure.code) == (500, "internal_error")
        assert "secret" not in failure.message
        [record] = caplog.records
        assert record.getMessage().rpartition(" ")[2] in failure.message
        assert record.exc_info is not None and record.exc_info[1] is error


def test_the_framework_s_own_refusals_keep_their_status() -> None:
    assert to_failure(NotFoundException("nothing here")).status == 404
    assert issubclass(errors.BadBody, GalleryError)
