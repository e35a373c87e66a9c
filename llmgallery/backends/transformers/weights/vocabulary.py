"""A tokenizer of the Hub as the engine wants it: tokens as bytes, control tokens apart, and what templates ask for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from llmgallery.core.clues import control_tokens
from llmgallery.core.errors import InvalidField
from llmgallery.engine.pieces import Alphabet, alphabet_of, token_bytes
from llmgallery.engine.repetition import Words

FILL_IN = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim▁begin|>", "<|fim▁hole|>", "<|fim▁end|>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""Marks of prefix, suffix and middle, as models for code have them."""


class HubVocabulary:
    """`tokenizer`: transformers' object. `ends`: tokens that end an answer; `suppressed`: what the model never says.
    Thread-safe."""

    def __init__(self, tokenizer: Any, *, ends: Sequence[int] = (), suppressed: Sequence[int] = (), size: int = 0) -> None:
        """`size`: rows of the model's logits, where known: tokens beyond it the model does not have."""
        self.tokenizer = tokenizer
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        if self._fast is not None:  # some files say how many tokens a text is to have; who needs that says it again
            self._fast.no_padding()
            self._fast.no_truncation()
        known = len(tokenizer)
        self.size = min(known, size) if size else known
        own = tokenizer.eos_token_id
        self.ends = frozenset(token for token in (*ends, *([] if own is None else [own])) if 0 <= token < self.size)
        self.suppressed = frozenset(token for token in suppressed if 0 <= token < self.size)
        self._added: dict[int, Any] = dict(tokenizer.added_tokens_decoder)
        self._controls = frozenset(tokenizer.all_special_ids) | {id for id, each in self._added.items() if each.special}
        self._alphabet = _alphabet(self._fast)
        self._plain = _without_controls(self._fast)
        self._pieces: dict[int, bytes] = {}
        self.bos = tokenizer.bos_token or ""
        self.eos = tokenizer.eos_token or ""
        self.adds_bos = self._adds_bos()

    def piece(self, token: int) -> bytes:
        """The token's bytes in the answer; none for control tokens."""
        return b"" if token in self._controls else self.written(token)

    def written(self, token: int) -> bytes:
        """The token's bytes as the vocabulary writes it, a control token's too."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._bytes(token)
        return known

    def is_end(self, token: int) -> bool:
        return token in self.ends

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """`special`: control tokens that stand in the text are such; else they are text. `bos`: put BOS before it, if there is
        one."""
        whole = text.encode(errors="replace").decode()
        head = [self.tokenizer.bos_token_id] if bos and self.tokenizer.bos_token_id is not None else []
        if self._fast is None:
            return [*head, *self.tokenizer.encode(whole, add_special_tokens=False, split_special_tokens=not special)]
        ids: list[int] = (self._fast if special else self._plain).encode(whole, add_special_tokens=False).ids
        return [*head, *ids]

    def detokenize(self, tokens: Sequence[int]) -> str:
        if strange := [token for token in tokens if not 0 <= token < self.size]:
            raise InvalidField(f"token {strange[0]} is not in the vocabulary of {self.size} tokens", field="tokens")
        return b"".join(self.piece(token) for token in tokens).decode(errors="replace")

    @cached_property
    def words(self) -> Words:
        """The vocabulary as texts, for DRY."""
        pieces = [self.written(token) for token in range(self.size)]
        return Words(pieces, lambda text: self.tokenize(text.decode(errors="replace"), special=False, bos=False))

    @property
    def fill_in(self) -> tuple[int, int, int] | None:
        """The marks of prefix, suffix and middle."""
        known = self.tokenizer.get_vocab()
        for prefix, suffix, middle in FILL_IN:
            if prefix in known and suffix in known and middle in known:
                return known[prefix], known[suffix], known[middle]
        return None

    @property
    def chat_template(self) -> str | None:
        return self._templates.get("default")

    @property
    def templates(self) -> dict[str, str]:
        """The named ones, such as tool_use."""
        return {name: text for name, text in self._templates.items() if name != "default"}

    @property
    def _templates(self) -> dict[str, str]:
        told = self.tokenizer.chat_template
        if isinstance(told, str):
            return {"default": told}
        return {str(name): text for name, text in told.items()} if isinstance(told, dict) else {}

    def controls(self) -> tuple[str, ...]:
        """Control tokens that may tell a chat format."""
        return control_tokens(str(each.content) for _, each in sorted(self._added.items()))

    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(self.tokenizer("a")["input_ids"])[:1] == [bos]

    def _bytes(self, token: int) -> bytes:
        if (added := self._added.get(token)) is not None:
            return str(added.content).encode()
        text = self.tokenizer.convert_ids_to_tokens(token)
        return b"" if text is None else token_bytes(str(text), self._alphabet)


def _alphabet(fast: Any) -> Alphabet:
    return "sentencepiece" if fast is None else alphabet_of(json.loads(fast.to_str()).get("decoder"))


def _without_controls(fast: Any) -> Any:
    """The same tokenizer, to which control tokens in a text are text. It is a copy: the switch is one of the whole object."""
    if fast is None:
        return None
    plain = type(fast).from_str(fast.to_str())
    plain.encode_special_tokens = True
    return plain
