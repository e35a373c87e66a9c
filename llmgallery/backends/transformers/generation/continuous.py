"""Generation through transformers' continuous batching: its scheduler, paged cache and kernels; our thread and choices."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import RequestStatus

from llmgallery.backends.transformers.generation.engines import Setting
from llmgallery.backends.transformers.generation.prompts import PromptScorer
from llmgallery.backends.transformers.generation.sampling import Choose, install
from llmgallery.backends.transformers.pools.batches import is_shortage
from llmgallery.core.errors import GalleryError, LoadError
from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.engine.choosing import Chooser, Chosen
from llmgallery.engine.growth import Finish
from llmgallery.engine.inbox import Inbox
from llmgallery.engine.sampler import Floats

TOLERANCE = 0.1  # of the standard deviation of logits; bfloat16 stays below a fifth of it
ATTENTIONS = ("sdpa", "flash_attention_2", "flash_attention_3", "eager")


class CannotBatch(Exception):
    """transformers' continuous batching does not take this model. The text says why."""


@dataclasses.dataclass
class _Running:
    """A job that has a slot. `computed`: tokens of it that went through the model; `begun`: its first token has come.
    `scorer`: of its prompt, until that is told."""

    chooser: Chooser
    scorer: PromptScorer | None = None
    computed: int = 0
    begun: bool = False

    def scored(self, output: Output) -> Output:
        """With the prompt's scores, if they are not told yet."""
        scorer, self.scorer = self.scorer, None
        return output if scorer is None else dataclasses.replace(output, prompt_logprobs=tuple(scorer.scores))


