"""Where a file of a gallery's entry comes from: a Hub reference, or an address that is fetched as it is. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.core.errors import ConfigError

_HUB_HOSTS = ("huggingface.co/", "hf.co/")
_NOT_MODELS = re.compile(r"https://(www\.)?(huggingface|hf)\.co/(datasets|spaces)/", re.IGNORECASE)
_GITHUB = re.compile(r"github:(?://)?([\w.-]+)/([\w.-]+)/([^@]+?)(?:@([\w./-]+))?")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_FORMS = "huggingface://owner/repo/file, hf://owner/repo/file@revision, https://... or github:owner/repo/path@branch"


def address(uri: str, *, local: bool = False) -> HubReference | str:
    """The Hub reference that `uri` is, or the https:// address (http:// on loopback only; file:// if `local`).

    Schemes as LocalAI's pkg/downloader/uri.go has them. Raises ConfigError for those that are not read, and for what is
    malformed.
    """
    text = uri.strip()
    if not text.isprintable():
        raise ConfigError(f"{uri!r} is no address: it holds control characters")
    if text.lower().startswith(_HUB_HOSTS):
        text = f"https://{text}"
    if match := _GITHUB.fullmatch(text):
        owner, repo, path, branch = match.groups()
        return f"https://raw.githubusercontent.com/{owner}/{repo}/{branch or 'main'}/{path}"
    if not _NOT_MODELS.match(text) and (found := parse_reference(text)) is not None:
        return found
    return _plain(text, uri, local)


def _plain(text: str, uri: str, local: bool) -> str:
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError as error:
        raise ConfigError(f"{uri!r} is no address: {error}") from error
    scheme = parts.scheme.lower()
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"an address at {host} holds a password: leave it out, addresses are shown in lists and logs")
    if (scheme == "https" and host) or (scheme == "http" and host in _LOOPBACK):
        return text
    if scheme == "file" and local and not host and parts.path.startswith("/"):
        return text
    if scheme == "http":
        raise ConfigError(f"{uri!r} is not https: bytes that anybody on the way may change are not installed")
    if scheme == "file":
        raise ConfigError(f"{uri!r} is a file of this machine: only galleries of this machine may name one")
    raise ConfigError(f"{uri!r} is no address that is read here: write {_FORMS}")
