"""Backends driven as a worker drives them, in this process; and the constraints that tests put on answers."""

from __future__ import annotations

import itertools
import json
import struct
import sys
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_cases import Case, Model

sys.path.append(str(Path(__file__).resolve().parents[1] / "backends"))

from listening import SECONDS, Listener

from llmgallery.backends.base import EmbedJob, Job, Output, Pooled, RerankJob, StepStats
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import UnsupportedField
from llmgallery.core.events import TokenLogprob, Usage
from llmgallery.core.jobs import Constraint
from llmgallery.core.messages import ImagePart, Message, TextPart, say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.core.sampling import Sampling
from llmgallery.service.demands import features_of
from llmgallery.worker.prepare import prepare

LOOKED_AT = frozenset({"suffix", "images"})
"""What a worker refuses by what its model is."""

GREEDY = Sampling(temperature=0, max_tokens=24)
PROMPTS = ("What is the capital of France?", "Who are you?", "one, two, three, four", "Grüße aus Köln, 你好 🎉")
TEXTS = (
    "Grüße aus Köln, naïve façade",
    "你好，世界。こんにちは",
    "Привет! 안녕하세요",
    "👩‍👩‍👧 🎉🌍 e\u0301 \u200d \t\n x",
    "plain",
)
OBJECT = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Answer:
    """All that came for one job."""

    outputs: tuple[Output, ...]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for output in self.outputs for token in output.tokens)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(entry for output in self.outputs for entry in output.logprobs)

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(entry for output in self.outputs for entry in output.prompt_logprobs)

    @property
    def finish(self) -> str:
        """Of its end, which came once and last."""
        ends = [output.finish for output in self.outputs if output.finish]
        assert len(ends) == 1 and self.outputs[-1].finish == ends[0], self.outputs
        return ends[0]

    @property
    def usage(self) -> Usage:
        return self.outputs[-1].usage

    @property
    def message(self) -> str:
        return self.outputs[-1].message


class Hearing(Listener):
    """A Listener that hears of vectors, too."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[int, list[Pooled]] = {}

    def pooled(self, result: Pooled) -> None:
        with self._changed:
            self.results.setdefault(result.id, []).append(result)
            self._changed.notify_all()

    def result(self, id: int) -> Pooled:
        """Waits for it."""
        self.wait(lambda: id in self.results)
        (result,) = self.results[id]
        return result

    def answer(self, id: int) -> Answer:
        """Waits for its end."""
        self.wait_for_end(id)
        return Answer(tuple(self.outputs[id]))


def request(text: str, sampling: Sampling = GREEDY, **fields: Any) -> ChatRequest:
    """The user says this."""
    return ChatRequest((say("user", text),), sampling, **fields)


class Driven:
    """A loaded backend."""

    def __init__(self, case: Case, model: Model, **keys: Any) -> None:
        self.case, self.model = case, model
        self.config = ModelConfig(name=case.name, **{**model.keys, **keys})
        self.listener = Hearing()
        self.backend = case.spec.load()()
        self.loaded = self.backend.load(self.config, model.files, self.listener)
        self._ids = itertools.count(1)
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self.backend.close()

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        (token,) = self.backend.tokenize(self.loaded.eos, special=True, bos=False)
        return int(token)

    def prepared(self, request: ChatRequest | CompletionRequest) -> Job:
        """The job that a worker makes of the request."""
        return prepare(next(self._ids), request, self.config, self.backend, self.loaded).job

    def chat(self, text: str, sampling: Sampling = GREEDY, **fields: Any) -> Job:
        """The job of a chat in which the user says this."""
        return replace(self.prepared(request(text, sampling)), **fields)

    def seeing(self, text: str, image: bytes, sampling: Sampling = GREEDY) -> Job:
        message = Message("user", (ImagePart(image), TextPart(text)))
        return self.prepared(ChatRequest((message,), sampling))

    def ask(self, *texts: str, sampling: Sampling = GREEDY, **fields: Any) -> list[Answer]:
        """One after the other."""
        return [self.run(self.chat(text, sampling, **fields))[0] for text in texts]

    def run(self, *jobs: Job) -> list[Answer]:
        """Together: the first cannot get further than its first step before all are there."""
        given = threading.Event()
        first = jobs[0].id

        def hold(output: Output) -> None:
            if output.id == first:
                given.wait(SECONDS)

        self.listener.on_output = hold if len(jobs) > 1 else lambda output: None
        for job in jobs:
            self.backend.submit(job)
        given.set()
        answers = [self.listener.answer(job.id) for job in jobs]
        self.listener.on_output = lambda output: None
        return answers

    def steps_since(self, seen: int) -> list[StepStats]:
        return self.listener.steps[seen:]

    def embed(self, *inputs: str | Sequence[int], **settings: Any) -> list[np.ndarray]:
        job = EmbedJob(next(self._ids), inputs, **settings)
        self.backend.embed(job)
        return [np.frombuffer(vector, "<f4") for vector in self._good(job.id).vectors]

    def rerank(self, query: str, *documents: str, **settings: Any) -> list[float]:
        job = RerankJob(next(self._ids), query, documents, **settings)
        self.backend.rerank(job)
        return [float(np.frombuffer(vector, "<f4")[0]) for vector in self._good(job.id).vectors]

    def assert_refused(self, capability: str, request: ChatRequest | CompletionRequest | None = None) -> None:
        """It does not claim the capability, the server knows, and so no request that needs it comes here. What the worker looks
        at itself, it refuses."""
        assert capability not in self.loaded.capabilities
        assert capability not in features_of(self.case.spec, self.config)
        if request is not None and capability in LOOKED_AT:
            with pytest.raises(UnsupportedField):
                self.prepared(request)

    def _good(self, id: int) -> Pooled:
        result = self.listener.result(id)
        assert result.error is None, result.error
        return result


class Choice:
    """A Constraint: the answer is one of these sequences of tokens, then the end token. None at all: nothing may come."""

    def __init__(self, choices: Iterable[Sequence[int]], end: int, vocab_size: int) -> None:
        self._choices = [tuple(choice) for choice in choices]
        self._end, self._vocab_size = end, vocab_size
        self._said: tuple[int, ...] = ()

    def mask(self) -> bytes:
        bits = np.zeros(-(-self._vocab_size // 32) * 32, bool)
        length = len(self._said)
        for choice in self._choices:
            if choice[:length] == self._said:
                bits[choice[length] if len(choice) > length else self._end] = True
        return np.packbits(bits, bitorder="little").tobytes()

    def accept(self, token: int) -> None:
        if token != self._end:
            self._said += (token,)

    def forced(self) -> Sequence[int]:
        return ()


class Schema:
    """A Constraint: JSON of this schema, by llguidance."""

    def __init__(self, schema: dict[str, Any], tokenizer: Any) -> None:
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        self._matcher = LLMatcher(tokenizer, grammar)

    def mask(self) -> bytes:
        made: bytes = self._matcher.compute_bitmask()
        return made

    def accept(self, token: int) -> None:
        assert self._matcher.consume_token(token), self._matcher.get_error()

    def forced(self) -> Sequence[int]:
        return ()


def choice(driven: Driven, *texts: str) -> Constraint:
    plain = [driven.backend.tokenize(text, special=False, bos=False) for text in texts]
    return Choice(plain, driven.end, driven.loaded.vocab_size)


def png(red: int, green: int, blue: int, side: int = 40) -> bytes:
    """A square of one colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = (b"\0" + bytes((red, green, blue)) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
