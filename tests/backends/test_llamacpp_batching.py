"""What the engine makes of many requests on real weights: the text of each as if it were alone, prefixes computed once."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from conftest import POCKET, load_model
from listening import Listener
from machines import fresh, running, tokens

from llmgallery.backends.base import Files, Job, Output
from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.backend import LlamaCppBackend
from llmgallery.config.model import ModelConfig
from llmgallery.core.sampling import Sampling

CASES = Path(__file__).parents[1] / "cases" / "pocket_held_out.json"
SEED = 20
ENDLESS = Sampling(temperature=0, ignore_eos=True)
NEAR_TIE = 0.25  # of a logit, between the likeliest two


@dataclass
class Served:
    backend: LlamaCppBackend
    listener: Listener

    def ask(self, *prompts, count: int = 12, **keys) -> list[list[int]]:
        """The greedy answers' tokens, the requests sent at once."""
        ids = [len(self.listener.outputs) + index for index in range(len(prompts))]
        for id, prompt in zip(ids, prompts, strict=True):
            self.backend.submit(Job(id, prompt, Sampling(temperature=0, max_tokens=count, ignore_eos=True), **keys))
        self.listener.wait_for_end(*ids)
        return [self.came(id) for id in ids]

    def came(self, id: int) -> list[int]:
        return [token for output in self.listener.outputs[id] for token in output.tokens]

    @property
    def num_computed(self) -> int:
        return sum(stats.tokens for stats in self.listener.steps)


@contextmanager
def serving(file: Path, **keys) -> Iterator[Served]:
    listener, backend = Listener(), LlamaCppBackend()
    backend.load(ModelConfig(**{"context_size": 1024, "threads": 1, **keys}), Files(weights=(file,)), listener)
    yield Served(backend, listener)
    backend.close()


def mixed_prompts(model: api.Model, count: int = 200) -> list[list[int]]:
    """Of all kinds and lengths; every third goes on from the beginning of another, as a conversation does."""
    drawn = random.Random(SEED)
    cases = [case["prompt"] for case in json.loads(CASES.read_text())]
    made = [model.vocab.tokenize(text.encode(), special=True) for text in drawn.sample(cases, count)]
    for index in range(2, count, 3):
        other = drawn.choice(made[:index])
        made[index] = (other[: drawn.randint(1, len(other))] + made[index])[:900]
    return made


def alone(model: api.Model, prompts: list[list[int]], counts: list[int], **extra) -> list[list[int]]:
    """Each from an empty cache, with nothing beside it."""
    found = []
    with running(model, slots=1, batch=512, **extra) as machine:
        for prompt, count in zip(prompts, counts, strict=True):
            machine.runner.keep(0, 0)
            found.append(machine.generate(prompt, count=count, sampling=ENDLESS))
    return found


