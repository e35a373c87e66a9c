"""A batcher on a caching runner, watched: what it told each job, and that its account of the slots is right after each step."""

from __future__ import annotations

from caching_runner import CachingRunner

from llmgallery.core.jobs import Constraint, Job, Output
from llmgallery.core.sampling import Sampling
from llmgallery.engine.batcher import Batcher

STEPS = 5000


class Watched:
    def __init__(self, runner: CachingRunner, *, budget: int = 16, context_size: int = 10_000, slowdown: float = 2.5) -> None:
        self.runner = runner
        slots = len(runner.caches)
        self.batcher = Batcher(runner, slots=slots, budget=budget, context_size=context_size, slowdown=slowdown)
        self.scheduler = self.batcher._scheduler
        self.outputs: dict[int, list[Output]] = {}

    def add(
        self,
        id: int,
        prompt: list[int] | tuple[int, ...],
        limit: int | None = 4,
        *,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        constraint: Constraint | None = None,
    ) -> None:
        self.outputs[id] = []
        self.batcher.add(Job(id, prompt, Sampling(max_tokens=limit), logprobs, prompt_logprobs, constraint))

    def cancel(self, id: int) -> None:
        self._hear(self.batcher.withdraw(id))
        self.check()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._hear(self.batcher.schedule())
            self.check()
            if (done := self.batcher.step()) is not None:
                self._hear(done[0])
            self.check()

    def run(self) -> None:
        """Until nobody is there."""
        for _ in range(STEPS):
            if not self.batcher.has_work():
                return
            self.step()
        raise AssertionError(f"not done after {STEPS} steps")

    def check(self) -> None:
        """The engine's account is what the runner's caches hold, and every slot has one owner or none."""
        running = self.scheduler.running
        for slot, cache in zip(self.scheduler.slots, self.runner.caches, strict=True):
            assert list(slot.tokens) == cache
            assert slot.owner is None or running[slot.owner.id] is slot.owner
        owners = [slot.owner for slot in self.scheduler.slots if slot.owner is not None]
        assert {sequence.id for sequence in owners} == running.keys()
        assert self.scheduler.slots.num_free == self.scheduler.slots.count - len(running)
        assert set(self.runner.begun) - set(self.runner.ended) <= {one.id for one in self.scheduler.everyone()}

    def _hear(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert not self.finish(output.id), "nothing comes after the end"
            self.outputs[output.id].append(output)

    def finish(self, id: int) -> str | None:
        return self.outputs[id][-1].finish if self.outputs[id] else None

    def text(self, id: int) -> str:
        return "".join(output.text for output in self.outputs[id])

    def tokens(self, id: int) -> list[int]:
        return [token for output in self.outputs[id] for token in output.tokens]

    def last(self, id: int) -> Output:
        return self.outputs[id][-1]

    def cached(self, id: int) -> int:
        return self.last(id).usage.cached_tokens
