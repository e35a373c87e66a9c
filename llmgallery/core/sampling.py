"""How the next token is chosen. None = nobody asked: the layer below decides."""

from __future__ import annotations

from typing import Any

import msgspec


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling parameters under the field's usual names. Every value has been range-checked by who built it.

    `seed`: any int; None or -1 = random. `max_tokens`: of the answer; None = until the context is full.
    `logit_bias`: token id -> added logit. `repeat_last_n`: -1 = the whole context. `extra`: a backend's own parameters.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None
    extra: dict[str, Any] = {}

    def over(self, below: Sampling) -> Sampling:
        """These values where asked for, else those of `below`; `extra` is merged key by key."""
        values = {
            name: getattr(below, name) if getattr(self, name) is None else getattr(self, name)
            for name in self.__struct_fields__
            if name != "extra"
        }
        return Sampling(**values, extra={**below.extra, **self.extra})


DEFAULTS = Sampling(
    temperature=0.8,
    top_k=40,
    top_p=0.95,
    min_p=0.05,
    repeat_penalty=1.0,
    repeat_last_n=64,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    ignore_eos=False,
)
"""What applies when neither request, YAML, preset nor backend says anything: llama.cpp's own defaults."""
