"""The engine's three beats: schedule, decode, postprocess. Synchronous: knows no threads and no sink."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from llmgallery.core.errors import GalleryError
from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.core.sampling import DEFAULTS
from llmgallery.engine.drafts import outcome
from llmgallery.engine.growth import Finish, begin_forced, grow
from llmgallery.engine.plan import NOTHING, Plan, Sampled
from llmgallery.engine.prefixes import Placement, Reuse
from llmgallery.engine.runner import NoRoom, Runner
from llmgallery.engine.scheduler import NO_DRAFTS, Drafts, Scheduler
from llmgallery.engine.sequence import Sequence

NO_ROOM = (
    "the KV cache has no room for this answer, though nothing else is in it ({count} tokens are computed): raise context_size, "
    "or send a shorter prompt or a smaller max_tokens"
)


class Batcher:
    """Generates for many jobs, a step at a time: `schedule()`, then `step()`, and the outputs of both are to be told.

    Every job that was added gets exactly one Output with `finish`. Only one thread may call.
    """

    def __init__(self, runner: Runner, *, slots: int, budget: int, context_size: int, slowdown: float) -> None:
        reuse = Reuse(runner.can_truncate, runner.copy_cost)
        self._runner = runner
        self._context_size = context_size
        self._scheduler = Scheduler(slots, budget, reuse=reuse, slowdown=slowdown)
        self._steps = 0

    def has_work(self) -> bool:
        return self._scheduler.has_work()

    def add(self, job: Job) -> None:
        sampling = job.sampling.over(DEFAULTS)
        room = self._context_size - len(job.prompt)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        prompt = tuple(job.prompt)
        self._scheduler.add(Sequence(job.id, prompt, limit, sampling, job.logprobs, job.prompt_logprobs, job.constraint))

    def withdraw(self, id: int) -> list[Output]:
        """Nothing happens when the job has finished. What it has computed stays for others."""
        sequence = self._scheduler.find(id)
        return [] if sequence is None else [self._end(sequence, "cancelled")]

    def drop_all(self, finish: Finish, message: str = "") -> list[Output]:
        """Every job ends, and the runner hears nothing of it any more."""
        sequences = self._scheduler.everyone()
        for sequence in sequences:
            self._scheduler.finish(sequence, forget=True)
        return [_finished(sequence, finish, message) for sequence in sequences]

    def schedule(self) -> list[Output]:
        """Give slots to those who wait, and prefixes to those who can have them. Outputs: of jobs that are over before anything
        is computed, and what constraints force at the very beginning."""
        outputs = []
        while (rejoining := self._scheduler.rejoin()) is not None:
            self._settle(*rejoining)
        while (sequence := self._scheduler.next()) is not None:
            if sequence.is_full and not sequence.prompt_logprobs:
                outputs.append(self._end(sequence, "length"))
                continue
            self._settle(sequence, self._scheduler.admit())
            if (output := self._begin(sequence)) is not None:
                outputs.append(output)
        return outputs

    def step(self) -> tuple[list[Output], StepStats] | None:
        """Decode for everybody who runs, and make of it what it is. None: nobody runs, or it was interrupted."""
        outputs: list[Output] = []
        drafts = self._draft()
        while (plan := self._scheduler.plan(drafts)).chunks:
            began = time.perf_counter()
            try:
                sampled = self._runner.decode(plan, self._scheduler.running)
            except NoRoom:
                drafts = NO_DRAFTS
                outputs += self._make_room(plan)
                continue
            except GalleryError as exc:
                return outputs + self._fail(plan, exc.message), self.stats()
            if sampled is None:
                break
            self._scheduler.pace.measured(plan.streams, plan.prefill, time.perf_counter() - began)
            self._steps += 1
            outputs += self._postprocess(plan, sampled)
            return outputs, self.stats(len(plan.chunks), plan.num_tokens, *outcome(plan, sampled))
        return (outputs, self.stats()) if outputs else None

    def stats(self, sequences: int = 0, tokens: int = 0, guessed: int = 0, met: int = 0) -> StepStats:
        return StepStats(self._steps, sequences, tokens, self._scheduler.num_waiting, guessed, met)

    def _settle(self, sequence: Sequence, placement: Placement) -> None:
        kept = placement.length
        if not placement.is_done:
            kept = self._runner.keep(placement.slot, placement.length, placement.source)
        self._scheduler.settle(sequence, placement, kept)

    def _begin(self, sequence: Sequence) -> Output | None:
        """The runner hears of it once, however often it gets a slot. The runner may refuse it."""
        if sequence.begun:
            return None
        try:
            self._runner.begin(sequence)
        except GalleryError as exc:
            return self._end(sequence, "error", exc.message)
        sequence.begun = True
        output = begin_forced(sequence, self._runner)
        return output if output is None or output.finish is None else self._close(sequence, output)

    def _draft(self) -> Drafts:
        """Guesses for everybody who may go on by more than one token."""
        most = self._scheduler.room_for_drafts()
        if most < 1:
            return NO_DRAFTS
        running = self._scheduler.running
        ready = [one for one in running.values() if one.is_decoding and one.pending == 1 and one.left > 1]
        if not ready or not (found := self._runner.draft(ready, most)):
            return NO_DRAFTS
        return {id: guesses[: min(most, running[id].left - 1)] for id, guesses in found.items()}

    def _make_room(self, plan: Plan) -> list[Output]:
        """Something goes: the oldest idle prefix, else the youngest sequence back into the queue, else who is alone."""
        idle = self._scheduler.slots.oldest_idle()
        if idle is not None:
            idle.left = ()
            self._runner.keep(idle.index, 0)
            return []
        slot = self._scheduler.preempt(plan)
        if slot is not None:
            self._runner.keep(slot, 0)
            return []
        alone = next(iter(self._scheduler.running.values()))
        return [self._end(alone, "error", NO_ROOM.format(count=alone.computed), forget=True)]

    def _fail(self, plan: Plan, message: str) -> list[Output]:
        """What a failed decode has left in the caches is not known."""
        sequences = [self._scheduler.running[chunk.id] for chunk in plan.chunks]
        return [self._end(sequence, "error", message, forget=True) for sequence in sequences]

    def _postprocess(self, plan: Plan, sampled: Mapping[int, Sampled]) -> list[Output]:
        self._scheduler.advance(plan, sampled)
        outputs = []
        for chunk in plan.chunks:
            sequence = self._scheduler.running[chunk.id]
            result = sampled.get(chunk.id, NOTHING)
            if chunk.scores:
                sequence.scores += result.scores
            if not chunk.samples and (sequence.pending or not sequence.is_full):
                continue
            output = grow(sequence, result, self._runner)
            outputs.append(output if output.finish is None else self._close(sequence, output, forget=result.error is not None))
        return outputs

    def _end(self, sequence: Sequence, finish: Finish, message: str = "", *, forget: bool = False) -> Output:
        return self._close(sequence, _finished(sequence, finish, message), forget=forget)

    def _close(self, sequence: Sequence, output: Output, *, forget: bool = False) -> Output:
        """The last output: with the end of its text. The slot keeps what is computed for others, unless it is to be forgotten."""
        if sequence.begun:
            self._runner.end(sequence)
        if forget and sequence.slot is not None:
            self._runner.keep(sequence.slot, 0)
        self._scheduler.finish(sequence, forget=forget)
        rest = sequence.text.flush()
        return replace(output, text=output.text + rest) if rest else output


def _finished(sequence: Sequence, finish: Finish, message: str) -> Output:
    return Output(sequence.id, finish=finish, usage=sequence.usage, message=message)
