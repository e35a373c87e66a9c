"""What each sampler must do to a distribution, by its published formula, in plain floats: none of the package's code."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmgallery.core.sampling import Sampling

DRAWS = 2000
LOGITS = (2.0, 1.6, 1.1, 0.9, 0.4, 0.1, -0.3, -0.8, -1.5, -2.5, -4.0, -6.0)
END = 2
CONTEXT = 64

Weights = dict[int, float]
"""Token -> logit."""


def softmax(weights: Weights) -> Weights:
    top = max(weights.values())
    shares = {token: math.exp(weight - top) for token, weight in weights.items()}
    total = math.fsum(shares.values())
    return {token: share / total for token, share in shares.items()}


def ranked(shares: Weights) -> list[int]:
    return sorted(shares, key=lambda token: -shares[token])


def only(weights: Weights, tokens: Sequence[int]) -> Weights:
    return {token: weights[token] for token in tokens}


def until(shares: Weights, order: Sequence[int], enough: Callable[[float], bool]) -> list[int]:
    """The first tokens of the order, up to the one with which the sum is enough."""
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += shares[token]
        if enough(total):
            break
    return kept


def entropy(shares: Weights) -> float:
    return -math.fsum(share * math.log(share) for share in shares.values() if share > 0)


def temperature(weights: Weights, t: float) -> Weights:
    return {token: weight / t for token, weight in weights.items()}


def dynamic(weights: Weights, t: float, spread: float, exponent: float) -> Weights:
    share = entropy(softmax(weights)) / math.log(len(weights))
    low, high = max(0.0, t - spread), t + spread
    return temperature(weights, low + (high - low) * share**exponent)


def top_k(weights: Weights, k: int) -> Weights:
    return only(weights, ranked(weights)[:k])


def top_p(weights: Weights, p: float) -> Weights:
    shares = softmax(weights)
    return only(weights, until(shares, ranked(shares), lambda total: total >= p))


def min_p(weights: Weights, p: float) -> Weights:
    shares = softmax(weights)
    return only(weights, [token for token in weights if shares[token] >= p * max(shares.values())])


def typical(weights: Weights, p: float) -> Weights:
    shares = softmax(weights)
    mean = entropy(shares)
    order = sorted(shares, key=lambda token: abs(-math.log(shares[token]) - mean))
    return only(weights, until(shares, order, lambda total: total > p))


def top_n_sigma(weights: Weights, n: float) -> Weights:
    values = list(weights.values())
    mean = math.fsum(values) / len(values)
    sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return {token: weight for token, weight in weights.items() if weight >= max(values) - n * sigma}


def xtc(weights: Weights, threshold: float) -> Weights:
    """When it acts."""
    shares = softmax(weights)
    reaching = [token for token in ranked(shares) if shares[token] >= threshold]
    return {token: weight for token, weight in weights.items() if token not in reaching[:-1]}


def penalties(weights: Weights, seen: Sequence[int], repeat: float, frequency: float, presence: float) -> Weights:
    changed = dict(weights)
    for token, count in Counter(seen).items():
        weight = weights[token]
        changed[token] = (weight * repeat if weight <= 0 else weight / repeat) - count * frequency - presence
    return changed


def dry(
    weights: Weights, seen: Sequence[int], multiplier: float, base: float, allowed: int, breakers: Sequence[int] = ()
) -> Weights:
    """Straight from DRY's description: for every token that has followed what the text now ends with, the longest such match."""
    changed = dict(weights)
    start = max((place + 1 for place, token in enumerate(seen) if token in breakers), default=0)
    for token in weights:
        longest = 0
        for place, one in enumerate(seen):
            if one == token:
                length = 0
                while length < place and len(seen) - length > start and seen[place - 1 - length] == seen[-1 - length]:
                    length += 1
                longest = max(longest, length)
        if longest >= max(allowed, 1) and token not in breakers:
            changed[token] -= multiplier * base ** (longest - allowed)
    return changed


def mirostat_k(shares: Weights, mu: float, vocab_size: int) -> int:
    """Basu et al. 2020, algorithm 1: Zipf's exponent by least squares over the likeliest 100, then k."""
    return max(1, int(mirostat_size([shares[token] for token in ranked(shares)[:100]], mu, vocab_size)))


def mirostat_size(head: Sequence[float], mu: float, vocab_size: int) -> float:
    steps = [math.log((rank + 2) / (rank + 1)) for rank in range(len(head) - 1)]
    falls = [math.log(head[rank] / head[rank + 1]) for rank in range(len(head) - 1)]
    s = sum(step * fall for step, fall in zip(steps, falls, strict=True)) / sum(step * step for step in steps)
    return ((s - 1) * 2**mu / (1 - vocab_size ** -(s - 1))) ** (1 / s)


