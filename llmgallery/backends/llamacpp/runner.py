"""llama.cpp as the engine's runner: one llama_decode a step, a chain of C samplers for each slot."""

from __future__ import annotations

from collections.abc import Mapping

from llmgallery.backends.llamacpp.api import Batch, Context, Model, Sampler
from llmgallery.backends.llamacpp.sampling import make_sampler
from llmgallery.core.errors import GalleryError
from llmgallery.engine.scheduler import Plan
from llmgallery.engine.sequence import Sequence

FAILURES = {
    1: "the KV cache has no room for this step: lower parallel or raise context_size",
    -1: "llama.cpp refused a batch as invalid (a token that the model does not have?)",
}
ABORTED = 2


class LlamaRunner:
    """A slot is a sequence id of llama.cpp's."""

    def __init__(self, model: Model, context: Context, *, context_size: int) -> None:
        self._vocab = model.vocab
        self._context = context
        self._context_size = context_size
        self._batch = Batch(context.batch_size)
        self._samplers: dict[int, Sampler] = {}
        self._pieces: dict[int, bytes] = {}
        self._ends = frozenset(token for token in range(self._vocab.size) if self._vocab.is_end(token))

    def begin(self, sequence: Sequence) -> None:
        self._samplers[sequence.id] = make_sampler(
            sequence.sampling,
            sequence.prompt,
            vocab_size=self._vocab.size,
            ends=self._ends,
            context_size=self._context_size,
        )

    def decode(self, plan: Plan) -> Mapping[int, int] | None:
        wanted = self._fill(plan)
        result = self._context.decode(self._batch)
        if result == ABORTED:
            return None
        if result != 0:
            raise GalleryError(FAILURES.get(result, f"llama.cpp could not compute this step (llama_decode gave {result})"))
        return {id: self._samplers[id].sample(self._context, index) for id, index in wanted}

    def _fill(self, plan: Plan) -> list[tuple[int, int]]:
        """The plan into the batch; for each chunk that samples, its sequence and the index of its logits."""
        self._batch.clear()
        wanted = []
        for chunk in plan.chunks:
            last = self._batch.add(chunk.slot, chunk.position, chunk.tokens, wants_logits=chunk.samples)
            if chunk.samples:
                wanted.append((chunk.id, last))
        return wanted

    def end(self, sequence: Sequence) -> None:
        self._samplers.pop(sequence.id).close()
        if sequence.slot is not None:
            self._context.forget(sequence.slot)

    def piece(self, token: int) -> bytes:
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._vocab.piece(token)
        return known

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def interrupt(self) -> None:
        self._context.abort()

    def close(self) -> None:
        """The engine has ended; samplers of jobs that it had to drop go too."""
        for sampler in self._samplers.values():
            sampler.close()
        self._samplers.clear()