def staggered(served: Served, prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
    """A few at first, then one or two more whenever a token came or an answer ended: requests join at any step."""
    drawn = random.Random(SEED)
    waiting = iter(list(enumerate(zip(prompts, counts, strict=True))))
    lock = threading.Lock()

    def more(number: int) -> None:
        with lock:
            for id, (prompt, count) in itertools.islice(waiting, number):
                served.backend.submit(Job(id, prompt, Sampling(temperature=0, max_tokens=count, ignore_eos=True)))

    def hear(output: Output) -> None:
        if output.finish or drawn.random() < 0.1:
            more(drawn.randint(1, 2))

    served.listener.on_output = hear
    more(6)
    for id in range(len(prompts)):
        served.listener.wait_for_end(id)
    return [served.came(id) for id in range(len(prompts))]


@pytest.mark.parametrize("unified", [False, True])
def test_greedy_answers_in_a_batch_are_those_alone(pocket, unified):
    prompts = mixed_prompts(pocket)[: 60 if unified else 200]
    counts = [random.Random(index).randint(2, 14) for index in range(len(prompts))]
    assert len({len(prompt) // 50 for prompt in prompts}) > 5
    with serving(POCKET, parallel=8, options={"kv_unified": unified}) as served:
        batched = staggered(served, prompts, counts)
        usages = [served.listener.last(id).usage for id in range(len(prompts))]
        steps = served.listener.steps
    assert batched == alone(pocket, prompts, counts)
    assert max(stats.sequences for stats in steps) == 8 or unified
    assert sum(usage.cached_tokens for usage in usages) > 500, "prefixes were shared"
    assert [usage.prompt_tokens for usage in usages] == [len(prompt) for prompt in prompts]


def gap(model: api.Model, known: list[int]) -> float:
    """Between the two likeliest tokens after these."""
    with running(model, slots=1) as machine:
        sequence = machine.sequence(known, logprobs=2)
        first, second = machine.prefill(sequence, 0).logprobs[0].top
    return first.logprob - second.logprob


def test_quantised_answers_differ_only_after_near_ties(q4_file, record_property):
    """Batching changes how sums are rounded, and quantised weights make that visible."""
    model = load_model(q4_file)
    prompts = mixed_prompts(model)
    counts = [random.Random(index).randint(2, 14) for index in range(len(prompts))]
    with serving(q4_file, parallel=8) as served:
        batched = staggered(served, prompts, counts)
    expected = alone(model, prompts, counts)
    differing = [index for index in range(len(prompts)) if batched[index] != expected[index]]
    print(f"{len(differing)} of {len(prompts)} Q4_0 answers differ from those alone")
    record_property("differing", len(differing))
    assert len(differing) <= len(prompts) // 50
    for index in differing:
        pairs = enumerate(zip(batched[index], expected[index], strict=True))
        place = next(place for place, (ours, theirs) in pairs if ours != theirs)
        assert gap(model, prompts[index] + expected[index][:place]) < NEAR_TIE
    model.close()


def test_the_prefix_of_concurrent_requests_is_computed_once():
    prefix, count = list(range(300, 900)), 6
    prompts = [[*prefix, 300 + index] for index in range(count)]
    with serving(POCKET, parallel=count) as served:
        served.ask(*prompts, count=4)
        cached = sorted(served.listener.last(id).usage.cached_tokens for id in range(count))
        assert cached == [0, *[len(prefix)] * (count - 1)]
        assert served.num_computed == len(prefix) + count * 1 + count * 3


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("kind", ["plain", "recurrent", "hybrid", "windowed", "windowed, short"])
def test_conversations_go_on_from_what_is_cached(tiny, tmp_path, kind, unified):
    """Turns that extend the last answer, turns that go back, and a second conversation beside them: the text is that of an
    empty cache, and `cached_tokens` are those that were not computed."""
    kind, _, short = kind.partition(",")
    model, file = tiny(kind), tiny_models.KINDS[kind](tmp_path)
    options = {"kv_unified": unified, "swa_full": not short, "flash_attention": "off"}
    exact = {"cache_type_k": "f32", "cache_type_v": "f32"}  # random weights bring near ties, which rounding would turn
    reused = {}
    with serving(file, parallel=2, options=options, **exact) as served:
        first = list(tokens(500, 1))
        turns = {"new": first}
        (answer,) = served.ask(first)
        turns["longer"] = [*first, *answer, *tokens(10, 2)]
        turns["back"] = [*first[:100], *tokens(10, 3)]
        turns["beside"] = [*first, *answer, *tokens(10, 2), 5, 6]
        for name, prompt in turns.items():
            before, id = served.num_computed, len(served.listener.outputs)
            assert served.ask(prompt) == [fresh(model, prompt, ENDLESS, type_k=0, type_v=0, swa_full=not short)]
            usage = served.listener.last(id).usage
            reused[name] = usage.cached_tokens
            # Of an answer's tokens the last one is not computed any more.
            assert served.num_computed - before == len(prompt) - usage.cached_tokens + 12 - 1
    if kind == "plain" or (kind == "windowed" and not short):
        assert reused["longer"] >= len(first) + 11 and reused["back"] >= 100
    if kind in ("recurrent", "hybrid"):
        assert reused["longer"] == len(first) + 11, "where it is, a state can go on"
        assert reused["back"] == 0
    if short:
        assert reused["longer"] >= len(first) + 11 and reused["back"] == 0, "the window has moved on"


class Digits:
    """A Constraint: a fixed beginning, forced, then digits only, then the end."""

    def __init__(self, vocab: api.Vocab, beginning: list[int], length: int) -> None:
        self._digits = [token for token in range(vocab.size) if vocab.piece(token).isdigit()]
        self._end, self._beginning, self._length, self._size = vocab.eos, beginning, length, vocab.size
        self.came: list[int] = []

    def mask(self) -> bytes:
        allowed = self._digits if len(self.came) < len(self._beginning) + self._length else [self._end]
        bits = np.zeros(-(-self._size // 32) * 32, np.uint8)
        bits[allowed] = 1
        return np.packbits(bits, bitorder="little").tobytes()

    def accept(self, token: int) -> None:
        self.came.append(token)

    def forced(self) -> list[int]:
        return self._beginning[len(self.came) :]


class Nothing(Digits):
    def mask(self) -> bytes:
        return bytes(self._size // 8)


def test_a_constraint_holds_beside_free_answers(pocket):
    vocab = pocket.vocab
    prompt = vocab.tokenize(b"<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n", special=True)
    beginning = vocab.tokenize(b"The number is ", special=False)
    with serving(POCKET, parallel=3) as served:
        (free,) = served.ask(prompt)
        constraint = Digits(vocab, beginning, 5)
        served.backend.submit(Job(900, prompt, Sampling(temperature=0), logprobs=1, constraint=constraint))
        assert served.ask(prompt, prompt) == [free, free]
        served.listener.wait_for_end(900)
        text, last = served.listener.text(900), served.listener.last(900)
        assert text.startswith("The number is ") and text.removeprefix("The number is ").isdigit()
        assert last.finish == "stop" and constraint.came[-1] == vocab.eos
        assert last.usage.completion_tokens == len(constraint.came) == len(beginning) + 5 + 1
        stuck = Nothing(vocab, [], 0)
        served.backend.submit(Job(901, prompt, Sampling(temperature=0), constraint=stuck))
        assert served.ask(prompt) == [free]
        served.listener.wait_for_end(901)
        assert served.listener.last(901).finish == "error"
        assert "allows no further token" in served.listener.last(901).message
