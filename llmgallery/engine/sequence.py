"""One answer on its way: its tokens, how many of them the model has computed, and its slot."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmgallery.core.events import TokenLogprob, Usage
from llmgallery.core.jobs import Constraint
from llmgallery.core.sampling import Sampling
from llmgallery.engine.detok import Utf8Stream


@dataclass(eq=False)
class Sequence:
    """A prompt and what follows it.

    `limit`: most tokens to generate. `computed`: how many tokens, from the first, are in the slot's KV cache. A step
    computes pending tokens; when none is left, the model says what comes next.

    The engine's own account: `goal`: tokens that were known when it got its slot, until they are computed it prefills;
    `order`: who got his slot earlier has the lower one; `leader`: it waits until this sequence has computed `shared` tokens,
    which both have in common; `cached`: tokens of the prompt that were not computed for this sequence; `prompt_logprobs`:
    they are wanted and not told yet, their numbers so far are in `scores`.
    """

    id: int
    prompt: tuple[int, ...]
    limit: int
    sampling: Sampling
    logprobs: int | None = None
    prompt_logprobs: bool = False
    constraint: Constraint | None = None
    generated: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int | None = None
    order: int = -1
    begun: bool = False
    cached: int = 0
    leader: Sequence | None = None
    shared: int = 0
    scores: list[TokenLogprob] = field(default_factory=list)
    text: Utf8Stream = field(default_factory=Utf8Stream)
    goal: int = field(init=False)
    _kept: int = 0
    _spans: list[range] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.goal = len(self.prompt)

    @property
    def known(self) -> tuple[int, ...]:
        """The prompt and what was generated so far."""
        return (*self.prompt, *self.generated) if self.generated else self.prompt

    @property
    def pending(self) -> int:
        """Tokens that are known but not computed: the rest of the prompt, or what was sampled or forced last."""
        return len(self.prompt) + len(self.generated) - self.computed

    @property
    def left(self) -> int:
        """How many tokens may still be generated."""
        return self.limit - len(self.generated)

    @property
    def is_decoding(self) -> bool:
        """What was known at the beginning is computed, and tokens come one by one."""
        return self.computed >= self.goal

    @property
    def is_full(self) -> bool:
        """It may generate no more."""
        return len(self.generated) >= self.limit

    @property
    def reusable(self) -> int:
        """How many tokens may come from a cache: the last one must be computed, for its logits; all, to score the prompt."""
        return 0 if self.prompt_logprobs else len(self.prompt) + len(self.generated) - 1

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt), len(self.generated), self.cached)

    def next_tokens(self, count: int) -> tuple[int, ...]:
        """The first `count` pending tokens."""
        start, end, border = self.computed, self.computed + count, len(self.prompt)
        if start >= border:
            return tuple(self.generated[start - border : end - border])
        if end <= border:
            return self.prompt[start:end]
        return (*self.prompt[start:border], *self.generated[: end - border])

    def settle(self, kept: int) -> None:
        """It got the first `kept` tokens without computing them; the others up to `goal` are to be computed.

        A sequence that lost its slot settles again: what it has computed once is not cached, wherever it comes from now.
        """
        size = len(self.prompt)
        spared = min(kept, size)
        self.cached = len(set(range(spared)).difference(*self._spans)) if self._spans else spared
        self.computed = self._kept = kept
        self.goal = size + len(self.generated)

    def unsettle(self) -> None:
        """It loses its slot and all that is computed."""
        self._spans.append(range(self._kept, min(self.computed, len(self.prompt))))
        self.slot, self.computed, self.leader = None, 0, None
        self.scores.clear()

    def told_scores(self, first: bytes) -> tuple[TokenLogprob, ...]:
        """All of the prompt's log probabilities, once; `first`: the first token's bytes, which nothing precedes."""
        scores = (TokenLogprob(self.prompt[0], first, None), *self.scores)
        self.prompt_logprobs = False
        self.scores = []
        return scores
