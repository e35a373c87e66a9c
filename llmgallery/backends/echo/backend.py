"""echo's implementation: a runner that knows every answer beforehand."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llmgallery.backends.base import EmbedJob, Emit, Files, Loaded, RerankJob
from llmgallery.backends.echo import vocab
from llmgallery.backends.echo.pooled import SIZE, EchoPool
from llmgallery.backends.echo.spec import EchoOptions
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import LoadError, UnsupportedField
from llmgallery.engine.plan import Chunk, Plan, Sampled
from llmgallery.engine.sequence import Sequence as Answering
from llmgallery.engine.stepped import SteppedBackend

CONTEXT_SIZE = 2048
SLOTS = 8
BATCH = 512
POLL_SECONDS = 0.005


@dataclass
class _Reply:
    """What one sequence will get, and how far it is; `ignore_eos` begins anew instead of ending."""

    tokens: list[int]
    doomed: bool
    ignore_eos: bool
    given: int = 0

    def next(self) -> int:
        tokens = self.tokens[:-1] or [ord(" ")] if self.ignore_eos else self.tokens
        token = tokens[self.given % len(tokens)]
        self.given += 1
        return token


class EchoRunner:
    """Waits and dies as its options say, and samples what was said."""

    can_truncate = True
    copy_cost = 0

    def __init__(self, options: EchoOptions) -> None:
        self._options = options
        self._replies: dict[int, _Reply] = {}
        self._due: float | None = None
        self._closing = False
        self._interrupted = False
        self._changed = threading.Condition()

    def begin(self, sequence: Answering) -> None:
        options = self._options
        tokens = vocab.answer(sequence.prompt) if options.reply is None else [*options.reply.encode(), vocab.END]
        doomed = options.crash_on is not None and options.crash_on in vocab.detokenize(sequence.prompt)
        self._replies[sequence.id] = _Reply(tokens, doomed, bool(sequence.sampling.ignore_eos))

    def keep(self, slot: int, length: int, source: int | None = None) -> int:
        return length  # whatever is asked for: echo looks at the prompt itself, and computes nothing

    def accept(self, sequence: Answering, tokens: Sequence[int]) -> None:
        self._replies[sequence.id].given += len(tokens)

    def draft(self, sequences: Sequence[Answering], most: int) -> Mapping[int, tuple[int, ...]]:
        return {}

    def decode(self, plan: Plan, sequences: Mapping[int, Answering]) -> Mapping[int, Sampled] | None:
        if not (self._pass_gate(plan) and self._pass_delay()):
            return None
        for chunk in plan.chunks:
            reply = self._replies[chunk.id]
            if reply.doomed and reply.given >= self._options.crash_after:
                signal.pthread_kill(threading.get_ident(), signal.Signals[self._options.crash_signal])
        return {chunk.id: self._sampled(chunk, sequences[chunk.id]) for chunk in plan.chunks if chunk.samples or chunk.scores}

    def _sampled(self, chunk: Chunk, sequence: Answering) -> Sampled:
        tokens = (self._replies[chunk.id].next(),) if chunk.samples else ()
        start = chunk.position + 1
        scored = sequence.prompt[start : start + len(chunk.tokens)] if chunk.scores else ()
        if sequence.logprobs is None:
            return Sampled(tokens)
        seed, top = sequence.sampling.seed or 0, sequence.logprobs
        known, said = ([vocab.logprob(token, top, seed) for token in part] for part in (scored, tokens))
        return Sampled(tokens, tuple(said), tuple(known))

    def end(self, sequence: Answering) -> None:
        del self._replies[sequence.id]

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def written(self, token: int) -> bytes:
        return vocab.piece(token)

    def is_end(self, token: int) -> bool:
        return token == vocab.END

    def interrupt(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()

    def nudge(self) -> None:
        """A job was cancelled: a waiting step returns, so that the engine can see it."""
        with self._changed:
            self._interrupted = True
            self._changed.notify()

    def _pass_gate(self, plan: Plan) -> bool:
        gate = self._options.gate
        held = any(self._replies[chunk.id].given >= self._options.gate_after for chunk in plan.chunks)
        return gate is None or not held or self._wait(Path(gate).exists, poll=POLL_SECONDS)

    def _pass_delay(self) -> bool:
        """An interrupted wait goes on where it was, not from its beginning."""
        if not self._options.delay_ms:
            return True
        due = self._due = self._due or time.monotonic() + self._options.delay_ms / 1000
        if not self._wait(lambda: time.monotonic() >= due, poll=None):
            return False
        self._due = None
        return True

    def _wait(self, passed: Callable[[], bool], poll: float | None) -> bool:
        """Until it has passed (True) or somebody interrupts (False)."""
        with self._changed:
            while not passed():
                if self._closing or self._interrupted:
                    self._interrupted = False
                    return False
                left = max(0.0, (self._due or 0) - time.monotonic())
                self._changed.wait(left if poll is None else poll)
        return True


class EchoBackend(SteppedBackend):
    """The level is tokens: prompts are rendered by echo's own Jinja template."""

    _runner: EchoRunner | None = None
    _pool: EchoPool | None = None

    def load(self, config: ModelConfig, files: Files, emit: Emit) -> Loaded:
        options = _options(config)
        for part in range(options.load_steps):
            emit.progress((part + 1) / options.load_steps)
        if options.load_gate is not None:
            _wait_for(Path(options.load_gate))
        if options.fail_load is not None:
            raise LoadError(options.fail_load)
        context_size, slots = config.context_size or CONTEXT_SIZE, config.parallel or SLOTS
        self._runner = EchoRunner(options)
        self._start(self._runner, emit, slots=slots, budget=config.parameters.batch or BATCH, context_size=context_size)
        if config.embeddings or config.reranking:
            self._pool = EchoPool(options, context_size, emit.pooled)
        return _loaded(config, options, context_size, slots)

    def load_vocabulary(self, config: ModelConfig, files: Files) -> Loaded:
        return _loaded(config, _options(config), config.context_size or CONTEXT_SIZE, 1)

    def cancel(self, id: int) -> None:
        super().cancel(id)
        if self._runner is not None:
            self._runner.nudge()
        if self._pool is not None:
            self._pool.cancel(id)

    def embed(self, job: EmbedJob) -> None:
        self._pooled("this model makes no embeddings").add(job)

    def rerank(self, job: RerankJob) -> None:
        self._pooled("this model scores no documents").add(job)

    def _pooled(self, refusal: str) -> EchoPool:
        if self._pool is None:
            raise UnsupportedField(refusal, field="model")
        return self._pool

    def _free(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        return vocab.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return vocab.detokenize(tokens)


def _options(config: ModelConfig) -> EchoOptions:
    return msgspec.convert(config.options, EchoOptions) if isinstance(config.options, dict) else EchoOptions()


def _loaded(config: ModelConfig, options: EchoOptions, context_size: int, slots: int) -> Loaded:
    return Loaded(
        context_size=context_size,
        slots=slots,
        vocab_size=vocab.SIZE,
        chat_template=vocab.CHAT_TEMPLATE,
        eos=vocab.TEXTS[vocab.END],
        fim=vocab.GAP if options.fills_in else None,
        capabilities=_capabilities(config, options),
        embedding_size=SIZE if config.embeddings else 0,
    )


def _capabilities(config: ModelConfig, options: EchoOptions) -> frozenset[str]:
    has = {
        "generate": not options.encoder,
        "embed": config.embeddings,
        "rerank": config.reranking,
        "probabilities": config.reranking and not options.logits,
    }
    return frozenset(name for name, there in has.items() if there)


def _wait_for(path: Path) -> None:
    never = threading.Event()
    while not path.exists():
        never.wait(POLL_SECONDS)
