"""A folder's vocabulary and templates, read from tokenizer.json and the files beside it, without a library of models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmgallery.core.errors import BadWeights, InvalidField
from llmgallery.engine.pieces import alphabet_of, token_bytes
from llmgallery.engine.repetition import Words

MOST_BYTES = 256 * 1024 * 1024
CONTEXT_KEYS = ("max_position_embeddings", "max_sequence_length", "n_positions", "max_seq_len", "seq_length")


class FolderVocabulary:
    """What tokens are, for prompts and answers. `ends`: tokens that end an answer; `bos`/`eos`: texts, "" = there is none;
    `templates`: Jinja by name, "" = the plain one; `trained_context`: 0 = config.json does not say.

    Raises BadWeights for a folder without tokenizer.json or config.json, or with ones that cannot be read.
    """

    def __init__(self, folder: Path, tokenizer: Path | None = None) -> None:
        file = tokenizer or folder / "tokenizer.json"
        self._raw = _json(file, required=True)
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(file))
        except Exception as exc:
            raise BadWeights(f"{file} is no tokenizer that can be read: {exc}") from exc
        self._config = _json(folder / "config.json", required=True)
        self._said = _json(folder / "tokenizer_config.json")
        self._generation = _json(folder / "generation_config.json")
        self._alphabet = alphabet_of(self._raw.get("decoder"))
        self._added = {int(each["id"]): each for each in self._raw.get("added_tokens") or () if "id" in each}
        self._controls = frozenset(token for token, each in self._added.items() if each.get("special"))
        self._pieces: dict[int, bytes] = {}
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.bos, self.eos = self._text_of("bos_token"), self._text_of("eos_token")
        self.ends = self._ends()
        self.templates = _templates(folder, self._said)
        self._words: Words | None = None

    @property
    def architecture(self) -> str:
        """config.json's model_type."""
        return str(self._config.get("model_type", ""))

    @property
    def trained_context(self) -> int:
        found = [self._text_config().get(key) for key in CONTEXT_KEYS]
        return next((size for size in found if isinstance(size, int) and size > 0), 0)

    @property
    def adds_bos(self) -> bool:
        """The tokenizer puts BOS before a text."""
        token = self._id(self.bos)
        said = self._said.get("add_bos_token")
        if token is None or isinstance(said, bool):
            return bool(said) and token is not None
        first: list[int] = self._tokenizer.encode("a").ids[:1]
        return first == [token]

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """`special`: names of control tokens in the text become them; else they are text."""
        head = [token] if bos and (token := self._id(self.bos)) is not None else []
        clean = text.encode(errors="replace").decode()
        self._tokenizer.encode_special_tokens = not special
        ids: list[int] = self._tokenizer.encode(clean, add_special_tokens=False).ids
        return head + ids

    def detokenize(self, tokens: Sequence[int]) -> str:
        if strange := [token for token in tokens if not 0 <= token < self.size]:
            raise InvalidField(f"token {strange[0]} is not in the vocabulary of {self.size} tokens", field="tokens")
        return b"".join(map(self.written, tokens)).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        """The token's bytes in an answer; none for control tokens."""
        return b"" if token in self._controls or token in self.ends else self.written(token)

    def written(self, token: int) -> bytes:
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._bytes(token)
        return known

    def is_end(self, token: int) -> bool:
        return token in self.ends

    def controls(self) -> list[str]:
        """The control tokens' texts."""
        return [str(each.get("content", "")) for token, each in self._added.items() if token in self._controls]

    def words(self) -> Words:
        """The vocabulary as texts, for DRY; made once."""
        if self._words is None:
            pieces = [self.written(token) for token in range(self.size)]
            self._words = Words(pieces, lambda text: self.tokenize(text.decode(errors="replace"), special=False, bos=False))
        return self._words

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return str(self._added[token].get("content", "")).encode()
        text = self._tokenizer.id_to_token(token)
        return b"" if text is None else token_bytes(text, self._alphabet)

    def _id(self, text: str) -> int | None:
        token: int | None = self._tokenizer.token_to_id(text) if text else None
        return token

    def _text_of(self, name: str) -> str:
        """A special token's text, which some files wrap in an object."""
        said = self._said.get(name)
        if isinstance(said, dict):
            said = said.get("content")
        return said if isinstance(said, str) else ""

    def _ends(self) -> tuple[int, ...]:
        """By generation_config.json, config.json, and the tokenizer's own."""
        found: list[int] = []
        for said in (self._generation.get("eos_token_id"), self._text_config().get("eos_token_id")):
            found += [token for token in (said if isinstance(said, list) else [said]) if type(token) is int]
        if (own := self._id(self.eos)) is not None:
            found.append(own)
        return tuple(sorted({token for token in found if 0 <= token < self.size}))

    def _text_config(self) -> dict[str, Any]:
        """Of models that see as well, the part that writes."""
        inner = self._config.get("text_config")
        return inner if isinstance(inner, dict) else self._config


def _templates(folder: Path, said: dict[str, Any]) -> dict[str, str]:
    """chat_template.jinja, additional_chat_templates/*.jinja, or tokenizer_config.json's, which may be a list of named ones."""
    found: dict[str, str] = {}
    written = said.get("chat_template")
    if isinstance(written, str):
        found[""] = written
    for each in written if isinstance(written, list) else ():
        if isinstance(each, dict) and isinstance(each.get("template"), str):
            found["" if each.get("name") == "default" else str(each.get("name"))] = each["template"]
    if (file := folder / "chat_template.jinja").is_file():
        found[""] = _text(file)
    for file in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[file.stem] = _text(file)
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadWeights(f"{file} cannot be read: {exc}") from exc


def _json(file: Path, *, required: bool = False) -> dict[str, Any]:
    if not file.is_file():
        if required:
            raise BadWeights(f"{file} is missing: the weights' folder must hold it")
        return {}
    if file.stat().st_size > MOST_BYTES:
        raise BadWeights(f"{file} is larger than {MOST_BYTES >> 20} MiB")
    try:
        value = json.loads(_text(file))
    except (ValueError, RecursionError) as exc:
        raise BadWeights(f"{file} is no JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise BadWeights(f"{file} holds no object")
    return value
