"""Texts to tokens for vectors: the prompt before them, the special tokens around them, what is cut of those that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmgallery.backends.transformers.pools.batches import marked
from llmgallery.backends.transformers.pools.pooling_files import Declared
from llmgallery.core.errors import ContextExceeded, InvalidField


class Texts:
    """The tokenizer's own truncation is not used: it changes the tokenizer, with which a generation may be decoding."""

    def __init__(self, tokenizer: Any, context_size: int, declared: Declared, prompt: str = "") -> None:
        self._tokenizer = tokenizer
        self._context_size = context_size
        self._prompt = prompt
        if declared.lowercase:
            _lower(tokenizer)
        self._head, self._tail = specials(tokenizer)
        self._silent = 0 if declared.include_prompt or not prompt else self._prompt_length(prompt)

    def _prompt_length(self, prompt: str) -> int:
        """With the special tokens before it, as sentence-transformers counts it."""
        tokens = encode(self._tokenizer, prompt)
        return len(tokens) - (1 if tokens and tokens[-1] in self._tokenizer.all_special_ids else 0)

    def encode(self, text: str, field: str, *, truncate: bool) -> list[int]:
        """Raises InvalidField, ContextExceeded."""
        tokens = encode(self._tokenizer, self._prompt + text)
        if truncate and len(tokens) > self._context_size:
            tokens = self._cut(tokens)
        return marked(self.fitted(tokens, field, truncate=False), silent=self._silent)

    def _cut(self, tokens: list[int]) -> list[int]:
        """To the context's size, with the special tokens at both ends."""
        head, tail = self._head, self._tail
        left = self._context_size - len(head) - len(tail)
        if left < 0:
            return tokens[: self._context_size]
        own = tokens[len(head) : len(tokens) - len(tail)]
        kept = own[len(own) - left :] if self._tokenizer.truncation_side == "left" else own[:left]
        return [*head, *kept, *tail]

    def fitted(self, tokens: Sequence[int], field: str, *, truncate: bool) -> list[int]:
        """Token ids as they came, the first ones that fit where `truncate`. Raises InvalidField, ContextExceeded."""
        if not tokens:
            raise InvalidField(f"{field} is empty", field=field)
        if not truncate:
            check_length(len(tokens), self._context_size, field)
        return list(tokens[: self._context_size])


def encode(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """`special`: with the tokens that the tokenizer puts around every text."""
    return [int(token) for token in tokenizer.encode(readable(text), add_special_tokens=special, verbose=False)]


def readable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can write and no tokenizer reads."""
    return text.encode(errors="replace").decode()


def specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind every text."""
    whole, own = encode(tokenizer, "a"), encode(tokenizer, "a", special=False)
    for place in range(len(whole) - len(own) + 1):
        if whole[place : place + len(own)] == own:
            return whole[:place], whole[place + len(own) :]
    return [], []


def check_length(length: int, context_size: int, field: str) -> None:
    """Raises ContextExceeded."""
    if length > context_size:
        what = f"{field} has {length} tokens, but this model takes {context_size}"
        raise ContextExceeded(f"{what}: shorten it, or ask to have it cut (truncate)", field=field)


def _lower(tokenizer: Any) -> None:
    """Letters become small before anything else (do_lower_case), as sentence-transformers does it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tokenizer.do_lower_case = True
        return
    from tokenizers import normalizers  # comes with transformers

    steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer is not None else [])]
    backend.normalizer = normalizers.Sequence(steps)
