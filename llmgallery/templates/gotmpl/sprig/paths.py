"""sprig's functions on paths and URLs, as texts: nothing is looked up."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.printing import quoted
from llmgallery.templates.gotmpl.values import GoError, from_utf8, kind

LIBRARY = Library()


@LIBRARY.add("clean", "string", also="osClean")
def _clean(path: str) -> str:
    """Without `.`, `..` and doubled slashes, as far as that can be told."""
    rooted = path.startswith("/")
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", ".") and not (part == ".." and rooted):
            parts.append(part)
    return "/" * rooted + "/".join(parts) or "."


@LIBRARY.add("base", "string", also="osBase")
def _base(path: str) -> str:
    if not path:
        return "."
    return path.rstrip("/").rpartition("/")[2] or "/"


@LIBRARY.add("dir", "string", also="osDir")
def _dir(path: str) -> str:
    before, slash, _ = path.rpartition("/")
    return _clean(before + slash)


@LIBRARY.add("ext", "string", also="osExt")
def _ext(path: str) -> str:
    _, dot, after = path.rpartition("/")[2].rpartition(".")
    return dot + after if dot else ""


LIBRARY.add("isAbs", "string", also="osIsAbs")(lambda path: path.startswith("/"))

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)


def _fail(url: str, why: str) -> GoError:
    return GoError(f"unable to parse url: parse {quoted(url)}: {why}")


def _unescaped(url: str, part: str) -> str:
    wrong = _BAD_ESCAPE.search(part)
    if wrong is not None:
        raise _fail(url, f"invalid URL escape {quoted(wrong[0])}")
    return from_utf8(unquote_to_bytes(part))


@LIBRARY.add("urlParse", "string")
def _url_parse(url: str) -> dict[str, Any]:
    if re.search(r"[\x00-\x1f\x7f]", url):
        raise _fail(url, "net/url: invalid control character in URL")
    rest, _, fragment = url.partition("#")
    scheme = ""
    found = _SCHEME.fullmatch(rest)
    if found is not None:
        scheme, rest = found[1].lower(), found[2]
    elif rest.startswith(":"):
        raise _fail(url, "missing protocol scheme")
    rest, _, query = rest.partition("?")
    opaque = host = user = ""
    if scheme and not rest.startswith("/"):
        opaque, rest = rest, ""
    elif rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, path = rest[2:].partition("/")
        rest = slash + path
        user, _, host = authority.rpartition("@")
        _check_port(url, host)
    return {
        "scheme": scheme,
        "host": _unescaped(url, host),
        "hostname": _hostname(host),
        "path": _unescaped(url, rest),
        "query": query,
        "opaque": opaque,
        "fragment": _unescaped(url, fragment),
        "userinfo": user,
    }


def _check_port(url: str, host: str) -> None:
    port = host.rpartition("]")[2].partition(":")[1:]
    if port[0] and port[1] and not (port[1].isascii() and port[1].isdigit()):
        raise _fail(url, f"invalid port {quoted(':' + port[1])} after host")


def _hostname(host: str) -> str:
    bare = re.sub(r":\d*$", "", host)
    return bare[1:-1] if bare.startswith("[") and bare.endswith("]") else bare


@LIBRARY.add("urlJoin", "map")
def _url_join(parts: Any) -> str:
    entries = parts if isinstance(parts, dict) else {}
    found = {name: _part(entries, name) for name in ("scheme", "host", "path", "query", "opaque", "fragment", "userinfo")}
    out = found["scheme"] + ":" if found["scheme"] else ""
    path = quote(found["path"], safe="/:@&=+$,;~!*'()")
    if found["opaque"]:
        out += found["opaque"]
    else:
        if found["scheme"] or found["host"] or found["userinfo"]:
            out += _authority(found)
        out += "/" + path if path and not path.startswith("/") and found["host"] else path
    out += "?" + found["query"] if found["query"] else ""
    return out + ("#" + quote(found["fragment"], safe="/:@&=+$,;~!*'()?") if found["fragment"] else "")


def _authority(found: dict[str, str]) -> str:
    if not (found["host"] or found["userinfo"] or found["path"].startswith("//")):
        return ""
    user = found["userinfo"] + "@" if found["userinfo"] else ""
    return "//" + user + found["host"]


def _part(entries: dict[str, Any], name: str) -> str:
    value = entries.get(name, "")
    if not isinstance(value, str):
        raise GoError(f"unable to parse {name} key, must be of type string, but {kind(value)} found")
    return value
