"""echo: answers with the last user message. No weights, no model; the same engine as the real backends."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmgallery.backends.base import BackendSpec


class EchoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What tests and demos ask of echo beside an answer."""

    reply: Annotated[str | None, Meta(description="answer this, whatever was said")] = None
    delay_ms: Annotated[Annotated[float, Meta(ge=0)], Meta(description="time of one step")] = 0
    load_steps: Annotated[Annotated[int, Meta(ge=1)], Meta(description="parts in which loading reports progress")] = 1
    load_gate: Annotated[str | None, Meta(description="loading ends when this file exists")] = None
    fail_load: Annotated[str | None, Meta(description="do not load, with this message")] = None
    gate: Annotated[str | None, Meta(description="generate only while this file exists")] = None
    gate_after: Annotated[Annotated[int, Meta(ge=0)], Meta(description="tokens of an answer that pass the gate freely")] = 0
    crash_on: Annotated[str | None, Meta(description="kill the process in a step when a prompt holds this text")] = None
    crash_after: Annotated[Annotated[int, Meta(ge=0)], Meta(description="tokens of the answer before that")] = 0
    encoder: Annotated[bool, Meta(description="vectors and scores only, no text")] = False
    logits: Annotated[bool, Meta(description="scores from -4 to 4 instead of 0 to 1")] = False
    fills_in: Annotated[bool, Meta(description="have tokens around a gap to fill in; the answer is what follows it")] = False
    crash_signal: Annotated[Literal["SIGSEGV", "SIGKILL", "SIGABRT"], Meta(description="the signal that kills it")] = "SIGSEGV"


SPEC = BackendSpec(
    name="echo",
    implementation="llmgallery.backends.echo.backend:EchoBackend",
    options=EchoOptions,
    capabilities=frozenset({"generate", "embed", "rerank", "logprobs", "prompt_logprobs", "seed", "suffix"}),
    keys=frozenset({"context_size", "parallel", "options", "parameters.batch", "embeddings", "reranking"}),
    needs_weights=False,
    unset={"context_size": 2048, "parallel": 8, "parameters.batch": 512, "embeddings": False, "reranking": False},
)
