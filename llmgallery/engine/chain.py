"""From sampling parameters to the chain of samplers that llama-server would build for them. Pure: no numbers are drawn here.

Source: common_sampler_init in llama.cpp's common/sampling.cpp. What would do nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from llmgallery.core.sampling import DEFAULTS, Sampling

COLDEST = 1e-6
"""A lower temperature or repeat penalty would lift logits out of what float32 holds; the likeliest token takes all before."""

MODERATE = (0.01, 100.0)
"""Temperatures, thrice at most, after which float32 and llama.cpp's sorting still tell logits apart as before."""

_FAINTEST = 2.0**-126
"""The least normal float32. Fainter candidates have the probability 0, whose logarithm llama.cpp's entropies do not survive:
they are dropped before."""


@dataclass(frozen=True)
class Penalties:
    """Repeated tokens: a positive logit is divided by `repeat`, another multiplied; then `frequency` times the count and
    `presence` are subtracted. Counted over the last `last_n` tokens."""

    last_n: int
    repeat: float
    frequency: float
    presence: float


@dataclass(frozen=True)
class Dry:
    """A token that would prolong a repetition of n tokens, n >= allowed_length, loses multiplier * base ** (n - allowed_length).
    Repetitions do not reach across a breaker."""

    last_n: int
    multiplier: float
    base: float
    allowed_length: int
    breakers: tuple[bytes, ...]


@dataclass(frozen=True)
class TopNSigma:
    """Keep logits within n standard deviations of the highest."""

    n: float


@dataclass(frozen=True)
class TopK:
    k: int


@dataclass(frozen=True)
class Typical:
    """Keep the tokens whose surprise is nearest to the entropy, up to the probability p."""

    p: float


@dataclass(frozen=True)
class TopP:
    p: float


@dataclass(frozen=True)
class MinP:
    p: float


@dataclass(frozen=True)
class Xtc:
    """With this probability, drop all but the last of the tokens that reach the threshold."""

    probability: float
    threshold: float


@dataclass(frozen=True)
class Temperature:
    """Divide the logits. `spread` > 0: by value - spread + 2 spread e ** exponent, where e is the entropy's share of the most
    that so many candidates could have."""

    value: float
    spread: float = 0.0
    exponent: float = 1.0


@dataclass(frozen=True)
class Mirostat:
    """Truncate so that the surprise of what is drawn nears `tau` bits; `eta` is the learning rate. Version 1 or 2."""

    version: int
    tau: float
    eta: float


Step = Penalties | Dry | TopNSigma | TopK | Typical | TopP | MinP | Xtc | Temperature


@dataclass(frozen=True)
class Cut:
    """At most `kept` candidates are left, the highest, before anything depends on the others. Until then a chain changes logits
    of none but biased tokens and the last `last_n` ones, and else keeps their order."""

    kept: int
    last_n: int


@dataclass(frozen=True)
class Chain:
    """What is added to the logits, then the steps, then the choice. `mirostat` None: by probability; `likeliest`: no draw."""

    biases: Mapping[int, float]
    steps: tuple[Step, ...]
    mirostat: Mirostat | None = None
    likeliest: bool = False

    @property
    def last_n(self) -> int:
        """How many of the last tokens it looks at."""
        return _last_n(self.steps)

    @property
    def cut(self) -> Cut | None:
        """The first one, if it comes before all that looks at the whole vocabulary."""
        for place, step in enumerate(self.steps):
            if isinstance(step, TopK):
                return Cut(step.k, _last_n(self.steps[:place]))
            if not _keeps_order(step):
                return None
        return Cut(1, self.last_n) if self.likeliest else None


def _last_n(steps: Sequence[Step]) -> int:
    return max((step.last_n for step in steps if isinstance(step, (Penalties, Dry))), default=0)


def _keeps_order(step: Step) -> bool:
    """Of tokens that it has not seen. Not asked of temperatures that round many logits to one."""
    match step:
        case Penalties() | Dry():
            return True
        case Temperature(value, spread=0.0):
            return MODERATE[0] <= value <= MODERATE[1]
        case _:
            return False


def plan_chain(
    sampling: Sampling, *, vocab_size: int, ends: Collection[int], context_size: int, suppressed: Collection[int] = ()
) -> Chain:
    """The chain of one answer. `ends`: end tokens, which ignore_eos forbids; `suppressed`: what the model never says.

    Where it parts from llama-server: at temperature 0 only biases, penalties and DRY act (there typical_p and XTC could drop the
    likeliest token); -1 for repeat_last_n and dry_penalty_last_n is the whole context (now refused there, formerly the same).
    As there, Mirostat takes the place of all others but biases and temperature.
    """
    wanted = sampling.over(DEFAULTS)
    biases = _biases(wanted, vocab_size, ends, suppressed)
    temperature = wanted.temperature or 0.0
    if wanted.mirostat:
        mirostat = Mirostat(wanted.mirostat, wanted.mirostat_tau or 0.0, wanted.mirostat_eta or 0.0)
        if temperature < COLDEST:
            return Chain(biases, (), likeliest=True)
        guard = (MinP(_FAINTEST),) if mirostat.version == 1 else ()
        return Chain(biases, (*_temperature(wanted, 0.0), *guard), mirostat)
    order = wanted.samplers or ()
    if temperature < COLDEST and "temperature" in order:
        keep = [name for name in order if name in ("penalties", "dry")]
        return Chain(biases, _steps(keep, wanted, context_size), likeliest=True)
    return Chain(biases, _steps(order, wanted, context_size))


