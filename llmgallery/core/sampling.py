"""How the next token is chosen. None = nobody asked: the layer below decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from llmgallery.core.errors import InvalidField

SAMPLERS = {
    "penalties": "e",
    "dry": "d",
    "top_n_sigma": "s",
    "top_k": "k",
    "typ_p": "y",
    "top_p": "p",
    "min_p": "m",
    "xtc": "x",
    "temperature": "t",
}
"""llama.cpp's names and letters, in its default order. Source: common_params_sampling and common_sampler_type_to_chr."""

_LETTERS = {letter: name for name, letter in SAMPLERS.items()}
_ALIASES = {
    **{name.replace("_", mark): name for name in SAMPLERS for mark in ("_", "-", "")},
    **dict.fromkeys(("typ", "typical", "typical_p", "typical-p"), "typ_p"),
    "nucleus": "top_p",
    "temp": "temperature",
}
_GONE = {
    **dict.fromkeys(("tfs", "tfs_z", "tfs-z", "tfz"), "llama.cpp has removed tail-free sampling"),
    **dict.fromkeys(("infill", "adaptive_p", "adaptive-p"), "llama.cpp has it, this version does not"),
}
MOST_TIMES = 3
"""How often one sampler may be listed: a temperature many times over would lift logits out of what float32 holds."""
MOST_BREAKERS = 32


def sampler_order(wanted: str | Sequence[str]) -> tuple[str, ...]:
    """Canonical names, in the order in which they act; one that is not listed does not act, one listed twice acts twice.

    `wanted`: names and aliases as llama-server takes them, or its one text of letters ("edskypmxt"; with `;` it holds names, as
    on llama.cpp's command line). Raises InvalidField naming what is unknown.
    """
    if isinstance(wanted, str) and ";" not in wanted:
        return _bounded([_letter(letter) for letter in wanted])
    names = wanted.split(";") if isinstance(wanted, str) else wanted
    return _bounded([_name(name) for name in names])


def _bounded(order: Sequence[str]) -> tuple[str, ...]:
    if not order:
        raise InvalidField(f"samplers: expected at least one of {', '.join(SAMPLERS)}", field="samplers")
    for name in SAMPLERS:
        if order.count(name) > MOST_TIMES:
            raise InvalidField(f"samplers: {name} more than {MOST_TIMES} times", field="samplers")
    return tuple(order)


def _name(name: str) -> str:
    word = name.strip().lower()
    if word in _ALIASES:
        return _ALIASES[word]
    reason = _GONE.get(word, f"the names are {', '.join(SAMPLERS)}")
    raise InvalidField(f"samplers: there is no {name[:40]!r}; {reason}", field="samplers")


def _letter(letter: str) -> str:
    if letter in _LETTERS:
        return _LETTERS[letter]
    letters = ", ".join(f"{key} = {name}" for key, name in _LETTERS.items())
    advice = f"a text is one letter for each sampler: {letters}; names go into a list"
    raise InvalidField(f"samplers: there is no letter {letter!r}; {advice}", field="samplers")


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling parameters under the field's usual names. Every value has been range-checked by who built it.

    `seed`: any int; None or -1 = random. `max_tokens`: of the answer; None = until the context is full.
    `logit_bias`: token id -> added logit. `repeat_last_n` and `dry_penalty_last_n`: -1 = the whole context.
    `top_n_sigma`: -1 = off. `dynatemp_range`: the temperature moves by as much up and down with the entropy.
    `mirostat`: 0 = off, 1, 2. `samplers`: in which order they act, by llama.cpp's names. `extra`: a backend's own parameters.
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
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: tuple[str, ...] | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    samplers: tuple[str, ...] | None = None
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
    typical_p=1.0,
    top_n_sigma=-1.0,
    xtc_probability=0.0,
    xtc_threshold=0.1,
    dry_multiplier=0.0,
    dry_base=1.75,
    dry_allowed_length=2,
    dry_penalty_last_n=64,
    dry_sequence_breakers=("\n", ":", '"', "*"),
    mirostat=0,
    mirostat_tau=5.0,
    mirostat_eta=0.1,
    dynatemp_range=0.0,
    dynatemp_exponent=1.0,
    samplers=tuple(SAMPLERS),
)
"""What applies when neither request, YAML, preset nor backend says anything: llama.cpp's own defaults."""
