"""A runner without a model but with a cache: it knows which tokens every slot holds, and watches that the engine does, too."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from llmgallery.core.errors import GalleryError
from llmgallery.core.events import TokenLogprob
from llmgallery.engine.plan import Chunk, Plan, Sampled
from llmgallery.engine.runner import NoRoom
from llmgallery.engine.sequence import Sequence as Answering

END = 0
VOCABULARY = 24
PIECES = [b"", b" ", *(bytes([97 + letter]) for letter in range(20)), b"\xc3", b"\xa9"]


def follows(tokens: Sequence[int]) -> int:
    """The next token: a hash of all that came before."""
    return hash(tuple(tokens)) % VOCABULARY


def text_of(tokens: Sequence[int]) -> str:
    return b"".join(PIECES[token] for token in tokens).decode(errors="replace")


class Steering:
    """A constraint that dictates some places of an answer, whatever the model says; `end_at`: there the end."""

    def __init__(self, period: int, forced: Sequence[int], end_at: int | None = None) -> None:
        self._period = period
        self._forced = forced
        self._end_at = end_at
        self.accepted: list[int] = []

    def dictated(self, place: int) -> int | None:
        if place == self._end_at:
            return END
        return 2 + place % 20 if place % self._period in self._forced else None

    def mask(self) -> bytes | None:
        token = self.dictated(len(self.accepted))
        return None if token is None else struct.pack("<I", 1 << token)

    def accept(self, token: int) -> None:
        assert self.dictated(len(self.accepted)) in (None, token)
        self.accepted.append(token)

    def forced(self) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < 6 and (token := self.dictated(len(self.accepted) + len(tokens))) is not None:
            tokens.append(token)
        return tokens


def alone(prompt: Sequence[int], limit: int, steering: Steering | None = None) -> tuple[list[int], str]:
    """What the model says to the prompt when nobody else is there, the end token too, and how that ends."""
    said: list[int] = []
    while len(said) < limit:
        token = steering.dictated(len(said)) if steering else None
        said.append(follows([*prompt, *said]) if token is None else token)
        if said[-1] == END:
            return said, "stop"
    return said, "length"


class CachingRunner:
    """`room`: tokens that all slots hold together (None = any number). `guesses`: most that it drafts, some of them wrong.

    `on_decode`: called before each decode; False = interrupted, or it raises. `refuses`: copies and cuts that fail, by number.
    """

    def __init__(
        self,
        slots: int,
        *,
        room: int | None = None,
        can_truncate: bool = True,
        copy_cost: int = 0,
        guesses: int = 0,
        refuses: frozenset[int] = frozenset(),
    ) -> None:
        self.can_truncate = can_truncate
        self.copy_cost = copy_cost
        self.caches: list[list[int]] = [[] for _ in range(slots)]
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.heard: dict[int, list[int]] = {}
        self.places: dict[int, set[int]] = {}
        self.num_computed = 0
        self.plans: list[Plan] = []
        self.copies: list[tuple[int | None, int, int]] = []
        self.met: Counter[bool] = Counter()
        self.refuse: set[int] = set()
        self.on_decode: Callable[[Plan], bool] = lambda plan: True
        self._room = room
        self._guesses = guesses
        self._refuses = refuses
        self._keeps = 0

    def begin(self, sequence: Answering) -> None:
        if sequence.id in self.refuse:
            raise GalleryError("not this one")
        assert sequence.id not in self.begun and sequence.slot is not None
        self.begun.append(sequence.id)
        self.heard[sequence.id] = []
        self.places[sequence.id] = set()

    def keep(self, slot: int, length: int, source: int | None = None) -> int:
        held = self.caches[slot if source is None else source]
        assert source != slot and length <= len(held)
        assert self.can_truncate or length in (0, len(held)), "only whole caches can be kept or copied"
        self._keeps += 1
        if length and self._keeps in self._refuses:
            length = 0
        if length and source is not None:
            self.copies.append((source, slot, length))
        self.caches[slot] = held[:length]
        return length

    def decode(self, plan: Plan, sequences: Mapping[int, Answering]) -> Mapping[int, Sampled] | None:
        assert plan.chunks and len({chunk.slot for chunk in plan.chunks}) == len(plan.chunks)
        for chunk in plan.chunks:
            self._check(chunk, sequences[chunk.id])
        if self._room is not None and plan.num_tokens + sum(map(len, self.caches)) > self._room:
            raise NoRoom
        if not self.on_decode(plan):
            return None
        self.plans.append(plan)
        self.num_computed += plan.num_tokens
        return {chunk.id: self._computed(chunk, sequences[chunk.id]) for chunk in plan.chunks if self._counts(chunk)}

    def _counts(self, chunk: Chunk) -> bool:
        self.caches[chunk.slot] += chunk.tokens
        self.places[chunk.id].update(range(chunk.position, chunk.position + len(chunk.tokens)))
        return chunk.samples or chunk.scores

    def _check(self, chunk: Chunk, sequence: Answering) -> None:
        known = sequence.known
        sure = len(chunk.tokens) - chunk.drafts
        assert chunk.id in self.begun and chunk.id not in self.ended
        assert sequence.slot == chunk.slot and sure > 0
        assert self.caches[chunk.slot] == list(known[: chunk.position]), "a chunk goes on where its slot's cache ends"
        assert chunk.tokens[:sure] == known[chunk.position : chunk.position + sure]
        assert chunk.samples == (chunk.position + sure == len(known) and len(sequence.generated) < sequence.limit)
        assert not chunk.drafts or (chunk.samples and chunk.drafts < sequence.limit - len(sequence.generated))

    def _computed(self, chunk: Chunk, sequence: Answering) -> Sampled:
        start, border = chunk.position + 1, len(sequence.prompt)
        scored = range(start, min(start + len(chunk.tokens), border)) if chunk.scores else range(0)
        scores = tuple(TokenLogprob(sequence.prompt[place], b"", -float(place)) for place in scored)
        tokens = self._sample(chunk, sequence) if chunk.samples else []
        first = len(sequence.known)
        probable = () if sequence.logprobs is None else enumerate(tokens, first)
        return Sampled(tuple(tokens), tuple(TokenLogprob(token, b"", -float(place)) for place, token in probable), scores)

    def _sample(self, chunk: Chunk, sequence: Answering) -> list[int]:
        cut = len(chunk.tokens) - chunk.drafts
        tokens: list[int] = []
        for guess in (*chunk.tokens[cut:], None):
            token = self._next(sequence, tokens)
            tokens.append(token)
            if token != guess or token == END:
                break
        if chunk.drafts:
            self.met[len(tokens) > 1] += 1
        unmet = chunk.drafts - (len(tokens) - 1)
        del self.caches[chunk.slot][len(self.caches[chunk.slot]) - unmet :]
        self.heard[sequence.id] += tokens
        return tokens

    def _next(self, sequence: Answering, said: list[int]) -> int:
        steering = sequence.constraint
        token = follows([*sequence.known, *said])
        if steering is not None:
            mask = steering.mask()
            if mask is not None:
                token = struct.unpack("<I", mask)[0].bit_length() - 1
            steering.accept(token)
        return token

    def accept(self, sequence: Answering, tokens: Sequence[int]) -> None:
        assert isinstance(sequence.constraint, Steering) and tokens
        assert sequence.constraint.accepted[-len(tokens) :] == list(tokens)
        self.heard[sequence.id] += tokens

    def draft(self, sequences: Sequence[Answering], most: int) -> Mapping[int, tuple[int, ...]]:
        assert all(sequence.is_decoding and sequence.pending == 1 for sequence in sequences)
        found = {}
        for sequence in sequences:
            guesses: list[int] = []
            while len(guesses) < min(self._guesses, most):
                token = follows([*sequence.known, *guesses])
                wrong = len(sequence.known) % 2 and len(guesses) == len(sequence.known) % 3
                guesses.append((token + 1) % VOCABULARY if wrong else token)
            found[sequence.id] = tuple(guesses)
        return found

    def end(self, sequence: Answering) -> None:
        assert sequence.id in self.begun and sequence.id not in self.ended
        assert self.heard[sequence.id] == sequence.generated, "the sampler has heard of every token once"
        self.ended.append(sequence.id)

    def piece(self, token: int) -> bytes:
        return PIECES[token]

    def written(self, token: int) -> bytes:
        return PIECES[token] or b"<end>"

    def is_end(self, token: int) -> bool:
        return token == END

    def interrupt(self) -> None:
        """Nobody waits in here."""
