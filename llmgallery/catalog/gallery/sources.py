"""Where galleries and their base files lie: configured URLs as places, and which place may name which. Opens no network."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

import msgspec

from llmgallery.catalog.reach import check_redirect, is_inside
from llmgallery.catalog.reference import HubReference, check_file, parse_reference
from llmgallery.config.settings import is_loopback
from llmgallery.core.errors import ConfigError

BUILTIN = "llmgallery"
"""The name of the gallery that ships with us; one that is configured under this name takes its place."""

INDEX = "index.yaml"
"""A folder's index. Where it has none, every YAML file directly in it is one."""

RAW_GITHUB = "https://raw.githubusercontent.com"
FORMS = "a folder, a file, https://…, github:owner/repo/path@ref or hf://owner/repo[/path][@revision]"
YAML_SUFFIXES = (".yaml", ".yml")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_OWNER = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
_REF = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}(?:/[A-Za-z0-9][\w.+-]{0,99}){0,9}", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_GITHUB = ("github://", "github:")


class GallerySource(msgspec.Struct, frozen=True):
    """A gallery as it is configured. `url`: FORMS."""

    name: str
    url: str


class LocalPlace(msgspec.Struct, frozen=True):
    """A file or a folder of this machine."""

    path: Path


class WebPlace(msgspec.Struct, frozen=True):
    """A file behind https://, or http:// on loopback."""

    url: str


class HubPlace(msgspec.Struct, frozen=True):
    """A file of a Hub repo, or a folder in it; "" is the repo itself."""

    repo: str
    path: str
    revision: str

    @property
    def is_file(self) -> bool:
        return self.path.lower().endswith(YAML_SUFFIXES)


Place = LocalPlace | WebPlace | HubPlace


def check_names(sources: Sequence[GallerySource]) -> None:
    """Raises ConfigError for a name that requests could not write, or that two have."""
    seen: set[str] = set()
    for source in sources:
        if not _NAME.fullmatch(source.name):
            raise ConfigError(
                f"galleries: {source.name!r} is no name for a gallery: letters, digits and . _ - only, at most 64",
                field="galleries",
            )
        if source.name.lower() in seen:
            raise ConfigError(f"galleries: two are called {source.name!r}: give one of them another name", field="galleries")
        seen.add(source.name.lower())


def place_of(source: GallerySource, folder: Path, github: str = RAW_GITHUB) -> Place:
    """Where a gallery lies. Relative paths start at `folder`; `github`: where GitHub's files are. Raises ConfigError."""
    url = source.url.strip()
    try:
        if not url:
            raise ConfigError("it has no url")
        if (place := _remote(url, github)) is not None:
            return _index_of(place)
        return LocalPlace(folder / _local_path(url))
    except ConfigError as error:
        raise ConfigError(f"galleries: {source.name}: {error.message}; write {FORMS}", field="galleries") from error


def base_place(url: str, origin: Place, github: str = RAW_GITHUB) -> Place:
    """The base file that an entry names by `url`, relative to `origin`: the index's address, or its folder where that is local
    or on the Hub. A local gallery's may not leave its folder; what came over the network names no files of this machine,
    and no services on it. A local copy of a gallery on GitHub has its base files beside its index.yaml: those are taken.
    Raises ConfigError.
    """
    url = url.strip()
    if isinstance(origin, LocalPlace) and (beside := _copy_beside(url, origin)) is not None:
        return beside
    if (place := _remote(url, github)) is not None:
        check_reach(origin, place)
        return _file(place, url)
    if isinstance(origin, LocalPlace):
        return LocalPlace(_inside(origin.path, _local_path(url)))
    if url.lower().startswith("file:"):
        raise ConfigError(f"the base file {url!r} is one of this machine, and the gallery is not: that is not allowed")
    if isinstance(origin, WebPlace):
        place = WebPlace(check_web(urljoin(origin.url, url)))
        check_reach(origin, place)
        return place
    return _file(HubPlace(origin.repo, _joined(origin.path, url), origin.revision), url)


def check_reach(origin: Place, target: Place) -> None:
    """Raise ConfigError where a gallery of the network leads to an address inside this machine or its network, or from https
    to http."""
    if not isinstance(target, WebPlace) or isinstance(origin, LocalPlace):
        return
    before = urlsplit(origin.url) if isinstance(origin, WebPlace) else urlsplit("https://")
    after = urlsplit(target.url)
    if (after.scheme, after.netloc) == (before.scheme, before.netloc):
        return
    if before.scheme == "https" and after.scheme != "https":
        raise ConfigError(f"{target.url} is not https, and what leads there is: that is not followed")
    check_redirect(before.hostname or "", after.hostname or "", target.url)


