"""For libraries that decode by themselves and hand over logits: the whole choice of a token, and what is told of it.

The engine's own loop (batcher.py) asks a Runner to compute; here it is the library that computes, in batches of its own, and asks
for the next token of each row. Constraint, log probabilities and all samplers act here, so that they mean the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import numpy as np

from llmgallery.core.errors import GalleryError, InvalidField
from llmgallery.core.events import TokenLogprob
from llmgallery.core.jobs import Job, Output
from llmgallery.engine.growth import Finish, Vocabulary, force, tell
from llmgallery.engine.logprobs import Place, forbid
from llmgallery.engine.plan import Sampled
from llmgallery.engine.repetition import Words
from llmgallery.engine.sampler import Floats, Sampler
from llmgallery.engine.sequence import Sequence


@dataclass(frozen=True)
class Chosen:
    """The token that comes next, and what it makes of the answer. `output.finish` is set: this was the last one. `forced`: what
    must come behind it, which is told already and is to be computed before anything else is chosen."""

    token: int
    output: Output
    forced: tuple[int, ...] = ()


class Chooser:
    """One answer: chooses its tokens one after the other, and tells them. Of one thread.

    `vocab_size`: tokens; logits may be longer, and what lies beyond is never chosen. `ends`: end tokens. `suppressed`: what the
    model never says. `words`: the vocabulary's texts, where DRY looks for its breakers. `forces`: the caller takes tokens that
    the constraint forces, by `begin` and `Chosen.forced`; else its mask brings them one by one.
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
        forces: bool = False,
    ) -> None:
        if strange := [token for token in job.prompt if not 0 <= token < vocab_size]:
            raise InvalidField(f"token {strange[0]} is not in the vocabulary of {vocab_size} tokens", field="prompt")
        self.job = job
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._forces = forces and job.constraint is not None
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

    def begin(self) -> Chosen | None:
        """What must come before anything is chosen: its tokens are all in `forced`. None = nothing must."""
        if not self._forces:
            return None
        chosen = self._forced(Chosen(0, Output(self.job.id, usage=self.sequence.usage)))
        return chosen if chosen.forced or chosen.output.finish is not None else None

    def choose(self, logits: Floats, *, told: Floats | None = None) -> Chosen:
        """The next token, by the row of logits: one float32 for each token, never changed. It ends as an error when its
        constraint allows nothing. `told`: the row as the model gave it, whose log probabilities are told, where the library
        has changed `logits` already."""
        row = np.array(logits[: self._vocab_size], np.float32)
        try:
            token, sampled = self._sample(row, logits if told is None else told)
        except GalleryError as exc:
            return Chosen(0, self.end("error", exc.message))
        chosen = Chosen(token, tell(self.sequence, sampled, self._vocabulary))
        if self._forces and chosen.output.finish is None:
            chosen = self._forced(chosen)
        return replace(chosen, output=self._flushed(chosen.output))

    def end(self, finish: Finish, message: str = "") -> Output:
        """The answer ends without a further token."""
        return Output(self.job.id, self.sequence.text.flush(), finish=finish, usage=self.sequence.usage, message=message)

    def _sample(self, row: Floats, told: Floats) -> tuple[int, Sampled]:
        wanted, constraint = self.job.logprobs, self.job.constraint
        if np.isnan(row.max()):
            raise GalleryError("the model computed no numbers (NaN) for this prompt; another dtype, such as float32, may help")
        place = None if wanted is None else Place(told, wanted, self._vocabulary.written)
        if constraint is not None:
            mask = constraint.mask()
            if mask is not None and (not forbid(row, mask) or row.max() == -np.inf):
                raise GalleryError("the constraint of this answer allows no further token, not even its end")
        token = self._sampler.sample(row)
        if constraint is not None:
            constraint.accept(token)
        return token, Sampled((token,), () if place is None else (place.of(token),))

    def _forced(self, chosen: Chosen) -> Chosen:
        """What was chosen, and what must follow on it now."""
        sequence, constraint = self.sequence, self.job.constraint
        if constraint is None:
            return chosen
        before, output = len(sequence.generated), chosen.output
        told, finish, error = force(sequence, constraint, self._vocabulary)
        forced = tuple(sequence.generated[before:])
        for token in forced:
            self._sampler.accept(token)
        entries = tuple(TokenLogprob(token, self._vocabulary.written(token), None) for token in told)
        text = "".join(sequence.text.feed(self._vocabulary.piece(token)) for token in told)
        made = replace(
            output,
            text=output.text + text,
            tokens=output.tokens + told,
            finish=finish if error is None else "error",
            usage=sequence.usage,
            message="" if error is None else error.message,
            logprobs=output.logprobs if self.job.logprobs is None else output.logprobs + entries,
        )
        return replace(chosen, output=made, forced=forced)

    def _flushed(self, output: Output) -> Output:
        """An answer that ends gives what it holds back of a character."""
        if output.finish is None:
            return output
        return replace(output, text=output.text + self.sequence.text.flush())


def words_of(size: int, written: Callable[[int], bytes], tokenize: Callable[[bytes], Items[int]]) -> Words:
    """A vocabulary as texts, for DRY. Takes time with the vocabulary's size."""
    return Words([written(token) for token in range(size)], tokenize)
