"""One answer's tokens, chosen from logits that a library hands over."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.core.errors import InvalidField
from llmgallery.core.jobs import Job
from llmgallery.core.sampling import Sampling
from llmgallery.engine.choosing import Chooser

END = 256
SIZE = 257
GREEDY = Sampling(temperature=0.0)


class Bytes:
    """A token for each byte, and one that ends an answer."""

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token != END else b""

    def written(self, token: int) -> bytes:
        return bytes([token]) if token != END else b"<end>"

    def is_end(self, token: int) -> bool:
        return token == END


class Only:
    """A constraint: these tokens, one after the other."""

    def __init__(self, tokens: bytes) -> None:
        self._left = [*tokens, END]

    def mask(self) -> bytes | None:
        bits = np.zeros(SIZE, bool)
        bits[self._left[:1]] = True
        return np.packbits(bits, bitorder="little").tobytes()

    def accept(self, token: int) -> None:
        assert token == self._left.pop(0)

    def forced(self) -> list[int]:
        return []


def chooser(job: Job, context_size: int = 100) -> Chooser:
    return Chooser(job, Bytes(), vocab_size=SIZE, ends=(END,), context_size=context_size)


def favouring(token: int, size: int = SIZE) -> np.ndarray:
    row = np.zeros(size, np.float32)
    row[token] = 5
    return row


def told(answer: Chooser, tokens: list[int]) -> tuple[str, list]:
    outputs = [answer.choose(favouring(token)).output for token in tokens]
    return "".join(output.text for output in outputs), outputs


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=1), Sampling(mirostat=2, seed=1)])
def test_no_numbers_end_the_answer_and_nothing_else(sampling: Sampling) -> None:
    """As half precision makes them of some prompts only."""
    row = np.full(SIZE, np.nan, np.float32)
    output = chooser(Job(7, (1, 2), sampling, logprobs=1)).choose(row).output
    assert output.finish == "error" and "NaN" in output.message


def test_the_likeliest_token_comes_and_is_told() -> None:
    text, outputs = told(chooser(Job(7, (1, 2), GREEDY)), [*b"hi", END])
    assert text == "hi"
    assert [output.finish for output in outputs] == [None, None, "stop"]
    assert outputs[-1].usage.prompt_tokens == 2 and outputs[-1].usage.completion_tokens == 3
    assert outputs[-1].tokens == () and outputs[0].tokens == (ord("h"),) and outputs[0].id == 7


@given(st.text(min_size=1, max_size=20))
def test_characters_are_never_split(text: str) -> None:
    answer = chooser(Job(1, (1,), GREEDY), context_size=1000)
    pieces = [answer.choose(favouring(byte)).output.text for byte in text.encode()]
    assert "".join(pieces) == text
    assert all("�" not in piece for piece in pieces) or "�" in text


def test_half_a_character_at_the_end_is_told_as_such() -> None:
    text, _ = told(chooser(Job(1, (1,), GREEDY)), [*"é".encode()[:1], END])
    assert text == "�"


def test_max_tokens_and_the_context_end_an_answer() -> None:
    _, outputs = told(chooser(Job(1, (1,), Sampling(temperature=0.0, max_tokens=2))), [*b"ab"])
    assert [output.finish for output in outputs] == [None, "length"]
    _, outputs = told(chooser(Job(1, (1, 2, 3), GREEDY), context_size=5), [*b"ab"])
    assert outputs[-1].finish == "length"
    assert chooser(Job(1, (1,), Sampling(max_tokens=0))).limit == 0


def test_logits_beyond_the_vocabulary_are_never_chosen() -> None:
    row = favouring(SIZE + 3, SIZE + 10)
    row[ord("x")] = 1
    assert chooser(Job(1, (1,), GREEDY)).choose(row).token == ord("x")


def test_a_constraint_holds_whatever_the_model_wants() -> None:
    answer = chooser(Job(1, (1,), GREEDY, constraint=Only(b"yes")))
    text, outputs = told(answer, [ord("n")] * 4)
    assert text == "yes" and outputs[-1].finish == "stop"


def test_a_constraint_that_allows_nothing_ends_the_answer_as_an_error() -> None:
    answer = chooser(Job(1, (1,), GREEDY, constraint=Only(b"")))
    answer.choose(favouring(1))
    ended = answer.choose(favouring(1)).output
    assert ended.finish == "error" and "no further token" in ended.message


def test_log_probabilities_are_the_models_own_before_the_constraint() -> None:
    answer = chooser(Job(1, (1,), Sampling(temperature=0.5), logprobs=2, constraint=Only(b"y")))
    row = favouring(ord("n"))
    (told,) = answer.choose(row).output.logprobs
    normaliser = math.log(math.exp(5) + SIZE - 1)
    assert told.token == ord("y") and told.logprob == pytest.approx(-normaliser, abs=1e-5)
    assert told.top[0].token == ord("n") and told.top[0].logprob == pytest.approx(5 - normaliser, abs=1e-5)
    assert row[ord("n")] == 5 and np.isfinite(row).all()


def test_seeds_say_what_comes() -> None:
    def drawn(seed: int) -> list[int]:
        answer = chooser(Job(1, (1,), Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)))
        return [answer.choose(np.zeros(SIZE, np.float32)).token for _ in range(8)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_end_of_a_withdrawn_answer() -> None:
    answer = chooser(Job(1, (1,), GREEDY))
    answer.choose(favouring(ord("a")))
    ended = answer.end("cancelled")
    assert ended.finish == "cancelled" and ended.usage.completion_tokens == 1


def test_tokens_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(InvalidField, match="token 257 is not in the vocabulary of 257 tokens"):
        chooser(Job(1, (1, 257), GREEDY))


class Forcing(Only):
    """Forces as many tokens as it is told to, call by call."""

    def __init__(self, tokens: bytes, *counts: int) -> None:
        super().__init__(tokens)
        self._counts = list(counts)

    def forced(self) -> list[int]:
        return self._left[: self._counts.pop(0)] if self._counts else []


def test_what_a_constraint_forces_is_told_with_the_token_before_it() -> None:
    job = Job(1, (1,), GREEDY, logprobs=0, constraint=Forcing(b"abcd", 0, 2, 0))
    made = Chooser(job, Bytes(), vocab_size=SIZE, ends=(END,), context_size=100, forces=True)
    assert made.begin() is None
    first, second, third = (made.choose(favouring(5)) for _ in range(3))
    assert (first.token, first.forced, first.output.text, first.output.tokens) == (97, (98, 99), "abc", (97, 98, 99))
    assert [entry.logprob is None for entry in first.output.logprobs] == [False, True, True]
    assert first.output.usage.completion_tokens == 3 and first.output.finish is None
    assert (second.token, second.forced, second.output.text) == (100, (), "d")
    assert (third.token, third.output.finish) == (END, "stop")


def test_what_is_forced_can_come_first_and_end_the_answer() -> None:
    job = Job(1, (1,), GREEDY, constraint=Forcing(b"ab", 3))
    begun = Chooser(job, Bytes(), vocab_size=SIZE, ends=(END,), context_size=100, forces=True).begin()
    assert begun is not None and begun.forced == (97, 98, END)
    assert (begun.output.text, begun.output.tokens, begun.output.finish) == ("ab", (97, 98), "stop")


def test_who_does_not_take_forced_tokens_gets_them_by_the_mask() -> None:
    made = chooser(Job(1, (1,), GREEDY, constraint=Forcing(b"ab", 2)))
    assert made.begin() is None
    assert [made.choose(favouring(5)).token for _ in range(3)] == [97, 98, END]


def test_penalties_know_what_was_forced() -> None:
    job = Job(1, (1,), Sampling(temperature=0.0, presence_penalty=9.0, repeat_last_n=-1), constraint=Loose(b"zz"))
    made = Chooser(job, Bytes(), vocab_size=SIZE, ends=(END,), context_size=100, forces=True)
    made.begin()
    assert made.choose(favouring(ord("z"))).token != ord("z")


class Loose:
    """Forces a beginning, then allows everything."""

    def __init__(self, tokens: bytes) -> None:
        self._left = [*tokens]

    def mask(self) -> bytes | None:
        return None

    def accept(self, token: int) -> None: ...

    def forced(self) -> list[int]:
        left, self._left = self._left, []
        return left