def _biases(wanted: Sampling, vocab_size: int, ends: Collection[int], suppressed: Collection[int]) -> dict[int, float]:
    biases = {token: bias for token, bias in (wanted.logit_bias or {}).items() if 0 <= token < vocab_size}
    biases |= dict.fromkeys(suppressed, -math.inf)
    if wanted.ignore_eos:
        biases |= dict.fromkeys(ends, -math.inf)
    return biases


def _steps(order: Collection[str], wanted: Sampling, context_size: int) -> tuple[Step, ...]:
    return tuple(step for name in order for step in _MAKERS[name](wanted, context_size))


def _looked_back(last_n: int | None, context_size: int) -> int:
    return context_size if last_n is None or last_n < 0 else min(last_n, context_size)


def _penalties(wanted: Sampling, context_size: int) -> tuple[Step, ...]:
    last_n = _looked_back(wanted.repeat_last_n, context_size)
    repeat = max(wanted.repeat_penalty or 1.0, COLDEST)
    frequency, presence = wanted.frequency_penalty or 0.0, wanted.presence_penalty or 0.0
    if not last_n or (repeat, frequency, presence) == (1.0, 0.0, 0.0):
        return ()
    return (Penalties(last_n, repeat, frequency, presence),)


def _dry(wanted: Sampling, context_size: int) -> tuple[Step, ...]:
    last_n = _looked_back(wanted.dry_penalty_last_n, context_size)
    multiplier, base = wanted.dry_multiplier or 0.0, wanted.dry_base or 0.0
    if not last_n or not multiplier or base < 1:
        return ()
    # llama.cpp reads C strings, and cuts each to 40 bytes.
    breakers = [text.encode(errors="replace").partition(b"\0")[0][:40] for text in wanted.dry_sequence_breakers or ()]
    return (Dry(last_n, multiplier, base, wanted.dry_allowed_length or 0, tuple(filter(None, breakers))),)


def _top_n_sigma(wanted: Sampling, _: int) -> tuple[Step, ...]:
    return (TopNSigma(wanted.top_n_sigma),) if wanted.top_n_sigma is not None and wanted.top_n_sigma > 0 else ()


def _top_k(wanted: Sampling, _: int) -> tuple[Step, ...]:
    return (TopK(wanted.top_k),) if wanted.top_k is not None and wanted.top_k > 0 else ()


def _typical(wanted: Sampling, _: int) -> tuple[Step, ...]:
    return (MinP(_FAINTEST), Typical(wanted.typical_p)) if wanted.typical_p is not None and wanted.typical_p < 1 else ()


def _top_p(wanted: Sampling, _: int) -> tuple[Step, ...]:
    return (TopP(wanted.top_p),) if wanted.top_p is not None and wanted.top_p < 1 else ()


def _min_p(wanted: Sampling, _: int) -> tuple[Step, ...]:
    return (MinP(wanted.min_p),) if wanted.min_p else ()


def _xtc(wanted: Sampling, _: int) -> tuple[Step, ...]:
    probability, threshold = wanted.xtc_probability or 0.0, wanted.xtc_threshold or 0.0
    # Forbidden tokens, whose probability is 0, must not reach a threshold of 0: the last one that does is kept.
    return (Xtc(probability, max(threshold, _FAINTEST)),) if probability > 0 and threshold <= 0.5 else ()


def _temperature(wanted: Sampling, _: float) -> tuple[Step, ...]:
    value, spread = wanted.temperature or 0.0, wanted.dynatemp_range or 0.0
    if wanted.mirostat or spread <= 0:
        return (Temperature(value),) if value != 1 else ()
    low, high = max(COLDEST, value - spread), value + spread
    return (
        Temperature((high + low) / 2, (high - low) / 2, 1.0 if wanted.dynatemp_exponent is None else wanted.dynatemp_exponent),
    )


_MAKERS: Mapping[str, Callable[[Sampling, int], tuple[Step, ...]]] = {
    "penalties": _penalties,
    "dry": _dry,
    "top_n_sigma": _top_n_sigma,
    "top_k": _top_k,
    "typ_p": _typical,
    "top_p": _top_p,
    "min_p": _min_p,
    "xtc": _xtc,
    "temperature": _temperature,
}
