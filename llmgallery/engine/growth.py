"""Tokens that have come, sampled or forced, become text and an Output."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Literal, Protocol

from llmgallery.core.errors import GalleryError
from llmgallery.core.events import TokenLogprob
from llmgallery.core.jobs import Constraint, Output
from llmgallery.engine.plan import NOTHING, Sampled
from llmgallery.engine.runner import Runner
from llmgallery.engine.sequence import Sequence

Finish = Literal["stop", "length", "cancelled", "error"]


class Vocabulary(Protocol):
    """The half of a Runner that tells what tokens are."""

    def piece(self, token: int) -> bytes: ...
    def written(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...


def tell(sequence: Sequence, sampled: Sampled, vocabulary: Vocabulary) -> Output:
    """The sequence goes on by what was sampled, as in `grow`, where nothing is forced: a constraint's mask does all there is."""
    tokens, finish = _take(sequence, sampled.tokens, vocabulary)
    text = "".join([sequence.text.feed(vocabulary.piece(token)) for token in tokens])
    return Output(sequence.id, text, tokens, finish, sequence.usage, logprobs=sampled.logprobs[: len(tokens)])


def grow(sequence: Sequence, sampled: Sampled, runner: Runner) -> Output:
    """The sequence goes on by what was sampled, then by what its constraint forces. The end token is counted, not told.

    The Output has its `finish`, if this was the end; the sequence's text is not flushed then.
    """
    tokens, finish = _take(sequence, sampled.tokens, runner)
    logprobs, error = sampled.logprobs[: len(tokens)], sampled.error
    if finish is None and error is None and sequence.constraint is not None:
        before = len(sequence.generated)
        forced, finish, error = force(sequence, sequence.constraint, runner)
        tokens += forced
        if sequence.logprobs is not None:
            logprobs += tuple(TokenLogprob(token, runner.written(token), None) for token in forced)
        if before < len(sequence.generated):
            runner.accept(sequence, sequence.generated[before:])
    if finish is None and error is not None:
        finish = "error"
    message = error.message if error is not None and finish == "error" else ""
    text = "".join([sequence.text.feed(runner.piece(token)) for token in tokens])
    return Output(sequence.id, text, tokens, finish, sequence.usage, message, logprobs, _scores(sequence, runner))


def begin_forced(sequence: Sequence, runner: Runner) -> Output | None:
    """What must come before anything is computed; None when nothing must. A prompt to be scored is computed first."""
    if sequence.constraint is None or sequence.prompt_logprobs:
        return None
    output = grow(sequence, NOTHING, runner)
    sequence.goal = len(sequence.prompt) + len(sequence.generated)
    return output if output.tokens or output.finish is not None else None


def _take(sequence: Sequence, tokens: Items[int], vocabulary: Vocabulary) -> tuple[tuple[int, ...], Finish | None]:
    """Those that count and are told: the answer ends with an end token, or when it is full."""
    for index, token in enumerate(tokens):
        sequence.generated.append(token)
        if vocabulary.is_end(token):
            return tuple(tokens[:index]), "stop"
        if sequence.is_full:
            return tuple(tokens[: index + 1]), "length"
    return tuple(tokens), "length" if sequence.is_full else None


def force(
    sequence: Sequence, constraint: Constraint, vocabulary: Vocabulary
) -> tuple[tuple[int, ...], Finish | None, GalleryError | None]:
    """The sequence goes on by what its constraint forces now; what of it is told, and how it ends."""
    before = len(sequence.generated)
    try:
        told, finish = _take(sequence, constraint.forced(), vocabulary)
        for token in sequence.generated[before:]:
            constraint.accept(token)
    except GalleryError as exc:
        del sequence.generated[before:]
        return (), None, exc
    return told, finish, None


def _scores(sequence: Sequence, runner: Runner) -> tuple[TokenLogprob, ...]:
    if not sequence.prompt_logprobs or sequence.computed < len(sequence.prompt):
        return ()
    return sequence.told_scores(runner.written(sequence.prompt[0]))
