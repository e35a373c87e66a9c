"""echo's vocabulary: a token for each byte, and one for each mark of its chat format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

END, SYSTEM, USER, ASSISTANT, TOOL = range(256, 261)
SIZE = 261
MARKS = {"<|end|>": END, "<|system|>": SYSTEM, "<|user|>": USER, "<|assistant|>": ASSISTANT, "<|tool|>": TOOL}
TEXTS = {token: text for text, token in MARKS.items()}
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
