"""ExLlamaV3's generator: the only file that imports exllamav3. Its tokens are chosen by ours, in place of its sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from exllamav3 import Cache, CacheLayer_fp16, CacheLayer_quant, Config, Generator, Job, Model, Tokenizer
from exllamav3.generator.sampler import Sampler

from llmgallery.backends.exllama.library import Plan, Told
from llmgallery.backends.exllama.memory import allocated, free
from llmgallery.core.errors import ContextExceeded
from llmgallery.engine.choosing import Chooser

PAGE = 256


class _Choice(Sampler):  # type: ignore[misc]
    """In place of the library's sampler. `drafts`: positions of a window must be sampled one after the other, as each choice
    depends on those before it; the library does so for samplers that ask for the past."""

    def __init__(self, chooser: Chooser, told: Told, *, drafts: bool) -> None:
        super().__init__()
        self.reqs_past_ids = drafts
        self._chooser = chooser
        self._told = told
        self.job: Any = None

    def forward(self, logits: Any, *args: Any, **kwargs: Any) -> Any:
        """`logits`: (1, 1, vocabulary) on the GPU; the token comes back as (1, 1)."""
        sequence = self._chooser.sequence
        if not sequence.generated and self.job is not None:
            sequence.cached = min(self.job.cached_pages * PAGE + self.job.cached_tokens, len(sequence.prompt))
        chosen = self._chooser.choose(logits.float().cpu().numpy().reshape(-1))
        self._told(self._chooser, chosen)
        return torch.tensor([[chosen.token]], dtype=torch.long, device=logits.device)


class V3:
    """Implements Library."""

    def __init__(self, plan: Plan, progress: Callable[[float], None]) -> None:
        self._plan = plan
        self.slots = plan.slots

        def told(done: int, total: int) -> None:
            progress(done / total if total else 1.0)

        self._model, self._cache, self._tokenizer = _loaded(plan, str(plan.folder), plan.bits, told)
        self._draft: Any = None
        draft_cache: Any = None
        if plan.draft:
            self._draft, draft_cache, _ = _loaded(plan, str(plan.draft), 4)
        self.vocab_size = int(self._tokenizer.actual_vocab_size)
        self._generator = Generator(
            model=self._model,
            cache=self._cache,
            tokenizer=self._tokenizer,
            max_batch_size=plan.slots,
            max_chunk_size=plan.chunk,
            draft_model=self._draft,
            draft_cache=draft_cache,
            num_draft_tokens=plan.drafts if plan.draft else None,
        )
        if plan.adapters:
            from exllamav3.model.lora import LoRA

            self._adapters = [LoRA.from_directory(self._model, str(path), scale) for path, scale in plan.adapters]

    @property
    def memory_bytes(self) -> int:
        return allocated()

    def enqueue(self, chooser: Chooser, told: Told) -> object:
        choice = _Choice(chooser, told, drafts=self._draft is not None)
        ticket = object()
        job = Job(
            input_ids=torch.tensor([list(chooser.job.prompt)], dtype=torch.long),
            max_new_tokens=chooser.limit,
            sampler=choice,
            stop_conditions=list(self._plan.ends),
            identifier=ticket,
        )
        choice.job = job
        try:
            self._generator.enqueue(job)
        except AssertionError as exc:
            raise ContextExceeded(f"the request does not fit the cache: {exc}", field="max_tokens") from exc
        return ticket

    def cancel(self, ticket: object) -> None:
        """By its identifier: the library replaces long jobs by others."""
        for job in [*self._generator.pending_jobs, *self._generator.active_jobs]:
            if job.identifier is ticket:
                self._generator.cancel(job)

    def iterate(self) -> Sequence[tuple[object, str]]:
        results = self._generator.iterate()
        return [(each["job"].identifier, str(each.get("error", ""))) for each in results if each["eos"]]

    def close(self) -> None:
        self._model.unload()
        if self._draft is not None:
            self._draft.unload()
        self._generator = self._cache = self._model = self._draft = self._tokenizer = None
        free()


def _loaded(plan: Plan, folder: str, bits: int, progress: Callable[[int, int], None] | None = None) -> tuple[Any, Any, Any]:
    """The cache is made before the model is loaded, which allocates it."""
    config = Config.from_directory(folder)
    model = Model.from_config(config)
    layers = {"layer_type": CacheLayer_fp16} if bits == 16 else {"layer_type": CacheLayer_quant, "k_bits": bits, "v_bits": bits}
    cache = Cache(model, max_num_tokens=plan.cache_size, max_batch_size=plan.slots, **layers)
    split = list(plan.gpu_split) if plan.gpu_split is not None else None
    model.load(use_per_device=split, callback=progress, progressbar=False, max_chunk_size=plan.chunk)
    return model, cache, Tokenizer.from_config(config)
