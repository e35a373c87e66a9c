"""The bytes that tokens stand for, where a vocabulary writes them in an alphabet of its own. Source: the decoders of Hugging
Face's tokenizers (tokenizer.json), GPT-2's bytes_to_unicode, and SentencePiece's byte fallback."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

Alphabet = Literal["byte-level", "sentencepiece", "wordpiece", "plain"]

_MARK = "▁"
"""SentencePiece's space, U+2581."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTINUES = "##"


def alphabet_of(decoder: Mapping[str, Any] | None) -> Alphabet:
    """How the tokens are written, by the `decoder` of a tokenizer.json; None = it has none."""
    kinds = set(_kinds(decoder or {}))
    if "ByteLevel" in kinds:
        return "byte-level"
    if kinds & {"ByteFallback", "Metaspace"} or _MARK in str(decoder):
        return "sentencepiece"
    return "wordpiece" if "WordPiece" in kinds else "plain"


def _kinds(decoder: Mapping[str, Any]) -> Iterator[str]:
    yield str(decoder.get("type", ""))
    for part in decoder.get("decoders") or ():
        if isinstance(part, Mapping):
            yield from _kinds(part)


def token_bytes(token: str, alphabet: Alphabet) -> bytes:
    """The bytes that a token of the vocabulary adds to a text. Added tokens are not written so, and not asked here."""
    match alphabet:
        case "byte-level":
            return _of_bytes(token)
        case "sentencepiece":
            found = _BYTE.fullmatch(token)
            return bytes([int(found[1], 16)]) if found else token.replace(_MARK, " ").encode()
        case "wordpiece":
            return token[len(_CONTINUES) :].encode() if token.startswith(_CONTINUES) else f" {token}".encode()
        case "plain":
            return token.encode()


def _of_bytes(token: str) -> bytes:
    """A character that the alphabet lacks stands for itself, as the decoder has it."""
    table = _byte_of()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's: printable bytes are their own characters, the others follow from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
