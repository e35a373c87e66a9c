"""Packs of inputs: nothing lost, nothing twice, nobody waits for a big job; and the pool's thread ends each job once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery.core.errors import Cancelled, GalleryError, WorkerDied
from llmgallery.core.jobs import Pooled
from llmgallery.engine.pooling import Packer, Piece, Pool

DEADLINE = 20
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def tokens_of(job: int, index: int, length: int) -> tuple[int, ...]:
    return tuple(range(1000 * job + 50 * index, 1000 * job + 50 * index + length))


def drain(packer: Packer) -> list[list[Piece]]:
    packs = []
    while pack := packer.next():
        packs.append(pack)
        assert len(packs) < 5000
    return packs


@settings(deadline=None)
@given(jobs=st.lists(lengths, min_size=1, max_size=6), room=st.integers(8, 32), sequences=st.integers(2, 6), splits=st.booleans())
def test_every_token_is_computed_once_and_in_order(jobs, room, sequences, splits):
    packer = Packer(room=room, sequences=sequences, splits=splits)
    inputs = {job: [tokens_of(job, index, size) for index, size in enumerate(sizes)] for job, sizes in enumerate(jobs)}
    for job, given_inputs in inputs.items():
        packer.add(job, given_inputs)
    seen: dict[tuple[int, int], list[int]] = {}
    ended: list[tuple[int, int]] = []
    under_way: dict[int, tuple[int, int]] = {}
    for pack in drain(packer):
        total = sum(len(piece.tokens) for piece in pack)
        assert total <= room or (len(pack) == 1 and not splits)
        places = [piece.sequence for piece in pack]
        assert len(set(places)) == len(places) and set(places) <= set(range(sequences))
        for piece in pack:
            key = (piece.job, piece.index)
            assert piece.tokens and piece.position == len(seen.setdefault(key, []))
            assert under_way.get(piece.sequence, key) == key, "a sequence holds one input until its end"
            seen[key] += piece.tokens
            under_way[piece.sequence] = key
            if piece.last:
                ended.append(key)
                del under_way[piece.sequence]
    assert not under_way and not len(packer)
    assert sorted(ended) == sorted((job, index) for job in inputs for index in range(len(inputs[job])))
    assert all(tuple(seen[job, index]) == inputs[job][index] for job, index in ended)


@settings(deadline=None)
@given(
    before=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=5),
    small=st.integers(1, 16),
    splits=st.booleans(),
)
def test_a_small_job_waits_for_one_input_of_each_other(before, small, splits):
    packer = Packer(room=32, sequences=8, splits=splits)
    for job, (count, size) in enumerate(before):
        packer.add(job, [tokens_of(job, index, size) for index in range(count)])
    packer.next()
    packer.add(99, [tokens_of(99, 0, small)])
    after = [piece for _ in range(2 * len(before) + 2) for piece in packer.next()]
    assert [piece.job for piece in after if piece.job == 99] == [99]


def test_jobs_take_turns():
    packer = Packer(room=100, sequences=16, splits=False)
    packer.add(1, [(1,) * 10] * 2000)
    packer.add(2, [(2,) * 10] * 3)
    assert [piece.job for piece in packer.next()] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1]


def test_a_long_input_shares_its_packs():
    packer = Packer(room=100, sequences=16, splits=True)
    packer.add(1, [(1,) * 1000])
    packer.add(2, [(2,) * 10] * 8)
    pack = packer.next()
    assert Counter(piece.job for piece in pack) == {1: 1, 2: 5}
    assert [len(piece.tokens) for piece in pack if piece.job == 1] == [50]


def test_removed_jobs_are_not_computed():
    packer = Packer(room=10, sequences=4, splits=True)
    packer.add(1, [(1,) * 35, (1,)])
    packer.add(2, [(2,) * 25])
    packer.next()
    packer.remove(1)
    packer.remove(1)
    packer.remove(77)
    pieces = [piece for pack in drain(packer) for piece in pack]
    assert [piece.job for piece in pieces] == [2, 2, 2]
    assert [piece.position for piece in pieces] == [0, 10, 20]


class Lengths:
    """A runner whose vector is the input's length in two bytes. `gate`: holds every pack until it is set."""

    def __init__(self, *, open: bool = True) -> None:
        self.packs: list[Sequence[Piece]] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.failure: Callable[[Sequence[Piece]], Exception | None] = lambda pack: None
        self.interrupted = False
        if open:
            self.gate.set()

    def pool(self, pack: Sequence[Piece]) -> list[bytes] | None:
        self.packs.append(pack)
        self.entered.set()
        assert self.gate.wait(DEADLINE)
        if error := self.failure(pack):
            raise error
        if self.interrupted:
            return None
        return [(piece.position + len(piece.tokens)).to_bytes(2, "little") for piece in pack if piece.last]

    def interrupt(self) -> None:
        self.interrupted = True
        self.gate.set()