def mirostat_1(weights: Weights, mu: float) -> Weights:
    return top_k(weights, mirostat_k(softmax(weights), mu, len(LOGITS)))


def mirostat_2(weights: Weights, mu: float) -> Weights:
    shares = softmax(weights)
    return {token: weight for token, weight in weights.items() if -math.log2(shares[token]) <= mu}


OFF = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
PLAIN: Weights = dict(enumerate(LOGITS))
SEEN = (4, 0, 0, 7, 1)
REPEATING = (0, 1, 2, 5, 0, 1, 2, 3, 0, 1, 2)


class Case(NamedTuple):
    """Sampling, what it must give, and the tokens before."""

    sampling: Sampling
    expected: Weights
    prompt: tuple[int, ...] = ()


def case(expected: Weights, prompt: tuple[int, ...] = (), **asked: object) -> Case:
    return Case(Sampling(**asked).over(OFF), softmax(expected), prompt)  # type: ignore[arg-type]


def mixed(left: Weights, right: Weights, share: float) -> Weights:
    """Logits of a mixture of two distributions."""
    tokens = softmax(left).keys() | softmax(right).keys()
    sums = {token: share * softmax(left).get(token, 0) + (1 - share) * softmax(right).get(token, 0) for token in tokens}
    return {token: math.log(total) for token, total in sums.items()}


CASES = {
    "plain": case(PLAIN),
    "cold": case(temperature(PLAIN, 0.5), temperature=0.5),
    "hot": case(temperature(PLAIN, 1.7), temperature=1.7),
    "dynamic": case(dynamic(PLAIN, 1.5, 1.2, 0.5), temperature=1.5, dynatemp_range=1.2, dynatemp_exponent=0.5),
    "dynamic to zero": case(dynamic(PLAIN, 0.3, 0.6, 1.5), temperature=0.3, dynatemp_range=0.6, dynatemp_exponent=1.5),
    "top_k": case(top_k(PLAIN, 4), top_k=4),
    "top_p": case(top_p(PLAIN, 0.7), top_p=0.7),
    "top_p 0": case(top_k(PLAIN, 1), top_p=0.0),
    "min_p": case(min_p(PLAIN, 0.3), min_p=0.3),
    "typical_p": case(typical(PLAIN, 0.4), typical_p=0.4),
    "top_n_sigma": case(top_n_sigma(PLAIN, 0.6), top_n_sigma=0.6),
    "xtc always": case(xtc(PLAIN, 0.1), xtc_probability=1.0, xtc_threshold=0.1),
    "xtc half": case(mixed(xtc(PLAIN, 0.1), PLAIN, 0.5), xtc_probability=0.5, xtc_threshold=0.1),
    "xtc from 0, which forbidden tokens do not reach": case(
        {11: 0.0}, ignore_eos=True, logit_bias={0: -math.inf}, xtc_probability=1.0, xtc_threshold=0.0
    ),
    "xtc, one candidate above": case(top_k(PLAIN, 2), xtc_probability=1.0, xtc_threshold=0.5, top_k=2),
    "repeat_penalty": case(penalties(PLAIN, SEEN, 1.8, 0, 0), SEEN, repeat_penalty=1.8),
    "frequency_penalty": case(penalties(PLAIN, SEEN, 1, 0.9, 0), SEEN, frequency_penalty=0.9),
    "presence_penalty": case(penalties(PLAIN, SEEN, 1, 0, 1.3), SEEN, presence_penalty=1.3),
    "repeat_last_n": case(penalties(PLAIN, SEEN[-2:], 1, 0, 1.5), SEEN, presence_penalty=1.5, repeat_last_n=2),
    "repeat_last_n all": case(penalties(PLAIN, SEEN, 1, 0, 1.5), SEEN, presence_penalty=1.5, repeat_last_n=-1),
    "dry": case(dry(PLAIN, REPEATING, 0.6, 1.5, 2), REPEATING, dry_multiplier=0.6, dry_base=1.5, dry_sequence_breakers=()),
    "dry allowed_length": case(
        dry(PLAIN, REPEATING, 0.9, 1.5, 3), REPEATING,
        dry_multiplier=0.9, dry_base=1.5, dry_allowed_length=3, dry_sequence_breakers=(),
    ),
    "dry last_n": case(
        dry(PLAIN, REPEATING[-7:], 2, 1.2, 1), REPEATING,
        dry_multiplier=2.0, dry_base=1.2, dry_allowed_length=1, dry_penalty_last_n=7, dry_sequence_breakers=(),
    ),
    "logit_bias": case({**PLAIN, 5: LOGITS[5] + 1.5, 0: LOGITS[0] - 2}, logit_bias={5: 1.5, 0: -2.0, 99: 5.0}),
    "ignore_eos": case(only(PLAIN, [token for token in PLAIN if token != END]), ignore_eos=True),
    "ignore_eos and typical_p": case(
        typical(only(PLAIN, [token for token in PLAIN if token != END]), 0.5), ignore_eos=True, typical_p=0.5
    ),
    "top_n_sigma and typical_p": case(typical(top_n_sigma(PLAIN, 0.9), 0.5), top_n_sigma=0.9, typical_p=0.5),
    "mirostat 1": case(mirostat_1(PLAIN, 3.0), mirostat=1, mirostat_tau=1.5),
    "mirostat 2": case(mirostat_2(PLAIN, 2.6), mirostat=2, mirostat_tau=1.3),
    "mirostat alone": case(
        mirostat_2(temperature(PLAIN, 1.5), 3.0), SEEN,
        mirostat=2, mirostat_tau=1.5, temperature=1.5, top_k=1, presence_penalty=2.0, xtc_probability=1.0,
    ),
    "temperature first": case(top_p(temperature(PLAIN, 2.0), 0.6), temperature=2.0, top_p=0.6, samplers=("temperature", "top_p")),
    "temperature last": case(temperature(top_p(PLAIN, 0.6), 2.0), temperature=2.0, top_p=0.6),
    "only those listed": case(top_k(PLAIN, 5), temperature=0.3, top_k=5, min_p=0.9, samplers=("top_k",)),
    "twice": case(temperature(PLAIN, 4.0), temperature=2.0, samplers=("temperature", "temperature")),
    "llama.cpp's defaults": case(
        temperature(min_p(top_p(PLAIN, 0.95), 0.05), 0.8), temperature=0.8, top_k=40, top_p=0.95, min_p=0.05
    ),
    "all at once": case(
        temperature(xtc(min_p(top_p(typical(top_k(penalties(PLAIN, SEEN, 1.2, 0.1, 0.1), 9), 0.95), 0.9), 0.1), 0.2), 1.3), SEEN,
        repeat_penalty=1.2, frequency_penalty=0.1, presence_penalty=0.1, top_k=9, typical_p=0.95, top_p=0.9, min_p=0.1,
        xtc_probability=1.0, xtc_threshold=0.2, temperature=1.3,
    ),
    "greedy": case(top_k(PLAIN, 1), temperature=0.0, top_n_sigma=0.1, typical_p=0.1, xtc_probability=1.0),
    "greedy with penalties": case({3: 0.0}, (0, 1, 2), temperature=0.0, presence_penalty=2.0),
    "greedy with dry": case(
        {0: 0.0}, REPEATING, temperature=0.0, dry_multiplier=5.0, dry_sequence_breakers=(), logit_bias={3: 3.0}
    ),
}  # fmt: skip


