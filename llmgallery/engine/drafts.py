"""Guesses for what follows a sequence: from its own text, and how many of them pay. Knows no model.

A guess costs a token of the next decode, and saves a whole step when it is met. What is sampled never depends on it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from typing import Protocol

from llmgallery.engine.plan import Plan, Sampled, followed
from llmgallery.engine.sequence import Sequence

FIRST_REACH = 3  # with the token before them four: CPU kernels compute rows by fours (docs/engine.md)
LONGEST_PAUSE = 64  # steps, after guesses that were wrong
LONGEST_SILENCE = 16  # after none were made
PATIENCE = 3  # times that none were made
SHORTEST_MATCH = 3  # tokens; two alike are found by chance in any text
LONGEST_MATCH = 24
CANDIDATES = 16


class Drafter(Protocol):
    """Who guesses. Called from the engine's thread only."""

    @property
    def guessed(self) -> int:
        """Guesses made so far, as far as it has been seen what became of them."""

    @property
    def met(self) -> int:
        """How many of them were what the model went on with."""

    def draft(self, sequences: Items[Sequence], most: int) -> Mapping[int, tuple[int, ...]]:
        """At most `most` tokens for each decoding sequence, by id; a sequence without any may be left out."""

    def end(self, sequence: Sequence) -> None:
        """The sequence leaves for good; nothing happens for one that was never drafted."""

    def close(self) -> None:
        """Free what it holds. May be called twice."""


def outcome(plan: Plan, sampled: Mapping[int, Sampled]) -> tuple[int, int]:
    """How many guesses a step tried, and how many were met."""
    drafted = [chunk for chunk in plan.chunks if chunk.drafts]
    met = sum(followed(sampled[chunk.id].tokens, chunk.tokens[-chunk.drafts :]) for chunk in drafted)
    return sum(chunk.drafts for chunk in drafted), met


class Reach:
    """How many tokens of one sequence to guess next: more after guesses that were all met, about as many as were met after
    others, and none for a while (twice as long each time) after guesses of which not one was."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._reach = min(FIRST_REACH, most)
        self._misses = 0
        self._declined = 0
        self._rest = 0

    def next(self) -> int:
        """Asked once a step; 0 = this is a step without guesses."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._reach

    def judge(self, met: int, count: int) -> None:
        """Of the last `count` guesses, so many were met."""
        if met == count:
            self._reach = min(self._most, max(self._reach, 2 * count + 1))
        else:
            self._reach = met + 1
        self._declined = 0
        self._misses = 0 if met else self._misses + 1
        if self._misses > 1:
            self._rest = min(LONGEST_PAUSE, 1 << self._misses)

    def decline(self) -> None:
        """Asking was in vain, and not free: after a few times in a row it is done less often."""
        self._declined += 1
        self._rest = min(LONGEST_SILENCE, max(0, self._declined - PATIENCE))


class Ledger:
    """What was guessed for each sequence, and what came of it: the sequence itself tells, at the next step."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._reaches: dict[int, Reach] = {}
        self._open: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.guessed = 0
        self.met = 0

    def reach(self, sequence: Sequence) -> int:
        """How many tokens to guess in this step, after a look at what became of the last guesses."""
        reach = self._reaches.get(sequence.id)
        if reach is None:
            reach = self._reaches[sequence.id] = Reach(self._most)
        met, count = self._judge(sequence)
        if count:
            reach.judge(met, count)
        return min(reach.next(), sequence.limit - len(sequence.generated) - 1)

    def decline(self, sequence: Sequence) -> None:
        """Who guesses found nothing likely enough, and that cost time."""
        self._reaches[sequence.id].decline()

    def _judge(self, sequence: Sequence) -> tuple[int, int]:
        """How many of the last guesses were met, and how many there were."""
        length, guesses = self._open.pop(sequence.id, (0, ()))
        came = sequence.generated[length : length + len(guesses)] if guesses else []
        met = followed(came, guesses)
        # Guesses for which the engine had no room were not tried: what came after the last one that was is no miss.
        count = len(guesses) if met < len(came) else met
        self.guessed += count
        self.met += met
        return met, count

    def note(self, sequence: Sequence, guesses: tuple[int, ...]) -> None:
        """These go into the next decode."""
        if guesses:
            self._open[sequence.id] = (len(sequence.generated), guesses)

    def end(self, sequence: Sequence) -> None:
        """The sequence leaves for good."""
        self._judge(sequence)
        self._reaches.pop(sequence.id, None)


class Repetitions:
    """An index of one text: where its last tokens stood before, and what followed them there.

    Chains of equal pairs of tokens, as LZ77 compressors keep them: a new token costs one entry, a question at most CANDIDATES
    comparisons, however long the text.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: array[int] = array("i")
        self._before: array[int] = array("i")  # for each token: where the pair that it ends stood last, or -1
        self._ends: dict[int, int] = {}
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        text, before, ends = self._tokens, self._before, self._ends
        for token in tokens:
            at = len(text)
            before.append(-1)
            if at:
                pair = text[-1] << 32 | token
                before[at] = ends.get(pair, -1)
                ends[pair] = at
            text.append(token)

    def continuation(self, most: int) -> tuple[int, ...]:
        """What followed the longest and then newest earlier occurrence of the text's end; () when no SHORTEST_MATCH tokens of
        it stood there before. Never longer than the match: a short likeness promises little."""
        if not self._tokens:
            return ()
        best, length = -1, SHORTEST_MATCH - 1
        at = self._before[-1]
        for _ in range(CANDIDATES):
            if at < 0:
                break
            if (alike := self._alike(at)) > length:
                best, length = at, alike
                if length >= LONGEST_MATCH:
                    break
            at = self._before[at]
        return self._after(best, min(most, length)) if best >= 0 else ()

    def _alike(self, at: int) -> int:
        """How many tokens up to `at` are the text's last ones; the last two are, by the chain."""
        text, end = self._tokens, len(self._tokens) - 1
        length = 2
        while length < LONGEST_MATCH and length <= at and text[at - length] == text[end - length]:
            length += 1
        return length

    def _after(self, at: int, count: int) -> tuple[int, ...]:
        """The text after `at`; where that runs into the text's end, it repeats."""
        text, period = self._tokens, len(self._tokens) - 1 - at
        return tuple(text[at + 1 + index % period] for index in range(count))


class PromptLookup:
    """A Drafter without a model: an answer that quotes, corrects or continues its prompt goes on as that did.

    `most`: tokens guessed at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ledger = Ledger(most)
        self._texts: dict[int, Repetitions] = {}

    @property
    def guessed(self) -> int:
        return self._ledger.guessed

    @property
    def met(self) -> int:
        return self._ledger.met

    def draft(self, sequences: Items[Sequence], most: int) -> Mapping[int, tuple[int, ...]]:
        found = {}
        for sequence in sequences:
            text = self._text(sequence)
            count = min(self._ledger.reach(sequence), most)
            guesses = text.continuation(count) if count > 0 else ()
            self._ledger.note(sequence, guesses)
            if guesses:
                found[sequence.id] = guesses
        return found

    def _text(self, sequence: Sequence) -> Repetitions:
        text = self._texts.get(sequence.id)
        if text is None:
            text = self._texts[sequence.id] = Repetitions(sequence.prompt)
        text.extend(sequence.generated[len(text) - len(sequence.prompt) :])
        return text

    def end(self, sequence: Sequence) -> None:
        self._texts.pop(sequence.id, None)
        self._ledger.end(sequence)

    def close(self) -> None:
        self._texts.clear()