class Manager:
    """transformers' manager, driven step by step from one thread, which is the engine's: what a step computed is known when it
    returns, and nobody else uses the model meanwhile."""

    def __init__(self, setting: Setting, choose: Choose) -> None:
        """Raises whatever transformers raises for models that it cannot batch so."""
        pages = -(-(setting.context_size + 1) // setting.page_size) + 1
        batch = max(setting.batch, setting.slots)
        self._model = setting.model
        attention = model_attention(setting.model)
        self._manager = setting.model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=setting.context_size),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=setting.page_size,
                num_blocks=setting.slots * pages,
                max_batch_tokens=batch,
                max_requests_per_batch=setting.slots,
                safety_margin=0.0,
                use_async_batching=False,
                use_cuda_graph=False,
                auto_switch_to_flash=False,
            ),
        )
        self._paged, self._plain = model_attention(setting.model), attention
        self._processor = install(self._manager.logit_processor, choose)
        self._manager.warmup()
        self._batch = self._manager.batch_processor
        self._attend(self._plain)

    def _attend(self, way: str) -> None:
        """How attention is called from here on. Where it is plain torch code, the manager has another way for it."""
        if self._paged != self._plain:
            self._model.config._attn_implementation = way

    def add(self, id: int, prompt: Sequence[int], limit: int, ends: Collection[int]) -> None:
        self._manager.add_request(list(prompt), request_id=str(id), max_new_tokens=limit, eos_token_id=list(ends) or -1)

    def cancel(self, id: int) -> None:
        """Acts before the next step; its part of the cache is free then."""
        self._manager.cancel_request(str(id))

    def extend(self, id: int, tokens: Sequence[int]) -> None:
        """Tokens follow on the one that the last step gave, and are computed with it in the next: as the rest of a prompt is."""
        state = self._batch.scheduler.active_requests[str(id)]
        state.generated_tokens.extend(tokens)
        state.remaining_prefill_tokens = [*state.tokens_to_process, *tokens]
        state.status = RequestStatus.PREFILLING

    def plan(self) -> dict[int, int] | None:
        """What the next step computes: job -> how many tokens. None = nothing."""
        if not self._batch.prepare_next_batch():
            return None
        requests = self._batch.inputs_and_outputs.requests_in_batch
        return {int(each.state.request_id): each.query_length for each in requests}

    def compute(self) -> None:
        """The planned step: `choose` is called with the rows of logits that it gives."""
        self._attend(self._paged)
        try:
            self._batch._generation_step(self._model)
        finally:
            self._attend(self._plain)  # who has the next turn calls the model by itself
        self._batch.update_batch()
        outputs = self._manager.output_router.output_queue
        while not outputs.empty():
            outputs.get_nowait()

    def try_out(self, trial: Sequence[int]) -> None:
        """Two answers of two tokens in one batch must come from the logits that the model gives by itself. Raises CannotBatch:
        some models run, and compute something else."""
        prompts = {1: list(trial), 2: list(trial[: max(1, len(trial) // 2)])}
        rows: list[tuple[int, Floats]] = []

        def likeliest(ids: Sequence[str], given: Sequence[Floats]) -> list[int]:
            rows.extend(zip(map(int, ids), given, strict=True))
            return [int(row.argmax()) for row in given]

        chosen, self._processor.choose = self._processor.choose, likeliest
        for id, prompt in prompts.items():
            self.add(id, prompt, 2, ())
        for _ in range(2):
            if self.plan() is None:
                raise CannotBatch("its scheduler ran nothing")
            self.compute()
        self._processor.choose = chosen
        for id, row in rows:
            with torch.no_grad():
                own = (
                    self._model(input_ids=torch.tensor([prompts[id]], device=self._model.device))
                    .logits[0, -1]
                    .float()
                    .cpu()
                    .numpy()
                )
            if not float(np.abs(own - row).max()) <= TOLERANCE * float(own.std()):
                raise CannotBatch("it computes something else than the model by itself")
            prompts[id].append(int(row.argmax()))
        self.reset()

    def reset(self) -> None:
        """Forget all requests and all that is cached."""
        self._batch.reset()

    @property
    def cache_bytes(self) -> int:
        """Keys and values, and the mask that attention needs where it is not a GPU kernel."""
        masks = self._batch.inputs_and_outputs.attention_mask or {}
        tensors = [self._batch.cache.cache_tensor, *(masks.values() if isinstance(masks, dict) else [masks])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def close(self) -> None:
        self._batch = self._manager.batch_processor = None
        self._manager.destroy()


class ContinuousEngine:
    """A GeneratingEngine. The thread is the only one that touches manager, queue and running jobs."""

    def __init__(self, setting: Setting, trial: Sequence[int]) -> None:
        """`trial`: tokens of some text, to try it out with. Raises CannotBatch."""
        self._setting = setting
        self._manager = _tried(setting, self._choose, trial)
        self.cache_bytes = self._manager.cache_bytes
        self._queue: deque[Job] = deque()
        self._running: dict[int, _Running] = {}
        self._outputs: list[Output] = []
        self._extended: dict[int, tuple[int, ...]] = {}
        self._inbox = Inbox()
        self._thread = threading.Thread(target=self._run, name="continuous", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._inbox.submit(job)

    def cancel(self, id: int) -> None:
        self._inbox.withdraw(id)

    def close(self) -> None:
        self._inbox.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            if (device := self._setting.model.device).type == "cuda":
                torch.cuda.set_device(device)  # each thread has its own
            while self._wait_for_work():
                with self._setting.turns:
                    self._step()
        except Exception as exc:  # noqa: BLE001 - the thread's border: whatever broke, every job must hear of it
            self._break(exc)
        else:
            self._tell(self._end_all("cancelled"))
        finally:
            self._manager.close()

    def _wait_for_work(self) -> bool:
        """Take in what other threads asked for; blocks while there is nothing to do. False = the engine is closed."""
        taken = self._inbox.take(lambda: bool(self._queue or self._running))
        if taken is None:
            return False
        jobs, withdrawn = taken
        self._queue.extend(jobs)
        if outputs := [output for id in withdrawn for output in self._withdraw(id)]:
            with self._setting.turns:
                self._tell(outputs)
        return True

    def _withdraw(self, id: int) -> list[Output]:
        """Nothing happens when the job has finished."""
        if (running := self._running.pop(id, None)) is not None:
            self._manager.cancel(id)
            return [running.chooser.end("cancelled")]
        for job in self._queue:
            if job.id == id:
                self._queue.remove(job)
                return [Output(id, finish="cancelled")]
        return []

    def _step(self) -> None:
        """Schedule, compute, tell. A prompt that is to be scored is read in steps of its own, before it is generated from."""
        self._tell(self._admit())
        if scored := self._score():
            self._count(1, scored)
        planned = None if self._inbox.has_withdrawals else self._manager.plan()
        if planned is None:
            return
        for id, count in planned.items():
            self._running[id].computed += count
        try:
            self._manager.compute()
        except Exception as exc:
            if not is_shortage(exc):
                raise
            self._drop_all(f"not enough memory for this step: lower parallel or context_size ({exc})")
        for id, tokens in self._extended.items():
            self._manager.extend(id, tokens)
        self._extended.clear()
        outputs, self._outputs = self._outputs, []
        self._count(len(planned), sum(planned.values()), outputs)

    def _admit(self) -> list[Output]:
        """Give jobs to the manager, as many as there are slots. Outputs: of those that are over before anything is computed."""
        outputs = []
        while self._queue and len(self._running) < self._setting.slots:
            job = self._queue.popleft()
            try:
                running = _Running(self._setting.choose(job, forces=True))
            except GalleryError as exc:
                outputs.append(Output(job.id, finish="error", message=exc.message, error=exc.info()))
                continue
            if job.prompt_logprobs:
                running.scorer = PromptScorer(job, self._setting)
            elif not running.chooser.limit:
                outputs.append(running.chooser.end("length"))
                continue
            self._running[job.id] = running
            if running.scorer is None or running.scorer.is_done:
                self._hand_over(running)
        return outputs

    def _hand_over(self, running: _Running) -> None:
        """To the manager, which generates; unless nothing is to be generated."""
        job, chooser = running.chooser.job, running.chooser
        begun = chooser.begin() if chooser.limit else Chosen(0, chooser.end("length"))
        if begun is not None:
            self._tell([running.scored(begun.output)])
            if begun.output.finish is not None:
                del self._running[job.id]
                return
        forced = begun.forced if begun else ()
        self._manager.add(job.id, (*job.prompt, *forced), chooser.limit - len(forced), self._setting.ends)

    def _score(self) -> int:
        """A slice of the first prompt that is to be scored; how many tokens that were."""
        for running in self._running.values():
            scorer = running.scorer
            if scorer is not None and not scorer.is_done:
                count = scorer.advance()
                if len(scorer.scores) == len(scorer.job.prompt):
                    self._hand_over(running)
                return count
        return 0

    def _choose(self, ids: Sequence[str], rows: Sequence[Floats]) -> Sequence[int]:
        """Called within a step, by the processor in the manager."""
        tokens = []
        for id, row in zip(map(int, ids), rows, strict=True):
            running = self._running[id]
            chooser = running.chooser
            if not running.begun:
                chooser.sequence.cached = max(0, len(chooser.job.prompt) - running.computed)
            chosen = chooser.choose(row)
            output = running.scored(chosen.output)
            running.begun = True
            if chosen.forced and output.finish is None:
                self._extended[int(id)] = chosen.forced
            if output.finish is not None:
                del self._running[id]
                if chosen.forced or output.finish == "error":
                    self._manager.cancel(id)  # of the others it knows itself: they met an end token, or their limit
            self._outputs.append(output)
            tokens.append(chosen.token)
        return tokens

    def _drop_all(self, message: str) -> None:
        """All running jobs end, the manager forgets them, and those that wait can go on."""
        self._outputs += [running.chooser.end("error", message) for running in self._running.values()]
        self._running.clear()
        self._extended.clear()
        self._manager.reset()

    def _end_all(self, finish: Finish, message: str = "") -> list[Output]:
        waiting = [*self._queue, *self._inbox.end()]
        running, self._running = list(self._running.values()), {}
        self._queue.clear()
        ended = [each.chooser.end(finish, message) for each in running]
        return ended + [Output(job.id, finish=finish, message=message) for job in waiting]

    def _break(self, error: Exception) -> None:
        try:
            told, self._outputs = self._outputs, []
            self._tell([*told, *self._end_all("error", f"the engine failed: {type(error).__name__}: {error}")])
        finally:
            self._setting.emit.fatal(error)

    def _tell(self, outputs: list[Output]) -> None:
        """Outputs that no step made."""
        if outputs:
            self._setting.emit.step(outputs, StepStats(self._setting.steps.last, 0, 0, len(self._queue)))

    def _count(self, sequences: int, tokens: int, outputs: Sequence[Output] = ()) -> None:
        self._setting.emit.step(outputs, StepStats(self._setting.steps.next(), sequences, tokens, len(self._queue)))


def model_attention(model: Any) -> str:
    return str(model.config.get_text_config()._attn_implementation)


def _tried(setting: Setting, choose: Choose, trial: Sequence[int]) -> Manager:
    """Raises CannotBatch, for which generate() is left, and LoadError."""
    model = setting.model
    attention = model_attention(model)
    if attention not in ATTENTIONS:
        raise CannotBatch(f"its attention is {attention}, and must be one of {', '.join(ATTENTIONS)}")
    if attention == "eager" and model.config.get_text_config() is not model.config:
        raise CannotBatch("its attention is eager, and it is made of several models")
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise CannotBatch("it is spread over several devices")
    try:
        manager = Manager(setting, choose)
        manager.try_out(trial)
    except (MemoryError, torch.OutOfMemoryError) as exc:
        size = f"{setting.slots} x {setting.context_size} tokens"
        raise LoadError(
            f"no memory for a KV cache of {size}: lower context_size or parallel ({exc})", field="context_size"
        ) from exc
    except Exception as exc:
        if model_attention(model) != attention:
            model.config._attn_implementation = attention
        raise exc if isinstance(exc, CannotBatch) else CannotBatch(f"{type(exc).__name__}: {exc}") from exc
    return manager
