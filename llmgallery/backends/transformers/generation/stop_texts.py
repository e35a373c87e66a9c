"""generate()'s stop_strings: an answer ends with them, and keeps them. Costs nothing of the vocabulary's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from llmgallery.engine.growth import Vocabulary


class StopTexts(StoppingCriteria):  # type: ignore[misc]
    """`start`: how many tokens a row has before anything is generated. A text ends a row once its last byte has come; its first
    ones may be the prompt's. transformers' own criterion first compares every text with every token."""

    def __init__(self, texts: Sequence[str], vocabulary: Vocabulary, start: int) -> None:
        self._texts = [text.encode(errors="replace") for text in dict.fromkeys(texts) if text]
        self._longest = max(map(len, self._texts), default=0)
        self._written = vocabulary.written
        self._length = start

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """`input_ids`: (rows, length), several tokens longer than the last time where some were guessed."""
        fresh, self._length = max(0, input_ids.shape[1] - self._length), input_ids.shape[1]
        rows = input_ids[:, -(fresh + self._longest) :].tolist()
        return torch.tensor([self._ends(row, fresh) for row in rows], dtype=torch.bool, device=input_ids.device)

    def _ends(self, tokens: Sequence[int], fresh: int) -> bool:
        before = b"".join(map(self._written, tokens[: len(tokens) - fresh]))
        text = before + b"".join(map(self._written, tokens[len(tokens) - fresh :]))
        return any(text.find(each, max(0, len(before) - len(each) + 1)) >= 0 for each in self._texts)
