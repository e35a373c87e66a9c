"""bigram: each character follows the one before it as in a text that it has read. A whole backend, as an example."""

import threading
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from llmgallery.backends.base import BackendSpec, Loaded
from llmgallery.core.errors import LoadError, UnsupportedField
from llmgallery.core.jobs import StepStats
from llmgallery.engine.choosing import Chooser


class BigramOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: Annotated[str, msgspec.Meta(description="path of the text that it learns from")]


SPEC = BackendSpec(
    name="bigram",
    implementation="llmgallery_bigram:BigramBackend",  # a heavy library is imported there, or in `load`, never beside SPEC
    options=BigramOptions,
    capabilities=frozenset({"generate", "logprobs", "seed"}),
    keys=frozenset({"context_size", "options"}),
    needs_weights=False,
)
END, SIZE = 256, 257  # tokens are bytes, and the end of the text
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class BigramBackend:
    def load(self, config, files, emit):
        options = msgspec.convert(config.options, BigramOptions)
        try:
            text = [*Path(options.text).read_bytes(), END]
        except OSError as exc:
            raise LoadError(f"options.text: {options.text} cannot be read: {exc.strerror}") from exc
        counts = np.full((SIZE, SIZE), 1e-6, np.float32)
        np.add.at(counts, (text[:-1], text[1:]), 1)
        self.logits, self.emit, self.context_size = np.log(counts), emit, config.context_size or 2048
        self.jobs, self.cancelled, self.closed, self.changed = {}, set(), False, threading.Condition()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return Loaded(self.context_size, 8, SIZE, SPEC.capabilities, TEMPLATE)

    def submit(self, job):
        chooser = Chooser(job, self, vocab_size=SIZE, ends=[END], context_size=self.context_size)
        with self.changed:
            self.jobs[job.id] = (chooser, job.prompt[-1])
            self.changed.notify()

    def run(self):
        step = 0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.jobs or self.closed)
                if not self.jobs:
                    return
                jobs = dict(self.jobs)
            outputs = [self.step(*job) for job in jobs.values()]  # a real library computes all of them at once
            self.emit.step(outputs, StepStats(step := step + 1, len(jobs), len(jobs), waiting=0))

    def step(self, chooser, last):
        id = chooser.job.id
        with self.changed:
            withdrawn = self.closed or id in self.cancelled
        if withdrawn or not chooser.limit:
            output, last = chooser.end("cancelled" if withdrawn else "length"), END
        else:
            last, output = (chosen := chooser.choose(self.logits[last])).token, chosen.output
        with self.changed:
            self.jobs[id] = (chooser, last)
            if output.finish is not None:
                del self.jobs[id]
                self.cancelled.discard(id)
        return output

    def cancel(self, id):
        with self.changed:
            self.cancelled |= {id} & self.jobs.keys()

    def close(self):
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def embed(self, job):
        raise UnsupportedField("bigram makes no embeddings and no scores", field="model")

    rerank = embed

    def tokenize(self, text, *, special, bos):
        return list(text.encode())

    def detokenize(self, tokens):
        return b"".join(map(self.piece, tokens)).decode(errors="replace")

    def piece(self, token):
        return bytes([token]) if token < END else b""

    written = piece

    def is_end(self, token):
        return token == END
