"""Log probabilities of a prompt: the model reads it once more, in slices, and tells how likely each token was."""

from __future__ import annotations

from typing import Any

import torch

from llmgallery.backends.transformers.generation.engines import Setting
from llmgallery.core.events import TokenLogprob
from llmgallery.core.jobs import Job
from llmgallery.engine.logprobs import Place

OUTPUT_BYTES = 32 << 20


class PromptScorer:
    """Of one job. Each `advance` is a step for which the caller holds the turn."""

    def __init__(self, job: Job, setting: Setting) -> None:
        from transformers import DynamicCache

        self.job = job
        self._setting = setting
        self._cache = DynamicCache(config=setting.model.config)
        self._position = 0
        first = job.prompt[0]
        self.scores = [TokenLogprob(first, setting.vocabulary.written(first), None)]

    @property
    def is_done(self) -> bool:
        return len(self.scores) == len(self.job.prompt)

    def advance(self) -> int:
        """Compute the next slice; how many tokens it had."""
        model, prompt = self._setting.model, self.job.prompt
        vocab_size = int(model.config.get_text_config().vocab_size)
        room = max(1, min(self._setting.batch, OUTPUT_BYTES // (4 * vocab_size)))
        tokens = list(prompt[self._position : min(self._position + room, len(prompt) - 1)])
        with torch.no_grad():
            ids = torch.tensor([tokens], device=model.device)
            told: Any = model(input_ids=ids, past_key_values=self._cache, use_cache=True)
        rows = told.logits[0].to("cpu", torch.float32).numpy()
        written = self._setting.vocabulary.written
        for index, row in enumerate(rows):
            token = prompt[self._position + index + 1]
            self.scores.append(Place(row, self.job.logprobs or 0, written).of(token))
        self._position += len(tokens)
        return len(tokens)