class Heard:
    def __init__(self) -> None:
        self.results: list[Pooled] = []
        self.failure: BaseException | None = None
        self._changed = threading.Condition()

    def pooled(self, result: Pooled) -> None:
        with self._changed:
            self.results.append(result)
            self._changed.notify_all()

    def fatal(self, error: BaseException) -> None:
        self.failure = error

    def wait(self, *ids: int) -> dict[int, Pooled]:
        with self._changed:
            assert self._changed.wait_for(lambda: {result.id for result in self.results} >= set(ids), DEADLINE), self.results
            return {result.id: result for result in self.results}


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def pool_of(heard):
    made: list[Pool] = []

    def make(runner: Lengths, **settings: int | bool) -> Pool:
        pool = Pool(runner, heard, **{"room": 16, "sequences": 4, "splits": False, **settings})
        made.append(pool)
        pool.start()
        return pool

    yield make
    for pool in made:
        pool.close()


def unchanged(vector: bytes) -> bytes:
    return vector


@pytest.mark.parametrize("splits", [False, True])
def test_vectors_come_in_the_order_of_inputs(pool_of, heard, splits):
    pool = pool_of(Lengths(), splits=splits)
    sizes = {job: [1 + (job * 7 + index * 5) % 40 for index in range(30)] for job in range(5)}
    for job, wanted in sizes.items():
        pool.submit(job, [(1,) * size for size in wanted], lambda vector: vector + b"!")
    for job, result in heard.wait(*sizes).items():
        assert [int.from_bytes(vector[:2], "little") for vector in result.vectors] == sizes[job]
        assert all(vector.endswith(b"!") for vector in result.vectors)
        assert result.prompt_tokens == sum(sizes[job]) and result.error is None
    assert len(heard.results) == 5


def test_many_short_inputs_share_a_decode(pool_of, heard):
    runner = Lengths(open=False)
    pool = pool_of(runner)
    pool.submit(0, [(1,)], unchanged)
    assert runner.entered.wait(DEADLINE)
    for job in (1, 2, 3):
        pool.submit(job, [(1,) * 2] * 2, unchanged)
    runner.gate.set()
    heard.wait(0, 1, 2, 3)
    assert [[piece.job for piece in pack] for pack in runner.packs] == [[0], [1, 2, 3, 1], [2, 3]]


def test_a_cancelled_job_stops_between_decodes(pool_of, heard):
    runner = Lengths(open=False)
    pool = pool_of(runner)
    pool.submit(1, [(1,) * 16] * 1000, unchanged)
    assert runner.entered.wait(DEADLINE)
    pool.submit(2, [(1,)], unchanged)
    pool.cancel(1)
    pool.cancel(1)
    pool.cancel(99)
    runner.gate.set()
    results = heard.wait(1, 2)
    assert isinstance(results[1].error, Cancelled) and not results[1].vectors
    assert results[2].error is None
    assert len(runner.packs) == 2 and len(heard.results) == 2


def test_closing_ends_every_job_once(pool_of, heard):
    runner = Lengths(open=False)
    pool = pool_of(runner)
    for job in range(4):
        pool.submit(job, [(1,) * 16] * 3, unchanged)
    assert runner.entered.wait(DEADLINE)
    pool.close()
    pool.close()
    assert sorted(result.id for result in heard.results) == [0, 1, 2, 3]
    assert all(isinstance(result.error, WorkerDied) for result in heard.results)
    with pytest.raises(WorkerDied):
        pool.submit(9, [(1,)], unchanged)


def test_an_error_ends_only_the_pack_s_jobs(pool_of, heard):
    runner = Lengths()
    runner.failure = lambda pack: GalleryError("no room") if any(piece.job == 1 for piece in pack) else None
    pool = pool_of(runner)
    pool.submit(1, [(1,) * 16] * 5, unchanged)
    heard.wait(1)
    pool.submit(2, [(1,) * 16] * 5, unchanged)
    results = heard.wait(1, 2)
    assert str(results[1].error) == "no room" and results[2].error is None
    assert heard.failure is None


def test_a_bug_ends_the_pool_and_its_jobs(pool_of, heard):
    runner = Lengths()
    runner.failure = lambda pack: ZeroDivisionError("oops")
    pool = pool_of(runner)
    pool.submit(1, [(1,)] * 3, unchanged)
    assert "oops" in str(heard.wait(1)[1].error)
    assert isinstance(heard.failure, ZeroDivisionError)
    with pytest.raises(WorkerDied):
        pool.submit(2, [(1,)], unchanged)


def test_a_job_without_inputs_has_no_vectors(pool_of, heard):
    pool_of(Lengths()).submit(7, [], unchanged)
    assert heard.wait(7)[7] == Pooled(7)
