"""sprig's functions that encode texts and sum them up."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import zlib
from collections.abc import Callable

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.values import from_utf8, utf8

LIBRARY = Library()

LIBRARY.add("sha1sum", "string")(lambda text: hashlib.sha1(utf8(text), usedforsecurity=False).hexdigest())
LIBRARY.add("sha256sum", "string")(lambda text: hashlib.sha256(utf8(text)).hexdigest())
LIBRARY.add("sha512sum", "string")(lambda text: hashlib.sha512(utf8(text)).hexdigest())
LIBRARY.add("adler32sum", "string")(lambda text: str(zlib.adler32(utf8(text))))
LIBRARY.add("b64enc", "string")(lambda text: base64.b64encode(utf8(text)).decode())
LIBRARY.add("b32enc", "string")(lambda text: base64.b32encode(utf8(text)).decode())


def _wrong_at(data: str, alphabet: str, group: int, paddings: tuple[int, ...]) -> int | None:
    """Where encoded data goes wrong; None when it does not."""
    body = data.rstrip("=")
    wrong = re.search(f"[^{alphabet}]", body)
    if wrong is not None:
        start = len(utf8(body[: wrong.start()]))
        return start + _padding(body, wrong.start()) if group == 4 else start
    if len(data) % group == 0:
        return None if len(data) - len(body) in paddings else len(body)
    return len(data) if len(body) % group > 1 and body != data else len(data) // group * group


def _padding(data: str, at: int) -> int:
    """How many signs of padding at `at` stand where they may: the first that is wrong comes behind them."""
    if data[at] != "=" or at % 4 < 2:
        return 0
    return 2 if at % 4 == 2 and data[at + 1 : at + 2] == "=" else 1


def _decoded(text: str, name: str, wrong: Callable[[str], int | None], run: Callable[[str], bytes]) -> str:
    """What was encoded, or, as sprig has it, the message of the error."""
    clean = text.replace("\r", "").replace("\n", "")
    at = wrong(clean)
    if at is None:
        return from_utf8(run(clean))
    kept = [index for index, byte in enumerate(utf8(text)) if byte not in b"\r\n"]
    return f"illegal {name} data at input byte {kept[at] if at < len(kept) else len(utf8(text))}"


@LIBRARY.add("b64dec", "string")
def _b64dec(text: str) -> str:
    return _decoded(text, "base64", lambda data: _wrong_at(data, "A-Za-z0-9+/", 4, (0, 1, 2)), base64.b64decode)


@LIBRARY.add("b32dec", "string")
def _b32dec(text: str) -> str:
    return _decoded(text, "base32", lambda data: _wrong_at(data, "A-Z2-7", 8, (0, 1, 3, 4, 6)), base64.b32decode)


@LIBRARY.add("randBytes", "int")
def _rand_bytes(count: int) -> str:
    """That many random bytes, in base64."""
    current().text(2 * max(0, count))
    return base64.b64encode(secrets.token_bytes(max(0, count))).decode()
