"""How much a model will take, and how much there is. Bytes everywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llmgallery.backends.base import Files
from llmgallery.catalog import gguf
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights
from llmgallery.runtime import folder_needs

WEIGHTS_FACTOR = 1.1  # compute buffers and the process itself, beside the weights
KV_SHARE = 0.25  # of what is free, for slots that nobody asked for
MOST_SLOTS = 8
SMALLEST_CONTEXT = 2048  # tokens; less is no conversation
DEFAULT_CONTEXT = 4096  # for a header that does not tell
POOLED_TOKENS = 512  # of a decode that makes embeddings
POOLED_LOGITS = 256 << 20
ACTIVATION_BYTES = 32  # of each number of an embedding, for each token of an encoder's input: measured
MEASURED_SHARE = 0.9  # of the available memory: the rest is the system's


def available() -> int:
    """What a new process may take now: the kernel's estimate, or less when a container's limit says so."""
    system = _meminfo("MemAvailable")
    limits = [left for left in (system, _cgroup_left()) if left is not None]
    return min(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class Plan:
    """A configuration with `parallel` and `context_size` decided, and what it will take: `bytes` in all, of which
    `cache_bytes` for each token of each of the `caches` (0 = not known). `shrunk_from`: the context that the model has, when
    that did not fit and nobody had asked for it; `own_context`: the context that it has."""

    config: ModelConfig
    bytes: int
    cache_bytes: float = 0.0
    shrunk_from: int | None = None
    own_context: int | None = None
    caches: int = 1

    def advice(self, most: int) -> str:
        """What would make it fit into `most` bytes."""
        context, slots = self.config.context_size, self.config.parallel
        if self.cache_bytes and context and slots:
            left = most - (self.bytes - self.cache_bytes * context * self.caches)
            fitting = min(int(left / self.cache_bytes), self.own_context or context) // 256 * 256
            if fitting >= 256:
                return f"context_size: {fitting} and parallel: 1 would fit (now {context} and {slots})"
        return "take a smaller quantisation, or set memory_budget if the machine has more than it seems"


def plan(config: ModelConfig, files: Files, free: int, most: int) -> Plan:
    """Weights x 1.1 + KV cache by the header, the same for the draft model, adapters by their size. Files that are no GGUF
    count by their size; folders by what is in them.

    `most`: what could be had if every idle model went. A context that nobody set is the model's own, or what fits into
    `most`; it is never cut below SMALLEST_CONTEXT.
    """
    if files.weights and files.weights[0].is_dir():
        return _plan_folder(config, files, free, most)
    weights = sum(file.stat().st_size for file in (*files.weights, *files.draft, *files.adapters) if file.is_file())
    base = int(weights * WEIGHTS_FACTOR)
    header, draft = _header(files.weights), _header(files.draft)
    if header is None:
        return Plan(config, base)
    own = header.context_length or DEFAULT_CONTEXT
    types = (config.cache_type_k or "f16", config.cache_type_v or "f16")
    per_token = (_cache_bytes(header, draft, own, types) + _pooled_bytes(header, config, own, types)) / own
    context = config.context_size or fitting_context(own, per_token, most - base)
    one = _cache_bytes(header, draft, context, types)
    base += _pooled_bytes(header, config, context, types)
    slots = config.parallel or (MOST_SLOTS if _shares_cache(config) else default_slots(one, free - weights))
    planned = msgspec.structs.replace(config, parallel=slots, context_size=context)
    shrunk = own if config.context_size is None and context < own else None
    caches = 1 if _shares_cache(config) else slots
    return Plan(planned, base + one * caches, one / context, shrunk, own, caches)


def _plan_folder(config: ModelConfig, files: Files, free: int, most: int) -> Plan:
    """As plan, by the headers of the files and config.json; raises BadWeights for a folder that cannot be read."""
    try:
        needs, *drafts = [
            folder_needs.needs(config if index == 0 else ModelConfig(), folder)
            for index, folder in enumerate((files.weights[0], *files.draft))
            if folder.is_dir()
        ]
        beside = sum(file.stat().st_size for folder in files.adapters for file in _files_in(folder))
    except OSError as exc:
        raise BadWeights(f"{exc.filename} cannot be read: {exc.strerror}") from exc
    weights = needs.weights + beside + sum(draft.weights for draft in drafts)
    base = int(weights * WEIGHTS_FACTOR)
    own = needs.context or DEFAULT_CONTEXT
    cache = needs.cache + sum(draft.cache for draft in drafts)
    per_token = cache + needs.computing(own) / own
    context = config.context_size or config.max_model_len or fitting_context(own, per_token, most - base)
    slots = config.parallel or default_slots(cache * context, free - weights)
    planned = msgspec.structs.replace(config, parallel=slots, context_size=context)
    shrunk = own if config.context_size is None and context < own else None
    one = cache * context
    return Plan(planned, base + needs.computing(context) + one * slots, float(cache), shrunk, own, slots)


def _files_in(path: Path) -> list[Path]:
    """The file, or the files of a folder."""
    return [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]


def _shares_cache(config: ModelConfig) -> bool:
    """All requests share one cache of `context_size`; else each slot has its own."""
    return isinstance(config.options, dict) and config.options.get("kv_unified") is True


def _cache_bytes(header: gguf.Header, draft: gguf.Header | None, context: int, types: tuple[str, str]) -> int:
    """Of one slot, in both models. Encoders keep none; a draft model keeps F16, and no more than it was trained for."""
    own = gguf.kv_bytes(header, context, 1, *types) if gguf.is_causal(header) else 0
    return own + (gguf.kv_bytes(draft, min(context, draft.context_length or context)) if draft is not None else 0)


def _pooled_bytes(header: gguf.Header, config: ModelConfig, context: int, types: tuple[str, str]) -> int:
    """Of llama.cpp's context for embeddings or scores. An encoder computes an input at once, and llama.cpp sets the logits of
    all its tokens aside (though it computes none); a causal model does so for a decode's, and keeps one cache more."""
    if not gguf.is_causal(header):
        logits = 4 * header.num_tokens * max(context, POOLED_TOKENS)
        return logits + ACTIVATION_BYTES * header.embedding_length * context + 2 * context * context  # the mask, in F16
    if not config.embeddings and not config.reranking:
        return 0
    logits = 8 * header.num_tokens * POOLED_TOKENS  # computed once, then copied
    return gguf.kv_bytes(header, context + POOLED_TOKENS, 1, *types) + min(logits, POOLED_LOGITS)


def fitting_context(own: int, per_token: float, room: int) -> int:
    """The model's own context size, or the largest multiple of 256 below it whose cache fits into `room` bytes. What is not
    worth having is not offered: then the model's own comes back, and does not fit."""
    fitting = int(room / per_token) // 256 * 256 if per_token else own
    return own if fitting >= own or fitting < SMALLEST_CONTEXT else fitting


def default_slots(kv_bytes: int, free: int) -> int:
    """As many requests at once as a share of the free memory holds contexts for, 1 to 8."""
    return max(1, min(MOST_SLOTS, int(free * KV_SHARE) // max(kv_bytes, 1)))


def _header(files: Sequence[Path]) -> gguf.Header | None:
    for file in files[:1]:
        try:
            return gguf.read_header(file) if file.is_file() else None
        except BadWeights:
            return None  # the backend will say what is wrong with it
    return None


def _meminfo(key: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else None


def _cgroup_left(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group (version 2, then 1) still allows; None without a limit."""
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            text = (root / limit).read_text().strip()
            taken = int((root / used).read_text())
            most = 1 << 62 if text == "max" else int(text)
        except (OSError, ValueError):
            continue
        if most < 1 << 60:  # version 1 says "no limit" with a huge number
            return max(0, most - taken)
    return None
