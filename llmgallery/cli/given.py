"""What a user names on the command line, checked before anything starts: files of models, and the address of a server."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import click

from llmgallery.backends.loader import specs
from llmgallery.catalog.index import Entry
from llmgallery.catalog.weights import LocalFiles, backend_for, locate
from llmgallery.core.errors import ConfigError, ModelNotFound

SUFFIXES = (".gguf", ".yaml", ".yml")
STARTS = (os.sep, f".{os.sep}", f"..{os.sep}", f"~{os.sep}")
SCHEMES = ("http", "https")


def path_of(model: str) -> Path | None:
    """The file that `model` means; None = it is a name, which may hold slashes and end like a file's. Raises ConfigError for
    what can only be a path and is not there."""
    path = Path(model).expanduser()
    if (os.sep in model or model.lower().endswith(SUFFIXES)) and path.exists():
        return path
    if model.startswith(STARTS):
        raise ConfigError(f"there is no file {model}")
    return None


def neither(model: str, error: ModelNotFound) -> ModelNotFound:
    """`error`, and for what ends like a file's name also that no such file is here."""
    if not model.lower().endswith(SUFFIXES):
        return error
    near = f"; did you mean {' or '.join(error.hints)}?" if error.hints else ""
    return ModelNotFound(f"there is no file {model}, and no model of that name{near}", hints=error.hints)


def check_loadable(entry: Entry) -> None:
    """What can be known without loading: that the weights are here, or at the Hub, and that a backend takes them. Raises
    LoadError."""
    located = locate(entry.config, entry.folder)
    if entry.backend is None and isinstance(located, LocalFiles):
        backend_for(located.paths, specs())


def server_url(text: str) -> str:
    """LLMGALLERY_URL as a URL: host:port is enough. Raises UsageError."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        understood = parts.hostname and parts.port != 0 and not any(map(str.isspace, url))
    except ValueError:
        understood = False
    if not understood or parts.scheme not in SCHEMES:
        raise click.UsageError(f"LLMGALLERY_URL={text} is no address of a server: write it as http://127.0.0.1:8080")
    return url
