"""One answer on its way: its tokens, how many of them the model has computed, and its slot."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmgallery.core.events import Usage
from llmgallery.core.sampling import Sampling


@dataclass(eq=False)
class Sequence:
    """A prompt and what follows it.

    `limit`: most tokens to generate. `computed`: how many tokens, from the first, are in the slot's KV cache. A step
    computes pending tokens; when none is left, the model says what comes next.
    """

    id: int
    prompt: tuple[int, ...]
    limit: int
    sampling: Sampling
    generated: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int | None = None

    @property
    def pending(self) -> int:
        """Tokens that are known but not computed: the rest of the prompt, or the token sampled last."""
        return len(self.prompt) + len(self.generated) - self.computed

    @property
    def is_decoding(self) -> bool:
        """The prompt is computed, and tokens come one by one."""
        return bool(self.generated)

    @property
    def is_full(self) -> bool:
        """It may generate no more."""
        return len(self.generated) >= self.limit

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt), len(self.generated))

    def next_tokens(self, count: int) -> tuple[int, ...]:
        """The first `count` pending tokens."""
        start, end, border = self.computed, self.computed + count, len(self.prompt)
        if end <= border:
            return self.prompt[start:end]
        return (*self.prompt[start:border], *self.generated[max(0, start - border) : end - border])
