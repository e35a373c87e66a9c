"""What weights without a chat template of their own still tell of the format that they were trained with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

import msgspec

MOST_TOKENS = 512
_SPARE = re.compile(r"reserved|unused|dummy|place.?holder|(extra|special|extra_id)_\d|^[\s\d▁]*$", re.I)
"""Tokens that stand for nothing yet, of which some vocabularies have thousands, or for spaces and digits."""


class Clues(msgspec.Struct, frozen=True, omit_defaults=True):
    """`file`: path or Hub reference of the weights, their first part. `architecture`, `name`: by their metadata.
    `pre_tokenizer`: how it splits texts, by llama.cpp's names. `tokens`: what `control_tokens` keeps of its vocabulary."""

    file: str = ""
    architecture: str = ""
    name: str = ""
    pre_tokenizer: str = ""
    tokens: tuple[str, ...] = ()


def control_tokens(texts: Iterable[str]) -> tuple[str, ...]:
    """Of the tokens of a vocabulary that are control tokens, or put in by whoever made the file, those that may tell a format."""
    return tuple(islice((text for text in texts if text and not _SPARE.search(text)), MOST_TOKENS))
