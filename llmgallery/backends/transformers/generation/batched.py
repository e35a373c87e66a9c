"""The second way of generating: generate() in batches; for models without continuous batching, its arguments, and images."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import GenerationConfig

from llmgallery.backends.transformers.generation.company import Company, company_of
from llmgallery.backends.transformers.generation.decoding import Generator, Left, Row, Tap
from llmgallery.backends.transformers.generation.engines import Setting
from llmgallery.backends.transformers.generation.generate_arguments import divide
from llmgallery.backends.transformers.generation.prompts import PromptScorer
from llmgallery.backends.transformers.pools.batches import is_shortage
from llmgallery.core.errors import GalleryError, InvalidField, UnsupportedField, WorkerDied
from llmgallery.core.jobs import Job, Output, StepStats
from llmgallery.engine.growth import Finish

Inputs = Callable[[Job], Mapping[str, Any]]
"""What generate() is given beside the tokens of a job with images: pixel_values and the like, for a batch of one."""

PLAIN = ("plain",)
LONGEST_REASON = 600
OWN_TOKENS = ("bos_token_id", "decoder_start_token_id", "suppress_tokens")


@dataclass(eq=False)
class _Batch:
    """Rows that share their steps. `began`: when this generate() began; `ready`: when its prompts were computed."""

    key: tuple[Any, ...]
    rows: list[Row] = field(default_factory=list)
    is_open: bool = True
    began: float = 0.0
    ready: float | None = None

    @property
    def running(self) -> list[Row]:
        return [row for row in self.rows if not row.is_finished]


class BatchedEngine:
    """A GeneratingEngine. Each batch runs in a thread of its own, and takes a turn for each step: batches take turns.

    Jobs that wait at the same time share a batch. Plain ones also join a batch that runs, once it has decoded for as long as
    its prompts took: it is made anew then, which computes its prompts again. Rows that ended leave with the same occasion.
    """

    def __init__(self, setting: Setting, *, inputs: Inputs | None = None) -> None:
        self._setting = setting
        self._inputs = inputs
        self._tap = Tap(setting.model)
        self._generator = _generator(setting, self._tap)
        self._is_continued = not setting.model.config.is_encoder_decoder
        self._company: Company | None = None
        self._lock = threading.Lock()
        self._waiting: list[Row] = []
        self._open: dict[int, Row] = {}
        self._withdrawn: set[int] = set()
        self._batches: list[_Batch] = []
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._failure = ""
        self._serial = 0

    @property
    def cache_bytes(self) -> int:
        """Nothing between batches; a batch's cache grows with its answers."""
        return 0

    def submit(self, job: Job) -> None:
        """Raises InvalidField and UnsupportedField for arguments, WorkerDied after `close`."""
        row = self._row(job)
        with self._lock:
            if self._closed:
                raise WorkerDied("the engine has stopped and takes no more requests")
            self._open[job.id] = row
            self._waiting.append(row)
            self._start_batches()

    def cancel(self, id: int) -> None:
        with self._lock:
            if id in self._open:
                self._withdrawn.add(id)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in threads:
            thread.join()
        with self._lock:
            rows, self._waiting = self._waiting, []
        if rows:
            with self._setting.turns:
                self._tell([self._ended(row) for row in rows])
        self._tap.close()

    # --- jobs become batches ---------------------------------------------------------------------------------------------------

    def _row(self, job: Job) -> Row:
        size = self._setting.model.get_input_embeddings().weight.shape[0]
        asks_more = "log probabilities" if job.logprobs is not None else "a constraint" if job.constraint is not None else ""
        divided = divide(job.sampling, self._setting.generate, len(job.prompt), asks_more=asks_more, vocab_size=size)
        if job.prompt_logprobs and not self._is_continued:
            raise UnsupportedField("echo: this model has no log probabilities of prompts: an encoder reads them", field="echo")
        if job.images and self._inputs is None:
            raise UnsupportedField("this model sees no images", field="messages")
        settled = replace(job, sampling=divided.sampling)
        return Row(settled, divided, self._setting.choose(settled, forces=True))

    def _key(self, row: Row) -> tuple[Any, ...]:
        """Rows of one key can share a batch."""
        if row.job.images or row.divided.theirs:
            return ("alone", row.job.id)
        if row.divided.is_plain:
            return PLAIN
        arguments = json.dumps(dict(row.divided.arguments), sort_keys=True)
        return ("arguments", arguments, len(row.job.prompt), row.left)

    def _start_batches(self) -> None:
        """Under the lock: a thread for every key that waits, has room, and is not about to be taken along."""
        for row in self._waiting:
            if len(self._running()) >= self._setting.slots:
                return
            key = self._key(row)
            if row.beams > 1 and any(each.beams > 1 for each in self._running()):
                continue
            if any(batch.key == key and (batch.is_open or self._joins(batch)) for batch in self._batches):
                continue
            batch = _Batch(key)
            self._batches.append(batch)
            thread = threading.Thread(target=self._run, args=(batch,), name="batch", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _running(self) -> list[Row]:
        return [row for batch in self._batches for row in batch.running]

    def _joins(self, batch: _Batch) -> bool:
        """It can be made anew, with others in it."""
        return batch.key == PLAIN and self._is_continued

    def _take(self, batch: _Batch) -> bool:
        """Under the lock: the rows of the next generate(); False = there are none, and the batch is over."""
        own = batch.running
        room = self._setting.slots - len(self._running())
        fresh = [row for row in self._waiting if self._key(row) == batch.key and row.job.id not in self._withdrawn]
        rows = [*own, *fresh[: max(0, room)]]
        batch.is_open = False
        if len(rows) > 1 and batch.key == PLAIN:
            rows = self._company_of(rows)
        batch.rows = rows
        self._serial += 1
        for row in batch.rows:
            row.served = self._serial
        chosen = set(map(id, batch.rows))
        self._waiting = [row for row in [*self._waiting, *(row for row in own if id(row) not in chosen)] if id(row) not in chosen]
        return bool(batch.rows)

    def _company_of(self, rows: list[Row]) -> list[Row]:
        """Those that the model can compute beside the one that was served longest ago, without any harm to it."""
        if self._company == "any":
            return rows
        first = min(rows, key=lambda row: row.served)
        if self._company != "equal":
            return [first]
        return [row for row in rows if len(row.known) == len(first.known)]

    # --- in the thread of a batch ----------------------------------------------------------------------------------------------

    def _run(self, batch: _Batch) -> None:
        try:
            with self._setting.turns:
                self._work(batch)
        except Exception as exc:  # noqa: BLE001 - the thread's border: whatever broke, every job must hear of it
            self._break(batch, exc)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _work(self, batch: _Batch) -> None:
        while True:
            self._end_withdrawn(batch)
            if self._company is None and batch.key == PLAIN and self._has_company(batch):
                self._company = company_of(self._setting.model, self._generator.pad)
            with self._lock:
                if self._closed:
                    rows = batch.running
                elif self._take(batch):
                    rows = []
                    self._start_batches()
                else:
                    self._leave(batch)
                    return
                closed = self._closed
            if closed:
                self._tell([self._ended(row) for row in rows])
                with self._lock:
                    self._leave(batch)
                return
            self._generate(batch)

    def _has_company(self, batch: _Batch) -> bool:
        with self._lock:
            return len(batch.running) + sum(self._key(row) == PLAIN for row in self._waiting) > 1

    def _leave(self, batch: _Batch) -> None:
        self._batches.remove(batch)
        if not self._closed:
            self._start_batches()

    def _generate(self, batch: _Batch) -> None:
        scores = {
            row.job.id: self._scored(row) for row in batch.rows if row.job.prompt_logprobs and row.left == row.chooser.limit
        }
        full = [row for row in batch.rows if row.left <= 0]
        self._tell([replace(row.end("length"), prompt_logprobs=scores.pop(row.job.id, ())) for row in full])
        self._begin(batch)
        rows = batch.running
        if not rows:
            return
        batch.began, batch.ready = time.perf_counter(), None

        def report(outputs: Sequence[Output], sequences: int, tokens: int) -> None:
            told = [replace(each, prompt_logprobs=scores.pop(each.id)) if each.id in scores else each for each in outputs]
            self._step(batch, told, sequences, tokens)

        try:
            inputs = self._sights(rows[0].job)
            if rows[0].divided.theirs:
                self._generator.decode_theirs(rows[0], report, inputs)
            else:
                self._generator.decode(rows, report, inputs)
        except Left:
            return
        except GalleryError as exc:
            self._fail(batch, exc)
        except Exception as exc:  # the arguments of requests make generate() raise whatever there is
            if is_shortage(exc):
                self._fail(batch, WorkerDied(f"there was no memory for this batch of {len(rows)} answers: {exc}"))
            elif isinstance(exc, torch.AcceleratorError) or (rows[0].divided.is_plain and not rows[0].job.images):
                raise
            else:
                self._fail(batch, _refusal(exc, tuple(rows[0].divided.arguments)))

    def _begin(self, batch: _Batch) -> None:
        """What the constraints of new rows force before anything is computed."""
        begun = [(row, row.chooser.begin()) for row in batch.running if not row.chooser.sequence.generated]
        for row, chosen in begun:
            if chosen is not None:
                row.is_finished = chosen.output.finish is not None
        self._tell([chosen.output for _, chosen in begun if chosen is not None])

    def _step(self, batch: _Batch, outputs: Sequence[Output], sequences: int, tokens: int) -> None:
        """After each step of a batch. Raises Left."""
        now = time.perf_counter()
        batch.ready = batch.ready or now
        self._tell(outputs, sequences, tokens)
        self._setting.turns.pass_on()
        self._end_withdrawn(batch)
        if self._closed or not batch.running or self._is_due(batch, now):
            raise Left

    def _is_due(self, batch: _Batch, now: float) -> bool:
        """It has decoded for long enough to be made anew, and somebody gains by it."""
        if not self._joins(batch) or batch.ready is None or now - batch.ready < batch.ready - batch.began:
            return False
        with self._lock:
            has_room = len(self._running()) < self._setting.slots or self._company != "any"
            joins = has_room and any(self._key(row) == PLAIN for row in self._waiting)
        return joins or 2 * len(batch.running) <= len(batch.rows)

    def _end_withdrawn(self, batch: _Batch) -> None:
        with self._lock:
            rows = [row for row in (*batch.rows, *self._waiting) if row.job.id in self._withdrawn and not row.is_finished]
            gone = set(map(id, rows))
            self._waiting = [row for row in self._waiting if id(row) not in gone]
        self._tell([row.end("cancelled") for row in rows])

    def _tell(self, outputs: Sequence[Output], sequences: int = 0, tokens: int = 0) -> None:
        """The turn is held. A report without a decode repeats the last step's number."""
        with self._lock:
            for output in outputs:
                if output.finish is not None:
                    self._open.pop(output.id, None)
                    self._withdrawn.discard(output.id)
            waiting = len(self._waiting)
        steps = self._setting.steps
        number = steps.next() if sequences else steps.last
        if outputs or sequences:
            self._setting.emit.step(outputs, StepStats(number, sequences, tokens, waiting))

    def _ended(self, row: Row) -> Output:
        finish: Finish = "error" if self._failure else "cancelled"
        return row.end(finish, self._failure)

    def _fail(self, batch: _Batch, error: GalleryError) -> None:
        self._tell([replace(row.end("error", error.message), error=error.info()) for row in batch.running])

    def _break(self, batch: _Batch, error: Exception) -> None:
        """Other batches see at their next step that all is over."""
        with self._lock:
            self._closed = True
            self._failure = f"the engine failed: {type(error).__name__}: {error}"
            rows, self._waiting = [*batch.running, *self._waiting], []
            self._batches.remove(batch)
        try:
            with self._setting.turns:
                self._tell([self._ended(row) for row in rows])
        finally:
            self._setting.emit.fatal(error)

    # --- the model -------------------------------------------------------------------------------------------------------------

    def _sights(self, job: Job) -> Mapping[str, Any]:
        """What the images of a job are to the model, where and as it computes."""
        if self._inputs is None or not job.images:
            return {}
        device, dtype = self._setting.model.get_input_embeddings().weight.device, self._setting.model.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, torch.Tensor) else value
            for name, value in self._inputs(job).items()
        }

    def _scored(self, row: Row) -> Any:
        """The log probabilities of the row's prompt."""
        scorer = PromptScorer(row.job, self._setting)
        while not scorer.is_done:
            if self._closed or row.job.id in self._withdrawn:
                return ()
            scorer.advance()
        return tuple(scorer.scores)