def may_lead_inside(source: str) -> bool:
    """What is written in `source`, an index or a base file as messages name it, may name addresses inside this network: it is
    of this machine, or lies there itself."""
    place = _SCHEME.match(source)
    if place is None:
        return not source.lower().startswith(_GITHUB)
    return place[1].lower() in ("http", "https") and is_inside(urlsplit(source).hostname or "")


def check_web(url: str) -> str:
    """The address, if galleries may be fetched from there: https, or http on loopback, without a password. Raises ConfigError."""
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is no address of a file: write https://host/path/{INDEX}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"the address at {parts.hostname} holds a password: leave it out, addresses are shown in lists and logs"
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigError(f"{url!r} is not https: http:// is only read on this machine's loopback")
    return parts._replace(fragment="").geturl()


def _remote(url: str, github: str) -> Place | None:
    """The place, when `url` has a scheme of the network."""
    lower = url.lower()
    if lower.startswith(_GITHUB):
        return WebPlace(_github(url, github))
    if lower.startswith(("http://", "https://", "hf://", "huggingface://")):
        reference = None if "://huggingface.co/datasets/" in lower else parse_reference(url)
        return WebPlace(check_web(url)) if reference is None else _hub(reference, url)
    if "://" in url and not lower.startswith("file://"):
        raise ConfigError(f"{url!r} has a scheme that is not known")
    return None


def _index_of(place: Place) -> Place:
    """The index of what was configured, where that is a folder of GitHub or of a web server."""
    if not isinstance(place, WebPlace):
        return place
    parts = urlsplit(place.url)
    return WebPlace(parts._replace(path=parts.path + INDEX).geturl()) if parts.path.endswith("/") else place


def _hub(reference: HubReference, url: str) -> HubPlace:
    if reference.quant is not None:
        raise ConfigError(f"{url!r} names a quantisation: name a file, or nothing but the repo")
    return HubPlace(reference.repo, reference.file or "", reference.revision)


def _github(url: str, base: str) -> str:
    """github:owner/repo/path@ref (LocalAI's form) as an address of the raw file; without a suffix it is a folder's index."""
    scheme = next(scheme for scheme in _GITHUB if url.lower().startswith(scheme))
    body, at, ref = url[len(scheme) :].partition("@")
    owner, _, rest = body.partition("/")
    repo, _, path = rest.partition("/")
    ref = ref if at else "main"
    if not _OWNER.fullmatch(owner) or not _OWNER.fullmatch(repo) or not _REF.fullmatch(ref) or ".." in ref:
        raise ConfigError(f"{url!r} is no file on GitHub: write github:owner/repo/path/index.yaml@branch")
    path = path.strip("/")
    if not path.lower().endswith(YAML_SUFFIXES):
        path = f"{path}/{INDEX}".lstrip("/")
    check_file(path)
    return f"{base}/{owner}/{repo}/{quote(ref)}/{quote(path)}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is read late, and may be wrong
    except ValueError as error:
        raise ConfigError(f"{url!r} is no address: {error}") from error
    if any(char.isspace() or not char.isprintable() for char in url):
        raise ConfigError(f"{url!r} is no address: it holds spaces or control characters")
    return parts


def _local_path(url: str) -> Path:
    if url.lower().startswith("file:"):
        parts = _split(url)
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"{url!r} names a file of another machine: write file:///path")
        url = unquote(parts.path)
    if "\0" in url:
        raise ConfigError(f"{url!r} is no path")
    try:
        return Path(url).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{url!r}: {error}") from error


def _inside(folder: Path, path: Path) -> Path:
    target, root = (folder / path).resolve(), folder.resolve()
    if not target.is_relative_to(root):
        raise ConfigError(f"the base file {str(path)!r} leads out of the gallery's folder {folder}")
    return target


def _copy_beside(url: str, origin: LocalPlace) -> LocalPlace | None:
    if not url.lower().startswith(_GITHUB):
        return None
    name = url.partition("@")[0].rpartition("/")[2]
    if not name.lower().endswith(YAML_SUFFIXES) or not all((origin.path / file).is_file() for file in (INDEX, name)):
        return None
    return LocalPlace(_inside(origin.path, Path(name)))


def _joined(folder: str, url: str) -> str:
    """A path relative to a repo's folder. Raises ConfigError where it leaves the repo."""
    path = posixpath.normpath(posixpath.join(folder, url))
    check_file(path)
    return path


def _file(place: Place, url: str) -> Place:
    if isinstance(place, HubPlace) and not place.is_file:
        raise ConfigError(f"{url!r} names no YAML file of {place.repo}")
    return place
