"""Everything that we raise on purpose. No HTTP status here: api/errors.py maps kinds to dialects.

GalleryError
├── RequestError                the client can mend the request
│   ├── InvalidField            malformed or out of range; names the field
│   ├── UnsupportedField        known, but this model or version cannot do it
│   ├── ContextExceeded         prompt (and answer) do not fit the context
│   └── TemplateError           the template refused the messages
├── ModelNotFound               no such name; carries near names
├── NotAllowed                  the server's settings do not allow it; names the setting that would
├── ModelBroken                 its YAML has errors; carries them
├── ConfigError                 a file or setting is wrong; carries all problems
├── HubError                    the Hub or a download
│   ├── HubNotFound             no such repo, revision or file
│   ├── HubGated                terms to accept, or a token is needed
│   ├── HubOffline              not cached, and no network allowed
│   ├── HubUnavailable          down, slow or answering nonsense
│   ├── HubCorrupt              the bytes do not match their checksum
│   └── NoSpace                 the disk cannot hold the file
├── LoadError                   the model does not load
│   ├── BackendMissing          a library is not installed; says which command installs it
│   └── BadWeights              the file is not what it should be
├── UpstreamError               a remote endpoint answered with an error; carries its status, body and headers
├── UpstreamUnavailable         a remote endpoint cannot be reached, or broke off
├── WorkerDied                  the model's process ended; carries exit status and last log lines
├── Overloaded                  no memory or no place in time; carries retry_after in seconds
└── Cancelled                   the request was withdrawn
"""

from __future__ import annotations

from typing import Any

import msgspec


class Upstream(msgspec.Struct, frozen=True):
    """An error as a remote endpoint told it. `body`: JSON as it came, or text; `headers`: those worth passing on."""

    status: int
    body: Any = None
    headers: dict[str, str] = {}


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A GalleryError as plain data, to cross a process border or enter an event."""

    kind: str
    message: str
    field: str | None = None
    hints: tuple[str, ...] = ()
    retry_after: float | None = None
    job: str | None = None
    upstream: Upstream | None = None


class GalleryError(Exception):
    """The root. `message` is complete for the user: what was wrong and what to do.

    `field` names the request field or YAML key at fault; `hints` are near names, log lines or problems, one a line;
    `retry_after` is in seconds; `job` is the id of the install that it is about; `upstream` is what a remote endpoint said.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        hints: tuple[str, ...] = (),
        retry_after: float | None = None,
        job: str | None = None,
        upstream: Upstream | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hints = hints
        self.retry_after = retry_after
        self.job = job
        self.upstream = upstream

    def info(self) -> ErrorInfo:
        kind = type(self).__name__
        return ErrorInfo(kind, self.message, self.field, self.hints, self.retry_after, self.job, self.upstream)


class RequestError(GalleryError):
    """The client can mend the request."""


class InvalidField(RequestError):
    """A field is malformed or out of range."""


class UnsupportedField(RequestError):
    """A field is known, but this model or this version cannot do what it asks."""


class ContextExceeded(RequestError):
    """The prompt does not fit the context."""


class TemplateError(RequestError):
    """The chat template refused the messages, or ran out of its bounds."""


class ModelNotFound(GalleryError):
    """No model has this name. `hints` are near names."""


class NotAllowed(GalleryError):
    """The server's settings do not allow it. `hints` are the settings that would, as `name: value`."""


class ModelBroken(GalleryError):
    """The model's YAML has errors. `hints` are the problems."""


class ConfigError(GalleryError):
    """A file or setting is wrong. `hints` are all problems, each with its place."""


class HubError(GalleryError):
    """The Hub or a download failed."""


class HubNotFound(HubError):
    """No such repo, revision or file. `hints` are the repo's nearest file names."""


class HubGated(HubError):
    """The repo's terms must be accepted, or a token is needed."""


class HubOffline(HubError):
    """The file is not cached, and no network is allowed."""


class HubUnavailable(HubError):
    """The Hub is down, slow or answers nonsense."""


class HubCorrupt(HubError):
    """The bytes that came do not match the checksum."""


class NoSpace(HubError):
    """The disk cannot hold the file."""


class LoadError(GalleryError):
    """The model does not load."""


class BackendMissing(LoadError):
    """A backend's library is not installed; the message is the command that installs it."""


class BadWeights(LoadError):
    """The weights file is not what it should be."""


class UpstreamError(GalleryError):
    """A remote endpoint answered with an error. `upstream` is what it said, for the client to read as it came."""


class UpstreamUnavailable(GalleryError):
    """A remote endpoint cannot be reached, did not answer in time, or broke off."""


class WorkerDied(GalleryError):
    """The model's process ended. `hints` are its last log lines."""


class Overloaded(GalleryError):
    """No memory or no place in time. `retry_after` says when to try again."""


class Cancelled(GalleryError):
    """The request was withdrawn."""


def _tree(root: type[GalleryError]) -> dict[str, type[GalleryError]]:
    kinds = {root.__name__: root}
    for child in root.__subclasses__():
        kinds |= _tree(child)
    return kinds


KINDS: dict[str, type[GalleryError]] = _tree(GalleryError)


def from_info(info: ErrorInfo) -> GalleryError:
    """The exception that `info` was made of; an unknown kind comes back as the root."""
    kind = KINDS.get(info.kind, GalleryError)
    return kind(
        info.message,
        field=info.field,
        hints=info.hints,
        retry_after=info.retry_after,
        job=info.job,
        upstream=info.upstream,
    )
