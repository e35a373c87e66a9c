"""Guesses by a second, smaller model of the same vocabulary, in the same process; and which way of guessing a YAML asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.log import ERROR, LOG
from llmgallery.backends.llamacpp.params import PADDING, default_threads
from llmgallery.backends.llamacpp.spec import LlamaOptions
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, LoadError
from llmgallery.engine.drafts import Drafter, Ledger, PromptLookup
from llmgallery.engine.plan import followed
from llmgallery.engine.sequence import Sequence

MOST = 7  # guesses at once, where nobody says
BATCH = 256  # tokens of prompts that the draft model takes in before a step
WORTH_COPYING = 64  # tokens
SIZE_DIFFERENCE = 128  # as llama.cpp allows: padding and tokens that were added later
NO_ROOM = 1  # of llama_decode
FIRST_COMPARED = 5  # what comes before is often named differently: <s>, <unk>, ...

_log = logging.getLogger(__name__)


def most_guesses(config: ModelConfig, options: LlamaOptions) -> int:
    """How many tokens may be guessed ahead of each sequence; 0 = speculation is off. Raises LoadError."""
    if _way(config, options) == "off":
        return 0
    return MOST if config.n_draft is None else config.n_draft


def _way(config: ModelConfig, options: LlamaOptions) -> str:
    way = options.speculative or ("draft" if config.draft_model else "off")
    if way == "draft" and not config.draft_model:
        raise LoadError(
            "options.speculative is draft, but draft_model names no model to draft with: name one, or set "
            "options.speculative: prompt-lookup",
            field="draft_model",
        )
    return "off" if config.n_draft == 0 else way


def make_drafter(
    config: ModelConfig,
    options: LlamaOptions,
    files: Items[Path],
    *,
    target: api.Model,
    can_truncate: bool,
    model_params: api.ModelParams,
    context_params: api.ContextParams,
    progress: Callable[[float], None],
) -> Drafter | None:
    """What the YAML asks for; None = no guesses. `model_params` and `context_params` are the target's, `files` the draft
    model's, `progress` that of its loading. Raises LoadError, BadWeights."""
    most = most_guesses(config, options)
    if not most:
        return None
    if not can_truncate:
        message = (
            "this model keeps a state that cannot go back, so wrong guesses could not be undone: speculation is not possible"
        )
        raise LoadError(f"{message}; remove draft_model and options.speculative", field="draft_model")
    if _way(config, options) == "prompt-lookup":
        return PromptLookup(most)
    model = _load(files, model_params, progress)
    try:
        check_drafts(target, model, files[0].name)
        context = _context(model, context_params, files[0].name)
    except LoadError:
        model.close()
        raise
    usable = min(target.vocab.size, model.vocab.size)
    return DraftModel(model, context, most=most, least_probability=options.draft_p_min, usable=usable)


def _load(files: Items[Path], wanted: api.ModelParams, progress: Callable[[float], None]) -> api.Model:
    if not files:
        raise LoadError("draft_model: its weights did not come with the others", field="draft_model")
    if missing := [file for file in files if not file.is_file()]:
        raise BadWeights(f"draft_model: {missing[0]}: no such file", field="draft_model")
    with LOG.kept() as log:
        try:
            return api.Model(files, wanted, progress)
        except ValueError as exc:
            raise BadWeights(f"draft_model: {files[0].name} does not load: {_reason(log)}", field="draft_model") from exc