def _refusal(error: Exception, arguments: Sequence[str]) -> GalleryError:
    """What generate() raised, with these arguments, or else with images."""
    what = f"generate() failed with {', '.join(arguments) or 'these images'}: {type(error).__name__}: {error}"
    kind = UnsupportedField if isinstance(error, (ImportError, AssertionError, NotImplementedError)) else InvalidField
    return kind(what[:LONGEST_REASON], field=arguments[0] if arguments else "messages")


def _own_config(said: Any, ends: Sequence[int], pad: int) -> GenerationConfig:
    """Of generation_config.json what tokens mean; the rest of it would choose tokens, or is refused by generate() itself, such as
    penalty_alpha, and what it says to samplers, ours does not heed in the other engine either."""
    told = {name: value for name in OWN_TOKENS if isinstance(value := getattr(said, name, None), (int, list))}
    return GenerationConfig(**told, eos_token_id=list(ends) or None, pad_token_id=pad)


def _generator(setting: Setting, tap: Tap) -> Generator:
    size = setting.model.get_input_embeddings().weight.shape[0]
    ends = tuple(sorted(token for token in setting.ends if token < size))
    pad = setting.model.generation_config.pad_token_id
    if not isinstance(pad, int) or not 0 <= pad < size:
        pad = ends[0] if ends else 0
    setting.model.generation_config = _own_config(setting.model.generation_config, ends, pad)
    return Generator(setting.model, setting.vocabulary, ends, pad, tap)
