"""From every kind of error to its status, without a server."""

from __future__ import annotations

import logging

import pytest
from litestar.exceptions import NotFoundException
from live_server import fits

from llmgallery.api import errors
from llmgallery.api.errors import envelope, to_failure
from llmgallery.core import errors as kinds
from llmgallery.core.errors import KINDS, GalleryError

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