EXTREMES = (
    Sampling(temperature=2e-6, repeat_penalty=1e-9, samplers=("temperature", "penalties", "typ_p") * 3, typical_p=0.5),
    Sampling(temperature=1e-30),
    Sampling(temperature=2e-6),
    Sampling(temperature=0.5, dynatemp_range=0.5, dynatemp_exponent=50.0),
    Sampling(dry_multiplier=100.0, dry_base=100.0, dry_sequence_breakers=()),
    Sampling(mirostat=1, mirostat_tau=100.0, mirostat_eta=100.0),
    Sampling(mirostat=2, mirostat_tau=0.0, mirostat_eta=100.0),
    Sampling(typical_p=0.0, ignore_eos=True),
)
"""Values at the ends of what is accepted."""


def surprise(counts: Counter[int], expected: Weights) -> float:
    """Pearson's chi-squared over its value that one of 10,000 fair samples exceeds: 1 and more is no fair sample. Tokens that
    are expected fewer than 5 times count together."""
    if any(token not in expected for token in counts):
        return math.inf
    draws = sum(counts.values())
    frequent = [token for token, share in expected.items() if share * draws >= 5]
    rest = 1 - sum(expected[token] for token in frequent)
    cells = [(counts[token], expected[token] * draws) for token in frequent]
    if rest * draws >= 5:
        cells.append((sum(counts[token] for token in expected if token not in frequent), rest * draws))
    freedom = len(cells) - 1
    if not freedom:
        return 0.0
    chi_squared = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    return chi_squared / (freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3)
