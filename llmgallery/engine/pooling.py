"""Inputs of many jobs packed into few decodes, fairly, and the thread that computes them. Knows no model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmgallery.core.errors import Cancelled, GalleryError, WorkerDied
from llmgallery.core.jobs import Pooled

Shape = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Piece:
    """Tokens of one input to compute: the first at `position` of `sequence`. `last`: the input ends here."""

    job: int
    index: int
    sequence: int
    position: int
    tokens: tuple[int, ...]
    last: bool


class PoolRunner(Protocol):
    """A model that makes one vector of each sequence. Called from the pool's thread only, `interrupt` excepted."""

    def pool(self, pack: Sequence[Piece]) -> Sequence[bytes] | None:
        """Compute the pack; the vector of every piece that is the last of its input, in the pack's order. A piece at position 0
        begins its sequence anew, whatever was there. Blocks.

        None: interrupted. A GalleryError ends the pack's jobs; any other exception ends the pool.
        """

    def interrupt(self) -> None:
        """Let a running `pool` return soon. From any thread; the pool is about to close."""


class PoolSink(Protocol):
    """Who hears of results: backends.base.Emit's half for pooled jobs."""

    def pooled(self, result: Pooled) -> None: ...
    def fatal(self, error: BaseException) -> None: ...


class Packer:
    """Whose inputs are computed next: one of each job in turn, so that a job of thousands delays nobody.

    `room`: tokens of a pack. `sequences`: inputs of a pack. `splits`: an input longer than what is left of a pack may go on in
    the next; one at a time, in sequence 0, which is its own. Otherwise an input longer than `room` gets a pack of its own.
    """

    def __init__(self, *, room: int, sequences: int, splits: bool) -> None:
        self._room = room
        self._splits = splits
        self._places = range(1 if splits else 0, sequences)
        self._jobs: dict[int, deque[tuple[int, tuple[int, ...]]]] = {}
        self._turns: deque[int] = deque()
        self._split: tuple[int, int] | None = None  # the job whose first input is under way, and its position
        self._passed = False  # it had no part of the last pack

    def __len__(self) -> int:
        """How many jobs have inputs left."""
        return len(self._turns)

    def add(self, job: int, inputs: Sequence[Sequence[int]]) -> None:
        """No input is empty, and there is at least one."""
        self._jobs[job] = deque(enumerate(tuple(tokens) for tokens in inputs))
        self._turns.append(job)

    def remove(self, job: int) -> None:
        """What is left of the job is not computed. Nothing happens when there is nothing left."""
        if self._jobs.pop(job, None) is not None:
            self._turns.remove(job)
        if self._split is not None and self._split[0] == job:
            self._split = None

    def next(self) -> list[Piece]:
        """The next pack; empty when nothing is left."""
        pack: list[Piece] = []
        left = self._room
        may_begin = self._splits and self._split is None
        if self._split is not None:
            left -= self._take_split(pack, left)
        places = list(self._places)
        while left > 0 and places and (job := self._next_job(may_begin)) is not None:
            size = self._size(job)
            if size <= left or (not pack and not self._splits):
                self._take(pack, job, places.pop(), 0, size)
                left -= size
            elif may_begin and size > self._room:
                may_begin = False
                self._split = (job, 0)
                left -= self._take_split(pack, left)
            else:
                break
        return pack

    def _size(self, job: int) -> int:
        return len(self._jobs[job][0][1])

    def _next_job(self, may_begin: bool) -> int | None:
        """Whose turn it is; passed over are the job whose input is under way, and while one is, those that come to another
        that is too long for a pack."""
        for _ in range(len(self._turns)):
            job = self._turns[0]
            under_way = self._split is not None and self._split[0] == job
            if not under_way and (may_begin or not self._splits or self._size(job) <= self._room):
                return job
            self._turns.rotate(-1)
        return None

    def _take_split(self, pack: list[Piece], left: int) -> int:
        """The next part of the input under way. Returns its tokens."""
        assert self._split is not None
        job, position = self._split
        count = min(left if pack else self._share(), self._size(job) - position)
        if count:
            self._take(pack, job, 0, position, count)
        return count

    def _share(self) -> int:
        """Of an empty pack, for the input under way: half when others wait; every second pack when the next would not fit
        into the other half."""
        if (waiting := self._next_job(may_begin=False)) is None:
            return self._room
        half = self._room // 2
        if self._size(waiting) <= self._room - half:
            return half
        self._passed = not self._passed
        return 0 if self._passed else self._room

    def _take(self, pack: list[Piece], job: int, sequence: int, position: int, count: int) -> None:
        inputs = self._jobs[job]
        index, tokens = inputs[0]
        last = position + count == len(tokens)
        pack.append(Piece(job, index, sequence, position, tokens[position : position + count], last))
        if not last:
            self._split = (job, position + count)
            return
        if sequence == 0 and self._splits:
            self._split = None
        inputs.popleft()
        self._turns.remove(job)
        if inputs:
            self._turns.append(job)
        else:
            del self._jobs[job]


