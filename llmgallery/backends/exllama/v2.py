"""ExLlamaV2's dynamic generator: the only file that imports exllamav2. Its tokens are chosen by ours, through its filters."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from exllamav2 import (
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Cache_Q4,
    ExLlamaV2Cache_Q6,
    ExLlamaV2Cache_Q8,
    ExLlamaV2Config,
    ExLlamaV2Lora,
    ExLlamaV2Tokenizer,
    attn,
)
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler
from exllamav2.generator.filters import ExLlamaV2Filter

from llmgallery.backends.exllama.library import Plan, Told
from llmgallery.backends.exllama.memory import allocated, free
from llmgallery.backends.exllama.params import QUERY, lengths
from llmgallery.core.errors import ContextExceeded, LoadError
from llmgallery.engine.choosing import Chooser

CACHES = {16: ExLlamaV2Cache, 8: ExLlamaV2Cache_Q8, 6: ExLlamaV2Cache_Q6, 4: ExLlamaV2Cache_Q4}
PAGE = 256
NEWEST_FLASH = "flash-attn 2.5.7"


class _Choice(ExLlamaV2Filter):  # type: ignore[misc]
    """In place of the library's sampler: leaves it one token to take."""

    def __init__(self, model: Any, tokenizer: Any, chooser: Chooser, told: Told) -> None:
        super().__init__(model, tokenizer)
        self._chooser = chooser
        self._told = told
        self.job: Any = None

    def begin(self, prefix_str: str) -> None:
        pass

    def feed(self, token: Any) -> None:
        pass

    def next(self) -> tuple[None, None]:
        raise NotImplementedError("tokens are chosen from logits")

    def can_mask_logits(self) -> bool:
        return True

    def prepare_logit_mask(self) -> bool:
        return True

    def mask_logits(self, logits: Any) -> Any:
        """`logits`: one float32 for each token, in main memory."""
        sequence = self._chooser.sequence
        if not sequence.generated and self.job is not None:
            sequence.cached = min(self.job.cached_pages * PAGE + self.job.cached_tokens, len(sequence.prompt))
        chosen = self._chooser.choose(logits.float().numpy())
        self._told(self._chooser, chosen)
        left = torch.full_like(logits, -torch.inf)
        left[chosen.token] = 0
        return left


class V2:
    """Implements Library."""

    def __init__(self, plan: Plan, progress: Callable[[float], None]) -> None:
        """Raises LoadError for what the library refuses."""
        self._plan = plan
        config = _configured(str(plan.folder))
        self._paged = _pages(plan.paged, config)
        self.slots = plan.slots if self._paged else 1
        size = plan.cache_size if self._paged else _whole(plan.context_size)
        config.max_input_len, config.max_seq_len = lengths(plan, size, self.slots)
        self._model, self._cache = _loaded(plan, config, size, progress)
        self.vocab_size = int(self._model.config.vocab_size)
        self._tokenizer = ExLlamaV2Tokenizer(self._model.config)
        draft, draft_cache = _drafter(plan, size, self.slots) if plan.draft else (None, None)
        self._draft = draft
        self._drafts = plan.drafts if draft is not None else 0
        self._generator = ExLlamaV2DynamicGenerator(
            model=self._model,
            cache=self._cache,
            tokenizer=self._tokenizer,
            max_batch_size=self.slots,
            max_chunk_size=config.max_input_len,
            max_q_size=QUERY,
            draft_model=draft,
            draft_cache=draft_cache,
            num_draft_tokens=max(1, plan.drafts),
            paged=self._paged,
        )
        if plan.adapters:
            self._generator.set_loras(
                [ExLlamaV2Lora.from_directory(self._model, str(path), scale) for path, scale in plan.adapters]
            )

    @property
    def memory_bytes(self) -> int:
        return allocated()

    def enqueue(self, chooser: Chooser, told: Told) -> object:
        choice = _Choice(self._model, self._tokenizer, chooser, told)
        greedy = ExLlamaV2Sampler.Settings.greedy()
        job = ExLlamaV2DynamicJob(
            input_ids=torch.tensor([list(chooser.job.prompt)], dtype=torch.long),
            # The library ends a job so many tokens early as may be drafted beyond.
            max_new_tokens=chooser.limit + self._drafts,
            gen_settings=greedy,
            seed=random.getrandbits(31),
            stop_conditions=list(self._plan.ends),
            filters=[choice],
        )
        choice.job = job
        try:
            self._generator.enqueue(job)
        except AssertionError as exc:
            raise ContextExceeded(f"the request does not fit the cache: {exc}", field="max_tokens") from exc
        return job

    def cancel(self, ticket: object) -> None:
        self._generator.cancel(ticket)

    def iterate(self) -> Sequence[tuple[object, str]]:
        return [(each["job"], "") for each in self._generator.iterate() if each["eos"]]

    def close(self) -> None:
        self._model.unload()
        if self._draft is not None:
            self._draft.unload()
        self._generator = self._cache = self._model = self._draft = None
        free()


def _whole(context_size: int) -> int:
    """One request's tokens in whole pages, with one more for what is drafted beyond its end."""
    return (-(-context_size // PAGE) + 1) * PAGE


def _pages(wanted: bool | None, config: Any) -> bool:
    """Whether the cache is paged. Raises LoadError when it should be, and cannot."""
    there = bool(attn.has_flash_attn_with_paged) and not config.no_flash_attn
    if wanted and not there:
        raise LoadError(
            f"flash_attention: ExLlamaV2 answers several requests at once only with {NEWEST_FLASH} or newer, which is not "
            "installed; leave the key out to have one request at a time",
            field="flash_attention",
        )
    return there if wanted is None else wanted


def _configured(folder: str) -> Any:
    config = ExLlamaV2Config(folder)
    config.arch_compat_overrides()
    return config


def _loaded(plan: Plan, config: Any, size: int, progress: Callable[[float], None]) -> tuple[Any, Any]:
    model = ExLlamaV2(config)

    def told(done: int, total: int) -> None:
        progress(done / total if total else 1.0)

    if plan.gpu_split is not None:
        model.load(gpu_split=list(plan.gpu_split), callback=told)
        return model, CACHES[plan.bits](model, max_seq_len=size)
    cache = CACHES[plan.bits](model, max_seq_len=size, lazy=True)
    model.load_autosplit(cache, callback=told)
    return model, cache


def _drafter(plan: Plan, size: int, slots: int) -> tuple[Any, Any]:
    """The model that drafts, with a cache of the same size."""
    config = _configured(str(plan.draft))
    config.max_input_len, config.max_seq_len = lengths(plan, size, slots)
    model = ExLlamaV2(config)
    cache = ExLlamaV2Cache_Q4(model, max_seq_len=size, lazy=True)
    model.load_autosplit(cache)
    return model, cache
