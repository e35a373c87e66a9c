"""For libraries that decode by themselves and hand over logits: the whole choice of a token, and what is told of it.

The engine's own loop (batcher.py) asks a Runner to compute; here it is the library that computes, in batches of its own, and asks
for the next token of each row. Constraint, log probabilities and all samplers act here, so that they mean the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from llmgallery.core.errors import GalleryError, InvalidField
from llmgallery.core.jobs import Job, Output
from llmgallery.engine.growth import Finish, Vocabulary, tell
from llmgallery.engine.logprobs import Place, forbid
from llmgallery.engine.plan import Sampled
from llmgallery.engine.repetition import Words
from llmgallery.engine.sampler import Floats, Sampler
from llmgallery.engine.sequence import Sequence


@dataclass(frozen=True)
class Chosen:
    """The token that comes next, and what it makes of the answer. `output.finish` is set: this was the last one."""

    token: int
    output: Output


class Chooser:
    """One answer: chooses its tokens one after the other, and tells them. Of one thread.

    `vocab_size`: tokens; logits may be longer, and what lies beyond is never chosen. `ends`: end tokens. `suppressed`: what the
    model never says. `words`: the vocabulary's texts, where DRY looks for its breakers.
    Raises InvalidField for a prompt token that is not in the vocabulary.
    """

    def __init__(
        self,
        job: Job,
        vocabulary: Vocabulary,
        *,
        vocab_size: int,
        ends: Collection[int],
        context_size: int,
        suppressed: Collection[int] = (),
        words: Words | None = None,
    ) -> None:
        if strange := [token for token in job.prompt if not 0 <= token < vocab_size]:
            raise InvalidField(f"token {strange[0]} is not in the vocabulary of {vocab_size} tokens", field="prompt")
        self.job = job
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        room = max(0, context_size - len(job.prompt))
        asked = job.sampling.max_tokens
        limit = room if asked is None or asked < 0 else min(room, asked)
        self.sequence = Sequence(job.id, tuple(job.prompt), limit, job.sampling, job.logprobs)
        self._sampler = Sampler(
            job.sampling,
            job.prompt,
            vocab_size=vocab_size,
            ends=() if job.constraint else ends,  # a constraint decides itself when the answer may end
            context_size=context_size,
            suppressed=suppressed,
            words=words,
        )

    @property
    def limit(self) -> int:
        """Most tokens that it may get; 0 = only the prompt is computed."""
        return self.sequence.limit

    def choose(self, logits: Floats) -> Chosen:
        """The next token, by the row of logits as the model gave it: one float32 for each token, never changed. It ends as
        an error when its constraint allows nothing."""
        row = np.array(logits[: self._vocab_size], np.float32)
        try:
            token, sampled = self._sample(row)
        except GalleryError as exc:
            return Chosen(0, self.end("error", exc.message))
        return Chosen(token, self._flushed(tell(self.sequence, sampled, self._vocabulary)))

    def end(self, finish: Finish, message: str = "") -> Output:
        """The answer ends without a further token."""
        return Output(self.job.id, self.sequence.text.flush(), finish=finish, usage=self.sequence.usage, message=message)

    def _sample(self, row: Floats) -> tuple[int, Sampled]:
        wanted, constraint = self.job.logprobs, self.job.constraint
        place = None if wanted is None else Place(row, wanted, self._vocabulary.written)
        if constraint is not None:
            mask = constraint.mask()
            if mask is not None and not forbid(row, mask):
                raise GalleryError("the constraint of this answer allows no further token, not even its end")
        token = self._sampler.sample(row)
        if constraint is not None:
            constraint.accept(token)
        return token, Sampled((token,), () if place is None else (place.of(token),))

    def _flushed(self, output: Output) -> Output:
        """An answer that ends gives what it holds back of a character."""
        if output.finish is None:
            return output
        rest = self.sequence.text.flush()
        return Output(output.id, output.text + rest, output.tokens, output.finish, output.usage, output.message, output.logprobs)


def words_of(size: int, written: Callable[[int], bytes], tokenize: Callable[[bytes], Items[int]]) -> Words:
    """A vocabulary as texts, for DRY. Takes time with the vocabulary's size."""
    return Words([written(token) for token in range(size)], tokenize)
