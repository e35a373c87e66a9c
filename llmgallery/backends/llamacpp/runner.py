"""llama.cpp as the engine's runner: one llama_decode a step, a chain of C samplers for each sequence."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import replace

from llmgallery.backends.llamacpp.api import Batch, Context, Model, Sampler
from llmgallery.backends.llamacpp.sampling import DrySamplers, make_sampler
from llmgallery.core.errors import GalleryError, InvalidField
from llmgallery.core.events import TokenLogprob
from llmgallery.core.sampling import Sampling
from llmgallery.engine.drafts import Drafter
from llmgallery.engine.logprobs import Place, forbid
from llmgallery.engine.plan import NOTHING, Chunk, Plan, Sampled
from llmgallery.engine.runner import NoRoom
from llmgallery.engine.sequence import Sequence

FULL, ABORTED = 1, 2
_NO_PLAN = Plan()
FAILURES = {
    -1: "llama.cpp refused a batch as invalid",
    -2: "llama.cpp had no memory to compute this step: lower parallel, parameters.batch or context_size",
}


class LlamaRunner:
    """A slot is a sequence id of llama.cpp's."""

    def __init__(self, model: Model, context: Context, *, context_size: int, drafter: Drafter | None = None) -> None:
        """`drafter`: who guesses, if anybody; closed with the runner. Asked only if the model can take guesses back."""
        self._vocab = model.vocab
        self._context = context
        self._context_size = context_size
        self._batch = Batch(context.batch_size)
        self._samplers: dict[int, Sampler] = {}
        self._drys = DrySamplers(model.vocab)
        self._pieces: dict[int, bytes] = {}
        self._written: dict[int, bytes] = {}
        self._ends = frozenset(token for token in range(self._vocab.size) if self._vocab.is_end(token))
        self._keeps_state = model.keeps_state
        self._window = model.window
        self._drafter = drafter

    @property
    def can_truncate(self) -> bool:
        return not self._keeps_state

    @property
    def copy_cost(self) -> int:
        """A copy moves a whole cache, also for a short prefix; docs/engine.md has what was measured."""
        return 0 if self._context.copies_are_free else 8 + self._context.tokens_per_sequence // 256

    def prepare(self, sampling: Sampling) -> None:
        """Do now, in the caller's thread, what would hold the engine up at `begin`. Thread-safe."""
        self._drys.prepare(sampling, self._context_size)

    def begin(self, sequence: Sequence) -> None:
        if strange := [token for token in sequence.prompt if not 0 <= token < self._vocab.size]:
            raise InvalidField(f"token {strange[0]} is not in the vocabulary of {self._vocab.size} tokens", field="prompt")
        self._samplers[sequence.id] = make_sampler(
            sequence.sampling,
            sequence.prompt,
            vocab_size=self._vocab.size,
            ends=() if sequence.constraint else self._ends,  # a constraint decides itself when the answer may end
            context_size=self._context_size,
            drys=self._drys,
            suppressed=self._vocab.suppressed,
        )

    def keep(self, slot: int, length: int, source: int | None = None) -> int:
        context = self._context
        origin = slot if source is None else source
        if length and self._holds(origin, length):
            if origin != slot:
                context.copy(origin, slot, length)
            if context.cut(slot, length):
                return length
        context.forget(slot)
        return 0

    def _holds(self, slot: int, length: int) -> bool:
        """What follows the slot's first `length` tokens can be computed from its cache."""
        last = self._context.last_position(slot)
        if self._keeps_state:
            return last == length - 1
        if last < length - 1 or not self._window:
            return last >= length - 1
        # Layers with a sliding window may have dropped what this place would look back at.
        return self._context.first_position(slot) <= max(0, length - self._window + 1)

    def accept(self, sequence: Sequence, tokens: Items[int]) -> None:
        self._samplers[sequence.id].accept_all(tokens)

    def draft(self, sequences: Items[Sequence], most: int) -> Mapping[int, tuple[int, ...]]:
        return self._drafter.draft(sequences, most) if self._drafter and self.can_truncate else {}

    def decode(self, plan: Plan, sequences: Mapping[int, Sequence]) -> Mapping[int, Sampled] | None:
        scores: dict[int, list[TokenLogprob]] = {}
        for chunk in plan.chunks:
            if chunk.scores:
                scored = self._score(plan, chunk, sequences[chunk.id])
                if scored is None:
                    return None
                scores[chunk.id] = scored
        prompts, rest = self._parts(plan)
        if prompts.chunks:
            self._fill(prompts)
            if not self._compute(plan):
                return None
        wanted = self._fill(rest)
        if not self._compute(plan):
            return None
        sampled = {}
        for chunk, guesses, last in wanted:
            sequence = sequences[chunk.id]
            if chunk.scores:
                sampled[chunk.id] = self._last_of_scored(chunk, sequence, last, scores[chunk.id])
            elif sequence.constraint is None and sequence.logprobs is None and not guesses:
                sampled[chunk.id] = Sampled((self._samplers[chunk.id].sample(self._context, last),))
            else:
                sampled[chunk.id] = self._sample(chunk, sequence, guesses, last)
        return sampled

    def _parts(self, plan: Plan) -> tuple[Plan, Plan]:
        """What is computed before the rest: parts of prompts, of which nothing is wanted yet, beside running answers.

        Sequences with caches of their own llama.cpp computes in rounds, each of as many tokens of every sequence, and in a
        round all attend over as many cells as the longest needs. A long prompt in the answers' round slows all of them down.
        """
        if not (plan.streams and not self._context.copies_are_free):
            return _NO_PLAN, plan
        first = tuple(chunk for chunk in plan.chunks if not chunk.samples and not chunk.scores)
        rest = tuple(chunk for chunk in plan.chunks if chunk.samples or chunk.scores)
        return (replace(plan, chunks=first), replace(plan, chunks=rest)) if rest else (_NO_PLAN, plan)

    def _fill(self, plan: Plan) -> list[tuple[Chunk, tuple[int, ...], int]]:
        """The plan into the batch, of a chunk that scores only the last token. For each chunk that samples or scores: it, its
        guesses, and the index of the first token after which something is wanted. Guesses beyond what a decode may hold go.

        In the order of the slots: of caches of their own llama.cpp computes only those together that follow on one another
        in the batch (llama-batch.cpp, split_equal), and 16 answers in any other order take a quarter longer.
        """
        batch = self._batch
        batch.clear()
        spare = self._spare(plan)
        wanted: list[tuple[Chunk, tuple[int, ...], int]] = []
        for chunk in sorted(plan.chunks, key=lambda chunk: chunk.slot):
            if chunk.scores:
                last = batch.add(chunk.slot, chunk.position + len(chunk.tokens) - 1, chunk.tokens[-1:], wants_logits=1)
                wanted.append((chunk, (), last))
                continue
            tokens, drafts = chunk.tokens, min(chunk.drafts, spare)
            if chunk.drafts:
                tokens = tokens[: len(tokens) - chunk.drafts + drafts]
                spare -= drafts
            last = batch.add(chunk.slot, chunk.position, tokens, wants_logits=1 + drafts if chunk.samples else 0)
            if chunk.samples:
                wanted.append((chunk, tokens[len(tokens) - drafts :], last - drafts))
        return wanted

    def _spare(self, plan: Plan) -> int:
        """How many guesses there is room for, beside the tokens that must be computed."""
        if not any(chunk.drafts for chunk in plan.chunks):
            return 0
        known = sum(1 if chunk.scores else len(chunk.tokens) - chunk.drafts for chunk in plan.chunks)
        return max(0, min(self._context.batch_size - known, self._context.num_outputs - len(plan.chunks)))

    def _compute(self, plan: Plan) -> bool:
        """Decode the batch. False = aborted. Unless it succeeds, nothing of the plan stays in the cache: of several parts that
        llama.cpp computes one after the other, the first ones would."""
        result = self._context.decode(self._batch)
        if result == 0:
            return True
        cuts = [self._context.cut(chunk.slot, chunk.position) for chunk in plan.chunks]
        if result == ABORTED:
            return False
        if result == FULL and all(cuts):
            raise NoRoom
        raise GalleryError(FAILURES.get(result, f"llama.cpp could not compute this step (llama_decode gave {result})"))

    def _score(self, plan: Plan, chunk: Chunk, sequence: Sequence) -> list[TokenLogprob] | None:
        """Compute all but the chunk's last token, as many at a time as a decode may give logits of: a row for each of a whole
        prompt would take a gigabyte. None = aborted."""
        scores = []
        body = chunk.tokens[:-1]
        room = min(self._context.num_outputs, self._context.batch_size)
        for start in range(0, len(body), room):
            tokens = body[start : start + room]
            self._batch.clear()
            self._batch.add(chunk.slot, chunk.position + start, tokens, wants_logits=len(tokens))
            if not self._compute(plan):
                return None
            scores += [self._scored(sequence, chunk.position + start + index, index) for index in range(len(tokens))]
        return [score for score in scores if score is not None]

    def _scored(self, sequence: Sequence, position: int, index: int) -> TokenLogprob | None:
        """Of the prompt's token that follows `position`, whose logits are the batch's token `index`'s."""
        if position + 1 >= len(sequence.prompt):
            return None
        return self._place(sequence, index).of(sequence.prompt[position + 1])

    def _place(self, sequence: Sequence, index: int) -> Place:
        return Place(self._context.logits(index), sequence.logprobs or 0, self.written)

    def _last_of_scored(self, chunk: Chunk, sequence: Sequence, last: int, scores: list[TokenLogprob]) -> Sampled:
        score = self._scored(sequence, chunk.position + len(chunk.tokens) - 1, last)
        sampled = self._sample(chunk, sequence, (), last) if chunk.samples else NOTHING
        return replace(sampled, scores=(*scores, score) if score else tuple(scores))

    def _sample(self, chunk: Chunk, sequence: Sequence, guesses: tuple[int, ...], first: int) -> Sampled:
        """The tokens from the batch's token `first` on, as long as each is the next guess. Guesses that were not met leave
        the cache."""
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        try:
            for index in range(first, first + 1 + len(guesses)):
                token = self._next(sequence, index, logprobs)
                tokens.append(token)
                if index - first == len(guesses) or token != guesses[index - first] or token in self._ends:
                    break
            self._drop(chunk, guesses, len(tokens) - 1)
        except GalleryError as exc:
            return Sampled(tuple(tokens), tuple(logprobs), error=exc)
        return Sampled(tuple(tokens), tuple(logprobs))

    def _next(self, sequence: Sequence, index: int, logprobs: list[TokenLogprob]) -> int:
        """The next token after the batch's token `index`; its log probability is appended, if wanted."""
        place = None if sequence.logprobs is None else self._place(sequence, index)
        constraint = sequence.constraint
        if constraint is not None:
            mask = constraint.mask()
            if mask is not None and not forbid(self._context.logits(index), mask):
                raise GalleryError("the constraint of this answer allows no further token, not even its end")
        token = self._samplers[sequence.id].sample(self._context, index)
        if constraint is not None:
            constraint.accept(token)
        if place is not None:
            logprobs.append(place.of(token))
        return token

    def _drop(self, chunk: Chunk, guesses: tuple[int, ...], met: int) -> None:
        if met >= len(guesses):
            return
        length = chunk.position + len(chunk.tokens) - chunk.drafts + met
        if not self._context.cut(chunk.slot, length):
            raise GalleryError("this model cannot take back tokens that were guessed wrong: switch speculative decoding off")

    def written(self, token: int) -> bytes:
        known = self._written.get(token)
        if known is None:
            known = self._written[token] = self._vocab.piece(token, special=True)
        return known

    def end(self, sequence: Sequence) -> None:
        self._samplers.pop(sequence.id).close()
        if self._drafter:
            self._drafter.end(sequence)

    def piece(self, token: int) -> bytes:
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._vocab.piece(token)
        return known

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def interrupt(self) -> None:
        self._context.abort()

    def close(self) -> None:
        """The engine has ended; samplers of jobs that it had to drop go too."""
        for sampler in self._samplers.values():
            sampler.close()
        self._samplers.clear()
        self._drys.close()
        if self._drafter:
            self._drafter.close()
