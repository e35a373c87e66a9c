"""generate() as a loop of steps: our sampler in the place of a logits processor, and a place to stop after each token."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import MaxTimeCriteria
from transformers.generation.streamers import BaseStreamer

from llmgallery.backends.transformers.generation.generate_arguments import Divided
from llmgallery.backends.transformers.generation.stop_texts import StopTexts
from llmgallery.core.jobs import Job, Output
from llmgallery.core.sampling import DEFAULTS, Sampling
from llmgallery.engine.choosing import Chooser
from llmgallery.engine.growth import Finish, Vocabulary, tell
from llmgallery.engine.plan import Sampled
from llmgallery.engine.sampler import Floats

Report = Callable[[Sequence[Output], int, int], None]
"""Tells a step's outputs, how many rows shared it, and how many tokens it computed; then others may compute, and this may raise
Left."""


class Left(Exception):
    """generate() was left between two steps: what is not finished goes on later, or has been ended."""


@dataclass(eq=False)
class Row:
    """A job, its wishes, and its answer so far. `served`: when it was in a batch last; `fed`: how many tokens of the answer the
    model has got; those behind them were forced."""

    job: Job
    divided: Divided
    chooser: Chooser
    is_finished: bool = False
    served: int = 0
    fed: int = 0

    @property
    def known(self) -> tuple[int, ...]:
        """The prompt and what has come."""
        return self.chooser.sequence.known

    @property
    def beams(self) -> int:
        """How many KV caches it fills."""
        return int(self.divided.arguments.get("num_beams", 1))

    @property
    def left(self) -> int:
        """How many tokens may still come."""
        return self.chooser.sequence.left

    def end(self, finish: Finish, message: str = "") -> Output:
        self.is_finished = True
        return self.chooser.end(finish, message)


class Tap:
    """The logits of the last position as the model gave them: processors of generate() have changed those that come to ours.
    Of each thread its own, and only where it listens."""

    def __init__(self, model: Any) -> None:
        self._thread = threading.local()
        self._hook = model.register_forward_hook(self._hear, with_kwargs=False)

    def listen(self) -> None:
        """To the next forward of this thread, and no further one."""
        self._thread.listens, self._thread.heard = True, None

    def take(self) -> torch.Tensor | None:
        heard: torch.Tensor | None = getattr(self._thread, "heard", None)
        self._thread.listens, self._thread.heard = False, None
        return heard

    def close(self) -> None:
        self._hook.remove()

    def _hear(self, module: Any, inputs: Any, output: Any) -> None:
        if getattr(self._thread, "listens", False):
            self._thread.heard = output.logits[:, -1].detach().float()
            self._thread.listens = False


@dataclass(frozen=True)
class Generator:
    """How one model is asked. `ends`: its end tokens; `pad`: a token that stands where none is."""

    model: Any
    vocabulary: Vocabulary
    ends: tuple[int, ...]
    pad: int
    tap: Tap

    def decode(self, rows: Sequence[Row], report: Report, inputs: Mapping[str, Any]) -> None:
        """Generate until all rows are finished; those of one call have the same arguments, and our sampler chooses."""
        arguments = dict(rows[0].divided.arguments)
        criteria = self._own_criteria(rows[0], arguments)
        ends = _ends(arguments, self.ends)
        arguments["eos_token_id"] = list(ends) or None
        taps = any(row.job.logprobs is not None for row in rows) and not rows[0].divided.is_plain
        steps = _Steps(rows, report, self.tap if taps else None, frozenset(ends), self.pad, criteria)
        self._generate(rows, self._config(arguments, rows, {"do_sample": False}), inputs, steps, [steps.criterion])

    def decode_theirs(self, row: Row, report: Report, inputs: Mapping[str, Any]) -> None:
        """Generate one answer with transformers' own way of choosing. Beams tell nothing before the end."""
        sampling = row.job.sampling.over(DEFAULTS)
        arguments = {**_sampling_arguments(sampling, self.ends), **row.divided.arguments}
        ends = frozenset(_ends(arguments, self.ends))
        arguments["eos_token_id"] = sorted(ends) or None
        criteria = self._own_criteria(row, arguments)
        seed = sampling.seed
        torch.manual_seed(secrets.randbits(63) if seed is None or seed == -1 else seed % 2**63)
        teller = _Teller(row, self.vocabulary, ends, _with_own_randomness(report, self.model.device))
        config = self._config(arguments, [row], {})
        told = self._generate([row], config, inputs, None, [teller.criterion, *criteria], None if row.beams > 1 else teller)
        tokens = told[0].tolist()
        teller.finish(tokens[1:] if self.model.config.is_encoder_decoder else tokens[len(row.known) :])

    def _generate(
        self,
        rows: Sequence[Row],
        config: GenerationConfig,
        inputs: Mapping[str, Any],
        processor: LogitsProcessor | None,
        criteria: Sequence[StoppingCriteria],
        streamer: BaseStreamer | None = None,
    ) -> torch.Tensor:
        ids, mask = self._padded(rows)
        told: torch.Tensor = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([processor] if processor else []),
            stopping_criteria=StoppingCriteriaList(criteria),
            streamer=streamer,
            **inputs,
        )
        return told

    def _config(self, arguments: Mapping[str, Any], rows: Sequence[Row], more: Mapping[str, Any]) -> GenerationConfig:
        """What they do not say is neutral."""
        neutral = {"repetition_penalty": 1.0, "num_beams": 1, "num_return_sequences": 1, "cache_implementation": "dynamic"}
        if "assistant_early_exit" in arguments:
            neutral.pop("cache_implementation")  # it brings a cache of its own
        longest = max(row.left for row in rows)
        return GenerationConfig(
            **{**neutral, **arguments, **more}, max_new_tokens=longest, pad_token_id=self.pad, return_dict_in_generate=False
        )

    def _padded(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts that are continued end together; those of an encoder begin together."""
        width = max(len(row.known) for row in rows)
        ids = np.full((len(rows), width), self.pad, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for place, row in enumerate(rows):
            known = row.known
            span = slice(0, len(known)) if self.model.config.is_encoder_decoder else slice(width - len(known), width)
            ids[place, span], mask[place, span] = known, 1
        device = self.model.get_input_embeddings().weight.device
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)

    def _own_criteria(self, row: Row, arguments: dict[str, Any]) -> list[StoppingCriteria]:
        """Those of whose end generate() would tell nobody which it was; they are taken out. `row`: one of the batch."""
        criteria: list[StoppingCriteria] = []
        if (seconds := arguments.pop("max_time", None)) is not None:
            criteria.append(MaxTimeCriteria(max_time=seconds))
        if texts := arguments.pop("stop_strings", None):
            start = 1 if self.model.config.is_encoder_decoder else len(row.known)
            criteria.append(StopTexts([texts] if isinstance(texts, str) else texts, self.vocabulary, start))
        return criteria


class _Steps(LogitsProcessor):  # type: ignore[misc]
    """Chooses the next token of every row, and leaves generate() nothing to choose."""

    def __init__(
        self,
        rows: Sequence[Row],
        report: Report,
        tap: Tap | None,
        ends: frozenset[int],
        pad: int,
        criteria: Sequence[StoppingCriteria],
    ) -> None:
        self._rows = rows
        self._report = report
        self._tap = tap
        self._ends = ends
        self._pad = pad
        self._criteria = criteria
        self._outputs: list[Output] = []
        self._computed = sum(len(row.known) for row in rows)
        self._sequences = len(rows)
        for row in rows:
            row.fed = len(row.chooser.sequence.generated)
        self.criterion = _Criterion(self._stepped)
        if tap is not None:
            tap.listen()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logits = _numpy(scores)
        raw = None if self._tap is None or (heard := self._tap.take()) is None else _numpy(heard)
        self._outputs = []
        self._sequences = sum(not row.is_finished for row in self._rows)
        tokens = [self._choose(place, row, logits, raw) for place, row in enumerate(self._rows)]
        chosen = torch.full_like(scores, -torch.inf)
        chosen[torch.arange(len(tokens)), torch.tensor(tokens)] = 0
        return chosen

    def _choose(self, place: int, row: Row, logits: Floats, raw: Floats | None) -> int:
        if row.is_finished:
            return self._pad
        known = row.chooser.sequence.generated
        row.fed += 1
        if row.fed <= len(known):
            return known[row.fed - 1]
        chosen = row.chooser.choose(logits[place], told=None if raw is None else raw[place])
        output = chosen.output
        if output.finish is None and chosen.token in self._ends:
            output = _ended(output, row, "stop")
        row.is_finished = output.finish is not None
        self._outputs.append(output)
        return chosen.token

    def _stepped(self, ids: torch.Tensor) -> torch.Tensor:
        for criterion in self._criteria:
            done = criterion(ids, None).tolist()
            self._outputs = [
                output if output.finish or not done[place] else self._stop(output)
                for output in self._outputs
                for place in (self._place(output.id),)
            ]
        computed, self._computed = self._computed, self._sequences
        self._report(self._outputs, self._sequences, computed)
        if self._tap is not None:
            self._tap.listen()
        return torch.tensor([row.is_finished for row in self._rows], device=ids.device)

    def _place(self, id: int) -> int:
        return next(place for place, row in enumerate(self._rows) if row.job.id == id)

    def _stop(self, output: Output) -> Output:
        row = self._rows[self._place(output.id)]
        row.is_finished = True
        return _ended(output, row, "stop")


class _Criterion(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, stepped: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._stepped = stepped

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return self._stepped(input_ids)


class _Teller(BaseStreamer):  # type: ignore[misc]
    """Tells what transformers has chosen: each token as it comes, or all of the best beam."""

    def __init__(self, row: Row, vocabulary: Vocabulary, ends: frozenset[int], report: Report) -> None:
        self._row = row
        self._vocabulary = vocabulary
        self._ends = ends
        self._report = report
        self._prompt_came = False
        self._told = 0
        self._computed = len(row.known)
        self.criterion = _Criterion(self._stepped)

    def put(self, value: torch.Tensor) -> None:
        """The prompt comes first."""
        if not self._prompt_came:
            self._prompt_came = True
            return
        output = self._tell(value.flatten().tolist())
        computed, self._computed = self._computed, value.numel()
        self._report([output] if output else [], 1, computed)
        if self._row.is_finished:
            raise Left

    def end(self) -> None:
        """`finish` follows."""

    def finish(self, tokens: Sequence[int]) -> None:
        """All tokens of the answer; transformers has ended it, whatever for."""
        if self._row.is_finished:
            return
        output = self._tell(tokens[self._told :])
        outputs = [output] if output else []
        if not self._row.is_finished:
            outputs.append(self._row.end("stop"))
        self._report(outputs, 0, 0)

    def _tell(self, tokens: Sequence[int]) -> Output | None:
        if self._row.is_finished or not tokens:
            return None
        count = next((place + 1 for place, token in enumerate(tokens) if token in self._ends), len(tokens))
        output = tell(self._row.chooser.sequence, Sampled(tuple(tokens[:count])), self._vocabulary)
        self._told += count
        if output.finish is None and tokens[count - 1] not in self._ends:
            return output
        self._row.is_finished = True
        return _ended(output, self._row, output.finish or "stop")

    def _stepped(self, ids: torch.Tensor) -> torch.Tensor:
        """Beams change until the end: there is nothing to tell."""
        if self._row.beams > 1:
            computed, self._computed = self._computed, len(ids)
            self._report([], 1, computed)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def _with_own_randomness(report: Report, device: torch.device) -> Report:
    """While others have their turns, they draw from the same generator, of which there is one."""

    def told(outputs: Sequence[Output], sequences: int, tokens: int) -> None:
        state, on_gpu = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        report(outputs, sequences, tokens)
        torch.set_rng_state(state)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)

    return told


def _ended(output: Output, row: Row, finish: Finish) -> Output:
    return replace(output, finish=finish, text=output.text + row.chooser.sequence.text.flush())


def _ends(arguments: Mapping[str, Any], ends: Sequence[int]) -> tuple[int, ...]:
    """Those of the arguments come in their place, as generate() has it."""
    given = arguments.get("eos_token_id")
    if given is None:
        return tuple(ends)
    return (given,) if isinstance(given, int) else tuple(given)


def _sampling_arguments(sampling: Sampling, ends: Sequence[int]) -> dict[str, Any]:
    """Our sampling fields in transformers' words; `sampling` is complete."""
    arguments: dict[str, Any] = {"do_sample": bool(sampling.temperature), "repetition_penalty": sampling.repeat_penalty or 1.0}
    if sampling.temperature:
        arguments |= {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "typical_p": sampling.typical_p,
        }
    if sampling.logit_bias:
        arguments["sequence_bias"] = [[[token], bias] for token, bias in sampling.logit_bias.items()]
    if sampling.ignore_eos and ends:
        arguments["suppress_tokens"] = list(ends)
    return arguments


def _numpy(scores: torch.Tensor) -> Floats:
    rows: Floats = scores.detach().to("cpu", torch.float32).numpy()
    return rows
