"""A model with the engine of generate() over it, for tests that ask that engine directly."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llmgallery.backends.transformers.generation.batched import BatchedEngine
from llmgallery.backends.transformers.generation.engines import Setting
from llmgallery.backends.transformers.weights.vocabulary import HubVocabulary
from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.core.sampling import DEFAULTS, Sampling
from llmgallery.engine.choosing import Chooser

torch.set_num_threads(1)  # such small models are not worth threads that spin

CONTEXT = 256
DEADLINE = 60
GREEDY = Sampling(temperature=0, max_tokens=24)
PROMPTS = ("The quick brown fox", "What is the capital of France? The capital", "One, two", "You", "Grüße aus Köln, ça va")


@dataclass
class Told:
    """Keeps what an engine tells; `cancel_after`: whom to cancel from within, after so many outputs of his."""

    outputs: list[Output] = field(default_factory=list)
    stats: list[StepStats] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    on_step: Any = None

    def step(self, outputs: Sequence[Output], stats: StepStats) -> None:
        with self.changed:
            self.outputs += outputs
            self.stats.append(stats)
            self.changed.notify_all()
        if self.on_step is not None:
            self.on_step(outputs)

    def fatal(self, error: BaseException) -> None:
        with self.changed:
            self.errors.append(error)
            self.changed.notify_all()

    def progress(self, fraction: float) -> None: ...

    def pooled(self, result: Any) -> None: ...

    def of(self, id: int) -> list[Output]:
        return [output for output in self.outputs if output.id == id]

    def tokens(self, id: int) -> list[int]:
        return [token for output in self.of(id) for token in output.tokens]

    def text(self, id: int) -> str:
        return "".join(output.text for output in self.of(id))

    def ends(self, id: int) -> list[str]:
        return [output.finish for output in self.of(id) if output.finish is not None]

    def wait(self, *ids: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.errors or all(self.ends(id) for id in ids), DEADLINE), "nothing came"
        assert not self.errors, self.errors

    def wait_for_tokens(self, id: int, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.tokens(id)) >= count, DEADLINE), "nothing came"


class Bench:
    """A model, and the engine over it."""

    def __init__(self, model: Any, tokenizer: Any, *, slots: int = 8, ends: Sequence[int] = (), **more: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.told = Told()
        self.vocabulary = HubVocabulary(tokenizer, ends=ends)
        size = model.get_input_embeddings().weight.shape[0]
        ends = self.vocabulary.ends

        def choose(job: Job, *, forces: bool = False) -> Chooser:
            settled = Job(
                job.id, job.prompt, job.sampling.over(DEFAULTS), job.logprobs, job.prompt_logprobs, job.constraint, job.images
            )
            return Chooser(settled, self.vocabulary, vocab_size=size, ends=ends, context_size=CONTEXT, forces=forces)

        setting = Setting(
            model=self.model, vocabulary=self.vocabulary, emit=self.told, choose=choose, slots=slots, context_size=CONTEXT,
            ends=ends, generate=more.pop("generate", {}),
        )  # fmt: skip
        self.engine = BatchedEngine(setting, **more)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def submit(self, id: int, text: str, sampling: Sampling = GREEDY, **more: Any) -> None:
        self.engine.submit(Job(id, self.ids(text), sampling, **more))

    def ask(self, text: str, sampling: Sampling = GREEDY, **more: Any) -> list[int]:
        """The tokens of one answer."""
        id = len(self.told.outputs) + 1000
        self.submit(id, text, sampling, **more)
        self.told.wait(id)
        return self.told.tokens(id)

    def generate(self, text: str, **arguments: Any) -> list[int]:
        """transformers' own answer, up to its end token."""
        ids = torch.tensor([self.ids(text)])
        defaults = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": sorted(self.vocabulary.ends) or None}
        told = self.model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **{**defaults, **arguments})
        start = 1 if self.model.config.is_encoder_decoder else ids.shape[1]
        tokens = told[0, start:].tolist()
        return tokens[: next((place for place, token in enumerate(tokens) if token in self.vocabulary.ends), len(tokens))]