def _context(model: api.Model, target: api.ContextParams, name: str) -> api.Context:
    """As many sequences as the target has, each as long as the target's, or as the draft model was trained for."""
    slots = target.sequences
    batch = max(BATCH, slots)
    threads = min(target.threads, default_threads(model.bytes))
    shared = {name: target.extra[name] for name in ("flash_attn_type", "kv_unified") if name in target.extra}
    wanted = api.ContextParams(
        context=min(target.context, -(-model.context_length // PADDING) * PADDING * slots),
        sequences=slots,
        batch=batch,
        ubatch=batch,
        threads=threads,
        threads_batch=min(target.threads_batch, default_threads(model.bytes)),
        outputs=slots,
        extra={**shared, "swa_full": True},  # with less, it could not go back
    )
    with LOG.kept() as log:
        try:
            return api.Context(model, wanted)
        except ValueError as exc:
            raise LoadError(f"draft_model: {name}: no context: {_reason(log)}", field="draft_model") from exc


def _reason(log: Items[tuple[int, str]]) -> str:
    reasons = [text.strip() for level, text in log if level == ERROR and text.strip()]
    return reasons[-1] if reasons else "llama.cpp gives no reason"


def check_drafts(target: api.Model, draft: api.Model, name: str) -> None:
    """The draft model writes what the target reads: the same tokens by the same numbers, as llama.cpp's own speculative
    decoding asks for, and it can go back to where a guess was wrong. Raises LoadError."""
    ours, theirs = target.vocab, draft.vocab
    if draft.keeps_state or not draft.can_decode:
        raise LoadError(
            f"draft_model: {name} keeps a state that cannot go back, or only encodes: take another", field="draft_model"
        )
    if abs(ours.size - theirs.size) > SIZE_DIFFERENCE:
        raise LoadError(
            f"draft_model: {name} has a vocabulary of {theirs.size} tokens, this model one of {ours.size}: take a small model "
            f"of the same family",
            field="draft_model",
        )
    for token in range(FIRST_COMPARED, min(ours.size, theirs.size)):
        if (text := theirs.text(token)) != (wanted := ours.text(token)):
            raise LoadError(
                f"draft_model: {name} has another vocabulary: its token {token} is {text!r}, this model's {wanted!r}; take a "
                f"small model of the same family",
                field="draft_model",
            )


@dataclass
class _Cache:
    """What a slot's cache of the draft model holds. `sure`: so many of its tokens are known to be those of the sequence
    `owner`, and need no look."""

    tokens: list[int] = field(default_factory=list)
    owner: int | None = None
    sure: int = 0


class DraftModel:
    """A Drafter. Its slots are the target's. Owns model and context.

    `least_probability`: a guess that the draft model itself finds less likely is not made. `usable`: tokens from here on are
    not in both vocabularies.
    """

    def __init__(self, model: api.Model, context: api.Context, *, most: int, least_probability: float, usable: int) -> None:
        self._model = model
        self._context = context
        self._least = least_probability
        self._usable = usable
        self._batch = api.Batch(context.batch_size)
        self._caches = [_Cache() for _ in range(context.num_sequences)]
        self._ledger = Ledger(most)
        self._lost = False

    @property
    def guessed(self) -> int:
        return self._ledger.guessed

    @property
    def met(self) -> int:
        return self._ledger.met

    def draft(self, sequences: Items[Sequence], most: int) -> Mapping[int, tuple[int, ...]]:
        """A prompt that is new to the draft model is taken in over several calls, BATCH tokens in each for all."""
        if self._lost:
            return {}
        wanted = {}
        for sequence in sequences:
            count = min(self._ledger.reach(sequence), most)
            if count > 0 and sequence.slot is not None and self._fits(sequence, count):
                wanted[sequence.slot] = (sequence, count)
        found = {}
        for slot, guesses in (self._guess(wanted) if wanted else {}).items():
            sequence = wanted[slot][0]
            if guesses:
                found[sequence.id] = guesses
                self._ledger.note(sequence, guesses)
            else:
                self._ledger.decline(sequence)
        return found

    def _fits(self, sequence: Sequence, count: int) -> bool:
        return _length(sequence) + count <= self._context.tokens_per_sequence

    def _guess(self, wanted: Mapping[int, tuple[Sequence, int]]) -> dict[int, tuple[int, ...]]:
        """By slot; none at all for a slot whose prompt is not yet taken in."""
        asked = self._catch_up(wanted)
        guesses: dict[int, list[int]] = {slot: [] for slot in asked}
        while asked:
            if not self._decode():
                return {}
            going = {slot: token for slot, index in asked.items() if (token := self._likeliest(index)) is not None}
            self._batch.clear()
            asked = {}
            for slot, token in going.items():
                guesses[slot].append(token)
                if len(guesses[slot]) < wanted[slot][1] and not self._model.vocab.is_end(token):
                    asked[slot] = self._add(slot, (token,), samples=True)
        return {slot: tuple(tokens) for slot, tokens in guesses.items()}

    def _catch_up(self, wanted: Mapping[int, tuple[Sequence, int]]) -> dict[int, int]:
        """Into the batch what the caches lack, the shortest first; of each slot that then lacks nothing, the index of its
        last token. What is left over is for the next call."""
        self._batch.clear()
        lacking = {slot: self._align(slot, sequence) for slot, (sequence, _) in wanted.items()}
        asked = {}
        for slot, start in sorted(lacking.items(), key=lambda item: _length(wanted[item[0]][0]) - item[1]):
            sequence = wanted[slot][0]
            tokens = _tokens(sequence, start, start + self._context.batch_size - self._batch.count)
            if not tokens or max(tokens) >= self._usable:
                continue
            samples = start + len(tokens) == _length(sequence)
            index = self._add(slot, tokens, samples=samples)
            if samples:
                asked[slot] = index
        if self._batch.count and not asked:
            self._decode()
        return asked

    def _align(self, slot: int, sequence: Sequence) -> int:
        """Let the slot's cache hold a beginning of the sequence, as long as there is one; its length."""
        cache = self._caches[slot]
        if cache.owner != sequence.id:
            cache.owner, cache.sure = sequence.id, 0
            self._borrow(slot, sequence)
        same = cache.sure + followed(_tokens(sequence, cache.sure, len(cache.tokens)), cache.tokens[cache.sure :])
        same = min(same, _length(sequence) - 1)  # the last is computed again: the guesses start from what comes of it
        if same < len(cache.tokens):
            self._context.cut(slot, same)
            del cache.tokens[same:]
        cache.sure = same
        return same

    def _borrow(self, slot: int, sequence: Sequence) -> None:
        """Another slot may hold more of what the sequence begins with."""
        text = sequence.prompt
        shared = [followed(cache.tokens, text) for cache in self._caches]
        best = max(range(len(shared)), key=shared.__getitem__)
        if shared[best] >= shared[slot] + WORTH_COPYING:
            self._context.copy(best, slot, len(self._caches[best].tokens))
            self._caches[slot].tokens[:] = self._caches[best].tokens

    def _add(self, slot: int, tokens: tuple[int, ...], *, samples: bool) -> int:
        held = self._caches[slot].tokens
        index = self._batch.add(slot, len(held), tokens, wants_logits=samples)
        held += tokens
        return index

    def _decode(self) -> bool:
        """False: there are no guesses now, which answers do not need; unless the cache was only full, there never will be."""
        result = self._context.decode(self._batch)
        if result == NO_ROOM:
            for slot, cache in enumerate(self._caches):
                self._context.forget(slot)
                cache.tokens.clear()
                cache.sure = 0
        elif result != 0:
            self._lost = True
            _log.warning("the draft model could not compute a step (llama_decode gave %d): no more guesses", result)
        return result == 0

    def _likeliest(self, index: int) -> int | None:
        """None when it is not likely enough."""
        row = self._context.logits(index)[: self._usable]
        token = int(row.argmax())
        if self._least > 0 and 1.0 / float(np.exp(row - row[token]).sum()) < self._least:
            return None
        return token

    def end(self, sequence: Sequence) -> None:
        """What is in its slot's cache stays there: it can be the beginning of another."""
        self._ledger.end(sequence)

    def close(self) -> None:
        self._context.close()
        self._model.close()


def _length(sequence: Sequence) -> int:
    return len(sequence.prompt) + len(sequence.generated)


def _tokens(sequence: Sequence, start: int, end: int) -> tuple[int, ...]:
    """Of prompt and answer together."""
    border = len(sequence.prompt)
    return (*sequence.prompt[start:end], *sequence.generated[max(0, start - border) : max(0, end - border)])
