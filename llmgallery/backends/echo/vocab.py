"""echo's vocabulary: a token for each byte, and one for each mark of its chat format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from llmgallery.core.events import Alternative, TokenLogprob

END, SYSTEM, USER, ASSISTANT, TOOL = range(256, 261)
SIZE = 261
MARKS = {"<|end|>": END, "<|system|>": SYSTEM, "<|user|>": USER, "<|assistant|>": ASSISTANT, "<|tool|>": TOOL}
TEXTS = {token: text for text, token in MARKS.items()}
GAP = (SYSTEM, USER, ASSISTANT)
"""Around what is to be filled in: prefix, suffix, middle."""
_ANY_MARK = re.compile("(" + "|".join(map(re.escape, MARKS)) + ")")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set role = 'system' if message.role == 'developer' else message.role -%}"
    "<|{{ role }}|>{{ message.content }}<|end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def tokenize(text: str, *, special: bool) -> list[int]:
    """With `special`, marks become their tokens; else they are text like any other."""
    tokens: list[int] = []
    for part in _ANY_MARK.split(text) if special else [text]:
        tokens += [MARKS[part]] if special and part in MARKS else part.encode(errors="replace")
    return tokens


def detokenize(tokens: Iterable[int]) -> str:
    """The text of the bytes and marks."""
    return b"".join(TEXTS[token].encode() if token in TEXTS else bytes([token]) for token in tokens).decode(errors="replace")


def answer(prompt: Sequence[int]) -> list[int]:
    """The last user's bytes, or without one the whole prompt's; then the end token."""
    tokens = list(prompt)
    if USER in tokens:
        tokens = tokens[len(tokens) - tokens[::-1].index(USER) :]
        tokens = tokens[: next((place for place, token in enumerate(tokens) if token >= 256), len(tokens))]
    return [*(token for token in tokens if token < 256), END]


def piece(token: int) -> bytes:
    """The token's byte, or the mark as the template writes it."""
    return TEXTS[token].encode() if token in TEXTS else bytes([token])


def logprob(token: int, top: int, seed: int) -> TokenLogprob:
    """How sure echo says it is of a token: one half, or more by the seed's last two bits. The tokens behind it in the
    vocabulary share the rest, each half of what is left."""
    chances = [0.5 + seed % 4 / 16]
    for _ in range(top):
        chances.append((1 - sum(chances)) / 2)
    tokens = [(token + place) % SIZE for place in range(top)]
    likeliest = tuple(Alternative(other, piece(other), math.log(chance)) for other, chance in zip(tokens, chances, strict=False))
    return TokenLogprob(token, piece(token), math.log(chances[0]), likeliest)
