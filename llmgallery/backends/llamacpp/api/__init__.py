"""llama.cpp's C API with types: the only package that names its symbols. Pointers stay inside; freed by `close`."""

from __future__ import annotations

import os

# How long llama.cpp's threads spin before they sleep, when they wait for each other at every graph node. libgomp
# reads it once, when llama_cpp loads it. By its defaults they spin for milliseconds, which beside one busy process made a decode
# of two threads 20 times slower; or, as soon as a second thread of the process computes anything with them, hardly at all,
# which made every decode 1.7 times slower: "active" forbids that. docs/engine.md has what was measured.
os.environ.setdefault("OMP_WAIT_POLICY", "active")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from llmgallery.backends.llamacpp.api.adapter import Adapter, set_adapters
from llmgallery.backends.llamacpp.api.context import Batch, Context
from llmgallery.backends.llamacpp.api.model import Model, Vocab, can_offload, has_amx, start
from llmgallery.backends.llamacpp.api.params import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    NO_TOKEN,
    RANDOM_SEED,
    ROPE_SCALINGS,
    ContextParams,
    ModelParams,
)
from llmgallery.backends.llamacpp.api.sampler import Candidates, DrySampler, Sampler
from llmgallery.backends.llamacpp.api.shortlist import Shortlist

__all__ = [
    "CACHE_TYPES",
    "FLASH_ATTENTION",
    "NO_TOKEN",
    "RANDOM_SEED",
    "ROPE_SCALINGS",
    "Adapter",
    "Batch",
    "Candidates",
    "Context",
    "ContextParams",
    "DrySampler",
    "Model",
    "ModelParams",
    "Sampler",
    "Shortlist",
    "Vocab",
    "can_offload",
    "has_amx",
    "set_adapters",
    "start",
]