@dataclass
class _Work:
    """A job under way: what its inputs have become, and how each vector is shaped."""

    vectors: list[bytes | None]
    tokens: int
    shape: Shape
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.vectors)


class Pool:
    """Computes jobs in a thread of its own. Each gets exactly one Pooled, also after `cancel` and `close`."""

    def __init__(self, runner: PoolRunner, sink: PoolSink, *, room: int, sequences: int, splits: bool) -> None:
        """`room`, `sequences`, `splits`: see Packer."""
        self._runner = runner
        self._sink = sink
        self._packer = Packer(room=room, sequences=sequences, splits=splits)
        self._works: dict[int, _Work] = {}
        self._ended: deque[Pooled] = deque()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, id: int, inputs: Sequence[Sequence[int]], shape: Shape) -> None:
        """`shape`: what of each vector is wanted; called in the pool's thread. Raises WorkerDied after `close`."""
        with self._changed:
            if self._closing:
                raise WorkerDied("the model was unloaded")
            if not inputs:
                self._ended.append(Pooled(id))
            else:
                self._works[id] = _Work([None] * len(inputs), sum(map(len, inputs)), shape)
                self._packer.add(id, inputs)
            self._changed.notify()

    def cancel(self, id: int) -> None:
        """Takes effect before the next decode. Unknown ids are not ours."""
        with self._changed:
            self._end(id, Cancelled("the request was withdrawn"))
            self._changed.notify()

    def close(self) -> None:
        """Ends all jobs with WorkerDied and waits for the thread; a second call does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._runner.interrupt()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while (pack := self._next()) is not None:
                if pack:
                    self._compute(pack)
        except BaseException as exc:  # noqa: BLE001 - the thread's border: who waits must hear of it
            self._sink.fatal(exc)
            self._finish(WorkerDied(f"{type(exc).__name__}: {exc}"))
        else:
            self._finish(WorkerDied("the model was unloaded"))

    def _next(self) -> list[Piece] | None:
        """The next pack, once there is something to do or to tell; None = closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._ended or len(self._packer))
            pack = None if self._closing else self._packer.next()
        self._tell()
        return pack

    def _compute(self, pack: list[Piece]) -> None:
        try:
            vectors = self._runner.pool(pack)
        except GalleryError as exc:
            with self._changed:
                for piece in pack:
                    self._end(piece.job, exc)
            return
        if vectors is None:
            return
        with self._changed:
            for piece, vector in zip((piece for piece in pack if piece.last), vectors, strict=True):
                self._keep(piece, vector)
        self._tell()

    def _keep(self, piece: Piece, vector: bytes) -> None:
        if (work := self._works.get(piece.job)) is None:
            return  # withdrawn while it was computed
        work.vectors[piece.index] = work.shape(vector)
        work.missing -= 1
        if not work.missing:
            del self._works[piece.job]
            whole = tuple(vector for vector in work.vectors if vector is not None)
            self._ended.append(Pooled(piece.job, whole, work.tokens))

    def _end(self, id: int, error: Exception) -> None:
        if self._works.pop(id, None) is not None:
            self._packer.remove(id)
            self._ended.append(Pooled(id, error=error))

    def _tell(self) -> None:
        while self._ended:
            self._sink.pooled(self._ended.popleft())

    def _finish(self, error: Exception) -> None:
        with self._changed:
            self._closing = True
            for id in list(self._works):
                self._end(id, error)
        self._tell()
