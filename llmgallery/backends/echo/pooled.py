"""echo's vectors and scores: counted words. Texts that share words are near each other, and that can be told beforehand."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from llmgallery.backends.base import EmbedJob, Pooled, RerankJob
from llmgallery.backends.echo import vocab
from llmgallery.backends.echo.spec import EchoOptions
from llmgallery.core.errors import Cancelled, ContextExceeded, WorkerDied

SIZE = 64
POLL_SECONDS = 0.005

PooledJob = EmbedJob | RerankJob


def words(text: str) -> list[str]:
    """In small letters; a text without a word is one."""
    return re.findall(r"\w+", text.lower()) or [text]


def vector(text: str, dimensions: int | None = None, *, normalize: bool = True) -> bytes:
    """How often each word comes, at the word's place; little-endian float32."""
    counts = Counter(zlib.crc32(word.encode(errors="replace")) % SIZE for word in words(text))
    numbers = [float(counts[place]) for place in range(dimensions or SIZE)]
    length = math.sqrt(sum(number * number for number in numbers))
    if normalize and length:
        numbers = [number / length for number in numbers]
    return array("f", numbers).tobytes()


def score(query: str, document: str) -> float:
    """The share of the query's words that the document has."""
    asked, given = set(words(query)), set(words(document))
    return len(asked & given) / len(asked)


class EchoPool:
    """Answers jobs one after the other in a thread of its own, and waits and dies as its options say."""

    def __init__(self, options: EchoOptions, context_size: int, done: Callable[[Pooled], None]) -> None:
        self._options = options
        self._context_size = context_size
        self._done = done
        self._jobs: deque[PooledJob] = deque()
        self._current: int | None = None
        self._interrupted = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="echo's pool", daemon=True)
        self._thread.start()

    def add(self, job: PooledJob) -> None:
        """Raises ContextExceeded."""
        if not job.truncate:
            self._check(job)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def cancel(self, id: int) -> None:
        with self._changed:
            if self._current == id:
                self._interrupted = True
            elif waiting := [job for job in self._jobs if job.id == id]:
                self._jobs.remove(waiting[0])
                self._done(_withdrawn(id))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        for job in self._jobs:
            self._done(Pooled(job.id, error=WorkerDied("the model was unloaded")))
        self._jobs.clear()

    def _check(self, job: PooledJob) -> None:
        for field, item in _inputs(job):
            if (length := len(_tokens(item))) > self._context_size:
                raise ContextExceeded(f"{field} has {length} tokens, but the context holds {self._context_size}", field=field)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            passed = self._pass()
            with self._changed:
                self._current = None
                stopped, self._interrupted = self._interrupted or not passed, False
            self._done(_withdrawn(job.id) if stopped else self._answer(job))

    def _next(self) -> PooledJob | None:
        """The next job; None when the model is unloaded."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            if self._closing:
                return None
            job = self._jobs.popleft()
            self._current = job.id
            return job

    def _pass(self) -> bool:
        """Waits as the options say. False = somebody interrupted."""
        due = time.monotonic() + self._options.delay_ms / 1000
        gate = self._options.gate
        with self._changed:
            while time.monotonic() < due or (gate is not None and not Path(gate).exists()):
                if self._closing or self._interrupted:
                    return False
                self._changed.wait(POLL_SECONDS)
        return True

    def _answer(self, job: PooledJob) -> Pooled:
        items = [_tokens(item)[: self._context_size] for _, item in _inputs(job)]
        texts = [vocab.detokenize(tokens) for tokens in items]
        if (doom := self._options.crash_on) is not None and any(doom in text for text in texts):
            signal.pthread_kill(threading.get_ident(), signal.Signals[self._options.crash_signal])
        if isinstance(job, EmbedJob):
            vectors = tuple(vector(text, job.dimensions, normalize=job.normalize) for text in texts)
            return Pooled(job.id, vectors, sum(map(len, items)))
        query, *documents = texts
        tokens = sum(map(len, items)) + len(items[0]) * (len(documents) - 1)
        return Pooled(job.id, tuple(self._score(query, document) for document in documents), tokens)

    def _score(self, query: str, document: str) -> bytes:
        share = score(query, document)
        return array("f", [share * 8 - 4 if self._options.logits else share]).tobytes()


def _inputs(job: PooledJob) -> list[tuple[str, str | Sequence[int]]]:
    """What there is to read, under the field that it came in; a query before its documents."""
    if isinstance(job, EmbedJob):
        return [(f"input[{index}]", item) for index, item in enumerate(job.inputs)]
    return [("query", job.query), *((f"documents[{index}]", document) for index, document in enumerate(job.documents))]


def _tokens(item: str | Sequence[int]) -> list[int]:
    return vocab.tokenize(item, special=False) if isinstance(item, str) else list(item)


def _withdrawn(id: int) -> Pooled:
    return Pooled(id, error=Cancelled("the request was withdrawn"))
