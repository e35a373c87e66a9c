"""A llama.cpp runner with the little of an engine that tests of it need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.runner import LlamaRunner
from llmgallery.core.sampling import DEFAULTS, Sampling
from llmgallery.engine.plan import Chunk, Plan, Sampled
from llmgallery.engine.sequence import Sequence

GREEDY = Sampling(temperature=0).over(DEFAULTS)
CELLS = 1024
TEXT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@contextmanager
def running(model: api.Model, *, slots=3, cells=CELLS, outputs=8, batch=64, **extra) -> Iterator[Machine]:
    caches = 1 if extra.get("kv_unified") else slots
    params = api.ContextParams(
        context=cells * caches, sequences=slots, batch=batch, ubatch=batch // 4, threads=1, threads_batch=1, outputs=outputs,
        extra={"flash_attn_type": 0, **extra},
    )  # fmt: skip
    context = api.Context(model, params)
    runner = LlamaRunner(model, context, context_size=cells)
    yield Machine(runner, context)
    runner.close()
    context.close()


class Machine:
    """A runner with the little of an engine that the tests need."""

    def __init__(self, runner: LlamaRunner, context: api.Context) -> None:
        self.runner, self.context = runner, context
        self.ids = iter(range(1000))

    def sequence(self, prompt, **keys) -> Sequence:
        made = Sequence(next(self.ids), tuple(prompt), CELLS, keys.pop("sampling", GREEDY), **keys)
        self.runner.begin(made)
        return made

    def decode(self, *chunks: tuple[Sequence, Chunk]) -> dict[int, Sampled] | None:
        sampled = self.runner.decode(Plan(tuple(chunk for _, chunk in chunks)), {one.id: one for one, _ in chunks})
        return None if sampled is None else dict(sampled)

    def prefill(self, sequence: Sequence, slot: int, start: int = 0, *, scores: bool = False) -> Sampled:
        """The prompt from `start` on, in chunks of 40; what came of the last."""
        prompt = sequence.prompt
        found = Sampled()
        scored = ()
        for first in range(start, len(prompt), 40):
            tokens = prompt[first : first + 40]
            chunk = Chunk(sequence.id, slot, first, tokens, first + 40 >= len(prompt), scores=scores)
            found = (self.decode((sequence, chunk)) or {}).get(sequence.id, found)
            scored += found.scores if scores else ()
        return Sampled(found.tokens, found.logprobs, scored, found.error)

    def generate(
        self, prompt, slot: int = 0, start: int = 0, count: int = 12, guess: Callable | None = None, **keys
    ) -> list[int]:
        """Greedy; `guess`: from what was generated to the tokens to guess."""
        sequence = self.sequence(prompt, **keys)
        generated = list(self.prefill(sequence, slot, start).tokens)
        while len(generated) < count:
            drafts = tuple(guess(generated)) if guess else ()
            position = len(prompt) + len(generated) - 1
            chunk = Chunk(sequence.id, slot, position, (generated[-1], *drafts), True, len(drafts))
            sampled = self.decode((sequence, chunk))[sequence.id]
            assert 1 <= len(sampled.tokens) <= 1 + len(drafts) and sampled.error is None
            assert self.context.last_position(slot) == position + len(sampled.tokens) - 1
            generated += sampled.tokens
        self.runner.end(sequence)
        return generated[:count]


def tokens(length: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 256, length).tolist())


def fresh(model: api.Model, prompt, sampling=GREEDY, **extra) -> list[int]:
    with running(model, slots=1, **extra) as machine:
        return machine.generate(prompt, sampling=sampling)


def answer(pocket: api.Model) -> tuple[int, ...]:
    return tuple(pocket.vocab.tokenize(TEXT.encode(), special=True))
